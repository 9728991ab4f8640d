"""Evaluate classifiers on class folders, with the model's own preprocessing."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import ImageNetInfo, infer_imagenet_subset

from ...inference.diversity import token_diversity
from ...inference.preprocessing import ImageReader
from ...inference.scores import label_names
from ...interrupts import iterate
from ...network.vt_fpn import Network
from ...processes import gather_lists, rank_and_world, reduce_sum
from ...reporting import Progress, no_progress
from .data import ImageFolder, open_image_folder

COMPARED = 64  # number of images to compare tokens on, evenly spread

__all__ = ['evaluate_classifier', 'open_for_model']


class Batches(torch.utils.data.Dataset[tuple[torch.Tensor | None, torch.Tensor, list[str]]]):
    """Whole batches, so that they do not depend on the number of processes."""

    def __init__(self, data: ImageFolder, model: Network, batch_size: int):
        self.data = data
        self.batch_size = batch_size
        self.reader = ImageReader(model, use_test_size=True)

    def __len__(self) -> int:
        return -(-len(self.data.files) // self.batch_size)

    def __getitem__(self, i: int) -> tuple[torch.Tensor | None, torch.Tensor, list[str]]:
        """Images (B, C, H, W), their classes (B,), and an error message for each image that cannot be read."""
        chosen = slice(i * self.batch_size, (i + 1) * self.batch_size)
        images, results = self.reader[self.data.files[chosen]]
        targets = [
            target for target, result in zip(self.data.targets[chosen], results, strict=True) if 'error' not in result
        ]
        return images, torch.tensor(targets), [result['error'] for result in results if 'error' in result]


def open_for_model(model: Network, data_dir: str | Path, split: str = 'val') -> ImageFolder:
    """A split's images with the model's class numbers: by its labels, or in order if it has no labels.

    Folders of ImageNet's classes may have the names of synsets, such as n01440764.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: The folder names are not the model's labels, their number is not its number of classes, or two
            classes have the label of one folder.
    """
    data, labels = open_image_folder(data_dir, split), label_names(model)
    own = model.pretrained_cfg.get('label_names') or []
    subset = infer_imagenet_subset(model)
    synsets = ImageNetInfo(subset).label_names() if subset else []
    for names in (labels, own, synsets):  # the first two differ if labels are descriptions
        number = {name: i for i, name in enumerate(names)}
        if number.keys() >= set(data.classes):
            if twice := sorted(name for name in data.classes if names.count(name) > 1):
                raise ValueError(
                    f'Two classes of the model are called {twice[0]}, so the folder {data.root / twice[0]} could be '
                    'either; name all folders by synset, such as n01440764.'
                )
            return replace(data, targets=[number[data.classes[target]] for target in data.targets], classes=labels)
    if own or len(data.classes) != len(labels):
        raise ValueError(
            f'{data.root} has {len(data.classes)} classes ({data.classes[0]}, ...), but the model {len(labels)} '
            f'({labels[0]}, ...); use its labels as names of the class folders.'
        )
    return data


def tally(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sums over a batch with classes (B,): images, right, right in five, and cross-entropy, (4,)."""
    right = logits.topk(min(5, logits.shape[1])).indices == targets[:, None]
    loss = F.cross_entropy(logits, targets, reduction='sum')
    return torch.stack([torch.ones_like(targets).sum(), right[:, 0].sum(), right.sum(), loss])


def metrics_of(sums: torch.Tensor, num_classes: int) -> dict[str, float]:
    """The metrics of a result file from the sums of `tally`."""
    count, top1, top5, loss = sums.tolist()
    metrics = {'top1': round(100 * top1 / count, 2), 'loss': round(loss / count, 4)}
    if num_classes > 5:
        metrics['top5'] = round(100 * top5 / count, 2)
    return metrics


@torch.inference_mode()
def evaluate_classifier(
    model: Network,
    data: ImageFolder,
    device: torch.device,
    batch_size: int = 64,
    workers: int = 0,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Classify all images of a set and compute the scores. Under torchrun, processes share the batches.

    Args:
        model: A classifier, through timm.
        data: Images and classes, with the model's class numbers.
        device: Device to compute on.
        batch_size: Images in one batch.
        workers: Processes that read images.
        progress: Wraps the loop to show progress; it gets the loop's length and a title.

    Returns:
        The contents of a result file: `metrics` (`top1` and `top5` in percent, and `loss`, the mean cross-entropy),
        `tokens` (the token diversity of each VT module), `images_per_second`, and `errors`, messages on the images that
        could not be read.

    Raises:
        ValueError: No image could be read.
    """
    rank, world = rank_and_world()
    model = model.eval().to(device)
    batches = Batches(data, model, batch_size)
    share = torch.utils.data.Subset(batches, range(rank, len(batches), world))
    loader = torch.utils.data.DataLoader(share, batch_size=None, num_workers=workers)
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    errors: list[str] = []
    started = time.perf_counter()
    for images, targets, failed in progress(iterate(loader), len(share), 'Evaluating'):
        errors += failed
        if images is None:
            continue
        sums += tally(model(images.to(device)).double(), targets.to(device))
    compared, _ = batches.reader[data.files[:: -(-len(data.files) // COMPARED)]]
    tokens = [] if compared is None else token_diversity(model, compared.to(device))
    reduce_sum(sums)
    errors = gather_lists(errors)
    count = int(sums[0])
    if not count:
        raise ValueError(f'No image under {data.root} could be read: {min(errors)}')
    return {
        'task': 'image-classification',
        'dataset': {
            'name': Path(data.root).resolve().parent.name,
            'type': 'imagefolder',
            'split': Path(data.root).resolve().name,
            'num_images': count,
        },
        'metrics': metrics_of(sums, model.num_classes),
        'tokens': [module.to_dict() for module in tokens],
        'images_per_second': round(count / (time.perf_counter() - started), 1),
        'errors': sorted(errors),
    }
