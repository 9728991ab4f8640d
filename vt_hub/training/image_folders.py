"""Folders of class folders, as timm's train script reads them."""

from dataclasses import dataclass
from pathlib import Path

from timm.data.readers.reader_image_folder import find_images_and_targets
from timm.utils.misc import natural_key

__all__ = ['ImageFolder', 'open_image_folder']

SYNONYMS = (  # after the name itself, in the order in which timm looks for them
    ('train', 'training'),
    ('val', 'valid', 'validation', 'eval', 'evaluation'),
)


@dataclass(frozen=True)
class ImageFolder:
    """The images of one split and their classes, numbered in timm's order."""

    root: Path
    files: list[Path]
    targets: list[int]
    classes: list[str]


def class_names(folder: Path) -> list[str]:
    """Names of the class folders with images, in timm's order, in which 2 comes before 10."""
    images, _ = find_images_and_targets(str(folder))
    return sorted({Path(name).parent.name for name, _ in images}, key=natural_key)


def open_image_folder(data_dir: str | Path, split: str, classes: list[str] | None = None) -> ImageFolder:
    """The images of a split, DIR/train or DIR/val; or those of DIR itself where there are no such folders.

    Args:
        data_dir: DIR.
        split: Name of the folder, or one that timm takes for the same, such as 'val' or 'validation'.
        classes: Classes to number by; without, those that are there.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It has no class folders with images, or classes other than those given.
    """
    data_dir = Path(data_dir)
    names = next((names for names in SYNONYMS if split in names), (split,))
    root = next((data_dir / name for name in (split, *names) if (data_dir / name).is_dir()), None)
    if root is None:
        if split in SYNONYMS[0] or not data_dir.is_dir() or (data_dir / 'train').is_dir():
            raise FileNotFoundError(f'There is no folder {data_dir / names[0]} of class folders.')
        root = data_dir
    images, _ = find_images_and_targets(str(root))
    files = [Path(name) for name, _ in images]
    names = [file.parent.name for file in files]
    found = sorted(set(names), key=natural_key)
    if not files or any(file.parent == root for file in files):
        raise ValueError(f'{root} is no folder of class folders with images.')
    if classes and (unknown := sorted(set(found) - set(classes))):
        raise ValueError(f'{root} has the class {unknown[0]}, which is none of {len(classes)} known ones.')
    classes = classes or found
    number = {name: i for i, name in enumerate(classes)}
    return ImageFolder(root, files, [number[name] for name in names], classes)
