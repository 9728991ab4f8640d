"""Read JSON with clear errors. Write files and folders completely or not at all."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ['check_new', 'check_place', 'read_json', 'replaced_whole', 'written_whole']


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: The file is missing or is not a JSON object.
    """
    try:
        value = json.loads(path.read_text('utf-8'))
    except (OSError, ValueError) as error:
        raise ValueError(f'Cannot read {path}: {getattr(error, "strerror", None) or "it is not JSON"}.') from error
    if not isinstance(value, dict):
        raise ValueError(f'Cannot read {path}: it is not a JSON object.')
    return value


def resolved(path: str | Path) -> Path:
    """Follow links, so that the target is replaced and not the link. Raises OSError for a device such as /dev/null."""
    path = Path(os.path.realpath(path))
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, 'Not a regular file', str(path))
    return path


def check_new(path: Path, kind: str = 'folder') -> None:
    """Raise FileExistsError if there is something already. Call it before long work whose result goes there."""
    if path.exists():
        raise FileExistsError(f'{path} exists already; name another {kind} or remove it.')


def check_place(path: Path) -> None:
    """Raise OSError if a file cannot be written here. Call it before long work whose result goes there."""
    path = resolved(path)
    folder = next(parent for parent in path.parents if parent.exists())
    for wrong, code, place in (
        (path.is_dir(), errno.EISDIR, path),
        (not folder.is_dir(), errno.ENOTDIR, folder),
        (not os.access(folder, os.W_OK), errno.EACCES, folder),
    ):
        if wrong:
            raise OSError(code, os.strerror(code), str(place))


@contextmanager
def named_if_full(path: Path) -> Iterator[None]:
    """Turn a library's "disk full" error, which does not name the file, into an OSError that does."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        told = str(error)
        # safetensors and torch raise their own errors with the system's text
        if told.startswith('Cannot write ') or not (full or os.strerror(errno.ENOSPC) in told):
            raise
        raise OSError(f'Cannot write {path}: {os.strerror(errno.ENOSPC)}; nothing was written.') from error


@contextmanager
def replaced_whole(path: str | Path) -> Iterator[Path]:
    """Give a temporary file to write. On success it replaces `path`; on an error the old file stays."""
    path = resolved(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix='.', suffix=path.name, dir=path.parent)
    os.close(handle)
    try:
        with named_if_full(path):
            yield Path(name)
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Give a temporary folder to write into. On success it becomes `folder`; on an error it is deleted."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f'.{folder.name}.', dir=folder.parent))
    try:
        with named_if_full(folder):
            yield unfinished
        unfinished.chmod(0o755)
        for path in unfinished.rglob('*'):
            if path.is_file():
                path.chmod(0o644)
        os.rename(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
