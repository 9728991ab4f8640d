"""Find the images of class folders, for evaluation and for training with timm's script."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.utils.misc import natural_key

from ...image_files import is_image_name, walk_files, walk_images

__all__ = ['ImageFolder', 'class_names', 'find_images_and_targets', 'open_image_folder']

SYNONYMS = (  # tried after the name itself, in timm's order
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

    @property
    def skipped(self) -> list[Path]:
        """Files under the root without an image extension."""
        return sorted(path for path in walk_files(self.root) if not is_image_name(path.name))


def find_images_and_targets(
    folder: str, types: Iterable[str] | None = None, class_to_idx: dict[str, int] | None = None, **kwargs: Any
) -> tuple[list[tuple[str, int]], dict[str, int]]:
    """Like timm's function of this name, for the images that `walk_images` finds.

    Args:
        folder: Folder to search; an image's class is the name of its folder.
        types: File name extensions; default: those of all images.
        class_to_idx: Numbers of the classes; default: timm's order, in which 2 comes before 10.
        kwargs: Ignored; timm may pass them.
    """
    found = [path for path in walk_images(folder) if not types or path.suffix.lower() in set(types)]
    if class_to_idx is None:
        names = sorted({path.parent.name for path in found}, key=natural_key)
        class_to_idx = {name: number for number, name in enumerate(names)}
    pairs = [(str(path), class_to_idx[path.parent.name]) for path in found if path.parent.name in class_to_idx]
    return sorted(pairs, key=lambda pair: natural_key(pair[0])), class_to_idx


def class_names(folder: Path) -> list[str]:
    """Names of the class folders with images, in timm's order, in which 2 comes before 10."""
    images, _ = find_images_and_targets(str(folder))
    return sorted({Path(name).parent.name for name, _ in images}, key=natural_key)


def open_image_folder(data_dir: str | Path, split: str, classes: list[str] | None = None) -> ImageFolder:
    """The images of a split, DIR/train or DIR/val; or those of DIR itself if it has no such folders.

    Args:
        data_dir: DIR.
        split: Name of the folder, or a name that timm treats as equal, such as 'val' or 'validation'.
        classes: Class names in the order of their numbers; default: the class folders.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It has no class folders with images, or has classes other than those given.
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
    labels = [file.parent.name for file in files]
    found = sorted(set(labels), key=natural_key)
    if not files or any(file.parent == root for file in files):
        raise ValueError(f'{root} does not have class folders with images.')
    if classes and (unknown := sorted(set(found) - set(classes))):
        raise ValueError(f'{root} has the class {unknown[0]}, which is not one of the {len(classes)} known ones.')
    classes = classes or found
    number = {name: i for i, name in enumerate(classes)}
    return ImageFolder(root, files, [number[name] for name in labels], classes)
