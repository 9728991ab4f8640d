"""VT-ResNet-18 against ResNet-18, from scratch: python benchmarks/vt_resnet_training.py --work DIR [--json FILE].

The recipe `basic` of `vt-hub train classifier` trains both, on single shapes drawn by formula and on the digits. The
schedule has the same form in fewer epochs: a tenth of the learning rate after each third. Batch and learning rate are
both an eighth of the recipe's. Crops are milder than timm's default and nothing is flipped, because a shape must stay
in the picture and a digit must stay readable. The scores are those of the weights of the last epoch, in fp32, on all
whole images of train and of val. The two models of one seed share no random numbers: their weights and the order of
their images differ.

DIR keeps data and runs of one set of arguments. A finished run is not repeated, and an interrupted one is resumed.
"""

import argparse
import math
import re
import statistics
import subprocess
import sys
from pathlib import Path

import timm
import torch
from scipy.stats import t

import vt_hub  # noqa: F401  registers the models
from vt_hub.files import read_json
from vt_hub.loading.checkpoints import load_into, read_foreign
from vt_hub.loading.cost import cost
from vt_hub.reporting import find_device, machine, write_result
from vt_hub.training.classification.data import open_image_folder
from vt_hub.training.classification.evaluate import evaluate_classifier

ROOT = Path(__file__).parents[1]
MODELS = ('resnet18', 'vt_resnet18')
SPLITS = ('train', 'val')
# the last line that timm's script logs of an epoch: its steps, and their mean time
EPOCH = re.compile(r'Train: \d+ \[ *\d+/(\d+) \(100%\)\].*Time: [^(]*\((\d+\.\d+)s')


def draw(name: str, folder: Path, args: argparse.Namespace):
    command = [ROOT / 'model_cards' / 'vt_resnet10.digits' / 'train.py', '--images', folder]
    if name == 'shapes':
        command = ['-m', 'vt_hub', 'synthesize', 'shapes', '--objects', '--out', folder, '--size', args.size]
        command += ['--train', args.train, '--val', args.val]
    subprocess.run([sys.executable, *map(str, command)], check=True)


def train(name: str, data_dir: Path, folder: Path, seed: int, epochs: int, size: int):
    """Train or resume; do nothing if the last epoch is done."""
    last = folder / 'last.pth.tar'
    if last.is_file() and read_foreign(last)[1]['epoch'] == epochs - 1:
        return
    command = [
        'train',
        'classifier',
        '--recipe',
        'basic',
        '--model',
        name,
        '--data-dir',
        data_dir,
        '--output',
        folder,
        '--resume',
    ]
    command += ['--seed', seed, '--workers', 1, '--epochs', epochs, '--decay-epochs', epochs // 3]
    command += ['--val-interval', epochs // 3, '--batch-size', 32, '--lr', 0.0125]
    command += ['--input-size', 3, size, size, '--crop-pct', 1.0, '--scale', 0.8, 1.0, '--hflip', 0.0]
    command += ['--amp', '--amp-dtype', 'bfloat16', '--channels-last']
    with open(f'{folder}.log', 'a') as log:
        subprocess.run([sys.executable, '-m', 'vt_hub', *map(str, command)], stdout=log, stderr=log, check=True)


def measure(name: str, data_dir: Path, folder: Path, size: int) -> dict:
    """Metrics of the last epoch's weights on both splits, and seconds of each epoch of training."""
    data = {split: open_image_folder(data_dir, split) for split in SPLITS}
    overlay = {'input_size': (3, size, size), 'test_input_size': None, 'crop_pct': 1.0, 'test_crop_pct': None}
    model = timm.create_model(name, num_classes=len(data['train'].classes), pretrained_cfg_overlay=overlay)
    load_into(model, read_foreign(folder / 'last.pth.tar')[0], folder / 'last.pth.tar')
    metrics = {split: evaluate_classifier(model, data[split], torch.device('cpu'))['metrics'] for split in SPLITS}
    epochs = EPOCH.findall(Path(f'{folder}.log').read_text())
    return {**metrics, 'seconds': [round(int(steps) * float(mean), 1) for steps, mean in epochs]}


def compare(values: dict[str, list[float]]) -> dict:
    """Differences of two models' figures, one a seed, with their mean and its 95 % t-interval."""
    resnet, vt = (values[name] for name in MODELS)
    differences = [b - a for a, b in zip(resnet, vt, strict=True)]
    count, mean = len(differences), statistics.mean(differences)
    half = float(t.ppf(0.975, count - 1)) * statistics.stdev(differences) / math.sqrt(count)
    return {'mean': round(mean, 2), 'interval': [round(mean - half, 2), round(mean + half, 2)]}


def summarize(name: str, runs: dict[str, list[dict]], data_dir: Path, size: int) -> dict:
    """All figures of one data set."""
    data = {split: open_image_folder(data_dir, split) for split in SPLITS}
    classes = len(data['train'].classes)
    summary = {'name': name, 'classes': classes, 'images': {split: len(data[split].files) for split in SPLITS}}
    top1 = {split: {model: [run[split]['top1'] for run in runs[model]] for model in MODELS} for split in SPLITS}
    for model in MODELS:
        params, macs = cost(model, size=(size, size), num_classes=classes)
        summary[model] = {'params_m': round(params, 2), 'macs_m': round(macs)}
        for split in SPLITS:
            values = top1[split][model]
            summary[model][split] = {
                'top1': values,
                'mean': round(statistics.mean(values), 2),
                'stdev': round(statistics.stdev(values), 2),
                'loss': [run[split]['loss'] for run in runs[model]],
            }
        summary[model]['seconds'] = [run['seconds'] for run in runs[model]]
    return {**summary, 'difference': {split: compare(top1[split]) for split in SPLITS}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work', type=Path, required=True, help='folder of data and runs')
    parser.add_argument('--json', type=Path, help='write the figures here')
    parser.add_argument('--data', nargs='+', default=['shapes', 'digits'], choices=['shapes', 'digits'])
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--epochs', nargs='+', type=int, default=[12, 6], help='of training on each data set')
    parser.add_argument('--size', type=int, default=96, help='height and width in pixels')
    parser.add_argument('--train', type=int, default=3200, help='shapes to train on')
    parser.add_argument('--val', type=int, default=800, help='shapes to validate on')
    args = parser.parse_args()
    runs: dict[str, dict[str, list[dict]]] = {data: {name: [] for name in MODELS} for data in args.data}
    for seed in args.seeds:
        for data, epochs in zip(args.data, args.epochs, strict=True):
            data_dir = args.work / data
            if not data_dir.exists():
                draw(data, data_dir, args)
            for name in MODELS:
                folder = args.work / f'{data}_{name}_{seed}'
                result = Path(f'{folder}.json')
                if not result.exists():
                    train(name, data_dir, folder, seed, epochs, args.size)
                    write_result(result, measure(name, data_dir, folder, args.size))
                runs[data][name].append(read_json(result))
                print(folder.name, runs[data][name][-1], flush=True)
    rows = [
        {'epochs': epochs, **summarize(data, runs[data], args.work / data, args.size)}
        for data, epochs in zip(args.data, args.epochs, strict=True)
    ]
    for row in rows:
        for split in SPLITS:
            print(row['name'], split, {model: row[model][split]['top1'] for model in MODELS}, row['difference'][split])
    if args.json:
        settings = {name: getattr(args, name) for name in ('seeds', 'size')}
        write_result(args.json, {**settings, 'rows': rows, **machine(find_device())})


if __name__ == '__main__':
    main()
