"""What a wider VT stage takes over from the one that it grew from."""

import numpy as np
import pytest
import timm
import torch
from helpers.networks import build
from helpers.pictures import write_smooth_pictures
from PIL import Image

from vt_hub.loading.growing import grow
from vt_hub.training.distillation import Folders, Regression, stage_fits, teach_stage

SMALL = {'layers': (2, 2, 2), 'vt_dim': 96, 'token_dim': 192, 'num_classes': 7}
WIDE = {'block': 'bottleneck', 'layers': (4, 4, 6), 'vt_dim': 192, 'token_dim': 192, 'vt_depth': 3}


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    return write_smooth_pictures(tmp_path_factory.mktemp('photographs'), 60, (6, 7), (70, 60))


@pytest.fixture(scope='module')
def small():
    return build('test_vt_resnet', **SMALL)


@torch.no_grad()
def test_the_wide_stage_computes_nearly_the_same(small, photographs, tmp_path):
    large = grow(small, 'test_vt_resnet', **WIDE)
    trunk = {key: value.clone() for key, value in large.state_dict().items() if key.startswith(('conv1', 'layer1'))}
    settings = Regression(steps=16, batch_size=64, size=64)
    left = teach_stage(small, large, Folders([photographs]), tmp_path / 'bad.txt', settings, workers=0)
    images = torch.stack(
        [torch.from_numpy(np.array(Image.open(path).resize((64, 64)))).movedim(2, 0) for path in photographs.iterdir()]
    )
    mean, std = (torch.tensor(small.pretrained_cfg[key]).view(3, 1, 1) for key in ('mean', 'std'))
    x = (images.float() / 255 - mean) / std
    wanted, found = small(x), large(x)
    assert left < 0.3
    assert ((found - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()) < 0.3
    assert all(torch.equal(value, large.state_dict()[key]) for key, value in trunk.items())
    untaught = grow(small, 'test_vt_resnet', **WIDE)(x)
    assert ((untaught - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()) > 0.9


def test_only_stages_of_that_form_fit(small):
    assert stage_fits(small, grow(small, 'test_vt_resnet', **WIDE))
    for change in ({'vt_dim': 288, 'token_dim': 288}, {'token_mixer': 'graph'}, {'layers': (4, 4, 5)}):
        assert not stage_fits(small, grow(small, 'test_vt_resnet', **WIDE | change))
    assert not stage_fits(small, grow(small, 'test_vt_resnet', layers=(3, 3, 3), vt_dim=96, token_dim=192))
    resnet = timm.create_model('resnet18')
    assert not stage_fits(resnet, grow(resnet, 'vt_resnet50'))
