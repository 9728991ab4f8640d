"""Remember which embedded folders were checked, so that a file is hashed once and not at every start."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HOME

from ..files import read_json, replaced_whole
from ..network.checksums import check_folder

__all__ = ['check_once']

MEMORY = Path(HF_HOME) / 'vt_hub' / 'checked.json'  # state of each folder when it was checked


def state_of(folder: Path, weights_sha256: str) -> list[Any]:
    """The expected sha256, and name, size, time and inode of each file, of which a written file changes one."""
    found = sorted((path.name, path.stat()) for path in folder.iterdir())
    return [weights_sha256, *([name, stat.st_size, stat.st_mtime_ns, stat.st_ino] for name, stat in found)]


def check_once(folder: Path, weights_sha256: str) -> None:
    """`check_folder`, unless it has passed before and no file has changed since.

    What has passed is remembered in the Hub's cache. A cache that cannot be read or written only costs time.

    Raises:
        OSError: A file is missing or damaged.
    """
    folder = folder.resolve()
    try:
        known = read_json(MEMORY)
    except ValueError:
        known = {}
    state = state_of(folder, weights_sha256)
    if known.get(str(folder)) == state:
        return
    check_folder(folder, weights_sha256)
    with suppress(OSError), replaced_whole(MEMORY) as unfinished:
        there = {name: old for name, old in known.items() if Path(name).is_dir()}
        unfinished.write_text(json.dumps({**there, str(folder): state}))
