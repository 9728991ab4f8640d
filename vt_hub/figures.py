"""Figures of matplotlib, which is imported only to draw one."""

from functools import cache
from pathlib import Path
from typing import Any

from .files import replaced_whole

__all__ = ['check_figure', 'new_figure', 'save_figure']


def new_figure(**kwargs: Any) -> Any:
    """A `matplotlib.figure.Figure` with these arguments, laid out by matplotlib.

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
    """Extensions that matplotlib writes a picture for."""
    return new_figure().canvas.get_supported_filetypes().keys() - {'pgf', 'raw', 'rgba'}  # TeX's, and bare bytes


def check_figure(path: str | Path):
    """Raise ValueError where no figure can be written under that name, ModuleNotFoundError without matplotlib."""
    if Path(path).suffix[1:].lower() not in formats():
        raise ValueError(f'{path} has no extension of a picture that can be written, such as .png, .svg or .pdf.')


def save_figure(figure: Any, path: str | Path):
    """Write a figure, PNG, SVG or PDF by its name; an older file is replaced when the new one is whole."""
    check_figure(path)
    with replaced_whole(path) as unfinished:
        figure.savefig(unfinished, dpi=150)
