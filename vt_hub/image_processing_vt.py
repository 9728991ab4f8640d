"""Image processor of VT-ResNet"""

from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import ImageInput

from .images import to_channels

__all__ = ['VTResNetImageProcessor']

# timm's names of what decides the evaluation transform
DATA_KEYS = ('input_size', 'interpolation', 'mean', 'std', 'crop_pct', 'crop_mode')


class VTResNetImageProcessor(BaseImageProcessor):
    r"""
    timm's evaluation transform for transformers, from the `pretrained_cfg` in a model folder's `config.json`.

    Takes PIL images of any mode, numpy arrays, tensors, lists and batches of them, file names and URLs.

    Args:
        pretrained_cfg (`dict[str, Any]`, *optional*):
            timm's preprocessing: `input_size`, `interpolation`, `mean`, `std`, `crop_pct`, `crop_mode`.
        size (`int`, `tuple[int, int]` or `dict[str, int]`, *optional*):
            Output size, (height, width), or a dict of them, in place of the one in `pretrained_cfg`.
        crop_pct (`float`, *optional*):
            Output size as a fraction of the size that the image is first resized to.
    """

    model_input_names = ['pixel_values']

    def __init__(
        self,
        pretrained_cfg: dict[str, Any] | None = None,
        size: int | tuple[int, int] | dict[str, int] | None = None,
        crop_pct: float | None = None,
        **kwargs: Any,
    ):
        super().__init__()
        cfg = {key: value for key, value in (pretrained_cfg or {}).items() if key in DATA_KEYS}
        self.pretrained_cfg = timm.data.resolve_data_config(pretrained_cfg=self._override(cfg, size, crop_pct))
        self.pretrained_cfg = {key: self.pretrained_cfg[key] for key in DATA_KEYS}
        self.image_mean, self.image_std = list(self.pretrained_cfg['mean']), list(self.pretrained_cfg['std'])
        _, height, width = self.pretrained_cfg['input_size']
        self.size = {'height': height, 'width': width}
        self.crop_pct = self.pretrained_cfg['crop_pct']

    @staticmethod
    def _override(
        cfg: dict[str, Any], size: int | tuple[int, int] | dict[str, int] | None, crop_pct: float | None
    ) -> dict[str, Any]:
        cfg = dict(cfg)
        if size is not None:
            if isinstance(size, dict):
                size = size['height'], size['width']
            height, width = (size, size) if isinstance(size, int) else size
            cfg['input_size'] = (cfg.get('input_size', (3,))[0], height, width)
        if crop_pct is not None:
            cfg['crop_pct'] = crop_pct
        return cfg

    @classmethod
    def get_image_processor_dict(cls, pretrained_model_name_or_path, **kwargs):
        """Settings of a processor that was saved by itself, else those in the model's config.json."""
        try:
            found = super().get_image_processor_dict(pretrained_model_name_or_path, **dict(kwargs))
            if 'pretrained_cfg' in found[0]:
                return found
        except OSError:
            pass
        kwargs['image_processor_filename'] = 'config.json'
        return super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)

    def preprocess(
        self,
        images: ImageInput,
        size: int | tuple[int, int] | dict[str, int] | None = None,
        crop_pct: float | None = None,
        return_tensors: str | None = 'pt',
        **kwargs: Any,
    ) -> BatchFeature:
        """
        Args:
            images: One image or a batch: PIL, numpy (uint8, or float in 0..1), tensor, file name or URL.
            size: Output size, or (height, width), for this call.
            crop_pct: Crop fraction for this call.
            return_tensors: 'pt', 'np' or None for a list.

        Returns:
            `pixel_values`, (B, channels, height, width).
        """
        cfg = self._override(self.pretrained_cfg, size, crop_pct)
        transform = timm.data.create_transform(**cfg, is_training=False)
        channels = cfg['input_size'][0]
        pixels = [transform(to_channels(to_pil(image), channels)) for image in flatten(self.fetch_images(images))]
        if return_tensors == 'pt':
            return BatchFeature({'pixel_values': torch.stack(pixels)})
        return BatchFeature({'pixel_values': [p.numpy() for p in pixels]}, tensor_type=return_tensors)


def flatten(images: Any) -> list[Any]:
    """Single images from one image, an array of four dimensions, or nested lists of either."""
    if isinstance(images, (list, tuple)):
        return [one for image in images for one in flatten(image)]
    return list(images) if not isinstance(images, Image.Image) and images.ndim == 4 else [images]


def to_pil(image: Image.Image | np.ndarray | torch.Tensor) -> Image.Image:
    """A PIL image from an array (H, W), (H, W, C) or (C, H, W) of integers, or of floats in 0..1 or 0..255."""
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, torch.Tensor):
        image = (image.float() if image.is_floating_point() else image).cpu().numpy()
    if image.ndim == 3 and image.shape[0] in (1, 3, 4) and image.shape[-1] not in (1, 3, 4):
        image = np.moveaxis(image, 0, -1)
    if image.dtype == np.uint16:
        image = image / 65535
    elif image.dtype == bool:
        image = image.astype(np.float32)
    if np.issubdtype(image.dtype, np.floating):
        image = np.rint(image * (255 if image.max() <= 1 else 1))
    image = image.astype(np.uint8)
    return Image.fromarray(image[:, :, 0] if image.ndim == 3 and image.shape[-1] == 1 else image)
