"""What timm's train script imports (`--device-modules`): our models, and what the script does not tell by itself.

It passes over images that cannot be decoded, but says their number and not their file; and it knows nothing of tokens.
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

_logger = logging.getLogger('train')  # the script's own
MAX_IN_A_ROW = 50  # then it is not the images that are at fault


class ReadableImageDataset(ImageDataset):
    """timm's dataset, whose images are read as for prediction; the next one stands in for one that cannot be read."""

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
    """A forward hook that logs, at the first batch of every evaluation, how much the tokens of each module differ."""

    def __init__(self):
        self.measured: set[nn.Module] = set()

    def __call__(self, module: nn.Module, args: Any, output: Any):
        if not isinstance(module, VTModule) or torch.compiler.is_compiling():
            return
        if module.training:
            self.measured.clear()
        elif module not in self.measured and os.environ.get('RANK', '0') == '0':
            self.measured.add(module)
            _, tokens, attention = output
            _logger.info(f'Tokens of module {len(self.measured)}: {measure_module(tokens, attention)}')


def note(name: str):
    """Add a line to the file that collects them; one write, so that processes do not mix theirs."""
    if path := os.environ.get(UNREADABLE):
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(handle, os.fsencode(f'{name}\n'))
        os.close(handle)


reader_image_folder.find_images_and_targets = find_images_and_targets  # the same files as prediction
dataset_factory.ImageDataset = ReadableImageDataset  # what timm.data.create_dataset makes
MONITOR = nn.modules.module.register_module_forward_hook(TokenMonitor())  # of every module of the process
