"""What the writers of generated data share: splits, a folder that appears when it is complete, images."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import written_whole

__all__ = ['SPLITS', 'new_folder', 'save']

SPLITS = ('train', 'val')


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to write into, which becomes `folder` if all goes well, and nothing if not.

    Raises:
        FileExistsError: The folder exists.
    """
    if folder.exists():
        raise FileExistsError(f'{folder} exists already; name another folder or remove it.')
    with written_whole(folder) as unfinished:
        yield unfinished


def save(image: np.ndarray, path: Path):
    """Write a PNG, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, compress_level=1)  # noise does not compress
