"""Find image files of every kind that Pillow opens."""

import glob
import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from PIL import Image

__all__ = ['find_images', 'is_image_name', 'walk_files', 'walk_images']

NOT_IMAGES = ('MPEG', 'HDF5', 'GRIB', 'BUFR')  # Pillow recognises these, but cannot read them


def walk_images(folder: str | Path) -> Iterator[Path]:
    """Find image files under a folder by their extension, in any order. Links to folders are followed.

    Broken links are included, so that reading them reports an error. Names that begin with a dot are skipped.

    Raises:
        OSError: A folder cannot be read.
    """
    for path in walk_files(folder):
        if is_image_name(path.name):
            yield path


@cache
def image_extensions() -> frozenset[str]:
    known = Image.registered_extensions()
    return frozenset(ext for ext, kind in known.items() if kind in Image.OPEN and kind not in NOT_IMAGES)


def is_image_name(name: str) -> bool:
    """Whether a file has the extension of an image."""
    return os.path.splitext(name)[1].lower() in image_extensions()


def walk_files(folder: str | Path) -> Iterator[Path]:
    """Find files under a folder, as `walk_images` finds images."""
    folders: list[tuple[str, frozenset[tuple[int, int]]]] = [(os.fspath(folder), frozenset())]  # with its parents
    while folders:
        place, around = folders.pop()
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in around:
            continue  # a link to a parent
        around |= {(status.st_dev, status.st_ino)}
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith('.'):
                    continue  # macOS writes files such as ._image.png
                if os.path.isdir(entry.path):
                    folders.append((entry.path, around))
                elif os.path.isfile(entry.path) or not os.path.exists(entry.path):
                    yield Path(entry.path)


def find_images(inputs: Iterable[str]) -> list[Path]:
    """Turn files, folders (searched by file name extension) and glob patterns into a list of paths.

    A path that does not exist, a folder without images and a pattern without files are kept, so that reading them
    reports an error.

    Raises:
        ValueError: An input is a URL.
    """
    paths = []
    for name in inputs:
        if name.startswith(('http://', 'https://')):
            raise ValueError(f'{name} is a URL, but only files can be read; download the image first.')
        path = Path(name)
        found = []
        if path.is_dir():
            found = sorted(walk_images(path))
        elif not path.exists() and glob.has_magic(name):
            found = sorted(Path(p) for p in glob.glob(name, recursive=True) if Path(p).is_file())
        paths.extend(found or [path])
    return paths
