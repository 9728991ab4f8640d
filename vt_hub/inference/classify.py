"""Classify image files with a model's own preprocessing."""

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, overload

import torch

from ..network.vt_fpn import Network, is_segmenter
from .precision import chosen_precision, computing_in
from .preprocessing import ImageLike, ImageReader, as_image, as_model
from .scores import label_names, scores_of

__all__ = ['Classifier', 'predict', 'predict_each']


class Classifier(torch.utils.data.Dataset[list[dict[str, Any]]]):
    """A model with its preprocessing. The index is a list of paths; the result is what `predict` yields for them.

    Args:
        model: A timm classifier in evaluation mode; it computes on the device of its parameters.
        topk: Number of classes to report, best first.
        precision: 'fp32'; 'bf16' or 'fp16' for mixed precision; or 'auto', see `chosen_precision`.

    Raises:
        ValueError: The model does not classify.
    """

    def __init__(self, model: Network, topk: int = 5, precision: str = 'fp32'):
        if is_segmenter(model):
            raise ValueError(f'{model.pretrained_cfg["architecture"]} does not classify; `vt-hub segment` segments.')
        if model.num_classes < 1:
            raise ValueError(f'{model.pretrained_cfg["architecture"]} does not classify: it was made without classes.')
        self.model = model
        self.reader = ImageReader(model)
        self.labels = label_names(model)
        self.topk = min(topk, len(self.labels))
        parameter = next(model.parameters())
        self.device, self.weight_dtype = parameter.device, parameter.dtype
        self.precision = chosen_precision(precision, self.device)

    def __getitem__(self, paths: Sequence[Path | str]) -> list[dict[str, Any]]:
        return self.classify(*self.reader[paths])

    @torch.inference_mode()
    def classify(self, images: torch.Tensor | None, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Add `predictions` to the results without an error. The images and results come from `reader`."""
        if images is None:
            return results
        with computing_in(self.precision, self.device):
            logits = self.model(images.to(self.device, self.weight_dtype, non_blocking=True))
        scores, classes = scores_of(self.model, logits).topk(self.topk)
        good = (result for result in results if 'error' not in result)
        for result, row_scores, row_classes in zip(good, scores.tolist(), classes.tolist(), strict=True):
            if not math.isfinite(row_scores[0]):
                result['error'] = f'The scores of {result["image"]} are not finite in {self.precision}.'
                continue
            result['predictions'] = [
                {'label': self.labels[c], 'score': round(s, 6)} for s, c in zip(row_scores, row_classes, strict=True)
            ]
        return results


@overload
def predict(model: Network | str | Path, images: ImageLike, topk: int = 5) -> list[dict[str, Any]]: ...


@overload
def predict(model: Network | str | Path, images: list[Any], topk: int = 5) -> list[list[dict[str, Any]]]: ...


def predict(model: Network | str | Path, images: ImageLike | list[Any], topk: int = 5) -> Any:
    """Name what images show.

    Args:
        model: A timm classifier in evaluation mode, or what `load_model` takes, such as 'vt_resnet18'.
        images: An image or a path, or a list of these.
        topk: Number of classes, best first.

    Returns:
        The best classes of the image, each with `label` and `score` (see `scores_of`). For a list, a list of these.

    Raises:
        ValueError: The model does not classify, or an image cannot be read.
        LookupError: There is no such model, or it has no weights.
    """
    classifier = Classifier(as_model(model), topk)
    found = []
    for image in images if isinstance(images, list) else [images]:
        pixels = classifier.reader.transform(as_image(image, classifier.reader.channels))
        result = classifier.classify(pixels[None], [{'image': image}])[0]
        if 'error' in result:
            raise ValueError(result['error'])
        found.append(result['predictions'])
    return found if isinstance(images, list) else found[0]


def predict_each(
    model: Network,
    paths: Sequence[Path],
    topk: int = 5,
    batch_size: int = 16,
    precision: str = 'fp32',
) -> Iterator[dict[str, Any]]:
    """Classify image files in order, in batches, in this process; for many files, see `batch_run.predict_files`.

    Args:
        model: A timm classifier in evaluation mode; it computes on the device of its parameters.
        paths: Image files.
        topk: Number of classes to report, best first.
        batch_size: Images that go through the model together.
        precision: 'fp32'; 'bf16' or 'fp16' for mixed precision; or 'auto', see `chosen_precision`.

    Yields:
        One dict per path: `image`, and `predictions`, a list of `label` and `score` (see `scores_of`), or `error`, a
        message that names the file.

    Raises:
        ValueError: The model does not classify.
    """
    classifier = Classifier(model, topk, precision)
    rest = iter(paths)
    while batch := list(islice(rest, batch_size)):
        yield from classifier[batch]
