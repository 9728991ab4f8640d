"""Segment image files with a model's own preprocessing, and draw the result."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from ..figures import colours
from ..files import replaced_whole
from ..network.images import read_image, to_channels
from ..network.vt_fpn import VTFPN, Network
from .precision import computing_in
from .preprocessing import ImageLike, as_image, as_model, eval_transform
from .scores import SHOWN, label_names, percent

__all__ = [
    'check_mask',
    'check_picture',
    'class_shares',
    'draw_overlay',
    'largest_class',
    'paint',
    'save_mask',
    'save_picture',
    'segment',
    'segment_each',
    'segment_image',
]

MIN_SIDE = 480  # minimum pixels of a drawn picture, so that its legend is readable
ENLARGED = 8  # classes enlarged at a time
MAX_SIDE = 2048  # maximum pixels of a drawn picture; the mask has all
GAP = 8  # pixels between pictures
SMOOTHED = 4  # pixels


def largest_class(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The class of the largest logit, (H, W) uint8, after bilinear enlargement of the logits (1, classes, h, w).

    Only some classes are enlarged at a time: a photograph and 150 classes would need gigabytes.
    """
    best, mask = torch.full(size, -torch.inf), torch.zeros(size, dtype=torch.uint8)
    for first in range(0, logits.shape[1], ENLARGED):
        some = F.interpolate(logits[:, first : first + ENLARGED], size=size, mode='bilinear', align_corners=False)
        value, index = some[0].max(0)
        mask = torch.where(value > best, (index + first).to(torch.uint8), mask)
        best = torch.maximum(best, value)
    return mask


