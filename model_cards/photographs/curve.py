"""Draw how the accuracy on the photographs of NIPS 2017 grew with the views that a distillation saw, or with its hours.

    python model_cards/photographs/curve.py vt_resnet18.dist_in1k --out docs/images/photographs_curve.webp
    python model_cards/photographs/curve.py vt_resnet50.dist_in1k --hours --out docs/images/vt_resnet50_curve.webp

The figures are those that progress.py measured, in `progress.csv` beside the `result.json` of each run. A run in the
folder `fresh` began with a new network, to compare with.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

from vt_hub.figures import new_figure, save_figure
from vt_hub.files import read_json

CARDS = Path(__file__).parents[1]


def draw(axes: Any, folder: Path, begin: float, what: str, key: str, unit: int) -> float:
    """Draw one run that begins at `begin` on the first axis, and return where it ends.

    `key` is what a result counts, and `unit` how many of it are 1 on the axis.
    """
    training = read_json(folder / 'result.json')['training']
    length = training[key] / unit
    with open(folder / 'progress.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    places = [begin + length * int(row['step']) / training['steps'] for row in rows]
    free = ', '.join(training['stages'][-1]['free']) or 'all parts'
    label = f'{what}: {training.get("opt", "adamw")}, {len(training["data"])} sets of photographs, {free}'
    axes.plot(places, [float(row['top1']) for row in rows], marker='o', markersize=3, label=label)
    return begin + length


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name', help='such as vt_resnet18.dist_in1k')
    parser.add_argument('--hours', action='store_true', help='over hours of training, not over views')
    parser.add_argument('--out', type=Path, required=True)
    args = parser.parse_args()
    card = CARDS / args.name
    hours, views = ('hours of training', 'seconds', 3600), ('new views, in thousands', 'num_images', 1000)
    axis, key, unit = hours if args.hours else views
    figure = new_figure(figsize=(7, 3.6))
    axes, begin = figure.subplots(), 0.0
    for number, folder in enumerate([*sorted(card.glob('run*')), card], 1):
        begin = draw(axes, folder, begin, f'run {number}', key, unit)
    if (card / 'fresh').is_dir():
        draw(axes, card / 'fresh', 0.0, 'from a new network', key, unit)
    taught, teacher = list(read_json(card / 'measured.json')['networks'].items())[1]
    axes.axhline(teacher['nips']['top1'], color='0.35', linewidth=0.8, linestyle='--', label=taught)
    axes.set(xlabel=axis, ylabel='NIPS 2017 top-1 (%)', xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(frameon=False, fontsize='small')
    save_figure(figure, args.out)


if __name__ == '__main__':
    main()
