"""What a grown `layer1` learns from images."""

from functools import partial

import pytest
import timm
import torch
from helpers.pictures import write_smooth_pictures

import vt_hub
from vt_hub.loading.growing import grow
from vt_hub.training.distillation import Folders, Regression, teach_layer1, teach_stage


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    return write_smooth_pictures(tmp_path_factory.mktemp('photographs'), 30, (4, 5), (50, 40))


def networks():
    torch.manual_seed(0)
    small = timm.create_model('test_vt_resnet', layers=(2, 2, 2)).eval()
    for block in small.layer1:
        torch.nn.init.ones_(block.bn2.weight)  # a block that does something
    return small, grow(small, 'test_vt_resnet', block='bottleneck', layers=(3, 4, 6))


@torch.no_grad()
def left(small, large, x):
    wanted, found = (net.forward_levels(x, 1)[1] for net in (small, large))
    return ((found[:, : wanted.shape[1]] - wanted).square().mean() / wanted.var(dim=(0, 2, 3)).mean()).item()


def test_layer1_learns_and_nothing_else_does(photographs, tmp_path):
    small, large = networks()
    x = torch.nn.functional.interpolate(torch.rand(8, 3, 4, 4), size=(48, 48), mode='bicubic')
    before, state = left(small, large, x), {key: value.clone() for key, value in large.state_dict().items()}
    settings = Regression(steps=60, batch_size=8, size=48, lr=3e-3)
    returned = teach_layer1(small, large, Folders([photographs]), tmp_path / 'bad.txt', settings, workers=0)
    assert left(small, large, x) < 0.5 * before
    assert returned < 0.5 * before
    changed = {key for key, value in large.state_dict().items() if not torch.equal(value, state[key])}
    assert changed
    assert all(key.startswith('layer1.') and 'running' not in key for key in changed)


def test_command_refuses_what_is_exact_or_no_growth(run, photographs, tmp_path):
    source = vt_hub.export(timm.create_model('test_vt_resnet', num_classes=2), tmp_path / 'small')
    arguments = 'convert', source, tmp_path / 'large', '--data-dir', photographs
    code, _, err = run(*arguments, '--grow', 'test_vt_resnet')
    assert code == 2
    assert '--data-dir teaches a layer1 that is only near' in err
    code, _, err = run(*arguments)
    assert code == 2
    assert '--data-dir goes with --grow' in err
    assert not (tmp_path / 'large').exists()
    (tmp_path / 'large').mkdir()
    code, _, err = run(*arguments, '--grow', 'test_vt_resnet')
    assert (code, err) == (1, f'error: {tmp_path / "large"} exists already; name another folder or remove it.\n')


@pytest.mark.slow
def test_command_teaches(run, photographs, tmp_path, monkeypatch):
    monkeypatch.setattr('vt_hub.training.distillation.Regression', partial(Regression, steps=3, batch_size=4, size=32))
    few = partial(teach_stage, settings=Regression(steps=4, batch_size=32, size=64), workers=0)
    monkeypatch.setattr('vt_hub.training.distillation.teach_stage', few)
    source = vt_hub.export(timm.create_model('vt_resnet18', num_classes=2), tmp_path / 'small')
    arguments = '--grow', 'vt_resnet50', '--data-dir', photographs
    code, _, err = run('convert', source, tmp_path / 'large', *arguments)
    assert code == 0, err
    card = (tmp_path / 'large' / 'README.md').read_text()
    assert "% of the\noutput's variance is left over." in card
    assert '% of the\nvariance of its pooled features is left over.' in card
    assert 'untrained' not in card
