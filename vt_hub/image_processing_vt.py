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
        image_mean, image_std (`list[float]`, *optional*):
            Normalisation in place of the one in `pretrained_cfg`.
    """

    model_input_names = ['pixel_values']
    default_size = 224

    def __init__(
        self,
        pretrained_cfg: dict[str, Any] | None = None,
        size: int | tuple[int, int] | dict[str, int] | None = None,
        crop_pct: float | None = None,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        **kwargs: Any,
    ):
        if steps := [key for key, value in kwargs.items() if key.startswith('do_') and not value]:
            raise ValueError(f'{", ".join(steps)} cannot be turned off; normalise tensors of your own without this.')
        super().__init__()
        cfg = {'input_size': (3, self.default_size, self.default_size), **(pretrained_cfg or {})}
        cfg = {key: value for key, value in cfg.items() if key in DATA_KEYS}
        cfg |= {key: value for key, value in (('mean', image_mean), ('std', image_std)) if value is not None}
        self.pretrained_cfg = timm.data.resolve_data_config(pretrained_cfg=self._override(cfg, size, crop_pct))
        self.pretrained_cfg = {key: self.pretrained_cfg[key] for key in DATA_KEYS}

    @property
    def image_mean(self) -> list[float]:
        return list(self.pretrained_cfg['mean'])

    @property
    def image_std(self) -> list[float]:
        return list(self.pretrained_cfg['std'])

    @property
    def size(self) -> dict[str, int]:
        return dict(zip(('height', 'width'), self.pretrained_cfg['input_size'][1:], strict=True))

    @property
    def crop_pct(self) -> float:
        return self.pretrained_cfg['crop_pct']

    @staticmethod
    def _override(
        cfg: dict[str, Any], size: int | tuple[int, int] | dict[str, int] | None, crop_pct: float | None
    ) -> dict[str, Any]:
        cfg = dict(cfg)
        if size is not None:
            if isinstance(size, dict):
                if set(size) != {'height', 'width'}:
                    raise ValueError(f'The size is a height and a width, not {", ".join(size)}.')
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

    @classmethod
    def from_dict(cls, image_processor_dict, **kwargs):
        if 'crop_pct' in kwargs:  # transformers would set the attribute, past what follows from it
            image_processor_dict = {**image_processor_dict, 'crop_pct': kwargs.pop('crop_pct')}
        return super().from_dict(image_processor_dict, **kwargs)

    def preprocess(
        self,
        images: ImageInput,
        size: int | tuple[int, int] | dict[str, int] | None = None,
        crop_pct: float | None = None,
        return_tensors: str | None = 'pt',
    ) -> BatchFeature:
        """
        Args:
            images: One image or a batch: PIL, numpy (uint8, or float in 0..1), tensor, file name or URL.
            size: Output size, or (height, width), for this call.
            crop_pct: Crop fraction for this call.
            return_tensors: 'pt', 'np' or None for a list.

        Returns:
            `pixel_values`, (B, channels, height, width).

        Raises:
            ValueError: There is no image, or an array has values that are no image's.
        """
        return self._transform(self._read(images), size, crop_pct, return_tensors)

    def _read(self, images: ImageInput) -> list[Image.Image]:
        """Images of the mode that the model reads, upright."""
        channels = self.pretrained_cfg['input_size'][0]
        found = [to_channels(to_pil(image), channels) for image in flatten(self.fetch_images(images))]
        if not found:
            raise ValueError('There is no image to process.')
        return found

    def _transform(
        self,
        images: list[Image.Image],
        size: int | tuple[int, int] | dict[str, int] | None,
        crop_pct: float | None,
        return_tensors: str | None,
    ) -> BatchFeature:
        cfg = self._override(self.pretrained_cfg, size, crop_pct)
        transform = timm.data.create_transform(**cfg, is_training=False)
        pixels = [transform(image) for image in images]
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
        image_mean, image_std (`list[float]`, *optional*):
            Normalisation in place of the one in `pretrained_cfg`.
        do_reduce_labels (`bool`, *optional*, defaults to `False`):
            Label 0 of the maps means "not labelled" and becomes 255; every other is lowered by one.
    """

    default_size = 512

    def __init__(
        self,
        pretrained_cfg: dict[str, Any] | None = None,
        size: int | tuple[int, int] | dict[str, int] | None = None,
        do_reduce_labels: bool = False,
        **kwargs: Any,
    ):
        kwargs.pop('crop_pct', None)  # a squashed image is not cropped
        super().__init__({**(pretrained_cfg or {}), 'crop_pct': 1.0, 'crop_mode': 'squash'}, size, **kwargs)
        self.do_reduce_labels = do_reduce_labels

    def preprocess(
        self,
        images: ImageInput,
        segmentation_maps: Any = None,
        size: int | tuple[int, int] | dict[str, int] | None = None,
        do_reduce_labels: bool | None = None,
        return_tensors: str | None = 'pt',
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

        Raises:
            ValueError: As for images alone, or images and label maps differ in number or size.
        """
        found = self._read(images)
        batch = self._transform(found, size, None, return_tensors)
        if segmentation_maps is not None:
            reduce = self.do_reduce_labels if do_reduce_labels is None else do_reduce_labels
            _, height, width = self._override(self.pretrained_cfg, size, None)['input_size']
            single = isinstance(segmentation_maps, Image.Image) or getattr(segmentation_maps, 'ndim', 3) == 2
            maps = [to_label_map(one) for one in ([segmentation_maps] if single else segmentation_maps)]
            if len(maps) != len(found):
                raise ValueError(f'{len(found)} images came with {len(maps)} segmentation maps.')
            labels = []
            for image, label_map in zip(found, maps, strict=True):
                if image.size != label_map.shape[::-1]:
                    raise ValueError(
                        f'An image of {image.width} x {image.height} pixels came with a segmentation map of '
                        f'{label_map.shape[1]} x {label_map.shape[0]}; images are turned by their EXIF orientation.'
                    )
                label_map = Image.fromarray(reduce_labels(label_map) if reduce else label_map)
                resized = label_map.resize((width, height), Image.Resampling.NEAREST)
                labels.append(np.array(resized, dtype=np.int64))
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
        label_maps = []
        for one, size in zip(logits, target_sizes, strict=True):
            size = tuple(map(int, size))
            resized = F.interpolate(one[None].float(), size=size, mode='bilinear', align_corners=False)
            label_maps.append(resized[0].argmax(0))
        return label_maps


def to_label_map(labels: Any) -> np.ndarray:
    """Label map as (H, W) of uint8; a palette's indices stay what they are.

    Raises:
        ValueError: It has several channels, or values outside 0..255.
    """
    array = np.asarray(labels.cpu() if isinstance(labels, torch.Tensor) else labels)
    if array.ndim != 2:
        raise ValueError(f'A segmentation map is (height, width) of class indices, not {array.shape}.')
    check_range(array, 'A segmentation map')
    return array.astype(np.uint8)


def check_range(array: np.ndarray, what: str):
    """Raise ValueError where an array has values outside 0..255."""
    if array.dtype != np.uint8 and array.size and not 0 <= array.min() <= array.max() <= 255:  # NaN is neither
        raise ValueError(f'{what} has values from {array.min()} to {array.max()}, not from 0 to 255.')


def reduce_labels(label_map: np.ndarray) -> np.ndarray:
    """0 to 255 and every other label to the one below; 255 stays."""
    return np.where((label_map == 0) | (label_map == 255), 255, label_map - 1).astype(np.uint8)


def flatten(images: Any) -> list[Any]:
    """Single images from one image, an array of four dimensions, or nested lists of either."""
    if isinstance(images, (list, tuple)):
        return [one for image in images for one in flatten(image)]
    return list(images) if not isinstance(images, Image.Image) and images.ndim == 4 else [images]


def to_pil(image: Image.Image | np.ndarray | torch.Tensor) -> Image.Image:
    """A PIL image from an array (H, W), (H, W, C) or (C, H, W) of integers, or of floats in 0..1 or 0..255.

    Raises:
        ValueError: The array has values outside 0..255, such as those of a normalised tensor.
    """
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
    check_range(image, 'An image')
    if np.issubdtype(image.dtype, np.floating):
        image = np.rint(image * (255 if image.max() <= 1 else 1))
    image = image.astype(np.uint8)
    return Image.fromarray(image[:, :, 0] if image.ndim == 3 and image.shape[-1] == 1 else image)
