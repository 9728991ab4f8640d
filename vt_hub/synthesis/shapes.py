"""Scenes of shapes and textures with exact masks, to train and score segmentation models without natural images.

Points are complex numbers x + iy, with y downwards. Their unit is the image's side, or for a shape the radius of the
circle through its corners. An outline is a function from points to their signed distance, negative inside.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from .folders import SPLITS, new_folder, save

__all__ = ['CLASSES', 'scene', 'single', 'write_shapes']

LUMA = np.sqrt(
    np.array([0.3, 0.59, 0.11], np.float32)
)  # distance weights: black and white are 1 apart, blues closer than greens


def polygon(z: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Signed distance to a closed polygon: distance of the nearest edge, sign by the parity of edges to the right."""
    edges = np.roll(corners, -1) - corners
    local = (z[..., None] - corners) / edges  # 0 to 1 along each edge, the imaginary part across it
    along = np.clip(local.real, 0, 1)
    squared = ((local.real - along) ** 2 + local.imag**2) * np.abs(edges) ** 2
    above = corners.imag <= z.imag[..., None]
    crossed = (above != np.roll(above, -1, -1)) & ((local.imag > 0) == (edges.imag > 0))
    return np.where(crossed.sum(-1) % 2, -1, 1) * np.sqrt(squared.min(-1))


def around(count: int) -> np.ndarray:
    """Corners of a regular polygon."""
    return np.exp(2j * np.pi * np.arange(count) / count)


