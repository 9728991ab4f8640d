"""Files and folders that are written as a whole or not at all."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ['check_place', 'replaced_whole', 'written_whole']


def check_place(path: Path):
    """Make the folder of a file that is to be written after long work; raise OSError where it could not be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path.parent))


@contextmanager
def replaced_whole(path: str | Path) -> Iterator[Path]:
    """A temporary file to write, which replaces `path` at once if all goes well; if not, the old one stays."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix='.', suffix=path.name, dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A temporary folder to write into, which becomes `folder` if all goes well, and nothing if not."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f'.{folder.name}.', dir=folder.parent))
    try:
        yield unfinished
        unfinished.chmod(0o755)
        for path in unfinished.rglob('*'):
            if path.is_file():
                path.chmod(0o644)
        os.rename(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
