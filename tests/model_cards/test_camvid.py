"""Which classes the tokens of a VT-FPN look at."""

import runpy
from types import SimpleNamespace

import numpy as np
import torch
from conftest import ROOT
from PIL import Image

from vt_hub.training.segmentation.data import IGNORE, SegmentationData


class Looker:
    """In place of a VT-FPN: at each level the first token looks at the upper half, and the second one everywhere."""

    config = SimpleNamespace(pretrained_cfg={'input_size': (3, 32, 64), 'mean': (0.5,) * 3, 'std': (0.5,) * 3})

    def __call__(self, pixels, output_attentions):
        maps = torch.ones(4, 1, 2, 8, 16)
        maps[:, :, 0, 4:] = 0
        return SimpleNamespace(attentions=list(maps / maps.sum((3, 4), keepdim=True)))


def shares(folder, mask):
    """What the script finds for one image with this mask."""
    pairs = [(folder / 'image.png', folder / 'mask.png')]
    Image.new('RGB', (64, 32)).save(pairs[0][0])
    Image.fromarray(mask).save(pairs[0][1])
    data = SegmentationData('streets', 'test', pairs, ['road', 'car', 'sky'])
    script = runpy.run_path(str(ROOT / 'model_cards' / 'vt_fpn_resnet18.camvid' / 'train.py'))
    return script['attention_to_classes'](Looker(), data)


def test_attention_is_shared_among_the_classes(tmp_path):
    mask = np.full((32, 64), 2, np.uint8)  # above class 2 and, on the left, what has no class; below class 0
    mask[:16, :16] = IGNORE
    mask[16:] = 0
    levels, pixels = shares(tmp_path, mask)
    assert len(levels) == 4
    np.testing.assert_allclose(pixels, [4 / 7, 0, 3 / 7], rtol=1e-5)
    for level in levels:
        np.testing.assert_allclose(level, [[0, 0, 1], [4 / 7, 0, 3 / 7]], rtol=1e-5)


def test_an_image_may_have_few_classes(tmp_path):
    levels, pixels = shares(tmp_path, np.zeros((32, 64), np.uint8))
    np.testing.assert_allclose(pixels, [1, 0, 0])
    np.testing.assert_allclose(levels, np.broadcast_to([1, 0, 0], (4, 2, 3)), rtol=1e-5)
