"""Measure networks with ImageNet's 1,000 classes on photographs that none of them was trained on.

    python model_cards/photographs/measure.py --photographs DIR --out result.json
        --network "this model"=vt_resnet18.dist_in1k --network "the ResNet-18 that taught it"=resnet18:head.safetensors
        --network EfficientNet-Lite2=tf_efficientnet_lite2:lite2.pth

DIR holds, unpacked from GitHub, `nips` (dongyp13/Translation-Invariant-Attacks: the test set, which nothing was chosen
on), `imagenette` (thunderInfy/imagenette: its val part chose settings and the temperature), `tiny` (seshuad/IMagenet:
val, answers restricted to its 200 classes) and `flowers` (martinwestin/flower_classification: tulips, which are not one
of the 1,000 classes).

A network is a published name or model folder, or a timm model and a file of weights. Its name is what a card calls it.
"""

import argparse
import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import ImageNetInfo, create_transform
from torch.utils.data import DataLoader, Dataset

from vt_hub.inference.preprocessing import data_config
from vt_hub.loading.conversion import load_trained
from vt_hub.loading.source import Source
from vt_hub.network.images import read_image
from vt_hub.network.vt_stage import VTBody
from vt_hub.reporting import machine, write_result
from vt_hub.training.resumable import autocast

SYNSETS = {name: number for number, name in enumerate(ImageNetInfo('imagenet-1k').label_names())}
RESOLUTIONS = (128, 160, 192, 224, 256, 320)
NUM_TOKENS = (1, 4, 16)
NETWORK_ARGS: dict[str, dict[str, Any]] = {'resnet18': {'layers': [2, 2, 2, 3]}}  # three blocks in the last stage
BINS = 15  # of the expected calibration error
CPU = torch.device('cpu')
Photographs = list[tuple[Path, int]]


def nips(root: Path) -> Photographs:
    """The 1,000 photographs of the NIPS 2017 competition, of 430 classes."""
    folder = root / 'nips' / 'dataset'
    with open(folder / 'dev_dataset.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    return [(next(folder.rglob(f'{row["ImageId"]}.png')), int(row['TrueLabel']) - 1) for row in rows]


def imagenette(root: Path) -> Photographs:
    """The val part, of 10 classes."""
    return [(path, SYNSETS[path.parent.name]) for path in sorted((root / 'imagenette' / 'val').glob('*/*.JPEG'))]


def tiny(root: Path) -> Photographs:
    """Tiny-ImageNet's val part, 64 x 64 pixels, of those 200 classes."""
    folder = root / 'tiny' / 'tiny-imagenet-200' / 'val'
    rows = [line.split('\t') for line in (folder / 'val_annotations.txt').read_text().splitlines()]
    return [(folder / 'images' / row[0], SYNSETS[row[1]]) for row in rows]


SETS: dict[str, Callable[[Path], Photographs]] = {'nips': nips, 'imagenette': imagenette, 'tiny': tiny}


class Images(Dataset):
    def __init__(self, paths: Sequence[Path], transform: Callable[..., torch.Tensor]):
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.transform(read_image(self.paths[i]))


def create(source: str, **kwargs: Any) -> torch.nn.Module:
    """A network in evaluation mode; see the module's text for the source."""
    name, _, path = source.partition(':')
    if path:
        return load_trained(name, Path(path), **NETWORK_ARGS.get(name, {}))
    return timm.create_model(f'local-dir:{Source.parse(source).folder()}', pretrained=True, **kwargs).eval()


@torch.inference_mode()
def logits_of(model: torch.nn.Module, paths: Sequence[Path], size: int) -> torch.Tensor:
    config = data_config(model) | {'input_size': (3, size, size), 'crop_pct': 0.875}
    loader = DataLoader(Images(paths, create_transform(**config)), batch_size=50, num_workers=2)
    model = model.to(memory_format=torch.channels_last)
    parts = []
    for images in loader:
        with autocast(CPU):
            parts.append(model(images.contiguous(memory_format=torch.channels_last)).float())
    return torch.cat(parts)


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Top-1 and top-5, in percent."""
    hits = logits.topk(5).indices == labels[:, None]
    return {
        'top1': round(100 * hits[:, 0].float().mean().item(), 2),
        'top5': round(100 * hits.any(1).float().mean().item(), 2),
    }


def calibration_error(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Expected calibration error in percent, of 15 bins of equal width (Guo et al. 2017, section 2)."""
    confidence, found = logits.softmax(1).max(1)
    right = (found == labels).float()
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    error = sum((right[bins == i] - confidence[bins == i]).sum().abs() for i in range(BINS))
    return round(100 * float(error) / len(labels), 2)


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The temperature with the least cross-entropy, of 0.3 to 3."""
    candidates = torch.linspace(0.3, 3, 271)
    losses = torch.stack([F.cross_entropy(logits / t, labels) for t in candidates])
    return round(candidates[losses.argmin()].item(), 2)


def measure(source: str, root: Path) -> Iterator[tuple[str, Any]]:
    """What is measured of a network, as pairs of a name and figures."""
    model = create(source)
    every, labels = {}, {}
    for name, listed in SETS.items():
        photographs = listed(root)
        every[name] = logits_of(model, [path for path, _ in photographs], 224)
        labels[name] = torch.tensor([label for _, label in photographs])
        if name == 'tiny':
            known = labels[name].unique()
            answers = torch.full_like(every[name], -torch.inf)
            answers[:, known] = every[name][:, known]
            yield name, {**accuracy(answers, labels[name]), 'num_images': len(photographs), 'classes': len(known)}
        else:
            yield name, {**accuracy(every[name], labels[name]), 'num_images': len(photographs)}
    temperature = fit_temperature(every['imagenette'], labels['imagenette'])
    yield (
        'calibration',
        {
            'nips_error': calibration_error(every['nips'], labels['nips']),
            'temperature_of_imagenette': temperature,
            'nips_error_at_that_temperature': calibration_error(every['nips'] / temperature, labels['nips']),
        },
    )
    strange = sorted((root / 'flowers' / 'flowers' / 'tulip').glob('*.jpg'))[:500]
    confidence = logits_of(model, strange, 224).softmax(1).max(1).values
    yield 'tulips', {'median_probability': round(confidence.median().item(), 3), 'num_images': len(strange)}
    paths = [path for path, _ in nips(root)]
    sizes = {size: accuracy(logits_of(model, paths, size), labels['nips'])['top1'] for size in RESOLUTIONS}
    yield 'nips_top1_by_resolution', sizes
    if isinstance(model, VTBody):
        counts = {}
        for count in NUM_TOKENS:
            fewer = create(source, num_tokens=count)
            counts[count] = accuracy(logits_of(fewer, paths, 224), labels['nips'])['top1']
        yield 'nips_top1_by_number_of_tokens', counts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--network', action='append', required=True, metavar='NAME=SOURCE')
    parser.add_argument('--photographs', type=Path, required=True)
    parser.add_argument('--out', type=Path, required=True)
    args = parser.parse_args()
    result: dict[str, Any] = {'machine': machine(CPU), 'networks': {}}
    for network in args.network:
        name, _, source = network.partition('=')
        measured = result['networks'][name] = {}
        for key, figures in measure(source, args.photographs):
            measured[key] = figures
            print(name, key, figures, flush=True)
            write_result(args.out, result)


if __name__ == '__main__':
    main()
