import hashlib
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vt_hub.synthesis import shapes
from vt_hub.synthesis.shapes import CLASSES, scene, single, write_shapes

AXIS = np.linspace(-1.2, 1.2, 301)
PLANE = AXIS + 1j * AXIS[:, None]


def outline(name, z=PLANE, seed=0):
    return shapes.SHAPES[name](np.asarray(z), np.random.default_rng(seed))


def area(distance):
    return (distance < 0).mean() * (AXIS[-1] - AXIS[0]) ** 2 * (301 / 300) ** 2


def digest(*args, **kwargs):
    return hashlib.sha256(b''.join(part.tobytes() for part in scene(*args, **kwargs))).hexdigest()


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_scene_is_a_function_of_its_arguments():
    assert digest(3, 5) == digest(3, 5)
    others = [digest(3, 6), digest(4, 5), digest(5, 3), digest(3, 5, split='val'), digest(3, 5, size=96)]
    assert len({digest(3, 5), *others}) == 6
    code = (
        'import hashlib; from vt_hub.synthesis.shapes import scene;'
        'print(hashlib.sha256(b"".join(part.tobytes() for part in scene(3, 5))).hexdigest())'
    )
    fresh = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert fresh.stdout.strip() == digest(3, 5)


def test_train_and_val_share_no_scene():
    train = {digest(seed, i, 32) for seed in (0, 1) for i in range(50)}
    val = {digest(seed, i, 32, 'val') for seed in (0, 1) for i in range(50)}
    assert len(train) == len(val) == 100
    assert not train & val


@pytest.mark.parametrize('size', [16, 50, 128])
def test_arrays(size):
    image, mask = scene(0, 0, size)
    assert image.shape == (size, size, 3)
    assert mask.shape == (size, size)
    assert image.dtype == mask.dtype == np.uint8
    assert image.std() > 10
    assert mask.max() < len(CLASSES)


def test_classes_are_equally_frequent():
    assert CLASSES[0] == 'background'
    assert len(set(CLASSES)) == len(CLASSES) >= 15
    masks = [scene(0, i, 48)[1] for i in range(400)]
    present = np.mean([np.isin(np.arange(len(CLASSES)), mask) for mask in masks], axis=0)
    assert present[1:].min() > 0.2  # 0.3 on the average
    assert present[1:].max() < 0.45
    assert 0.45 < np.mean([(mask == 0).mean() for mask in masks]) < 0.7


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('circle', math.pi),
        ('square', 2),
        ('pentagon', 2.5 * math.sin(math.tau / 5)),
        ('hexagon', 3 * math.sin(math.tau / 6)),
        ('heart', (0.5 + math.pi / 8) / 0.633**2),
    ],
)
def test_areas(name, expected):
    assert area(outline(name)) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize('name', shapes.SHAPES)
@pytest.mark.parametrize('seed', range(3))
def test_shapes_fill_their_circle(name, seed):
    inside = np.abs(PLANE[outline(name, seed=seed) < 0])
    assert 0.9 < inside.max() < 1.01


def test_distances_of_a_square():
    np.testing.assert_allclose(outline('square', [0, 2, 2j, 1 + 1j]), [-(0.5**0.5), 1, 1, 0.5**0.5])


@pytest.mark.parametrize('seed', range(5))
def test_what_tells_shapes_apart(seed):
    assert (outline('ring', 0.3 * shapes.around(20), seed) > 0).all()  # a hole all around
    crescent = outline('crescent', 0.95 * shapes.around(20), seed) > 0
    assert crescent.any()
    assert not crescent.all()  # open to one side
    turned = outline('cross', 1j * PLANE, seed)
    np.testing.assert_allclose(outline('cross', seed=seed), turned, atol=1e-9)
    for name, corners in {'triangle': 3, 'pentagon': 5, 'hexagon': 6}.items():
        rim = outline(name, 0.99 * shapes.around(720), seed) < 0
        assert (rim & ~np.roll(rim, 1)).sum() + rim.all() == corners


@pytest.mark.parametrize('seed', range(5))
def test_blobs_are_in_one_piece(seed):
    distance = shapes.blob(np.linspace(0, 1.2, 200)[:, None] * shapes.around(90), np.random.default_rng(seed))
    assert (distance[0] < 0).all()
    assert ((np.diff(np.sign(distance), axis=0) != 0).sum(0) == 1).all()  # each ray leaves it once
    assert (distance[170:] > 0).all()