@torch.inference_mode()
def segment_image(model: VTFPN, image: Image.Image, precision: str = 'fp32') -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Predict the class of every pixel of an image.

    Args:
        model: A segmentation model in evaluation mode, through timm.
        image: An image of any mode; it is turned upright.
        precision: 'fp32'; 'bf16' or 'fp16' for mixed precision; or 'auto', see `chosen_precision`.

    Returns:
        The class of every pixel, (H, W) uint8, and `label` and `share` (of the pixels) of each class, largest first.

    Raises:
        ValueError: The model has more than 256 classes, which are too many for a mask of bytes.
    """
    if model.num_classes > 256:
        raise ValueError(f'The model has {model.num_classes} classes, but a mask can hold only 256.')
    image, weight = to_channels(image, model.in_chans), model.head.predictor.weight
    with computing_in(precision, weight.device):
        logits = model(eval_transform(model)(image)[None].to(weight.device, weight.dtype))
    mask = largest_class(logits.float().cpu(), (image.height, image.width)).numpy()
    return mask, class_shares(mask, label_names(model))


def class_shares(mask: np.ndarray, labels: Sequence[str]) -> list[dict[str, Any]]:
    """`label` and `share` (of the pixels) of each class in a mask, largest first."""
    return [{'label': labels[i], 'share': round(share, 6)} for i, share in ordered_shares(mask)]


def ordered_shares(mask: np.ndarray) -> list[tuple[int, float]]:
    """Each class in a mask and its share of the pixels, largest first."""
    counts = np.bincount(mask.ravel())
    return [(int(i), counts[i].item() / mask.size) for i in np.argsort(-counts, kind='stable') if counts[i]]


@overload
def segment(model: Network | str | Path, images: ImageLike) -> dict[str, Any]: ...


@overload
def segment(model: Network | str | Path, images: list[Any]) -> list[dict[str, Any]]: ...


def segment(model: Network | str | Path, images: ImageLike | list[Any]) -> Any:
    """Name the class of every pixel of images.

    Args:
        model: A timm model in evaluation mode, or what `load_model` takes, such as 'vt_fpn_resnet10t'.
        images: An image or a path, or a list of these.

    Returns:
        `classes`, a list of `label` and `share` (of the pixels), largest first, and `mask`, the class of every pixel,
        (H, W) uint8. For a list, a list of these.

    Raises:
        ValueError: The model does not segment, or an image cannot be read.
        LookupError: There is no such model, or it has no weights.
    """
    network = check_segments(as_model(model))
    found = []
    for image in images if isinstance(images, list) else [images]:
        mask, classes = segment_image(network, as_image(image, network.in_chans))
        found.append({'classes': classes, 'mask': mask})
    return found if isinstance(images, list) else found[0]


def check_segments(model: Network) -> VTFPN:
    """The model; raises ValueError if it does not segment."""
    if not isinstance(model, VTFPN):
        raise ValueError(f'{model.pretrained_cfg["architecture"]} does not segment; `vt-hub predict` classifies.')
    return model


def segment_each(model: Network, paths: Sequence[Path], precision: str = 'fp32') -> Iterator[dict[str, Any]]:
    """Segment image files in order.

    Args:
        model: A segmentation model in evaluation mode, through timm.
        paths: Image files.
        precision: See `segment_image`.

    Yields:
        One dict per path: `image`, and `classes`, a list of `label` and `share` (of the pixels), largest first, and
        `mask`, the class of every pixel, (H, W) uint8; or `error`, a message that names the file.

    Raises:
        ValueError: The model does not segment.
    """
    network = check_segments(model)
    for path in paths:
        try:
            image = read_image(path, network.in_chans)
        except ValueError as error:
            yield {'image': str(path), 'error': str(error)}
            continue
        mask, classes = segment_image(network, image, precision)
        yield {'image': str(path), 'classes': classes, 'mask': mask}


def paint(image: Image.Image, mask: np.ndarray, num_classes: int) -> tuple[Image.Image, Image.Image]:
    """The image in a size to look at, and the same with its classes in colour.

    Args:
        image: RGB.
        mask: Class of every pixel, (H, W).
        num_classes: Number of the model's classes, which have a colour each.
    """
    enlarged = max(min(-(-MIN_SIDE // min(image.size)), MAX_SIDE // max(image.size)), 1)
    shrunk = min(MAX_SIDE / max(image.size), 1)
    size = [max(round(side * enlarged * shrunk), 1) for side in image.size]
    photograph = image.convert('RGB').resize(size, Image.Resampling.BICUBIC)
    classes = Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)
    if enlarged > 1:
        classes = classes.filter(ImageFilter.ModeFilter(2 * min(enlarged, SMOOTHED) + 1))  # no stairs
    colour = Image.fromarray(colours(num_classes)[np.asarray(classes)])
    overlay = Image.blend(photograph, colour, 0.6)
    overlay.paste('white', mask=borders(np.asarray(classes)))
    return photograph, overlay


def borders(classes: np.ndarray) -> Image.Image:
    """Pixels whose class differs from that of the right or lower neighbour, as a mask."""
    there = np.zeros(classes.shape, bool)
    there[:, :-1] |= classes[:, 1:] != classes[:, :-1]
    there[:-1] |= classes[1:] != classes[:-1]
    return Image.fromarray(there)


def draw_overlay(image: Image.Image, mask: np.ndarray, labels: Sequence[str]) -> Image.Image:
    """Draw the image, beside it its classes in colour, and a legend with the share of each.

    Args:
        image: RGB.
        mask: Class of every pixel, (H, W).
        labels: Name of every class.
    """
    photograph, overlay = paint(image, mask, len(labels))
    width, height = overlay.size
    table = colours(len(labels))
    found = [(i, share) for i, share in ordered_shares(mask) if share >= SHOWN]
    line = max(min(height // max(len(found) + 1, 16), height // 14), 12)
    font = ImageFont.load_default(0.7 * line)
    texts = [f'{labels[i]}  {percent(share)}' for i, share in found]
    left, top = (width + GAP, 0) if width < 2 * height else (0, height + GAP)
    right, bottom = left + width, top + height
    legend = round(2.5 * line + max(font.getlength(text) for text in texts))
    sheet = Image.new('RGB', (right + legend, max(bottom, line * (len(found) + 1))), 'white')
    sheet.paste(photograph)
    sheet.paste(overlay, (left, top))
    draw = ImageDraw.Draw(sheet)
    for row, ((i, _), text) in enumerate(zip(found, texts, strict=True)):
        x, y = right + line // 2, round((row + 0.5) * line)
        draw.rectangle((x, y + line // 8, x + 3 * line // 4, y + 7 * line // 8), fill=tuple(table[i].tolist()))
        draw.text((x + line, y + line // 2), text, fill='black', font=font, anchor='lm')
    return sheet


def check_picture(path: Path) -> None:
    """Raise ValueError if the name does not end in a picture extension that can be written."""
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise ValueError(f'{path} does not end in a supported picture extension, such as .png.')


def check_mask(path: Path) -> None:
    """Raise ValueError if the name does not end in .png."""
    if path.suffix.lower() != '.png':
        raise ValueError(f'{path} is not a PNG; only that format keeps the values of a mask.')


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture. An older one is replaced once the new one is complete."""
    check_picture(path)
    with replaced_whole(path) as unfinished:
        picture.save(unfinished)


def save_mask(mask: np.ndarray, num_classes: int, path: Path) -> None:
    """Write a mask as an indexed PNG: the values are the classes, the palette holds their colours."""
    check_mask(path)
    picture = Image.fromarray(mask).convert('P')
    picture.putpalette(colours(num_classes).tobytes())
    save_picture(picture, path)
