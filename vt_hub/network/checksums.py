"""Check the files of a model folder against its SHA256SUMS."""

import hashlib
import re
from pathlib import Path, PurePosixPath

__all__ = ['check_folder', 'file_sha256', 'find_damage', 'read_checksums']


def file_sha256(path: Path) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def read_checksums(folder: Path) -> dict[str, str]:
    """File names and sha256 from a folder's SHA256SUMS.

    Raises:
        OSError: The folder has no SHA256SUMS, or it names files outside the folder.
    """
    path = folder / 'SHA256SUMS'
    if not path.is_file():
        raise FileNotFoundError(f'{folder} has no SHA256SUMS, so it is not a model folder of vt_hub.')
    sums = {}
    for line in path.read_text('utf-8', errors='replace').splitlines():
        digest, _, name = line.partition('  ')
        parts = PurePosixPath(name).parts
        if not re.fullmatch('[0-9a-f]{64}', digest) or not parts or parts[0] == '/' or '..' in parts:
            raise OSError(f'{path} has a line that does not name a file of the folder: {line!r}.')
        sums[name] = digest
    return sums


def find_damage(folder: Path, weights_sha256: str | None = None) -> dict[Path, str]:
    """Find the files of a folder that do not match its SHA256SUMS, each with an error message.

    Args:
        folder: A model folder.
        weights_sha256: Expected sha256 of the weights, instead of the one in SHA256SUMS.
    """
    sums = read_checksums(folder)
    if weights_sha256:
        sums['model.safetensors'] = weights_sha256
    damage = {}
    for name, expected in sums.items():
        path = folder / name
        if not path.is_file():
            damage[path] = f'{path} is missing, but SHA256SUMS lists it.'
        elif (digest := file_sha256(path)) != expected:
            damage[path] = f'{path} is damaged: its sha256 is {digest}, the published one is {expected}.'
    return damage


def check_folder(folder: Path, weights_sha256: str | None = None) -> None:
    """Raise OSError with the first message of `find_damage`, if there is one."""
    for sentence in find_damage(folder, weights_sha256).values():
        raise OSError(sentence)
