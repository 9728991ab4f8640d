"""Turn image files into model inputs with the model's own preprocessing."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image

from ..loading.source import load_model
from ..network.images import read_image, to_channels, with_channels
from ..network.vt_fpn import Network

__all__ = ['ImageLike', 'ImageReader', 'as_image', 'as_model', 'data_config', 'eval_transform']

ImageLike = Image.Image | str | Path

Read = tuple[torch.Tensor | None, list[dict[str, Any]]]  # see ImageReader.read


def as_model(model: Network | str | Path) -> Network:
    """A model as it is, or loaded by `load_model`."""
    return load_model(model) if isinstance(model, (str, Path)) else model


def as_image(image: ImageLike, channels: int) -> Image.Image:
    """An image, upright and with the channels of a model, or one read from a file by `read_image`."""
    return to_channels(image, channels) if isinstance(image, Image.Image) else read_image(image, channels)


def data_config(model: Network, use_test_size: bool = False) -> dict[str, Any]:
    """timm's preprocessing configuration of a model; see `eval_transform` for the arguments."""
    return with_channels(timm.data.resolve_model_data_config(model, use_test_size=use_test_size), model.in_chans)


def eval_transform(model: Network, use_test_size: bool = False) -> Callable[[Image.Image], torch.Tensor]:
    """timm's transform for evaluation, from an image to a tensor (C, H, W) for the model.

    Args:
        model: A timm model.
        use_test_size: Use the model's `test_input_size`, if it has one.
    """
    return timm.data.create_transform(**data_config(model, use_test_size), is_training=False)


class ImageReader(torch.utils.data.Dataset[Read]):
    """Reads image files with a model's own preprocessing. The index is a list of paths, for DataLoader workers.

    Args:
        model: A timm model.
        use_test_size: Use the model's `test_input_size`, if it has one.
    """

    def __init__(self, model: Network, use_test_size: bool = False):
        self.channels = model.in_chans
        self.transform = eval_transform(model, use_test_size)

    def __getitem__(self, paths: Sequence[Path | str]) -> Read:
        return self.read(paths, [None] * len(paths))

    def read(self, paths: Sequence[Path | str], contents: Sequence[bytes | None]) -> Read:
        """Read some files, or use their contents if given.

        Returns:
            The images that can be read, (B, C, H, W) or None. And for each path a dict with `image` and, if the file
            cannot be read, `error`.
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
