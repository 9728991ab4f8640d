"""Shared by training and evaluation: result files (which model cards read), the device, and progress."""

import json
import platform
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch

from .files import replaced_whole

__all__ = ['Progress', 'find_device', 'machine', 'no_progress', 'write_result']

Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]  # wraps a loop, given its length and a title


def no_progress(items: Iterable[Any], total: int, title: str) -> Iterable[Any]:
    return items


def find_device(name: str | None = None) -> torch.device:
    """The device 'cuda' or 'cpu'; default: the GPU if there is one.

    Raises:
        ValueError: 'cuda' was requested, but there is no GPU.
    """
    there = torch.cuda.is_available()
    if name == 'cuda' and not there:
        raise ValueError('There is no CUDA device; use --device cpu.')
    return torch.device(name or ('cuda' if there else 'cpu'))


def cpu_name() -> str:
    """The processor's name on Linux; on other systems its architecture."""
    path = Path('/proc/cpuinfo')
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.partition(': ')[2] for line in lines if line.startswith('model name')), platform.machine())


def machine(device: torch.device) -> dict[str, Any]:
    """The hardware and library versions of a measurement."""
    if device.type == 'cuda':
        hardware = f'{torch.cuda.device_count()} x {torch.cuda.get_device_name()}'
    else:
        hardware = f'{cpu_name()}, {torch.get_num_threads()} thread(s)'
    return {
        'hardware': hardware,
        'torch': torch.__version__,
        'timm': timm.__version__,
        'transformers': version('transformers'),
    }


def write_result(path: str | Path, result: dict[str, Any]) -> Path:
    """Write a result file. An older one is replaced once the new one is complete."""
    with replaced_whole(path) as unfinished:
        unfinished.write_text(json.dumps(result, indent=2) + '\n')
    return Path(path)
