"""Find, download and run timm's scripts, which are not in its package."""

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

import timm
import torch

from ...files import replaced_whole

__all__ = ['UNREADABLE', 'find_script', 'runner', 'script_version']

UNREADABLE = 'VT_HUB_UNREADABLE'  # environment variable: the file for the names of unreadable images
ADDRESS = 'https://raw.githubusercontent.com/huggingface/pytorch-image-models/v{version}/{name}'


def cache_folder() -> Path:
    """Folder for downloaded scripts of the installed timm."""
    return Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache')) / 'vt_hub' / f'timm-{timm.__version__}'


def find_script(name: str, given: Path | None = None) -> Path:
    """Find one of timm's scripts: the given one, in VT_HUB_TIMM_SCRIPTS, in the cache, or download it there.

    Args:
        name: Name such as 'train.py'.
        given: A path from the user.

    Raises:
        FileNotFoundError: The script is not at the given place.
        OSError: It cannot be downloaded, or the one in the cache was changed.
    """
    folder = os.environ.get('VT_HUB_TIMM_SCRIPTS')
    path = given or (Path(folder) / name if folder else None)
    if path:
        if not path.is_file():
            raise FileNotFoundError(f"There is no script {path} of timm's.")
        return path
    path = cache_folder() / name
    sha256 = path.with_name(f'{name}.sha256')
    if not path.is_file():
        fetch_script(name, path)
    elif not sha256.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != sha256.read_text().strip():
        raise OSError(f'{path} was changed after its download; remove it to download it again.')
    return path


def fetch_script(name: str, path: Path) -> None:
    """Download a script of the installed timm's release over https, and save its sha256 beside it."""
    address = ADDRESS.format(version=timm.__version__, name=name)
    hint = f"put timm's {name} into a folder and set VT_HUB_TIMM_SCRIPTS to that folder"
    if os.environ.get('HF_HUB_OFFLINE', '').upper() in ('1', 'ON', 'YES', 'TRUE'):
        raise OSError(f"timm's {name} is not in {path.parent} and HF_HUB_OFFLINE forbids its download; {hint}.")
    try:
        with urlopen(address, timeout=60) as response:
            source = response.read()  # reading in parts would not report a truncated file
    except (OSError, HTTPException) as error:
        raise OSError(f'Cannot download {address}: {getattr(error, "reason", error)}; {hint}.') from error
    digest = hashlib.sha256(source).hexdigest()
    with replaced_whole(path) as unfinished:
        unfinished.write_bytes(source)
        path.with_name(f'{name}.sha256').write_text(f'{digest}\n')
    print(f'downloaded {address}, sha256 {digest}', file=sys.stderr)


def script_version(path: Path) -> str | None:
    """Version of timm beside a script in a checkout of its repository; the script runs with that version."""
    version = path.parent / 'timm' / 'version.py'
    return version.read_text().split('=')[1].strip().strip('\'"') if version.is_file() else None


def results_file(arguments: Sequence[str]) -> list[str]:
    """`--results-file` for a model whose name has a slash: by default, timm would use the name as a path."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('--model', '-m', default='')
    name = parser.parse_known_args(arguments)[0].model
    return ['--results-file', Path(name).name] if '/' in name else []


def runner(script: Path, arguments: Sequence[str]) -> list[str]:
    """The command for a script without `--device-modules`: our models are registered before it starts."""
    cpu = not torch.cuda.is_available() and "'--device'" in script.read_text(encoding='utf-8')
    if cpu and not any(argument.split('=')[0] == '--device' for argument in arguments):
        arguments = [*arguments, '--device', 'cpu']  # timm's default is cuda
    if script.name == 'inference.py':
        arguments = [*results_file(arguments), *arguments]
    code = 'import runpy, sys, vt_hub; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name="__main__")'
    return [sys.executable, '-c', code, str(script), *arguments]
