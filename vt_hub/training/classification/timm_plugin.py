"""timm's train script imports this module (`--device-modules`): it registers our models and adds reports.

Of images that cannot be decoded, the script reports the number but not the file. It also does not measure tokens.
"""

import logging
import os
from typing import Any

import torch
import torch.nn as nn
from timm.data import ImageDataset, dataset_factory
from timm.data.readers import reader_image_folder

import vt_hub  # noqa: F401  registers the models
from vt_hub.inference.diversity import measure_module
from vt_hub.network.images import read_image
from vt_hub.network.vt_layers import VTModule
from vt_hub.training.classification.data import find_images_and_targets
from vt_hub.training.classification.timm_scripts import UNREADABLE

__all__ = ['ReadableImageDataset', 'TokenMonitor']

_logger = logging.getLogger('train')  # the script's logger
MAX_IN_A_ROW = 50  # after this, the images are not the cause


class ReadableImageDataset(ImageDataset):
    """timm's dataset, but images are read as in prediction. The next image replaces one that cannot be read."""

    def __getitem__(self, index: int) -> Any:
        channels = 1 if self.input_img_mode == 'L' else 3
        for _ in range(MAX_IN_A_ROW):
            file, target, *features = self.reader[index]
            try:
                with file:
                    image = read_image(f'image {index}', channels, file.read())
            except ValueError as error:
                failure = error
                note(self.filename(index, absolute=True))
                index = (index + 1) % len(self.reader)
                continue
            if self.transform:
                image = self.transform(image)
            if target is None:
                target = -1
            elif self.target_transform:
                target = self.target_transform(target)
            return image, target, *features
        raise failure


class TokenMonitor:
    """A forward hook that logs the token diversity of each module, at the first batch of every evaluation."""

    def __init__(self) -> None:
        self.measured: set[nn.Module] = set()

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if not isinstance(module, VTModule) or torch.compiler.is_compiling():
            return
        if module.training:
            self.measured.clear()
        elif module not in self.measured and os.environ.get('RANK', '0') == '0':
            self.measured.add(module)
            _, tokens, attention = output
            _logger.info(f'Tokens of module {len(self.measured)}: {measure_module(tokens, attention)}')


def note(name: str) -> None:
    """Add a line to the file of unreadable images, in one write, so that lines of several processes do not mix."""
    if path := os.environ.get(UNREADABLE):
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(handle, os.fsencode(f'{name}\n'))
        os.close(handle)


for module, name, ours in (
    (reader_image_folder, 'find_images_and_targets', find_images_and_targets),  # the same files as prediction
    (dataset_factory, 'ImageDataset', ReadableImageDataset),  # used by timm.data.create_dataset
):
    setattr(module, name, ours)
MONITOR = nn.modules.module.register_module_forward_hook(TokenMonitor())  # for every module in the process
