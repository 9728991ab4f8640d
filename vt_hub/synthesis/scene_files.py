"""Write fractal scenes as files for training scripts."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..figures import colours
from .folders import SPLITS, new_folder, save
from .scenes import FractalScenes

__all__ = ['write_scenes']

BATCH = 32  # images drawn at once
MOST_CLASSES = 254  # in an 8-bit mask, besides the background and 255, "not labelled"
TILES, COLUMNS = 48, 8  # in the contact sheet


def class_name(index: int) -> str:
    return f'fractal_{index:03d}'


def file_name(index: int) -> str:
    return f'{index:06d}.png'


def batches(indices: range) -> Iterator[range]:
    return (indices[start : start + BATCH] for start in range(0, len(indices), BATCH))


def save_all(pool: ThreadPoolExecutor, images: torch.Tensor, paths: list[Path]) -> None:
    """Write PNGs of (B, H, W) or (B, H, W, 3) uint8."""
    list(pool.map(save, images.numpy(), paths))


def write_masked(folder: Path, data: FractalScenes, pool: ThreadPoolExecutor) -> Iterator[Path]:
    """Write a split for segmentation. Yields the path of each image after it is written."""
    rows = []
    for indices in batches(range(len(data))):
        images, labels, masks = data.draw(indices)
        names = [file_name(index) for index in indices]
        paths = [folder / 'images' / name for name in names]
        save_all(pool, images.permute(0, 2, 3, 1), paths)
        save_all(pool, masks.to(torch.uint8), [folder / 'masks' / name for name in names])
        for name, label in zip(names, labels, strict=True):
            files = {'file_name': f'images/{name}', 'mask_file_name': f'masks/{name}'}
            rows.append(json.dumps({**files, 'labels': (label.nonzero()[:, 0] + 1).tolist()}))
        yield from paths
    (folder / 'metadata.jsonl').write_text('\n'.join(rows) + '\n')


def write_objects(folder: Path, data: FractalScenes, pool: ThreadPoolExecutor) -> Iterator[Path]:
    """Write a split for classification. Image i shows class i modulo the number of classes. Yields the paths."""
    for i in range(len(data.bank)):
        for indices in batches(range(i, len(data), len(data.bank))):
            images, _, _ = data.draw(indices, slice(i, i + 1))
            paths = [folder / class_name(i) / file_name(index) for index in indices]
            save_all(pool, images.permute(0, 2, 3, 1), paths)
            yield from paths


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def contact_sheet(folder: Path, num_classes: int, objects: bool) -> np.ndarray:
    """Some images of a split in a grid: scenes, each next to its coloured mask, or one object of each class."""
    if objects:
        tiles = [read(folder / class_name(i) / file_name(i)) for i in range(min(num_classes, TILES))]
    else:
        tiles, table = [], colours(num_classes + 1)
        for path in sorted((folder / 'images').iterdir())[: TILES // 2]:
            tiles += [read(path), table[read(folder / 'masks' / path.name)]]
    sheet = np.pad(tiles, ((0, -len(tiles) % COLUMNS), (1, 1), (1, 1), (0, 0)), constant_values=255)
    rows = sheet.reshape(-1, COLUMNS, *sheet.shape[1:]).swapaxes(1, 2)
    return rows.reshape(-1, COLUMNS * sheet.shape[2], 3)


def write_scenes(
    folder: Path | str,
    num_train: int,
    num_val: int,
    seed: int = 0,
    size: int = 128,
    num_classes: int = 100,
    objects: bool = False,
) -> Iterator[Path]:
    """Write a data set, for segmentation or for classification, and contact_sheet.png with its first images.

    Scenes: {train,val}/{images,masks}/000000.png ...; classes.txt, one name per line in the masks' order; and
    {train,val}/metadata.jsonl with the classes of each image, in the "imagefolder" format of the datasets library.
    Objects: {train,val}/CLASS/000000.png ...

    Args:
        folder: Destination; must not exist. It appears after the last image is written. It does not appear if an image
            fails or the iterator is stopped early.
        num_train: Images in train, at least one.
        num_val: Images in val. They show the same classes in other pictures.
        seed: Random seed of the fractals and the scenes.
        size: Height and width in pixels.
        num_classes: Number of fractal classes.
        objects: Write one fractal per image, in class folders, instead of scenes with masks.

    Yields:
        The final path of each image, after it is written.

    Raises:
        FileExistsError: The folder exists.
        ValueError: There are too many classes for a mask, or some classes would have no image.
    """
    folder = Path(folder)
    if not objects and num_classes > MOST_CLASSES:
        raise ValueError(f'Masks can hold at most {MOST_CLASSES} classes, not {num_classes}.')
    counts = {split: count for split, count in zip(SPLITS, (num_train, num_val), strict=True) if count}
    if objects and (few := min(counts.values())) < num_classes:
        raise ValueError(f'{few} images are too few to show {num_classes} classes; use more images or fewer classes.')
    write = write_objects if objects else write_masked
    kind: dict[str, Any] = {'objects': (1, 1), 'scale': (0.5, 1.0)} if objects else {}
    with new_folder(folder) as unfinished, ThreadPoolExecutor() as pool:
        for split, count in counts.items():
            data = FractalScenes(num_classes, seed, size, count, split, **kind)
            for path in write(unfinished / split, data, pool):
                yield folder / path.relative_to(unfinished)
        if not objects:
            names = ['background', *map(class_name, range(num_classes))]
            (unfinished / 'classes.txt').write_text(''.join(f'{name}\n' for name in names))
        save(contact_sheet(unfinished / 'train', num_classes, objects), unfinished / 'contact_sheet.png')
