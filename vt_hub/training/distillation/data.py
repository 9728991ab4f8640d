"""Unlabelled images, and random views of them."""

import random
import signal
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from timm.data import create_transform
from torch.utils.data import Dataset

from ...image_files import walk_images
from ...network.images import read_image

__all__ = ['HELD_OUT_PART', 'Folders', 'ViewSettings', 'Views', 'start_worker']

HELD_OUT = 1024  # largest number of images in an evaluation
HELD_OUT_PART = 10  # one of this many images is never used for training
TRIED = 64  # images of a folder that are read before a run begins


def is_held_out(path: Path) -> bool:
    """Whether an image is never used for training. It depends only on the file name, not on the folder."""
    return zlib.crc32(path.name.encode()) % HELD_OUT_PART == 0


class Folders:
    """Unlabelled image files of some folders, with each folder's share of the views.

    Args:
        folders: Folders to search for images, by file name extension.
        shares: One number per folder; default: the number of images.

    Raises:
        FileNotFoundError: A folder does not exist or has no images.
        ValueError: The shares do not fit, or no tested image of a folder can be read.
    """

    def __init__(self, folders: Sequence[Path], shares: Sequence[float] = ()):
        if shares and (len(shares) != len(folders) or min(shares) < 0 or sum(shares) == 0):
            raise ValueError(f'Each of {len(folders)} folders needs one share of 0 or more, not {list(shares)}.')
        self.folders = list(folders)
        self.parts: list[list[Path]] = []  # training images
        held_out: list[Path] = []
        for folder in folders:
            if not folder.is_dir():
                raise FileNotFoundError(f'There is no folder {folder}.')
            paths = sorted(walk_images(folder))
            check_readable(folder, paths)
            self.parts.append([path for path in paths if not is_held_out(path)])
            held_out += [path for path in paths if is_held_out(path)]
            if not self.parts[-1]:
                raise FileNotFoundError(f'There are too few images in {folder}.')
        self.shares = list(shares) or [len(part) for part in self.parts]
        random.Random(0).shuffle(held_out)
        readable = (path for path in held_out if is_readable(path))
        self.held_out = list(islice(readable, HELD_OUT))  # not used for training

    def describe(self) -> list[dict[str, Any]]:
        """Name, number of images and share of each folder."""
        total = sum(self.shares)
        return [
            {'name': folder.resolve().name, 'num_images': len(part), 'share': round(share / total, 4)}
            for folder, part, share in zip(self.folders, self.parts, self.shares, strict=True)
        ]


def is_readable(path: Path) -> bool:
    try:
        read_image(path)
    except ValueError:
        return False
    return True


def check_readable(folder: Path, paths: list[Path]) -> None:
    """Raise an error if a folder has no images, or no tested image can be read."""
    if not paths:
        raise FileNotFoundError(f'There are no images in {folder}.')
    tried = paths[:: -(-len(paths) // TRIED)]
    if not any(map(is_readable, tried)):
        raise ValueError(f'None of {len(tried)} tested images can be read, such as {tried[0]}.')


@cache
def training_transform(
    size: int, scale: tuple[float, float], color_jitter: float
) -> Callable[[Image.Image], torch.Tensor]:
    return create_transform(
        size,
        is_training=True,
        scale=scale,
        color_jitter=color_jitter or None,  # type: ignore[arg-type]  # timm takes None for none
        interpolation='bicubic',
        normalize=False,
    )


class ViewSettings(Protocol):
    """How many views a training has, and how they are cropped; see `DistillationRecipe`."""

    @property
    def crop_scale(self) -> tuple[float, float]: ...

    @property
    def color_jitter(self) -> float: ...

    @property
    def num_views(self) -> int: ...

    def view_size(self, item: int) -> int:
        """Height and width of a view."""
        ...


class Views(Dataset[torch.Tensor]):
    """Random views of images, (3, size, size) uint8. Each depends only on the seed and its number.

    If an image cannot be read, its error is written to the file `unreadable`, and another image is drawn.
    """

    def __init__(self, settings: ViewSettings, data: Folders, seed: int, unreadable: Path):
        self.settings, self.data, self.seed = settings, data, seed
        self.unreadable, self.named = unreadable, set[Path]()

    def __len__(self) -> int:
        return self.settings.num_views

    def __getitem__(self, item: int) -> torch.Tensor:
        size = self.settings.view_size(item)
        random.seed(f'{self.seed} {item}')
        torch.manual_seed(random.getrandbits(62))
        image = self.draw()
        return training_transform(size, self.settings.crop_scale, self.settings.color_jitter)(image)

    def draw(self) -> Image.Image:
        while True:
            [part] = random.choices(self.data.parts, self.data.shares)
            path = random.choice(part)
            try:
                return read_image(path)
            except ValueError as error:
                if path not in self.named:
                    self.named.add(path)
                    with open(self.unreadable, 'a') as file:
                        file.write(f'{error}\n')


def start_worker(_: int) -> None:
    torch.set_num_threads(1)
    for kind in (signal.SIGINT, signal.SIGTERM):  # often sent to all processes; the run stops after its step
        signal.signal(kind, signal.SIG_IGN)
