"""The figures of a transfer evaluation, computed from its runs alone, and their tables, from the report alone.

Print the tables: python model_cards/scenes/report.py report.json
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from vt_hub.files import read_json

PRIMARY = {'task': ['digits', 'characters', 'shapes'], 'shots': [5, 20]}  # fixed before anything was measured
PAIRS = (
    ('vt', 'vt_scratch'),
    ('vt', 'resnet'),
    ('vt', 'vt_8000'),
    ('vt', 'vt_shuffled'),
    ('vt', 'vt_sharp'),
    ('vt_8000', 'resnet_8000'),
    ('vt_8000', 'vt_scratch'),
    ('vt_8000_seed1', 'vt_scratch'),
    ('vt_8000', 'vt_8000_sharp'),
    ('vt_8000', 'vt_8000_shuffled'),
    ('vt', 'scenes'),
    ('vt', 'reference'),
    ('resnet', 'resnet_scratch'),
    ('resnet', 'resnet_8000'),
)
ARMS = {  # in the order of the tables' legend
    'vt': 'these weights',
    'vt_scratch': 'random ones',
    'vt_shuffled': 'these, shuffled within each tensor',
    'vt_sharp': 'these, before attention was softened',
    'vt_8000': 'weights of 8000 steps, their attention softened at the end alone',
    'vt_8000_seed1': 'those of another seed',
    'vt_8000_sharp': 'those before attention was softened',
    'vt_8000_shuffled': 'those, shuffled within each tensor',
    'scenes': 'vt_resnet18.scenes, pretrained on generated scenes',
    'reference': 'the ResNet-18 that was the teacher',
    'resnet': 'a ResNet pretrained alike',
    'resnet_scratch': 'a ResNet from random weights',
    'resnet_8000': 'a ResNet pretrained for 8000 steps',
}
CELL = ['task', 'shots']
TUNED = [*CELL, 'arm', 'steps', 'lr']


def best_setting(dev: pd.DataFrame) -> tuple[int, float]:
    """Steps and learning rate with the best mean accuracy in dev runs; of equals the shorter, then the lower."""
    steps, lr = dev.groupby(['steps', 'lr']).accuracy.mean().idxmax()
    return int(steps), float(lr)


def interval(values: pd.Series) -> dict[str, Any]:
    """Number of values, mean, standard deviation, and Student's 95 % interval of the mean."""
    n, mean, std = len(values), values.mean(), values.std()
    if n < 3:  # of two, an interval would be 25 standard errors wide
        return {'n': n, 'mean': round(mean, 2), 'std': None, 'low': None, 'high': None}
    low, high = stats.t.interval(0.95, n - 1, mean, std / n**0.5) if std > 0 else (mean, mean)
    return {'n': n, 'mean': round(mean, 2), 'std': round(std, 2), 'low': round(low, 2), 'high': round(high, 2)}


def intervals(table: pd.DataFrame, keys: list[str]) -> list[dict[str, Any]]:
    """The accuracies of each group of rows."""
    # a Series gives plain values: JSON cannot hold NumPy's integers, which pandas 2 has as keys
    groups = ((pd.Series(key, keys, dtype=object).to_dict(), group) for key, group in table.groupby(keys))
    return [{**names, **interval(group.accuracy)} for names, group in groups]


def check_same(runs: pd.DataFrame, names: list[str], fields: list[str]):
    """Raise ValueError if the fields differ between runs of the same names."""
    facts = runs[names + fields].drop_duplicates()
    for _, twice in facts[facts.duplicated(names)].iterrows():
        name = ' '.join(twice[names])
        raise ValueError(f'The runs of {name} differ in {" or ".join(fields)}; use another file of results.')


