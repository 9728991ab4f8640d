"""Gather what was measured of the weights: one CSV file for each suite in docs/results/, as timm's `results/` does.

    python benchmarks/results.py

It measures nothing. Each row comes from a result file in model_cards/. docs/results.md shows the same rows.
"""

import csv
from pathlib import Path
from typing import Any

from vt_hub.files import read_json

ROOT = Path(__file__).parents[1]
CARDS, OUT = ROOT / 'model_cards', ROOT / 'docs' / 'results'
Rows = list[dict[str, Any]]


def networks() -> dict[str, dict[str, Any]]:
    """What model_cards/photographs/measure.py wrote of each network, by name; the last weights' teachers count once."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(CARDS.glob('*/measured.json')):
        for name, figures in read_json(path)['networks'].items():
            found.setdefault(path.parent.name if name == 'this model' else name, figures)
    return found


def photographs() -> Rows:
    """Top-1 and top-5 in percent, the calibration error in percent, and the median probability for tulips."""
    return [
        {
            'network': name,
            'nips_top1': of['nips']['top1'],
            'nips_top5': of['nips']['top5'],
            'imagenette_top1': of['imagenette']['top1'],
            'tiny_top1': of['tiny']['top1'],
            'nips_calibration_error': of['calibration']['nips_error'],
            'tulip_probability': of['tulips']['median_probability'],
        }
        for name, of in networks().items()
    ]


def sizes() -> Rows:
    """NIPS 2017 top-1 at other image sizes."""
    return [{'network': name, **of['nips_top1_by_resolution']} for name, of in networks().items()]


def tokens() -> Rows:
    """NIPS 2017 top-1 with the first of the tokens alone."""
    key = 'nips_top1_by_number_of_tokens'
    return [{'network': name, **of[key]} for name, of in networks().items() if key in of]


def segmentation() -> Rows:
    """mIoU in percent on generated scenes, of three seeds."""
    found = read_json(CARDS / 'vt_fpn_resnet10t.shapes' / 'comparison.json')
    return [
        {'decoder': arm, 'seed': seed, 'miou': miou}
        for arm in ('fpn', 'vt')
        for seed, miou in zip(found['seeds'], found[arm]['miou'], strict=True)
    ]


def finetuned() -> Rows:
    """Top-1 in percent after fine-tuning on few images of each class, mean of ten draws."""
    keys = 'task', 'shots', 'arm', 'mean', 'std', 'n'
    reports = {path.name.removesuffix('.transfer.json'): path for path in (CARDS / 'scenes').glob('*.transfer.json')}
    reports |= {path.parent.name: path for path in CARDS.glob('*/transfer.json')}
    return [
        {'weights': name, **{key: row[key] for key in keys}}
        for name, path in sorted(reports.items())
        for row in read_json(path)['finetuned']
    ]


SUITES = {
    'photographs': photographs,
    'sizes': sizes,
    'tokens': tokens,
    'segmentation': segmentation,
    'finetuned': finetuned,
}


def markdown(rows: Rows) -> str:
    """A table; the first column is text."""
    lines = [f'| {" | ".join(rows[0])} |', f'|---|{"---:|" * (len(rows[0]) - 1)}']
    return '\n'.join([*lines, *(f'| {" | ".join(map(str, row.values()))} |' for row in rows)])


def main():
    OUT.mkdir(exist_ok=True)
    for name, gather in SUITES.items():
        rows = gather()
        with open(OUT / f'{name}.csv', 'w', newline='') as file:
            writer = csv.DictWriter(file, rows[0], lineterminator='\n')
            writer.writeheader()
            writer.writerows(rows)


if __name__ == '__main__':
    main()
