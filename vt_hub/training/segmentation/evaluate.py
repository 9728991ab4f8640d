"""Evaluate semantic segmentation: IoU of every class, over the whole set and at the size of the masks."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...files import read_json
from ...inference.diversity import TokenDiversity, average, token_diversity
from ...interrupts import iterate
from ...network.image_processing_vt import VTFPNImageProcessor
from ...network.modeling_vt import VTFPNForSemanticSegmentation
from ...network.vt_fpn import is_segmenter
from ...processes import gather_lists, rank_and_world, reduce_sum
from ...reporting import Progress, no_progress
from .data import IGNORE, SegmentationData

COMPARED = 16  # number of images to compare tokens on, in the first process

__all__ = ['evaluate_segmentation', 'load_segmenter', 'scores']


class EvaluationPairs(torch.utils.data.Dataset[tuple[torch.Tensor, np.ndarray] | str]):
    """Prepared image and mask of each pair, or an error message if the pair cannot be used."""

    def __init__(
        self,
        data: SegmentationData,
        processor: VTFPNImageProcessor,
        num_classes: int,
        edges: tuple[int, int] | None,
        indices: range,
    ):
        self.data = data
        self.processor = processor
        self.num_classes = num_classes
        self.edges = edges
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, np.ndarray] | str:
        i = self.indices[i]
        try:
            image, mask = self.data[i]
        except ValueError as error:
            return str(error)
        if mask.max(where=mask != IGNORE, initial=0) >= self.num_classes:
            return f'{self.data.name_of(i)} has labels beyond the {self.num_classes} classes of the model.'
        size = fit_edges(image.height, image.width, *self.edges) if self.edges else None
        return self.processor(image, size=size)['pixel_values'], mask


def fit_edges(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """Scale (height, width) to the `shortest` edge, or less if the longer edge would exceed `longest`."""
    scale = min(shortest / min(height, width), longest / max(height, width))
    return max(round(height * scale), 1), max(round(width * scale), 1)


def confusion_of(
    model: VTFPNForSemanticSegmentation, processor: VTFPNImageProcessor, pixels: torch.Tensor, mask: np.ndarray
) -> torch.Tensor:
    """Segment an image (1, C, H, W), and count its labelled pixels by true class and predicted class, (C, C)."""
    outputs = model(pixels)
    labels = torch.as_tensor(mask, device=model.device).long()
    height, width = mask.shape
    predicted = processor.post_process_semantic_segmentation(outputs, [(height, width)])[0]
    labelled, num_classes = labels != IGNORE, model.config.num_labels
    cells = labels[labelled] * num_classes + predicted[labelled]
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)


def scores(confusion: torch.Tensor, classes: list[str]) -> dict[str, Any]:
    """Mean IoU, pixel accuracy and the IoU of every class, in percent.

    Args:
        confusion: Pixels by true class and predicted class, (C, C).
        classes: Class names.

    Returns:
        `metrics` (`miou`, `pixel_accuracy`) and `per_class_iou`. The IoU is None for a class that occurs neither in the
        masks nor in the predictions; the mean leaves out such a class.
    """
    confusion = confusion.double()
    hits = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - hits
    iou = 100 * hits / union
    present = union > 0
    return {
        'metrics': {
            'miou': round(iou[present].mean().item(), 2),
            'pixel_accuracy': round((100 * hits.sum() / confusion.sum()).item(), 2),
        },
        'per_class_iou': {
            name: round(value.item(), 2) if there else None
            for name, value, there in zip(classes, iou, present, strict=True)
        },
    }


def describe(data: SegmentationData, per_class_iou: dict[str, float | None], num_images: int) -> dict[str, Any]:
    """The entry `dataset` of a result file. The split says how many classes the mean IoU is of, if not of all."""
    scored = sum(iou is not None for iou in per_class_iou.values())
    share = f', {scored} of {len(data.classes)} classes' if scored < len(data.classes) else ''
    return {'name': data.name, 'type': data.name, 'split': data.split + share, 'num_images': num_images}


def load_segmenter(folder: Path) -> VTFPNForSemanticSegmentation:
    """Load a segmentation model from a model folder.

    Raises:
        ValueError: The model does not segment.
    """
    architecture = str(read_json(folder / 'config.json').get('architecture'))
    if not is_segmenter(architecture):
        raise ValueError(f'{folder} holds a {architecture}, which does not segment.')
    return VTFPNForSemanticSegmentation.from_pretrained(folder)


@torch.inference_mode()
def evaluate_segmentation(
    model: VTFPNForSemanticSegmentation,
    data: SegmentationData,
    edges: tuple[int, int] | None = None,
    workers: int = 0,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Segment all images of a set and compute the scores. Under torchrun, processes share the images.

    The model processes one image at a time, so results do not depend on batching.

    Args:
        model: A model on the device to use.
        data: Images and masks with the model's classes.
        edges: Resize images to this shorter edge, with the longer edge at most the second number, instead of to the
            model's input size.
        workers: Processes that read images.
        progress: Wraps the loop to show progress; it gets the loop's length and a title.

    Returns:
        The contents of a result file: see `scores`; `tokens`, the token diversity of each level; and `errors`, messages
        on the pairs that could not be used.

    Raises:
        ValueError: The classes differ in number, or no pair could be used.
    """
    num_classes = model.config.num_labels
    if len(data.classes) != num_classes:
        raise ValueError(f'{data.name} has {len(data.classes)} classes, but the model has {num_classes}.')
    rank, world = rank_and_world()
    processor = VTFPNImageProcessor(model.config.pretrained_cfg)
    pairs = EvaluationPairs(data, processor, num_classes, edges, range(rank, len(data), world))
    loader = torch.utils.data.DataLoader(pairs, batch_size=None, num_workers=workers)
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=model.device)
    errors = []
    compared: list[list[TokenDiversity]] = []
    model.eval()
    for pair in progress(iterate(loader), len(pairs), 'Evaluating'):
        if isinstance(pair, str):
            errors.append(pair)
            continue
        pixels, mask = pair
        pixels = pixels.to(model.device)
        confusion += confusion_of(model, processor, pixels, mask)
        if len(compared) < COMPARED:
            compared.append(token_diversity(model, pixels))
    reduce_sum(confusion)
    errors = gather_lists(errors)
    if not confusion.any():
        raise ValueError(f'No labelled pixel of {data.name} could be used{": " + errors[0] if errors else "."}')
    found = scores(confusion.cpu(), data.classes)
    return {
        'task': 'image-segmentation',
        'dataset': describe(data, found['per_class_iou'], len(data) - len(errors)),
        **found,
        'tokens': [level.to_dict() for level in average(compared)],
        'errors': sorted(errors),
    }
