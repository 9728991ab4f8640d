"""Classify image files with a model's own preprocessing."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image

from .images import read_image, with_channels
from .scores import scores_of

__all__ = [
    'DTYPES',
    'Classifier',
    'ImageReader',
    'data_config',
    'eval_transform',
    'is_segmenter',
    'label_names',
    'predict',
]

DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}


def label_names(model: torch.nn.Module) -> list[str]:
    """Class names of a model, from its pretrained configuration; the numbers where it has none."""
    names = model.pretrained_cfg.get('label_names')
    if names and len(names) == model.num_classes:
        descriptions = model.pretrained_cfg.get('label_descriptions') or {}
        return [descriptions.get(name, name) for name in names]
    return [str(i) for i in range(model.num_classes)]


def is_segmenter(model: torch.nn.Module) -> bool:
    """Whether a model names pixels, as VT-FPN does, and not images."""
    return hasattr(model, 'forward_maps')


def data_config(model: torch.nn.Module, use_test_size: bool = False) -> dict[str, Any]:
    """timm's description of a model's preprocessing; see `eval_transform` for the arguments."""
    return with_channels(timm.data.resolve_model_data_config(model, use_test_size=use_test_size), model.in_chans)


def eval_transform(model: torch.nn.Module, use_test_size: bool = False) -> Callable[[Image.Image], torch.Tensor]:
    """timm's transform for evaluation, from an image to pixels (C, H, W) as the model takes them.

    Args:
        model: A timm model.
        use_test_size: To the size that timm evaluates the model at, where it has another.
    """
    return timm.data.create_transform(**data_config(model, use_test_size), is_training=False)


class ImageReader(torch.utils.data.Dataset):
    """Reads image files by a model's own preprocessing; indexed by a list of paths, for the workers of a DataLoader.

    Args:
        model: A timm model.
        use_test_size: Read them in the size that timm evaluates the model at, where it has another.
    """

    def __init__(self, model: torch.nn.Module, use_test_size: bool = False):
        self.channels = model.in_chans
        self.transform = eval_transform(model, use_test_size)

    def __getitem__(self, paths: Sequence[Path | str]) -> tuple[torch.Tensor | None, list[dict[str, Any]]]:
        return self.read(paths, [None] * len(paths))

    def read(
        self, paths: Sequence[Path | str], contents: Sequence[bytes | None]
    ) -> tuple[torch.Tensor | None, list[dict[str, Any]]]:
        """Read some files, or take what is in them.

        Returns:
            The images that can be read, (B, C, H, W) or None, and for each path a dict of `image` and, where it cannot
            be read, `error`.
        """
        images, results = [], []
        for path, content in zip(paths, contents, strict=True):
            result: dict[str, Any] = {'image': str(path)}
            results.append(result)
            try:
                images.append(self.transform(read_image(path, self.channels, content)))
            except ValueError as error:
                result['error'] = str(error)
            except MemoryError:
                result['error'] = f'Cannot read {path} as an image: there is too little memory.'
        return torch.stack(images) if images else None, results


class Classifier(torch.utils.data.Dataset):
    """A model with its preprocessing; indexed by a list of paths, it gives what `predict` yields of them.

    Args:
        model: A timm classifier in evaluation mode; it computes where its parameters are.
        topk: Number of classes to report, best first.
        dtype: 'fp32', or 'bf16' or 'fp16' for mixed precision.

    Raises:
        ValueError: The model does not classify.
    """

    def __init__(self, model: torch.nn.Module, topk: int = 5, dtype: str = 'fp32'):
        if is_segmenter(model):
            raise ValueError(f'{model.pretrained_cfg["architecture"]} does not classify; `vt-hub segment` segments.')
        if model.num_classes < 1:
            raise ValueError(f'{model.pretrained_cfg["architecture"]} does not classify: it was made with no classes.')
        self.model = model
        self.reader = ImageReader(model)
        self.labels = label_names(model)
        self.topk = min(topk, len(self.labels))
        self.dtype = dtype
        parameter = next(model.parameters())
        self.device, self.weight_dtype = parameter.device, parameter.dtype

    def __getitem__(self, paths: Sequence[Path | str]) -> list[dict[str, Any]]:
        return self.classify(*self.reader[paths])

    @torch.inference_mode()
    def classify(self, images: torch.Tensor | None, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Add the `predictions` of images to the results that have no error; both come from `reader`."""
        if images is None:
            return results
        dtype = DTYPES[self.dtype]
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            logits = self.model(images.to(self.device, self.weight_dtype, non_blocking=True))
        scores, classes = scores_of(self.model, logits).topk(self.topk)
        good = (result for result in results if 'error' not in result)
        for result, row_scores, row_classes in zip(good, scores.tolist(), classes.tolist(), strict=True):
            if not math.isfinite(row_scores[0]):
                result['error'] = f'The scores of {result["image"]} are not finite in {self.dtype}.'
                continue
            result['predictions'] = [
                {'label': self.labels[c], 'score': round(s, 6)} for s, c in zip(row_scores, row_classes, strict=True)
            ]
        return results


def predict(
    model: torch.nn.Module,
    paths: Sequence[Path],
    topk: int = 5,
    batch_size: int = 16,
    dtype: str = 'fp32',
) -> Iterator[dict[str, Any]]:
    """Classify image files in order, in batches, in this process; `prediction_run.predict_files` takes any number.

    Args:
        model: A timm classifier in evaluation mode; it computes where its parameters are.
        paths: Image files.
        topk: Number of classes to report, best first.
        batch_size: Images that go through the model together.
        dtype: 'fp32', or 'bf16' or 'fp16' for mixed precision.

    Yields:
        One dict per path: `image`, and `predictions`, a list of `label` and `score` (see `scores_of`), or `error`, a
        sentence that names the file.

    Raises:
        ValueError: The model does not classify.
    """
    classifier = Classifier(model, topk, dtype)
    paths = iter(paths)
    while batch := list(islice(paths, batch_size)):
        yield from classifier[batch]
