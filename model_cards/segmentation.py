"""What the comparisons of segmentation networks share: the figures of the runs of one network."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vt_hub.files import read_json


def mean_iou(result: dict[str, Any], classes: Sequence[str]) -> float:
    return round(statistics.mean(result['per_class_iou'][name] for name in classes), 2)


def figures(folders: Sequence[Path], kinds: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Those of all finished runs of a network, on the part that nothing was chosen on.

    Args:
        folders: Folders of the runs, with `held_out.json` and `result.json`.
        kinds: Groups of classes whose mean IoU is also given.
    """
    folders = [folder for folder in folders if (folder / 'held_out.json').exists()]
    results = [read_json(folder / 'held_out.json') for folder in folders]
    miou = [result['metrics']['miou'] for result in results]
    return {
        'miou': miou,
        'mean': round(statistics.mean(miou), 2),
        'stdev': round(statistics.stdev(miou), 2) if len(miou) > 1 else None,
        **{name: [mean_iou(result, classes) for result in results] for name, classes in kinds.items()},
        'pixel_accuracy': [result['metrics']['pixel_accuracy'] for result in results],
        'val_miou': [read_json(folder / 'result.json')['metrics']['miou'] for folder in folders],
    }