def triangle(z: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return polygon(z, np.exp(1j * np.pi * np.array([0, rng.uniform(0.58, 0.75), rng.uniform(-0.75, -0.58)])))


def star(z: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    points = int(rng.integers(5, 7))
    return polygon(z, around(2 * points) * np.where(np.arange(2 * points) % 2, rng.uniform(0.38, 0.52), 1))


def cross(z: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    width = rng.uniform(0.22, 0.38)
    arm = np.array([1 - 1j * width, 1 + 1j * width, width + 1j * width]) / abs(1 + 1j * width)
    return polygon(z, np.concatenate([arm, 1j * arm, -arm, -1j * arm]))


def ring(z: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    inner = rng.uniform(0.45, 0.7)
    return np.abs(np.abs(z) - (1 + inner) / 2) - (1 - inner) / 2


def crescent(z: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.maximum(np.abs(z) - 1, rng.uniform(0.75, 0.9) - np.abs(z - rng.uniform(0.4, 0.6)))


def heart(z: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    z = 0.633 * z + 0.63j  # two discs of radius 0.35 on a square of side 0.71 that stands on its corner
    discs = np.abs(np.abs(z.real) + 1j * z.imag - (0.25 + 0.75j)) - math.sqrt(0.125)
    return np.minimum(discs, polygon(z, np.array([0, 0.5 + 0.5j, 1j, -0.5 + 0.5j]))) / 0.633


def arrow(z: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    shaft, neck = 1j * rng.uniform(0.12, 0.25), rng.uniform(-0.1, 0.3)
    side = np.array([-0.97 + shaft, neck + shaft, neck + 0.65j])
    return polygon(z, np.concatenate([side, [1], side[::-1].conj()]))


def blob(z: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An irregular smooth outline inside the unit circle. The distance is exact only on the outline."""
    waves = np.arange(2, 6)
    heights, phases = rng.uniform(0, 0.3, 4) / waves, rng.uniform(0, 2 * np.pi, 4)
    radius, angle = np.abs(z), np.angle(z)[..., None] * waves + phases
    outline = 1 - heights.sum() + (heights * np.cos(angle)).sum(-1)
    slope = (heights * waves * np.sin(angle)).sum(-1) / np.maximum(radius, 0.1)
    return (radius - outline) / np.sqrt(1 + slope**2)


def to_middle(x: np.ndarray) -> np.ndarray:
    """Distance to the nearest middle between two integers, 0 to 0.5."""
    return np.abs(x - np.floor(x) - 0.5)


def stripes(z: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return to_middle(z.real) - rng.uniform(0.18, 0.32)


def waves(z: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return to_middle(z.real + rng.uniform(0.4, 0.6) * np.sin(z.imag * rng.uniform(1.8, 2.6))) - rng.uniform(0.18, 0.32)


def checkerboard(z: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    x, y = to_middle(z.real) - 0.25, to_middle(z.imag) - 0.25
    return np.sign(x * y) * np.minimum(np.abs(x), np.abs(y))


def dots(z: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.hypot(to_middle(z.real), to_middle(z.imag)) - rng.uniform(0.22, 0.36)


def bricks(z: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    columns = to_middle(z.real / 2 + np.floor(z.imag) / 2)
    return np.maximum(2 * columns - 1, to_middle(z.imag) - 0.5) + rng.uniform(0.07, 0.12)


SHAPES = {
    'circle': lambda z, rng: np.abs(z) - 1,
    'triangle': triangle,
    'square': lambda z, rng: polygon(z, around(4)),
    'pentagon': lambda z, rng: polygon(z, around(5)),
    'hexagon': lambda z, rng: polygon(z, around(6)),
    'star': star,
    'cross': cross,
    'ring': ring,
    'crescent': crescent,
    'heart': heart,
    'arrow': arrow,
}
TEXTURES = {'stripes': stripes, 'waves': waves, 'checkerboard': checkerboard, 'dots': dots, 'bricks': bricks}
CLASSES = ('background', *SHAPES, *TEXTURES)
ROUND = ('circle', 'pentagon', 'hexagon')  # hard to distinguish when small
PERIODS = {'stripes': 0.075, 'waves': 0.085, 'checkerboard': 0.12, 'dots': 0.085, 'bricks': 0.075}


def window(points: np.ndarray, centre: complex, reach: float) -> tuple[slice, slice]:
    """The rows and columns of an image that hold all pixels within `reach` of the centre."""
    size = len(points)
    ends = [((middle - reach) * size, (middle + reach) * size) for middle in (centre.imag, centre.real)]
    rows, columns = (slice(max(0, math.floor(start)), max(0, math.ceil(stop))) for start, stop in ends)
    return rows, columns


def blend(canvas: np.ndarray, colour: np.ndarray, alpha: np.ndarray) -> None:
    """Paint in place: canvas (H, W, 3), colour (3,) or (H, W, 3), alpha (H, W)."""
    canvas += alpha[..., None].astype(np.float32) * (colour - canvas)


def coverage(distance: np.ndarray) -> np.ndarray:
    """Covered share of each pixel at an edge, from the signed distance of its centre in pixels."""
    return np.clip(0.5 - distance, 0, 1)


def contrasting(rng: np.random.Generator, beneath: list[np.ndarray]) -> np.ndarray:
    """Of a few random colours, the one with the most contrast to all colours beneath it."""
    colours = rng.random((6, 3), dtype=np.float32)
    distances = np.linalg.norm((colours[:, None] - np.array(beneath)) * LUMA, axis=-1)
    return colours[np.minimum(distances, 0.3).min(1).argmax()]


def clouds(rng: np.random.Generator) -> np.ndarray:
    """Smooth noise of several octaves around one colour, (32, 32, 3) uint8 for any size of the scene."""
    fading, spread = rng.uniform(0.4, 0.85), rng.uniform(100, 300)
    total = np.zeros((32, 32, 3))
    for octave, cells in enumerate((2, 4, 8, 16, 32)):
        grid = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += fading**octave * (np.asarray(grid.resize((32, 32), Image.Resampling.BICUBIC)) / 255 - 0.5)
    return np.clip(total * spread * (1 - fading) + rng.uniform(40, 215, 3), 0, 255).astype(np.uint8)


def draw_distractors(canvas: np.ndarray, points: np.ndarray, rng: np.random.Generator) -> None:
    """Draw soft spots, thin lines and specks, which do not belong to a class."""
    size = len(points)
    for _ in range(rng.integers(4)):
        centre, width = complex(*rng.random(2)), rng.uniform(0.03, 0.1)
        area = window(points, centre, 3 * width)
        soft = np.exp(-0.5 * np.abs((points[area] - centre) / width) ** 2)
        blend(canvas[area], rng.random(3, dtype=np.float32), rng.uniform(0.3, 0.8) * soft)
    for length in (*rng.uniform(0.1, 0.7, rng.integers(5)), *rng.uniform(0.001, 0.01, rng.integers(20))):
        start, along = complex(*rng.random(2)), length * np.exp(2j * np.pi * rng.random())
        area = window(points, start + along / 2, length / 2 + 0.02)
        local = (points[area] - start) / along
        distance = np.abs(local - np.clip(local.real, 0, 1)) * length - rng.uniform(0.002, 0.007)
        blend(canvas[area], rng.random(3, dtype=np.float32), coverage(distance * size))


def place(rng: np.random.Generator, discs: list[tuple[complex, float]]) -> complex:
    """Of a few random centres, the one furthest from earlier discs, so that less is hidden."""
    centres = [complex(*rng.uniform(0.1, 0.9, 2)) for _ in range(3)]
    return max(centres, key=lambda c: min((abs(c - centre) - radius for centre, radius in discs), default=0))


def fill(z: np.ndarray, rng: np.random.Generator, noise: np.random.Generator, colour: np.ndarray) -> np.ndarray:
    """Colours (H, W, 3) of a shape's points: one colour, a gradient or fine noise."""
    kind, strength = rng.integers(3), rng.uniform(-0.3, 0.3, 3).astype(np.float32)
    if kind == 0:
        return np.broadcast_to(colour, (*z.shape, 3))
    if kind == 1:
        return colour + z.real[..., None].astype(np.float32) * strength
    return colour + noise.standard_normal((*z.shape, 3), dtype=np.float32) * strength / 2


def weave(
    points: np.ndarray, rng: np.random.Generator, name: str, paper: np.ndarray, ink: np.ndarray, size: int
) -> np.ndarray:
    """Colours (H, W, 3) of a texture at points of the scene."""
    period = PERIODS[name] * rng.uniform(0.8, 1.4)
    turned = points * (np.exp(2j * np.pi * rng.random()) / period) + complex(*rng.random(2))
    return paper + coverage(TEXTURES[name](turned, rng) * period * size)[..., None] * (ink - paper)


def photograph(
    canvas: np.ndarray, points: np.ndarray, rng: np.random.Generator, noise: np.random.Generator
) -> np.ndarray:
    """Turn a scene's colours into an image (H, W, 3) uint8 with side light, vignette, gamma, blur and grain."""
    centred = points - (0.5 + 0.5j)
    side = (centred * np.exp(2j * np.pi * rng.random())).real
    shade = 1 + rng.uniform(0, 0.6) * side - rng.uniform(0, 0.7) * np.abs(centred) ** 2
    lit = np.clip(np.clip(canvas, 0, 1) * shade[..., None].astype(np.float32), 0, 1)
    image = Image.fromarray(np.rint(255 * lit ** np.float32(rng.uniform(0.7, 1.4))).astype(np.uint8))
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.002, 0.007) * len(points)))
    grain = noise.standard_normal(canvas.shape, dtype=np.float32) * rng.uniform(0, 12)
    return np.clip(np.rint(np.asarray(image) + grain), 0, 255).astype(np.uint8)


def compose(
    rng: np.random.Generator, size: int, names: Sequence[str] | None = None, enlarge: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """An image (size, size, 3) and its mask (size, size), both uint8, of the named or of random classes."""
    noise = rng.spawn(1)[0]  # a separate generator: its draws depend on the size, and the layout must not
    grid = (np.arange(size) + 0.5) / size
    points = grid + 1j * grid[:, None]
    mask = np.zeros((size, size), np.uint8)
    sky = clouds(rng)
    canvas = np.asarray(Image.fromarray(sky).resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    draw_distractors(canvas, points, rng)

    if names is None:
        textures = rng.choice(list(TEXTURES), 1 + (rng.random() < 0.82))  # 1.82 and 4: classes are equally frequent
        names = [*textures, *rng.choice(list(SHAPES), rng.integers(2, 7))]
    placed: list[tuple[complex, float, list[np.ndarray]]] = []  # centre, radius, colours
    for name in names:
        low, high = (0.1 if name in ROUND else 0.05, 0.225) if name in SHAPES else (0.18, 0.32)
        radius = enlarge * low * (high / low) ** rng.random()
        centre = place(rng, [(other, reach) for other, reach, _ in placed])
        beneath = [sky[int(centre.imag * 32), int(centre.real * 32)] / 255]
        for other, reach, earlier in placed:
            beneath += earlier * (abs(other - centre) < reach + radius)
        colour = contrasting(rng, beneath)
        area = window(points, centre, radius + 2 / size)
        z = (points[area] - centre) * (np.exp(2j * np.pi * rng.random()) / radius)
        if name in SHAPES:
            placed.append((centre, radius, [colour]))
            colours, distance = fill(z, rng, noise, colour), SHAPES[name](z, rng)
        else:
            ink = contrasting(rng, [colour])
            placed.append((centre, radius, [colour, ink]))
            colours, distance = weave(points[area], rng, name, colour, ink, size), blob(z, rng)
        blend(canvas[area], colours, coverage(distance * radius * size))
        mask[area][distance < 0] = CLASSES.index(name)

    return photograph(canvas, points, rng, noise), mask


def scene(seed: int, index: int, size: int = 128, split: str = 'train') -> tuple[np.ndarray, np.ndarray]:
    """One scene. It depends only on the arguments; another size gives the same scene with more or fewer pixels.

    Args:
        seed: Random seed of the data set.
        index: Index of the scene within its split.
        size: Height and width in pixels.
        split: 'train' or 'val'; they do not share scenes.

    Returns:
        The image (size, size, 3) and its mask (size, size), both uint8. The mask has, as an index into CLASSES, the top
        object at the centre of each pixel.
    """
    return compose(np.random.default_rng([seed, SPLITS.index(split), index]), size)


def single(seed: int, index: int, size: int = 64, split: str = 'train') -> tuple[np.ndarray, str]:
    """One object on a cluttered background, for classification; see `scene` for the arguments.

    Returns:
        The image (size, size, 3) uint8, and the name of its class; consecutive indices cycle through CLASSES.
    """
    name = CLASSES[1 + index % (len(CLASSES) - 1)]
    rng = np.random.default_rng([seed, len(SPLITS) + SPLITS.index(split), index])
    return compose(rng, size, [name], enlarge=1.6)[0], name


def write_scene(folder: Path, seed: int, size: int, item: tuple[str, int]) -> Path:
    """Write one image and its mask. Returns the image's path within the folder."""
    split, index = item
    image, mask = scene(seed, index, size, split)
    path = Path(split, 'images', f'{index:06d}.png')
    save(image, folder / path)
    save(mask, folder / split / 'masks' / path.name)
    return path


def write_single(folder: Path, seed: int, size: int, item: tuple[str, int]) -> Path:
    """Write one image of one object. Returns its path within the folder."""
    split, index = item
    image, name = single(seed, index, size, split)
    path = Path(split, name, f'{index:06d}.png')
    save(image, folder / path)
    return path


def write_shapes(
    folder: Path | str,
    num_train: int,
    num_val: int,
    seed: int = 0,
    size: int = 128,
    objects: bool = False,
    workers: int | None = None,
) -> Iterator[Path]:
    """Write a data set, for segmentation or for classification.

    Scenes: {train,val}/{images,masks}/000000.png ... and classes.txt, one name per line in the masks' order. Objects:
    {train,val}/CLASS/000000.png ...

    Args:
        folder: Destination; must not exist. It appears after the last image is written. It does not appear if an image
            fails or the iterator is stopped early.
        num_train: Images in train.
        num_val: Images in val.
        seed: Random seed of the data set.
        size: Height and width in pixels.
        objects: Write one object per image, in class folders, instead of scenes with masks.
        workers: Processes; default: one for each CPU core. The images do not depend on it.

    Yields:
        The final path of each image, as soon as it is drawn.

    Raises:
        FileExistsError: The folder exists.
    """
    folder = Path(folder)
    with new_folder(folder) as unfinished:
        items = [(split, i) for split, n in zip(SPLITS, (num_train, num_val), strict=True) for i in range(n)]
        if not objects:
            (unfinished / 'classes.txt').write_text(''.join(f'{name}\n' for name in CLASSES))
        write = partial(write_single if objects else write_scene, unfinished, seed, size)
        with nullcontext() if workers == 1 else Pool(workers) as pool:
            for path in pool.imap(write, items, chunksize=8) if pool else map(write, items):
                yield folder / path
