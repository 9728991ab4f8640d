"""The statistics of a grown network's norms."""

from copy import deepcopy

import pytest
import timm
import torch
from helpers.pictures import write_smooth_pictures

from vt_hub.loading.growing import grow
from vt_hub.training.distillation import Folders, Regression, settle_norms


@pytest.fixture
def photographs(tmp_path_factory):
    return write_smooth_pictures(tmp_path_factory.mktemp('photographs'), 40, (4, 5), (70, 60))


@torch.no_grad()
def test_a_settled_network_computes_the_same_also_in_training(photographs, tmp_path):
    torch.manual_seed(0)
    small = timm.create_model('test_vt_resnet', layers=(2, 2, 2)).eval()
    large = grow(small, 'test_vt_resnet', block='bottleneck', layers=(4, 4, 6))
    settings = Regression(steps=4, batch_size=32, size=64)
    mean, std = (torch.tensor(large.pretrained_cfg[key]).view(3, 1, 1) for key in ('mean', 'std'))
    x = (torch.nn.functional.interpolate(torch.rand(64, 3, 4, 4), size=(64, 64), mode='bicubic') - mean) / std
    wanted = large.forward_trunk(x)
    assert far(deepcopy(large).train().forward_trunk(x), wanted) > 0.3
    settle_norms(large, Folders([photographs]), tmp_path / 'bad.txt', settings, workers=0)
    torch.testing.assert_close(large.forward_trunk(x), wanted, rtol=1e-3, atol=1e-3)
    assert far(large.train().forward_trunk(x), wanted) < 0.1


def far(found, wanted):
    used = wanted.flatten(2).std(dim=(0, 2)) > 0.1
    return ((found - wanted)[:, used].square().mean() / wanted[:, used].var(dim=(0, 2, 3)).mean()).item()
