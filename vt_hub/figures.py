"""matplotlib figures, and the colours of classes. matplotlib is imported only when it is needed."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .files import replaced_whole

__all__ = ['check_figure', 'colours', 'new_figure', 'save_figure']

FIRST = (  # class 0 is grey; then the colours of Okabe and Ito, and of Tol's "muted" that differ: for the colour-blind
    '404040 e69f00 56b4e9 009e73 f0e442 0072b2 d55e00 cc79a7 332288 117733 999933 ddcc77 cc6677 882255 aa4499'
)
GOLDEN = 0.618034  # hue step between further classes, in turns; gives consecutive classes very different colours


def colours(num_classes: int) -> np.ndarray:
    """A colour for each class, (num_classes, 3) uint8, class 0 dark grey. The first 15 suit the colour-blind."""
    first = np.array([list(bytes.fromhex(colour)) for colour in FIRST.split()], np.uint8)
    hues = np.arange(num_classes) * GOLDEN % 1
    values = np.array([1.0, 0.8, 0.6])[np.arange(num_classes) % 3]
    ramps = np.clip(np.abs((hues[:, None] + np.array([1, 2 / 3, 1 / 3])) % 1 * 6 - 3) - 1, 0, 1)
    further = np.rint(255 * values[:, None] * (1 - 0.85 * (1 - ramps))).astype(np.uint8)
    return np.concatenate([first, further[len(first) :]])[:num_classes]


def new_figure(**kwargs: Any) -> Any:
    """Create a `matplotlib.figure.Figure` with these arguments; by default with matplotlib's automatic layout.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('Pictures need matplotlib: pip install "vt_hub[explain]".') from error
    return Figure(**{'layout': 'constrained', **kwargs})


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
