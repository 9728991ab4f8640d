"""Measure a distillation on its way: the accuracy of its averaged student on the photographs of NIPS 2017.

    python model_cards/photographs/progress.py --run RUN --states STATES --photographs DIR
        --teacher-checkpoint teacher.safetensors --out progress.csv

STATES holds copies of RUN/state.pt, made while the run went on.
"""

import argparse
import csv
from pathlib import Path

import torch
from measure import accuracy, logits_of, nips

from vt_hub.files import read_json
from vt_hub.training.distillation import load_distillation_recipe
from vt_hub.training.distillation.networks import Distiller, load_networks

SIZE = 224


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ('--run', '--states', '--photographs', '--teacher-checkpoint', '--out'):
        parser.add_argument(name, type=Path, required=True)
    args = parser.parse_args()
    settings = read_json(args.run / 'recipe.json')
    keys = load_distillation_recipe('smoke').__dataclass_fields__
    recipe = load_distillation_recipe('smoke', {key: settings[key] for key in keys})
    photographs = nips(args.photographs)
    labels, paths = torch.tensor([label for _, label in photographs]), [path for path, _ in photographs]
    rows = []
    teacher, student, _ = load_networks(recipe, args.teacher_checkpoint, None)
    net = Distiller(student, teacher, recipe.stages[0].size, recipe.strides).eval()
    for path in sorted(args.states.glob('*.pt')):
        state = torch.load(path, map_location='cpu', weights_only=True)
        net.load_state_dict({key.removeprefix('module.'): value for key, value in state['ema'].items()})
        found = accuracy(logits_of(net.fold(), paths, SIZE), labels)
        rows.append({'step': state['step'], **found})
        print(rows[-1], flush=True)
    with open(args.out, 'w', newline='') as file:
        writer = csv.DictWriter(file, rows[0], lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)


if __name__ == '__main__':
    main()
