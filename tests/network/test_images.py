import io
import os
import struct
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from vt_hub.network.images import read_image, to_channels

GRADIENT = np.tile(np.linspace(0, 1, 64), (48, 1))


def save(tmp_path, image, name='image.png', **kwargs):
    path = tmp_path / name
    image.save(path, **kwargs)
    return path


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16'])
def test_png_modes(tmp_path, mode):
    grey = Image.fromarray((GRADIENT * 255).astype(np.uint8))
    image = Image.fromarray((GRADIENT * 65535).astype(np.uint16)) if mode == 'I;16' else grey.convert(mode)
    read = read_image(save(tmp_path, image))
    assert read.mode == 'RGB'
    if mode != '1':
        assert np.abs(np.asarray(read)[..., 0] - GRADIENT * 255).max() <= 1


@pytest.mark.parametrize('scale', [1.0, 255.0])
def test_float_tiff(tmp_path, scale):
    image = Image.fromarray((GRADIENT * scale).astype(np.float32))
    assert np.abs(np.asarray(read_image(save(tmp_path, image, 'f.tif')))[..., 0] - GRADIENT * 255).max() <= 1


def test_cmyk_jpeg(tmp_path):
    image = Image.fromarray((GRADIENT * 255).astype(np.uint8)).convert('RGB').convert('CMYK')
    assert read_image(save(tmp_path, image, 'c.jpg')).mode == 'RGB'


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new('RGB', (40, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # rotate by 90 degrees
    assert read_image(save(tmp_path, image, 'o.jpg', exif=exif)).size == (20, 40)


def test_one_pixel(tmp_path):
    assert read_image(save(tmp_path, Image.new('L', (1, 1)))).size == (1, 1)


def png_bytes(size=(64, 64)):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)).save(buffer, 'PNG')
    return buffer.getvalue()


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        (b'', 'it is empty'),
        (b'hello, world', 'it is not an image'),
        (png_bytes()[:2000], 'truncated'),
        (None, 'No such file or directory'),
    ],
)
def test_bad_files_are_named_in_one_sentence(tmp_path, content, reason):
    path = tmp_path / 'bad.png'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=reason) as error:
        read_image(path)
    assert str(error.value).startswith(f'Cannot read {path} as an image: ')
    assert '\n' not in str(error.value)


def test_dark_images_of_16_bits_stay_dark(tmp_path):
    image = Image.fromarray(np.full((9, 9), 200, np.uint16))
    assert np.asarray(read_image(save(tmp_path, image))).max() <= 1


def test_palettes_with_transparency_are_read_silently(tmp_path, recwarn):
    image = Image.new('P', (9, 9))
    image.save(tmp_path / 'p.png', transparency=bytes([0, 128]))
    assert read_image(tmp_path / 'p.png').mode == 'RGB'
    assert not recwarn.list


def test_strips_are_refused(tmp_path):
    with pytest.raises(ValueError, match='it is a strip of 2000 x 1 pixels'):
        read_image(save(tmp_path, Image.new('L', (2000, 1))))


def test_postscript_is_not_run(tmp_path):
    path = tmp_path / 'loop.png'
    path.write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n%%EOF\n')
    with pytest.raises(ValueError, match='it is a PostScript program'):
        read_image(path)


def test_content_that_was_read_already(tmp_path):
    image = read_image('gone.png', content=png_bytes((5, 7)))
    assert (image.mode, image.size) == ('RGB', (7, 5))
    with pytest.raises(ValueError, match=r'Cannot read gone\.png as an image: it is empty'):
        read_image('gone.png', content=b'')


def test_channels(tmp_path):
    path = save(tmp_path, Image.new('RGB', (9, 9)))
    assert read_image(path, 1).mode == 'L'
    with pytest.raises(ValueError, match='A model with 2 channels'):
        read_image(path, 2)


def test_big_endian_tiff(tmp_path):
    """16 bits in the order of bytes that few computers have."""
    values = (GRADIENT * 65535).astype('>u2')
    entries = [(256, 3, 64), (257, 3, 48), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1),
               (278, 3, 48), (279, 4, values.nbytes)]  # fmt: skip
    fields = [struct.pack('>HHIHxx' if kind == 3 else '>HHII', tag, kind, 1, value) for tag, kind, value in entries]
    directory = struct.pack('>H', len(entries)) + b''.join(fields) + bytes(4)
    header = b'MM' + struct.pack('>HI', 42, 8 + values.nbytes)
    path = tmp_path / 'b.tif'
    path.write_bytes(header + values.tobytes() + directory)
    assert Image.open(path).mode == 'I;16B'
    assert np.abs(np.asarray(read_image(path))[..., 0] - GRADIENT * 255).max() <= 1


@pytest.mark.parametrize('suffix', ['png', 'jpg', 'webp'])
def test_a_damaged_exif_block_does_not_hide_the_picture(tmp_path, suffix):
    path = tmp_path / f'e.{suffix}'
    Image.new('RGB', (32, 24), 'red').save(path, exif=b'Exif\0\0garbage')
    assert read_image(path).size == (32, 24)
    image = Image.new('RGB', (32, 24))
    image.info['exif'] = b'garbage'
    assert to_channels(image).size == (32, 24)


def test_many_pixels_are_refused_and_the_limit_can_be_raised(tmp_path, monkeypatch):
    path = save(tmp_path, Image.new('L', (50, 40)), 'large.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1500)
    filters = list(warnings.filters)
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(ValueError, match=r'50 x 40 pixels, more than 1500; the environment variable VT_HUB_MAX_IMAGE'),
    ):
        read_image(path)
    assert list(warnings.filters)[-len(filters) :] == filters
    code = 'from PIL import Image; import vt_hub.network.images; print(Image.MAX_IMAGE_PIXELS)'
    environment = {**os.environ, 'VT_HUB_MAX_IMAGE_PIXELS': '2000'}
    done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '2000'


def test_threads_leave_the_warning_filters_alone(samples):
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read_image, [samples / 'scene.png'] * 64))
    assert list(warnings.filters) == before
