"""Image processor of VT-ResNet"""

from typing import Any

import timm
import torch
from PIL import Image
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_transforms import to_pil_image
from transformers.image_utils import ImageInput, make_flat_list_of_images

from .images import to_rgb

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
        size (`int` or `tuple[int, int]`, *optional*):
            Output size, or (height, width), in place of the one in `pretrained_cfg`.
        crop_pct (`float`, *optional*):
            Output size as a fraction of the size that the image is first resized to.
    """

    model_input_names = ['pixel_values']

    def __init__(
        self,
        pretrained_cfg: dict[str, Any] | None = None,
        size: int | tuple[int, int] | None = None,
        crop_pct: float | None = None,
        **kwargs: Any,
    ):
        super().__init__()
        cfg = {key: value for key, value in (pretrained_cfg or {}).items() if key in DATA_KEYS}
        self.pretrained_cfg = timm.data.resolve_data_config(pretrained_cfg=self._override(cfg, size, crop_pct))
        self.pretrained_cfg = {key: self.pretrained_cfg[key] for key in DATA_KEYS}
        self.image_mean, self.image_std = list(self.pretrained_cfg['mean']), list(self.pretrained_cfg['std'])

    @staticmethod
    def _override(cfg: dict[str, Any], size: int | tuple[int, int] | None, crop_pct: float | None) -> dict[str, Any]:
        cfg = dict(cfg)
        if size is not None:
            height, width = (size, size) if isinstance(size, int) else size
            cfg['input_size'] = (cfg.get('input_size', (3,))[0], height, width)
        if crop_pct is not None:
            cfg['crop_pct'] = crop_pct
        return cfg

    @classmethod
    def get_image_processor_dict(cls, pretrained_model_name_or_path, **kwargs):
        kwargs.setdefault('image_processor_filename', 'config.json')
        return super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)

    def preprocess(
        self,
        images: ImageInput,
        size: int | tuple[int, int] | None = None,
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
        mode = 'L' if cfg['input_size'][0] == 1 else 'RGB'
        images = make_flat_list_of_images(self.fetch_images(images))
        pixels = [transform(self._to_pil(image).convert(mode)) for image in images]
        if return_tensors == 'pt':
            return BatchFeature({'pixel_values': torch.stack(pixels)})
        return BatchFeature({'pixel_values': [p.numpy() for p in pixels]}, tensor_type=return_tensors)

    @staticmethod
    def _to_pil(image: Any) -> Image.Image:
        if isinstance(image, torch.Tensor):
            image = image.cpu().numpy()
        return to_rgb(image if isinstance(image, Image.Image) else to_pil_image(image))
