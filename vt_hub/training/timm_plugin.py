"""What timm's train script imports (`--device-modules`): our models, and what the script does not tell by itself.

It passes over images that cannot be decoded, but says their number and not their file; and it knows nothing of tokens.
"""

import logging
import os
from typing import Any

import torch
import torch.nn as nn
from timm.data import ImageDataset, dataset_factory

import vt_hub  # noqa: F401  registers the models
from vt_hub.diversity import measure_module
from vt_hub.training.timm_scripts import UNREADABLE
from vt_hub.vt_layers import VTModule

__all__ = ['ReadableImageDataset', 'TokenMonitor']

_logger = logging.getLogger('train')  # the script's own
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


dataset_factory.ImageDataset = ReadableImageDataset  # what timm.data.create_dataset makes
MONITOR = nn.modules.module.register_module_forward_hook(TokenMonitor())  # of every module of the process
