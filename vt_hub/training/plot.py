"""Plot a run: loss, accuracy and learning rate over time."""

import csv
from pathlib import Path
from typing import Any

from ..figures import new_figure, save_figure
from ..files import read_json

__all__ = ['plot_run', 'read_curves']

Curve = tuple[list[float], list[float]]
PANELS = {  # title: columns of timm's script, transformers' Trainer and pretraining
    'loss': ('train_loss', 'eval_loss', 'loss'),
    'accuracy (%)': ('eval_top1', 'eval_top5', 'eval_miou', 'eval_pixel_accuracy', 'hit_rate'),
    'learning rate': ('lr', 'learning_rate'),
}


def read_curves(run: str | Path) -> tuple[str, dict[str, Curve]]:
    """Read the figures of a run: for each column, its epochs or steps and its values.

    Args:
        run: Folder of a run of `vt-hub train`, or of timm's train script.

    Returns:
        'epoch' or 'step', and the curves.

    Raises:
        ValueError: The folder has no figures.
    """
    run = Path(run)
    states = sorted(run.glob('checkpoint-*/trainer_state.json'), key=lambda path: int(path.parent.name.split('-')[1]))
    if (run / 'summary.csv').is_file():
        lines = csv.DictReader((run / 'summary.csv').read_text().splitlines())
        unit = 'step' if 'step' in (lines.fieldnames or ()) else 'epoch'
        last = {row[unit]: row for row in lines if row.get(unit) not in (None, unit)}  # a resumed run may repeat epochs
        rows: list[dict[str, Any]] = list(last.values())
    elif states:
        unit, rows = 'step', read_json(states[-1])['log_history']
    else:
        raise ValueError(f'{run} has neither summary.csv nor checkpoints with trainer_state.json; it is not a run.')
    curves: dict[str, Curve] = {}
    for column in (column for columns in PANELS.values() for column in columns):
        points = [(float(row[unit]), float(row[column])) for row in rows if row.get(column) not in (None, '')]
        if points:
            curves[column] = [x for x, _ in points], [y for _, y in points]
    if not curves:
        raise ValueError(f'{run} has no figures yet.')
    return unit, curves


def plot_run(run: str | Path, path: str | Path) -> None:
    """Draw a run's loss, accuracy and learning rate.

    Args:
        run: See `read_curves`.
        path: Picture to write; see `save_figure`.

    Raises:
        ValueError: The folder has no figures.
    """
    unit, curves = read_curves(run)
    panels = {title: [c for c in columns if c in curves] for title, columns in PANELS.items()}
    panels = {title: columns for title, columns in panels.items() if columns}
    figure = new_figure(figsize=(4.2 * len(panels), 3.2))
    for axes, (title, columns) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for column in columns:
            axes.plot(*curves[column], marker='o' if len(curves[column][0]) < 30 else '', markersize=3, label=column)
        axes.set(title=title, xlabel=unit)
        axes.grid(alpha=0.3)
        axes.spines[['top', 'right']].set_visible(False)
        if len(columns) > 1:
            axes.legend(frameon=False)
    save_figure(figure, path)