@pytest.mark.parametrize('name', shapes.TEXTURES)
@pytest.mark.parametrize('seed', range(3))
def test_textures_show_both_colours(name, seed):
    distance = shapes.TEXTURES[name](3 * PLANE, np.random.default_rng(seed))
    assert 0.1 < (distance < 0).mean() < 0.9


def test_colours_stand_out():
    grey = np.float32([0.5, 0.5, 0.5])
    colours = [shapes.contrasting(np.random.default_rng(seed), [grey]) for seed in range(200)]
    contrast = np.linalg.norm((np.array(colours) - grey) * shapes.LUMA, axis=1)
    assert contrast.min() > 0.15
    assert np.median(contrast) > 0.29


@pytest.mark.parametrize('index', range(12))
def test_mask_is_what_is_on_top(monkeypatch, index):
    """Red says that there is an object, green which one it is, where no edge is mixed into the pixel."""
    count = itertools.count(1)

    def paint(*args):
        return np.float32([1, next(count) / 16, 0])

    monkeypatch.setattr(shapes, 'clouds', lambda rng: np.zeros((32, 32, 3), np.uint8))
    monkeypatch.setattr(shapes, 'draw_distractors', lambda *args: None)
    monkeypatch.setattr(shapes, 'photograph', lambda canvas, *args: canvas)
    monkeypatch.setattr(shapes, 'fill', paint)
    monkeypatch.setattr(shapes, 'weave', paint)
    canvas, mask = scene(0, index)
    red, green = canvas[..., 0], canvas[..., 1] * 16
    assert (red[mask > 0] >= 0.5 - 1e-6).all()
    assert ((red > 0.5) == (mask > 0)).mean() > 0.999  # two edges that meet can cover more than half of a pixel
    pure = (np.abs(green - np.rint(green)) < 1e-4) & ((red == 0) | (red == 1))
    assert pure.mean() > 0.85
    labels = [np.unique(mask[pure & (np.rint(green) == number)]) for number in range(next(count))]
    assert labels[0].tolist() == [0]
    assert all(len(label) <= 1 for label in labels)  # none, if it is hidden
    textured = [int(label[0]) >= CLASSES.index('stripes') for label in labels[1:] if len(label)]
    assert textured == sorted(textured, reverse=True)  # textures lie under all shapes


def test_size_is_but_the_number_of_pixels():
    """Every third pixel of three times the size has the same centre."""
    for index in range(5):
        image, mask = scene(0, index, 64)
        fine_image, fine_mask = scene(0, index, 192)
        assert np.array_equal(fine_mask[1::3, 1::3], mask)
        coarse = fine_image.reshape(64, 3, 64, 3, 3).mean((1, 3))
        assert np.abs(image - coarse).mean() < 12


def test_write_shapes(tmp_path):
    folder = tmp_path / 'new' / 'shapes'
    paths = list(write_shapes(folder, 11, 2, seed=7, size=24, workers=1))
    assert len(paths) == 13
    assert all(path.is_file() for path in paths)
    for split, count in (('train', 11), ('val', 2)):
        for kind in ('images', 'masks'):
            names = sorted(path.name for path in (folder / split / kind).iterdir())
            assert names == [f'{index:06d}.png' for index in range(count)]
        for index in range(count):
            image, mask = scene(7, index, 24, split)
            written = Image.open(folder / split / 'masks' / f'{index:06d}.png')
            assert written.mode == 'L'
            assert np.array_equal(written, mask)
            assert np.array_equal(Image.open(folder / split / 'images' / f'{index:06d}.png'), image)
    assert (folder / 'classes.txt').read_text().splitlines() == list(CLASSES)
    assert folder.stat().st_mode & 0o777 == 0o755
    assert list(folder.parent.iterdir()) == [folder]

    list(write_shapes(tmp_path / 'parallel', 11, 2, seed=7, size=24, workers=2))
    assert files(tmp_path / 'parallel') == files(folder)


