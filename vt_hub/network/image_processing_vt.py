"""Image processors of VT-ResNet and VT-FPN"""

import os
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data.transforms import str_to_pil_interp
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import ImageInput

from .images import to_channels

__all__ = ['VTFPNImageProcessor', 'VTResNetImageProcessor']

# timm's names for the settings of the evaluation transform
DATA_KEYS = ('input_size', 'interpolation', 'mean', 'std', 'crop_pct', 'crop_mode')
RESAMPLINGS = {
    name: str_to_pil_interp(name) for name in ('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos')
}
ALWAYS = ('do_resize', 'do_center_crop', 'do_rescale', 'do_normalize', 'do_convert_rgb')  # steps that always run
FILED = ('image_processor_type', 'feature_extractor_type', 'processor_class', 'auto_map')  # saved beside the options
# loading options that pipelines and AutoImageProcessor pass on
LOADING = (
    'dtype', 'torch_dtype', 'trust_remote_code', 'code_revision', 'use_fast', 'backend', '_commit_hash', '_from_auto',
    '_from_pipeline',
)  # fmt: skip
Size = int | tuple[int, int] | dict[str, int] | None


def check_options(options: dict[str, Any]) -> None:
    """Raise ValueError for options that the transform does not support, but accept those that ask for what it does."""
    for key, value in options.items():
        if value is None or key in FILED or (key in ALWAYS and value):
            continue
        if key in ALWAYS:
            raise ValueError(f'{key} cannot be turned off; normalise tensors of your own without this processor.')
        if key == 'rescale_factor' and abs(value * 255 - 1) < 1e-6:
            continue
        if key == 'data_format' and str(getattr(value, 'value', value)) == 'channels_first':
            continue
        raise ValueError(
            f'{key}={value!r} is not an option of this image processor; it takes size, crop_pct, resample, image_mean '
            'and image_std.'
        )


