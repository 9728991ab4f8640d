"""matplotlib figures, and the colours of classes. matplotlib is imported only when it is needed."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .files import replaced_whole

__all__ = ['check_figure', 'colours', 'new_figure', 'save_figure']

GOLDEN = 0.618034  # hue step between classes, in turns; gives consecutive classes very different colours


def colours(num_classes: int) -> np.ndarray:
    """A colour for each class, (num_classes, 3) uint8, class 0 dark grey."""
    hues = np.arange(num_classes) * GOLDEN % 1
    values = np.array([1.0, 0.8, 0.6])[np.arange(num_classes) % 3]
    ramps = np.clip(np.abs((hues[:, None] + np.array([1, 2 / 3, 1 / 3])) % 1 * 6 - 3) - 1, 0, 1)
    table = values[:, None] * (1 - 0.85 * (1 - ramps))
    table[:1] = 0.25
    return np.rint(255 * table).astype(np.uint8)


def new_figure(**kwargs: Any) -> Any:
    """Create a `matplotlib.figure.Figure` with these arguments and matplotlib's automatic layout.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('Pictures need matplotlib: pip install "vt_hub[explain]".') from error
    return Figure(layout='constrained', **kwargs)


@cache
def formats() -> set[str]:
    """File extensions of the picture formats that matplotlib can write."""
    return new_figure().canvas.get_supported_filetypes().keys() - {'pgf', 'raw', 'rgba'}  # for TeX, and raw bytes


def check_figure(path: str | Path) -> None:
    """Raise ValueError if matplotlib cannot write this file type, ModuleNotFoundError if matplotlib is missing."""
    if Path(path).suffix[1:].lower() not in formats():
        raise ValueError(f'{path} does not end in a supported picture extension, such as .png, .svg or .pdf.')


def save_figure(figure: Any, path: str | Path) -> None:
    """Write a figure; the extension sets the format. An older file is replaced once the new one is complete."""
    check_figure(path)
    with replaced_whole(path) as unfinished:
        figure.savefig(unfinished, dpi=150)