def test_single_is_a_function_of_its_arguments():
    """The class goes through all of them with the index, so that any 16 in a row hold each once."""
    assert [single(0, index, 16)[1] for index in range(40)] == [*CLASSES[1:], *CLASSES[1:], *CLASSES[1:9]]
    image, name = single(3, 5, 48)
    assert (image.shape, image.dtype, name) == ((48, 48, 3), np.uint8, CLASSES[6])
    assert np.array_equal(single(3, 5, 48)[0], image)
    others = [single(4, 5, 48), single(3, 21, 48), single(3, 5, 48, split='val')]
    assert [other[1] for other in others] == [name] * 3
    assert len({image.tobytes() for image, _ in [(image, name), *others, (scene(3, 5, 48)[0], '')]}) == 5


def test_train_and_val_share_no_single():
    train = {single(seed, i, 24)[0].tobytes() for seed in (0, 1) for i in range(32)}
    val = {single(seed, i, 24, 'val')[0].tobytes() for seed in (0, 1) for i in range(32)}
    assert len(train) == len(val) == 64
    assert not train & val


def test_a_single_shows_one_object_of_its_class(monkeypatch):
    """Large enough to be seen, and not the whole image."""
    compose, masks = shapes.compose, []

    def keep(*args, **kwargs):
        image, mask = compose(*args, **kwargs)
        masks.append(mask)
        return image, mask

    monkeypatch.setattr(shapes, 'compose', keep)
    names = [single(1, index, 48)[1] for index in range(160)]
    for name, mask in zip(names, masks, strict=True):
        assert np.unique(mask).tolist() == [0, CLASSES.index(name)]
        assert 0.004 < (mask > 0).mean() < 0.8
    assert 0.05 < np.mean([(mask > 0).mean() for mask in masks]) < 0.4


def test_write_objects(tmp_path):
    paths = list(write_shapes(tmp_path / 'objects', 32, 16, seed=7, size=24, objects=True, workers=1))
    assert len(paths) == 48
    assert all(path.is_file() for path in paths)
    for split, count in (('train', 2), ('val', 1)):
        folder = tmp_path / 'objects' / split
        assert {path.name: len(list(path.iterdir())) for path in folder.iterdir()} == dict.fromkeys(CLASSES[1:], count)
        for path in folder.rglob('*.png'):
            image, name = single(7, int(path.stem), 24, split)
            assert path.parent.name == name
            assert np.array_equal(Image.open(path), image)
    assert sorted(path.name for path in (tmp_path / 'objects').iterdir()) == ['train', 'val']

    list(write_shapes(tmp_path / 'parallel', 32, 16, seed=7, size=24, objects=True, workers=2))
    assert files(tmp_path / 'parallel') == files(tmp_path / 'objects')


def test_the_command(run, tmp_path):
    arguments = ['--train', 3, '--val', 2, '--size', 16, '--seed', 4, '--workers', 1]
    code, out, err = run('synthesize', 'shapes', '--objects', '--out', tmp_path / 'objects', *arguments)
    assert (code, err) == (0, '')
    assert out.startswith(f'{tmp_path / "objects"}: 5 images in ')
    assert np.array_equal(
        Image.open(tmp_path / 'objects' / 'val' / 'triangle' / '000001.png'), single(4, 1, 16, 'val')[0]
    )
    assert run('synthesize', 'shapes', '--out', tmp_path / 'scenes', *arguments)[0] == 0
    assert (tmp_path / 'scenes' / 'train' / 'masks' / '000002.png').is_file()
    code, _, err = run('synthesize', 'shapes', '--out', tmp_path / 'scenes')
    assert (code, err) == (1, f'error: {tmp_path / "scenes"} exists already; name another folder or remove it.\n')


def test_existing_folder_is_left_alone(tmp_path):
    with pytest.raises(FileExistsError, match='exists already; name another folder or remove it'):
        list(write_shapes(tmp_path, 1, 1))
    assert not list(tmp_path.iterdir())


def test_failure_leaves_nothing(tmp_path, monkeypatch):
    def fail(seed, index, size, split):
        if index == 2:
            raise OSError('disk full')
        return scene(seed, index, size, split)

    monkeypatch.setattr(shapes, 'scene', fail)
    done = []
    with pytest.raises(OSError, match='disk full'):
        done.extend(write_shapes(tmp_path / 'shapes', 5, 1, size=16, workers=1))
    assert len(done) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('workers', [1, 2])
def test_leaving_early_leaves_nothing(tmp_path, workers):
    paths = write_shapes(tmp_path / 'shapes', 50, 1, size=16, workers=workers)
    next(paths)
    assert list(tmp_path.iterdir())
    paths.close()
    assert not list(tmp_path.iterdir())
