"""What timm's train script imports (`--device-modules`): our models, and images that are passed over by name.

timm passes over images that cannot be decoded, too, but says their number and not their file.
"""

import os
from typing import Any

from timm.data import ImageDataset, dataset_factory

import vt_hub  # noqa: F401  registers the models
from vt_hub.training.timm_scripts import UNREADABLE

__all__ = ['ReadableImageDataset']

MAX_IN_A_ROW = 50  # then it is not the images that are at fault


class ReadableImageDataset(ImageDataset):
    """timm's dataset, with the next image in place of one that cannot be read."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._max_retries = 1  # timm's own

    def __getitem__(self, index: int) -> Any:
        for _ in range(MAX_IN_A_ROW):
            try:
                return super().__getitem__(index)
            except Exception as error:  # hostile files make Pillow's decoders raise almost anything
                failure = error
            note(self.filename(index, absolute=True))
            index = (index + 1) % len(self.reader)
        raise failure


def note(name: str):
    """Add a line to the file that collects them; one write, so that processes do not mix theirs."""
    if path := os.environ.get(UNREADABLE):
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(handle, os.fsencode(f'{name}\n'))
        os.close(handle)


dataset_factory.ImageDataset = ReadableImageDataset  # what timm.data.create_dataset makes
