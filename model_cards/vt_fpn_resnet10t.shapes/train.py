"""Train VT-FPN and the panoptic FPN alike, compare them, and write vt_fpn_resnet10t.shapes.

    python model_cards/vt_fpn_resnet10t.shapes/train.py run --arm vt --seed 0 --work DIR     # and the others
    python model_cards/vt_fpn_resnet10t.shapes/train.py publish --work DIR --out FOLDER

VT-FPN that starts from scenes of fractals, by the same recipe; only its figures are published:

    vt-hub synthesize scenes --out scenes --train 4000 --val 300
    vt-hub train segmenter --recipe shapes --data-dir scenes --output pretrained
    python model_cards/vt_fpn_resnet10t.shapes/train.py run --arm vt --seed 0 --work DIR --start pretrained/model
    python model_cards/vt_fpn_resnet10t.shapes/train.py compare-start --work DIR

Data: `vt-hub synthesize shapes`, drawn into DIR on the first run. Scenes of seed 0 train and choose the checkpoint;
every setting of the recipe was chosen on them. Those of seed 1 are held out and were used only for the result files.
The published model is VT-FPN of seed 0, independent of its figures.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from PIL import Image

from vt_hub.files import read_json
from vt_hub.network.modeling_vt import VTFPNForSemanticSegmentation
from vt_hub.reporting import write_result
from vt_hub.synthesis.shapes import SHAPES, TEXTURES, scene, write_shapes
from vt_hub.training.segmentation.data import open_data
from vt_hub.training.segmentation.evaluate import evaluate_segmentation
from vt_hub.training.segmentation.recipe import load_segmentation_recipe

ROOT = Path(__file__).parent
sys.path.append(str(ROOT.parent))
from segmentation import figures, publish_run, train_and_measure  # noqa: E402

SEEDS = (0, 1, 2)
ARMS = {  # what is compared, as arguments of the model
    'fpn': {'decoder': 'fpn'},
    'vt': {'decoder': 'vt'},
    'vt_figure4': {'decoder': 'vt', 'top_down': False},
}
KINDS = {'shapes': list(SHAPES), 'textures': list(TEXTURES)}
HELD_OUT = {'name': 'vt-hub synthesize shapes', 'type': 'vt_hub.synthesis.shapes', 'split': 'held-out scenes, seed 1'}


def draw(work: Path):
    for name, num_train, num_val, seed in (('shapes', 4000, 300, 0), ('held_out', 0, 500, 1)):
        if not (work / name).exists():
            print(sum(1 for _ in write_shapes(work / name, num_train, num_val, seed)), 'scenes drawn:', name)


def evaluate(model: VTFPNForSemanticSegmentation, work: Path) -> dict:
    result = evaluate_segmentation(model, open_data(work / 'held_out', 'val'))
    return {**result, 'dataset': {**result['dataset'], **HELD_OUT}}


def run(args: argparse.Namespace):
    draw(args.work)
    folder = args.work / '_'.join([args.arm, *['started'] * bool(args.start), str(args.seed)])
    start = {'model': args.start} if args.start else {'model_args': ARMS[args.arm]}
    recipe = load_segmentation_recipe('shapes', start)
    data = [open_data(args.work / 'shapes', split) for split in ('train', 'val')]
    options = {'seed': args.seed, 'workers': 1, 'resume': args.resume}
    train_and_measure(recipe, *data, folder, partial(evaluate, work=args.work), **options)


def figures_of(arm: str, work: Path) -> dict:
    """Those of all runs of an arm."""
    return figures([work / f'{arm}_{seed}' for seed in SEEDS], KINDS)


def compare_start(args: argparse.Namespace):
    """The figures of the runs that began with --start, and those of the run that they began with."""
    training = read_json(args.work / 'vt_started_0' / 'held_out.json')['training']
    start = read_json(Path(training.pop('model')).parent / 'result.json')
    found = {'vt_started': figures_of('vt_started', args.work), 'training': training}
    write_result(ROOT / 'started.json', found | {'start': start['metrics']})


def publish(args: argparse.Namespace):
    """The figures of all runs, and the folder of one."""
    comparison: dict = {'seeds': SEEDS} | {arm: figures_of(arm, args.work) for arm in ARMS}
    result = read_json(args.work / 'vt_0' / 'held_out.json')
    training = result['training']
    write_result(ROOT / 'comparison.json', {**comparison, 'dataset': result['dataset'], 'training': training})

    held_out = open_data(args.work / 'held_out', 'val')
    publish_run(args.work / 'vt_0', ROOT, partial(evaluate, work=args.work), held_out, args.out)
    Image.fromarray(scene(2, 14, 256)[0]).save(ROOT.parents[1] / 'samples' / 'scene.png')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser('run', help='train and measure one model')
    command.add_argument('--arm', choices=ARMS, required=True)
    command.add_argument('--seed', type=int, required=True)
    command.add_argument('--resume', action='store_true')
    command.add_argument('--start', help='model folder to start from, not random weights')
    command.set_defaults(function=run)
    command = commands.add_parser('compare-start', help='write started.json')
    command.set_defaults(function=compare_start)
    command = commands.add_parser('publish', help='write comparison.json, result.json and the model folder')
    command.add_argument('--out', type=Path, required=True)
    command.set_defaults(function=publish)
    for command in commands.choices.values():
        command.add_argument('--work', type=Path, required=True, help='folder of data and runs')
    args = parser.parse_args()
    if args.function is run and args.start and args.arm != 'vt':
        parser.error('--start is for the arm vt')
    args.function(args)


if __name__ == '__main__':
    main()
