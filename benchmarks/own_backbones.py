"""Put a VT stage on timm backbones, teach it for some minutes, and measure how much accuracy is kept.

    python benchmarks/own_backbones.py --backbone tf_efficientnet_lite0=lite0.pth --data-dir photographs
        --photographs DIR --work runs --out docs/benchmarks/own_backbones.jsonl

Each backbone gets the stage of `vt_net`, its own last part is the teacher, and the photographs have no labels. A
backbone without a file has no weights; only its cost and time are measured. The accuracy is that on the 1,000
photographs of NIPS 2017, as model_cards/photographs/measure.py measures it.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).parents[1] / 'model_cards' / 'photographs'))
from measure import NETWORK_ARGS, accuracy, logits_of, nips

from vt_hub.files import read_json
from vt_hub.loading.conversion import put_vt_stage
from vt_hub.loading.source import load_model
from vt_hub.paper.benchmark import Setting, measure
from vt_hub.publishing import export
from vt_hub.reporting import machine
from vt_hub.training.distillation import Folders, distill, load_distillation_recipe

SIZE = 224


def top1(model: torch.nn.Module, photographs: Path) -> float:
    listed = nips(photographs)
    logits = logits_of(model, [path for path, _ in listed], SIZE)
    return accuracy(logits, torch.tensor([label for _, label in listed]))['top1']


def taught(backbone: str, checkpoint: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Accuracy of a backbone, and of the VT-Net that learned from it."""
    start, whole = put_vt_stage(backbone, checkpoint, backbone_args=NETWORK_ARGS.get(backbone, {}))
    folder, run = args.work / backbone / 'start', args.work / backbone / 'run'
    if not folder.is_dir():
        export(start.model, folder)
    changes = {'model': str(folder)} | ({'steps': args.steps} if args.steps else {})
    recipe = load_distillation_recipe('own_backbone', changes)
    data = Folders(args.data_dir, args.share)
    model = distill(recipe, data, run, checkpoint, workers=args.workers, compile_networks=True)
    trained = read_json(run / 'result.json')
    return {
        'backbone_top1': top1(whole, args.photographs),
        'vt_top1': top1(load_model(str(model)), args.photographs),
        'views': trained['training']['num_images'],
        'minutes': round(trained['training']['seconds'] / 60, 1),
        'tokens': trained['tokens'],
    }


def cost(backbone: str, rounds: int) -> dict[str, Any]:
    """Parameters, multiply-accumulates and time of a backbone and of the VT-Net on its trunk."""
    network = {'backbone': backbone, 'backbone_args': NETWORK_ARGS.get(backbone, {})}
    rows = [measure(Setting('vt_net', batch_size, SIZE, fused=True, **network), rounds) for batch_size in (1, 16)]
    return {
        'params_m': rows[0]['params_m'],
        'macs_m': rows[0]['macs_m'],
        'speed': {row['batch_size']: row['ratios']['backbone'] for row in rows},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--backbone', action='append', required=True, metavar='NAME[=FILE]')
    parser.add_argument('--data-dir', type=Path, action='append', default=[], help='unlabelled images')
    parser.add_argument('--share', type=float, action='append', default=[])
    parser.add_argument('--photographs', type=Path, help="measure.py's folder")
    parser.add_argument('--work', type=Path, required=True, help='folder for the runs; an interrupted one resumes')
    parser.add_argument('--steps', type=int, help="default: the recipe's")
    parser.add_argument('--rounds', type=int, default=20, help='of the measurement of time')
    parser.add_argument('--workers', type=int, default=2)
    parser.add_argument('--out', type=Path, required=True)
    args = parser.parse_args()
    for given in args.backbone:
        name, _, file = given.partition('=')
        row = {'backbone': name, **cost(name, args.rounds), **machine(torch.device('cpu'))}
        if file:
            row |= taught(name, Path(file), args)
        print(json.dumps(row), flush=True)
        with open(args.out, 'a') as out:
            out.write(json.dumps(row) + '\n')


if __name__ == '__main__':
    main()
