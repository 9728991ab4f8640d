"""Files that hurt careless readers of images, from a seed: python tests/hostile_images.py FOLDER [COUNT [SEED]]."""

import io
import os
import random
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

FORMATS = {'png': 'PNG', 'jpg': 'JPEG', 'gif': 'GIF', 'tif': 'TIFF', 'webp': 'WEBP', 'bmp': 'BMP', 'ppm': 'PPM'}
FORMATS |= {'ico': 'ICO', 'jp2': 'JPEG2000', 'tga': 'TGA', 'pcx': 'PCX', 'sgi': 'SGI'}
MODES = {
    'png': ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16'],
    'tif': ['1', 'L', 'CMYK', 'F', 'I', 'YCbCr', 'LAB', 'I;16'],
}
SIZES = [(1, 1), (1, 7), (3, 2), (31, 64), (999, 1), (1, 1001), (2000, 1), (200, 150)]
ZEROS = zlib.compress(bytes(1 << 26))
NAMES = [b'new\nline', 'snow ☃ é'.encode(), b'\xff\xfe', b'-rf', b'%s {}', b'"quoted" \\', b'[a-z]*', b' ', b'x' * 240]


def image(rng: random.Random, mode: str = 'RGB', size: tuple[int, int] = (40, 30)) -> Image.Image:
    pixels = np.random.default_rng(rng.getrandbits(32)).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    if mode == 'F':
        return Image.fromarray(pixels[..., 0].astype(np.float32) * np.float32(rng.choice([1, 1e-3, 1e30, np.nan])))
    if mode.startswith('I'):
        return Image.fromarray(pixels[..., 0].astype(np.uint16 if mode == 'I;16' else np.int32) * 257)
    picture = Image.fromarray(pixels)
    return picture.convert('RGB').convert(mode) if mode != 'LAB' else Image.merge('LAB', picture.split())


def encoded(picture: Image.Image, kind: str, **kwargs) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, FORMATS[kind], **kwargs)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png(width: int, height: int, *extra: bytes, data: bytes = b'') -> bytes:
    """A grey PNG that says it has some size."""
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + header + b''.join(extra) + chunk(b'IDAT', zlib.compress(data)) + chunk(b'IEND', b'')


def truncated(rng: random.Random) -> tuple[str, bytes]:
    kind = rng.choice(list(FORMATS))
    content = encoded(image(rng), kind)
    return kind, content[: rng.randrange(1, len(content))]


def flipped(rng: random.Random) -> tuple[str, bytes]:
    """Bits of any place, or of the header only."""
    kind = rng.choice(list(FORMATS))
    content = bytearray(encoded(image(rng), kind))
    end = rng.choice([64, len(content)])
    for _ in range(rng.choice([1, 4, 32])):
        content[rng.randrange(min(end, len(content)))] ^= 1 << rng.randrange(8)
    return kind, bytes(content)


def odd(rng: random.Random) -> tuple[str, bytes]:
    kind = rng.choice(list(MODES))
    return kind, encoded(image(rng, rng.choice(MODES[kind]), rng.choice(SIZES)), kind)


def misnamed(rng: random.Random) -> tuple[str, bytes]:
    return rng.choice(list(FORMATS)), encoded(image(rng), rng.choice(list(FORMATS)))


def no_image(rng: random.Random) -> tuple[str, bytes]:
    contents = [
        b'',
        b'\0' * 4096,
        rng.randbytes(2000),
        b'<html>not found</html>',
        b'\x89PNG\r\n\x1a\n',
        b'\xff\xd8\xff',
    ]
    contents += [
        b'GIF89a',
        b'II*\0' + b'\xff' * 64,
        b'RIFF\xff\xff\xff\xffWEBPVP8 ',
        b'P6 99999999 99999999 255 ',
        b'BM',
    ]
    contents += [b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', b'<svg xmlns="http://www.w3.org/2000/svg"/>']
    return rng.choice([*FORMATS, 'eps', 'psd', 'icns', 'fli', 'dds', 'cur']), rng.choice(contents)


def bomb(rng: random.Random) -> tuple[str, bytes]:
    """Small files that say they are large, or are when they are opened."""
    frames = [image(rng, size=(64, 64)) for _ in range(20)]
    return rng.choice(
        [
            lambda: ('png', png(60_000, 60_000)),
            lambda: ('png', png(2**31 - 1, 2**31 - 1)),
            lambda: ('png', png(0, 0)),
            lambda: ('png', png(12_000, 8_000)),
            lambda: ('png', png(8, 8, chunk(b'zTXt', b'text\0\0' + ZEROS), data=bytes(72))),
            lambda: ('png', png(8, 8, chunk(b'iCCP', b'name\0\0' + ZEROS), data=bytes(72))),
            lambda: ('png', png(8, 8, *[chunk(b'tEXt', b'k\0' + b'v' * 9000)] * 200, data=bytes(72))),
            lambda: ('gif', encoded(frames[0], 'gif', save_all=True, append_images=frames[1:])),
            lambda: ('tif', encoded(frames[0], 'tif', save_all=True, append_images=frames[1:])),
            lambda: ('jpg', encoded(image(rng, size=(2000, 1000)), 'jpg')),
            lambda: ('ppm', b'P6 9000 9000 255\n'),
        ]
    )()


def exif(rng: random.Random) -> tuple[str, bytes]:
    """Metadata that is damaged, or of an orientation that there is not."""
    data = Image.Exif()
    data[0x0112] = rng.choice([0, 6, 9, 65535])
    data[0x010E] = 'x' * 5000
    raw = bytearray(data.tobytes())
    for _ in range(rng.choice([0, 8])):
        raw[rng.randrange(6, len(raw))] ^= 0xFF
    return 'jpg', encoded(image(rng), 'jpg', exif=bytes(raw))


FILES = [truncated, truncated, flipped, flipped, flipped, odd, misnamed, no_image, bomb, exif]


def special(path: bytes, number: int):
    """Something that is no regular file, or one that may not be read."""
    if number == 0:
        os.mkdir(path)
    elif number == 1:
        os.symlink(os.path.basename(path), path)  # to itself
    elif number == 2:
        os.symlink(b'missing', path)
    elif number == 3:
        os.symlink(b'.', path)
    elif number == 4:
        os.mkfifo(path)
    elif number == 5:
        os.symlink(b'/dev/zero', path)
    else:
        os.close(os.open(path, os.O_CREAT, 0))


def write_hostile(folder: Path, count: int = 500, seed: int = 0):
    """Write a folder of files; every tenth is special, every seventh has a strange name, and some lie deep."""
    rng = random.Random(seed)
    for i in range(count):
        place = os.fsencode(folder) + rng.choice([b'', b'/sub', b'/sub/deep.png', b'/\xe9t\xe9'])
        os.makedirs(place, exist_ok=True)
        name = (rng.choice(NAMES) if i % 7 == 0 else b'') + b'%d.' % i
        if i % 10 == 0:
            special(os.path.join(place, name + b'png'), i // 10 % 7)
            continue
        kind, content = rng.choice(FILES)(rng)
        name += kind.upper().encode() if i % 9 == 0 else kind.encode()
        with open(os.path.join(place, name), 'wb') as file:
            file.write(content)


if __name__ == '__main__':
    write_hostile(Path(sys.argv[1]), *map(int, sys.argv[2:]))
