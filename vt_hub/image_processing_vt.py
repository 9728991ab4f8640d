"""Image processors of VT-ResNet and VT-FPN"""

from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import ImageInput

from .images import to_channels

__all__ = ['VTFPNImageProcessor', 'VTResNetImageProcessor']

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


class VTFPNImageProcessor(VTResNetImageProcessor):
    r"""
    timm's evaluation transform for images and their label maps, and the way back from logits to label maps.

    The transform must be one that keeps every pixel where it was, relative to the image: timm's `crop_mode`
    `"squash"`, which resizes to exactly the model's input size whatever the image's shape.

    Args:
        pretrained_cfg (`dict[str, Any]`, *optional*):
            timm's preprocessing: `input_size`, `interpolation`, `mean`, `std`.
        size (`int`, `tuple[int, int]` or `dict[str, int]`, *optional*):
            Output size, (height, width), or a dict of them, in place of the one in `pretrained_cfg`.
        do_reduce_labels (`bool`, *optional*, defaults to `False`):
            Label 0 of the maps means "not labelled" and becomes 255; every other is lowered by one.
    """

    def __init__(
        self,
        pretrained_cfg: dict[str, Any] | None = None,
        size: int | tuple[int, int] | dict[str, int] | None = None,
        do_reduce_labels: bool = False,
        **kwargs: Any,
    ):
        super().__init__({**(pretrained_cfg or {}), 'crop_pct': 1.0, 'crop_mode': 'squash'}, size)
        self.do_reduce_labels = do_reduce_labels

    def preprocess(
        self,
        images: ImageInput,
        segmentation_maps: Any = None,
        size: int | tuple[int, int] | dict[str, int] | None = None,
        do_reduce_labels: bool | None = None,
        return_tensors: str | None = 'pt',
        **kwargs: Any,
    ) -> BatchFeature:
        """
        Args:
            images: One image or a batch: PIL, numpy (uint8, or float in 0..1), tensor, file name or URL.
            segmentation_maps: Label map of each image: PIL, of mode L or P, or an integer array (H, W).
            size: Output size, or (height, width), for this call.
            do_reduce_labels: As the processor's, for this call.
            return_tensors: 'pt', 'np' or None for a list.

        Returns:
            `pixel_values`, (B, channels, height, width), and with label maps `labels`, (B, height, width).
        """
        batch = super().preprocess(images, size=size, return_tensors=return_tensors)
        if segmentation_maps is not None:
            reduce = self.do_reduce_labels if do_reduce_labels is None else do_reduce_labels
            _, height, width = self._override(self.pretrained_cfg, size, None)['input_size']
            single = isinstance(segmentation_maps, Image.Image) or getattr(segmentation_maps, 'ndim', 3) == 2
            labels = []
            for labels_of_one in [segmentation_maps] if single else segmentation_maps:
                label_map = reduce_labels(to_label_map(labels_of_one)) if reduce else to_label_map(labels_of_one)
                resized = Image.fromarray(label_map).resize((width, height), Image.Resampling.NEAREST)
                labels.append(np.array(resized, dtype=np.int64))
            if len(labels) != len(batch['pixel_values']):
                raise ValueError(f'{len(batch["pixel_values"])} images came with {len(labels)} segmentation maps.')
            batch['labels'] = BatchFeature({'labels': labels}, tensor_type=return_tensors)['labels']
        return batch

    def post_process_semantic_segmentation(
        self, outputs: Any, target_sizes: list[tuple[int, int]] | None = None
    ) -> list[torch.Tensor]:
        """
        Args:
            outputs: What the model returned, with `logits` (B, num_labels, h, w).
            target_sizes: Size of each label map, (height, width), usually the image's; without, the logits' own.

        Returns:
            Label maps, one (height, width) of integers for each image.
        """
        logits = outputs.logits
        if target_sizes is None:
            return list(logits.argmax(1))
        if len(target_sizes) != len(logits):
            raise ValueError(f'{len(logits)} images were segmented, but {len(target_sizes)} target sizes were given.')
        return [
            F.interpolate(one[None].float(), size=tuple(map(int, size)), mode='bilinear', align_corners=False)[
                0
            ].argmax(0)
            for one, size in zip(logits, target_sizes, strict=True)
        ]


def to_label_map(labels: Any) -> np.ndarray:
    """Label map as (H, W) of uint8; a palette's indices stay what they are.

    Raises:
        ValueError: It has several channels, or values outside 0..255.
    """
    array = np.asarray(labels.cpu() if isinstance(labels, torch.Tensor) else labels)
    if array.ndim != 2:
        raise ValueError(f'A segmentation map is (height, width) of class indices, not {array.shape}.')
    if array.dtype != np.uint8 and array.size and not 0 <= array.min() <= array.max() <= 255:
        raise ValueError(f'A segmentation map has values from {array.min()} to {array.max()}, not from 0 to 255.')
    return array.astype(np.uint8)


def reduce_labels(label_map: np.ndarray) -> np.ndarray:
    """0 to 255 and every other label to the one below; 255 stays."""
    return np.where((label_map == 0) | (label_map == 255), 255, label_map - 1).astype(np.uint8)


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