class VTResNetImageProcessor(BaseImageProcessor):
    r"""
    timm's evaluation transform for transformers, from the `pretrained_cfg` in a model folder's `config.json`.

    Takes PIL images of any mode, numpy arrays, tensors, lists and batches of them, file names and URLs.

    Args:
        pretrained_cfg (`dict[str, Any]`, *optional*):
            timm's preprocessing: `input_size`, `interpolation`, `mean`, `std`, `crop_pct`, `crop_mode`.
        size (`int`, `tuple[int, int]` or `dict[str, int]`, *optional*):
            Output size, (height, width), or a dict of them; replaces the one in `pretrained_cfg`.
        crop_pct (`float`, *optional*):
            Output size as a fraction of the size that the image is first resized to.
        image_mean, image_std (`list[float]`, *optional*):
            Normalisation; replaces the one in `pretrained_cfg`.
        resample (`int` or `PIL.Image.Resampling`, *optional*):
            How images are resized; replaces timm's `interpolation` in `pretrained_cfg`.

    Raises:
        ValueError: An option is not one of these.
    """

    model_input_names = ['pixel_values']
    default_size = 224

    def __init__(
        self,
        pretrained_cfg: dict[str, Any] | None = None,
        size: Size = None,
        crop_pct: float | None = None,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        resample: int | None = None,
        **kwargs: Any,
    ):
        check_options(kwargs)
        super().__init__()
        cfg = {'input_size': (3, self.default_size, self.default_size), **(pretrained_cfg or {})}
        cfg = {key: value for key, value in cfg.items() if key in DATA_KEYS}
        cfg = self._override(cfg, size, crop_pct, image_mean, image_std, resample)
        self.pretrained_cfg = timm.data.resolve_data_config(pretrained_cfg=cfg)
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

    @property
    def resample(self) -> Image.Resampling:
        return RESAMPLINGS[self.pretrained_cfg['interpolation']]

    @staticmethod
    def _override(
        cfg: dict[str, Any],
        size: Size = None,
        crop_pct: float | None = None,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        resample: int | None = None,
    ) -> dict[str, Any]:
        given = {'mean': image_mean, 'std': image_std, 'crop_pct': crop_pct}
        cfg = cfg | {key: value for key, value in given.items() if value is not None}
        if resample is not None:
            names = {filter: name for name, filter in RESAMPLINGS.items()}
            if resample not in names:
                raise ValueError(f'resample={resample!r} is not one of PIL.Image.Resampling.')
            cfg['interpolation'] = names[resample]
        if size is not None:
            if isinstance(size, dict):
                if set(size) != {'height', 'width'}:
                    raise ValueError(f'The size is a height and a width, not {", ".join(size)}.')
                size = size['height'], size['width']
            height, width = (size, size) if isinstance(size, int) else size
            cfg['input_size'] = (cfg.get('input_size', (3,))[0], height, width)
        return cfg

    @classmethod
    def get_image_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Settings of a separately saved processor, or else those in the model's config.json."""
        try:
            found = super().get_image_processor_dict(pretrained_model_name_or_path, **dict(kwargs))
            if 'pretrained_cfg' in found[0]:
                return found
        except OSError:
            pass
        kwargs['image_processor_filename'] = 'config.json'
        config, kwargs = super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)
        return {'pretrained_cfg': config.get('pretrained_cfg')}, kwargs

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Pass each option to the transform or refuse it; transformers would set unknown ones as attributes."""
        unused = kwargs.pop('return_unused_kwargs', False)
        options = {key: value for key, value in kwargs.items() if key not in LOADING}
        processor = cls(**{**image_processor_dict, **options})
        return (processor, {}) if unused else processor

    def preprocess(
        self,
        images: ImageInput,
        size: Size = None,
        crop_pct: float | None = None,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        resample: int | None = None,
        input_data_format: str | None = None,
        device: str | torch.device | None = None,
        return_tensors: str | None = 'pt',
        **kwargs: Any,
    ) -> BatchFeature:
        """
        Args:
            images: One image or a batch: PIL, numpy (uint8, or float in 0..1), tensor, file name or URL.
            size, crop_pct, image_mean, image_std, resample: As for the processor, but only for this call.
            input_data_format: 'channels_first' or 'channels_last', for arrays that could be either.
            device: Device for the tensors.
            return_tensors: 'pt', 'np' or None for a list.

        Returns:
            `pixel_values`, (B, channels, height, width).

        Raises:
            ValueError: There is no image, an array is not an image, or an option is not one of these.
        """
        check_options(kwargs)
        cfg = self._override(self.pretrained_cfg, size, crop_pct, image_mean, image_std, resample)
        return self._transform(self._read(images, input_data_format), cfg, device, return_tensors)

    def _read(self, images: Any, input_data_format: str | None) -> list[Image.Image]:
        """Upright images in the mode that the model reads."""
        channels = self.pretrained_cfg['input_size'][0]
        layout = str(getattr(input_data_format, 'value', input_data_format))
        found = [to_channels(to_pil(image, layout), channels) for image in flatten(self.fetch_images(images))]
        if not found:
            raise ValueError('There is no image to process.')
        return found

    def _transform(
        self,
        images: list[Image.Image],
        cfg: dict[str, Any],
        device: str | torch.device | None,
        return_tensors: str | None,
    ) -> BatchFeature:
        transform = timm.data.create_transform(**cfg, is_training=False)
        pixels = [transform(image) for image in images]
        if return_tensors == 'pt':
            return BatchFeature({'pixel_values': torch.stack(pixels).to(device)})
        return BatchFeature({'pixel_values': [p.numpy() for p in pixels]}, tensor_type=return_tensors)


class VTFPNImageProcessor(VTResNetImageProcessor):
    r"""
    timm's evaluation transform for images and their label maps, and the conversion of logits back to label maps.

    Images are not cropped, so that each pixel keeps its relative position: timm's `crop_mode` `"squash"` resizes an
    image of any shape to exactly the model's input size.

    Args:
        pretrained_cfg (`dict[str, Any]`, *optional*):
            timm's preprocessing: `input_size`, `interpolation`, `mean`, `std`.
        size (`int`, `tuple[int, int]` or `dict[str, int]`, *optional*):
            Output size, (height, width), or a dict of them; replaces the one in `pretrained_cfg`.
        image_mean, image_std (`list[float]`, *optional*):
            Normalisation; replaces the one in `pretrained_cfg`.
        do_reduce_labels (`bool`, *optional*, defaults to `False`):
            Label 0 of the maps means "not labelled" and becomes 255; all other labels are lowered by one.
    """

    default_size = 512

    def __init__(
        self,
        pretrained_cfg: dict[str, Any] | None = None,
        size: Size = None,
        do_reduce_labels: bool = False,
        **kwargs: Any,
    ):
        kwargs.pop('crop_pct', None)  # a squashed image is not cropped
        super().__init__({**(pretrained_cfg or {}), 'crop_pct': 1.0, 'crop_mode': 'squash'}, size, **kwargs)
        self.do_reduce_labels = do_reduce_labels

    def preprocess(  # type: ignore[override]  # transformers' segmentation processors take the maps second, too
        self,
        images: ImageInput,
        segmentation_maps: Any = None,
        size: Size = None,
        do_reduce_labels: bool | None = None,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        resample: int | None = None,
        input_data_format: str | None = None,
        device: str | torch.device | None = None,
        return_tensors: str | None = 'pt',
        **kwargs: Any,
    ) -> BatchFeature:
        """
        Args:
            images: One image or a batch: PIL, numpy (uint8, or float in 0..1), tensor, file name or URL.
            segmentation_maps: Label map of each image: PIL, of mode L or P, or an integer array (H, W).
            size, do_reduce_labels, image_mean, image_std, resample: As for the processor, but only for this call.
            input_data_format: 'channels_first' or 'channels_last', for arrays that could be either.
            device: Device for the tensors.
            return_tensors: 'pt', 'np' or None for a list.

        Returns:
            `pixel_values`, (B, channels, height, width), and with label maps `labels`, (B, height, width).

        Raises:
            ValueError: As for images alone, or images and label maps differ in number or size.
        """
        check_options(kwargs)
        cfg = self._override(self.pretrained_cfg, size, None, image_mean, image_std, resample)
        found = self._read(images, input_data_format)
        batch = self._transform(found, cfg, device, return_tensors)
        if segmentation_maps is not None:
            reduce = self.do_reduce_labels if do_reduce_labels is None else do_reduce_labels
            _, height, width = cfg['input_size']
            single = isinstance(segmentation_maps, Image.Image) or is_single_map(segmentation_maps)
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
                picture = Image.fromarray(reduce_labels(label_map) if reduce else label_map)
                resized = picture.resize((width, height), Image.Resampling.NEAREST)
                labels.append(np.array(resized, dtype=np.int64))
            batch['labels'] = BatchFeature({'labels': labels}, tensor_type=return_tensors)['labels']
            if return_tensors == 'pt':
                batch['labels'] = batch['labels'].to(device)
        return batch

    def post_process_semantic_segmentation(
        self, outputs: Any, target_sizes: list[tuple[int, int]] | None = None
    ) -> list[torch.Tensor]:
        """
        Args:
            outputs: What the model returned, with `logits` (B, num_labels, h, w).
            target_sizes: Size of each label map, (height, width), usually the image's; default: the logits' size.

        Returns:
            Label maps, one (height, width) of integers for each image.
        """
        logits = outputs.logits
        if target_sizes is None:
            return list(logits.argmax(1))
        if len(target_sizes) != len(logits):
            raise ValueError(f'{len(logits)} images were segmented, but {len(target_sizes)} target sizes were given.')
        label_maps = []
        for one, (height, width) in zip(logits, target_sizes, strict=True):
            size = int(height), int(width)
            resized = F.interpolate(one[None].float(), size=size, mode='bilinear', align_corners=False)
            label_maps.append(resized[0].argmax(0))
        return label_maps


def to_label_map(labels: Any) -> np.ndarray:
    """Convert a label map to uint8 (H, W). Palette indices stay unchanged.

    Raises:
        ValueError: It has several channels, or values that are not whole numbers in 0..255.
    """
    array = np.asarray(labels.detach().cpu() if isinstance(labels, torch.Tensor) else labels)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f'A segmentation map is (height, width) of class indices, not {array.shape}.')
    check_range(array, 'A segmentation map')
    if (array != np.rint(array)).any():
        raise ValueError('A segmentation map has values that are not whole numbers.')
    return array.astype(np.uint8)


def is_single_map(maps: Any) -> bool:
    """Whether an array is one label map, (H, W) or wrongly (H, W, 1), and not a batch (B, H, W)."""
    return hasattr(maps, 'ndim') and (maps.ndim == 2 or (maps.ndim == 3 and maps.shape[-1] == 1))


def check_range(array: np.ndarray, what: str) -> None:
    """Raise ValueError if an array has values outside 0..255."""
    if array.dtype != np.uint8 and array.size and not 0 <= array.min() <= array.max() <= 255:  # or NaN
        raise ValueError(f'{what} has values from {array.min()} to {array.max()}, not from 0 to 255.')


def reduce_labels(label_map: np.ndarray) -> np.ndarray:
    """Change 0 to 255 and lower all other labels by one; 255 stays."""
    return np.where((label_map == 0) | (label_map == 255), 255, label_map - 1).astype(np.uint8)


def flatten(images: Any) -> list[Any]:
    """List the single images in an image, an array of four dimensions, or nested lists of them."""
    if isinstance(images, (list, tuple)):
        return [one for image in images for one in flatten(image)]
    return list(images) if not isinstance(images, Image.Image) and images.ndim == 4 else [images]


def to_pil(image: Image.Image | np.ndarray | torch.Tensor, layout: str = 'None') -> Image.Image:
    """A PIL image from an array (H, W), (H, W, C) or (C, H, W) of integers, or of floats in 0..1 or 0..255.

    Args:
        image: PIL, array or tensor.
        layout: 'channels_first' or 'channels_last'; 'None': the axis with 1, 3 or 4 channels, if possible the last.

    Raises:
        ValueError: The array has another shape, or values outside 0..255, such as those of a normalised tensor.
    """
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, torch.Tensor):
        image = (image.float() if image.is_floating_point() else image).detach().cpu().numpy()
    shape = image.shape
    if image.ndim == 3 and (
        layout == 'channels_first' or (layout == 'None' and shape[0] in (1, 3, 4) and shape[-1] not in (1, 3, 4))
    ):
        image = np.moveaxis(image, 0, -1)
    if 0 in shape or not (image.ndim == 2 or (image.ndim == 3 and image.shape[-1] in (1, 3, 4))):
        raise ValueError(f'An image is (height, width), with 1, 3 or 4 channels first or last, not {shape}.')
    if image.dtype == np.uint16:
        image = image / 65535
    elif image.dtype == bool:
        image = image.astype(np.float32)
    check_range(image, 'An image')
    if np.issubdtype(image.dtype, np.floating):
        image = np.rint(image * (255 if image.max() <= 1 else 1))
    image = image.astype(np.uint8)
    return Image.fromarray(image[:, :, 0] if image.ndim == 3 and image.shape[-1] == 1 else image)