def summarise(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The report of a list of runs.

    Raises:
        ValueError: There are none, or an arm ran with different weights, or a task with different images.
    """
    if not records:
        raise ValueError('There are no runs to report on; name what to fine-tune with --arm.')
    runs = pd.DataFrame(records).astype({'steps': 'Int64'})  # frozen features have none
    check_same(runs, ['arm'], ['model', 'init'])
    check_same(runs, ['task', 'part'], ['data', 'scored'])
    runs = runs.drop_duplicates([*TUNED, 'method', 'part', 'draw'])
    tuned, frozen = runs[runs.method == 'finetune'], runs[runs.method != 'finetune']
    dev, test = tuned[tuned.part == 'dev'], tuned[tuned.part == 'test']
    settings = [(*key, *best_setting(group)) for key, group in dev.groupby([*CELL, 'arm'])]
    tested = pd.MultiIndex.from_frame(test[[*CELL, 'arm']])
    test = test.merge(pd.DataFrame(settings, columns=TUNED))
    for task, shots, arm in tested.difference(pd.MultiIndex.from_frame(test[[*CELL, 'arm']])):
        raise ValueError(f'What the dev part chooses for {arm}, {task}, {shots} shots has no run of the test part.')

    accuracies = test.pivot(index=[*CELL, 'draw'], columns='arm', values='accuracy')
    differences, primary = [], []
    for first, second in PAIRS:
        if not {first, second} <= set(accuracies):
            continue
        gains = (accuracies[first] - accuracies[second]).dropna().rename('accuracy')
        pair = {'pair': f'{first} - {second}'}
        differences += [pair | row for row in intervals(gains.reset_index(), CELL)]
        cells = pd.MultiIndex.from_product(PRIMARY.values(), names=CELL)
        means = gains.unstack('draw').reindex(cells).mean(skipna=False).dropna()  # of the draws that all cells have
        if len(means):
            primary.append(pair | interval(means))
    return {
        'arms': runs[['arm', 'model', 'init']].drop_duplicates().sort_values('arm').to_dict('records'),
        'scored': int(runs.scored.max()),
        'primary': {**PRIMARY, 'gains': primary},
        'differences': differences,
        'finetuned': intervals(test, TUNED),
        'frozen': intervals(frozen, [*CELL, 'arm', 'method']),
    }


def with_deviation(row: dict[str, Any]) -> str:
    spread = '' if row['std'] is None else f' ± {row["std"]:.1f}'
    return f'{row["mean"]:.1f}{spread} ({row["n"]})'


def with_interval(row: dict[str, Any]) -> str:
    limits = '' if row['low'] is None else f' [{row["low"]:+.1f}, {row["high"]:+.1f}]'
    return f'{row["mean"]:+.1f}{limits} ({row["n"]})'


def with_setting(row: dict[str, Any]) -> str:
    return f'{row["steps"]} x {row["lr"]:g}'


def table(rows: list[dict[str, Any]], column: str, cell: Callable[[dict[str, Any]], str]) -> str:
    """Rows of a report as a Markdown table: tasks and shots down, the values of `column` across."""
    texts = pd.DataFrame(rows).assign(text=[cell(row) for row in rows])
    wide = texts.pivot(index=CELL, columns=column, values='text').fillna('').reset_index()
    lines = [list(wide.columns), ['---'] * wide.shape[1], *wide.to_numpy().tolist()]
    return ''.join(f'| {" | ".join(map(str, line))} |\n' for line in lines)


def markdown(report: dict[str, Any]) -> str:
    """The tables of a report."""
    there = {row['arm'] for row in report['arms']}
    legend = [f'`{arm}`, {text}' for arm, text in ARMS.items() if arm in there]
    parts = [f'Arms: {"; ".join(legend)}.\n\n' if legend else '']
    if report['primary']['gains']:
        parts.append(
            'Gain, in points, mean of digits, characters and shapes at 5 and 20 shots [95 % interval] (draws):\n\n'
        )
        parts += [f'- `{row["pair"]}`: {with_interval(row)}\n' for row in report['primary']['gains']]
    tuned, frozen = report['finetuned'], [{**row, 'arm': f'{row["arm"]}, {row["method"]}'} for row in report['frozen']]
    for title, rows, column, cell in (
        ('Accuracy after fine-tuning, %, ± standard deviation (draws)', tuned, 'arm', with_deviation),
        ('Paired gains, points [95 % interval] (draws)', report['differences'], 'pair', with_interval),
        ('Steps x learning rate, chosen on the dev part', tuned, 'arm', with_setting),
        ('Frozen features and raw pixels, %, ± standard deviation (draws)', frozen, 'arm', with_deviation),
    ):
        if rows:
            parts += [f'\n{title}:\n\n', table(rows, column, cell)]
    return ''.join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('report', type=Path, help='a report of transfer.py')
    print(markdown(read_json(parser.parse_args().report)), end='')


if __name__ == '__main__':
    main()
