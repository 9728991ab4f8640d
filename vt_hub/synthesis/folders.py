"""Shared by the writers of generated data: splits, saving images, and a folder that appears once complete."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import check_new, written_whole

__all__ = ['SPLITS', 'new_folder', 'save']

SPLITS = ('train', 'val')


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder to write into. On success it becomes `folder`; on an error it is deleted.

    Raises:
        FileExistsError: The folder exists.
    """
    check_new(folder)
    with written_whole(folder) as unfinished:
        yield unfinished


def save(image: np.ndarray, path: Path) -> None:
    """Write a PNG, and create its folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, compress_level=1)  # noise does not compress
