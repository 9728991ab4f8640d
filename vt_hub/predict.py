"""Classify image files with a model's own preprocessing."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import timm
import torch

from .images import read_image

__all__ = ['label_names', 'predict']


def label_names(model: torch.nn.Module) -> list[str]:
    """Class names of a model, from its pretrained configuration; the numbers where it has none."""
    names = model.pretrained_cfg.get('label_names')
    if names and len(names) == model.num_classes:
        descriptions = model.pretrained_cfg.get('label_descriptions') or {}
        return [descriptions.get(name, name) for name in names]
    return [str(i) for i in range(model.num_classes)]


@torch.inference_mode()
def predict(
    model: torch.nn.Module,
    paths: Sequence[Path],
    topk: int = 5,
    batch_size: int = 16,
) -> Iterator[dict[str, Any]]:
    """Classify image files in order, in batches.

    Args:
        model: A timm classifier in evaluation mode.
        paths: Image files.
        topk: Number of classes to report, best first.
        batch_size: Images that go through the model together.

    Yields:
        One dict per path: `image`, and `predictions`, a list of `label` and `score` (the softmax probability), or
        `error`, a sentence that names the file.

    Raises:
        ValueError: The model does not classify.
    """
    if hasattr(model, 'forward_maps'):
        raise ValueError(f'{model.pretrained_cfg["architecture"]} does not classify; `vt-hub segment` segments.')
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    labels = label_names(model)
    topk = min(topk, len(labels))
    paths = iter(paths)
    while batch := list(islice(paths, batch_size)):
        images, results = [], []
        for path in batch:
            result: dict[str, Any] = {'image': str(path)}
            results.append(result)
            try:
                images.append(transform(read_image(path, model.in_chans)))
            except ValueError as error:
                result['error'] = str(error)
        if images:
            scores, classes = model(torch.stack(images)).softmax(dim=-1).topk(topk)
            good = (result for result in results if 'error' not in result)
            for result, row_scores, row_classes in zip(good, scores.tolist(), classes.tolist(), strict=True):
                result['predictions'] = [
                    {'label': labels[c], 'score': round(s, 6)} for s, c in zip(row_scores, row_classes, strict=True)
                ]
        yield from results
