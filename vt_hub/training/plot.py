"""Plot a run: loss, accuracy and learning rate over time."""

import csv
from pathlib import Path
from typing import Any

from ..figures import new_figure, save_figure
from ..files import read_json

__all__ = ['plot_run', 'read_curves']

Curve = tuple[list[float], list[float]]
PANELS = {  # label of an axis: the columns of timm's script, transformers' Trainer, pretraining and distillation
    'loss': {
        'train_loss': 'training',
        'eval_loss': 'validation',
        'loss': 'training',
        'features_loss': 'features',
        'maps_loss': 'maps',
        'logits_loss': 'logits',
    },
    'accuracy (%)': {
        'eval_top1': 'top-1',
        'eval_top5': 'top-5',
        'eval_miou': 'mean IoU',
        'eval_pixel_accuracy': 'pixel accuracy',
        'hit_rate': 'scenes that show the likeliest class',
        'held_out_agreement': 'agreement with the teacher',
    },
    'cosine of the maps': {f'cosine_{number}': f'tokens of module {number}' for number in range(1, 5)},
    'learning rate': {'lr': 'learning rate', 'learning_rate': 'learning rate'},
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
        ValueError: The folder has no figures, or none that change.
    """
    unit, curves = read_curves(run)
    first = 1 if unit == 'epoch' else 0  # timm's script counts epochs from 0
    panels: dict[str, dict[str, Curve]] = {}
    for label, names in PANELS.items():
        found = {names[column]: curves[column] for column in names if column in curves}
        # a curve that never changes says nothing
        panels[label] = {name: (x, y) for name, (x, y) in found.items() if len(x) == 1 or len(set(y)) > 1}
    panels = {label: found for label, found in panels.items() if found}
    if not panels:
        raise ValueError(f'{run} has no figures that change.')
    figure = new_figure(figsize=(4.2 * len(panels), 3.2))
    for axes, (label, found) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, (x, y) in found.items():
            few = len(x) < 30
            axes.plot(
                [value + first for value in x], y, 'o-' if few else '-', markersize=6 if len(x) == 1 else 3, label=name
            )
        axes.set(ylabel=label, xlabel=unit)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.spines[['top', 'right']].set_visible(False)
        if [*found] != [label]:
            axes.legend(frameon=False)
    figure.suptitle(Path(run).resolve().name, fontsize='medium', parse_math=False)
    save_figure(figure, path)
