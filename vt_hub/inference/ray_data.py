"""Classify images with Ray Data, on all machines of a cluster."""

from typing import TYPE_CHECKING, Any

import torch

from ..loading.source import load_model
from .batch_output import to_table
from .classify import Classifier
from .precision import laid_out

if TYPE_CHECKING:
    import numpy as np
    import pyarrow

__all__ = ['Classify']


class Classify:
    """A model for `ray.data.Dataset.map_batches`. It computes on the GPU that Ray assigns, else on the CPU.

    The input columns are `path` and, if the files have been read already, `bytes`: the names of
    `ray.data.read_binary_files`. The output columns are those of `batch_output.to_table`. Images that cannot be read
    have an `error`.

    Args:
        model: Model, model.tag, folder or hf-hub:ID.
        topk: Number of classes to report, best first.
        precision: 'fp32'; 'bf16' or 'fp16' for mixed precision; or 'auto', see `chosen_precision`.

    Raises:
        ModuleNotFoundError: pyarrow is not installed.
        ValueError: The model does not classify.
    """

    def __init__(self, model: str, topk: int = 5, precision: str = 'fp32'):
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
        self.classifier = Classifier(laid_out(load_model(model).fuse().to(device), precision), topk, precision)

    def __call__(self, batch: 'dict[str, np.ndarray | list[Any]]') -> 'pyarrow.Table':
        paths = [str(path) for path in batch['path']]
        contents = list(batch.get('bytes', [None] * len(paths)))
        return to_table(self.classifier.classify(*self.classifier.reader.read(paths, contents)))
