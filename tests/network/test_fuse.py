"""Norms folded and projections merged for inference: the same numbers, and nothing left to fold."""

import pytest
import timm
import torch
from torch import nn

from vt_hub.loading.source import list_models
from vt_hub.network.vt_fuse import fuse

SMALL = ('test_vt_resnet', 'vt_resnet10', 'test_vt_fpn')


def with_statistics(model):
    """In evaluation mode, its norms as different from the identity as those of a trained model."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return model.eval()


def assert_same(actual, expected):
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@torch.no_grad()
@pytest.mark.parametrize(
    'name', [name if name in SMALL else pytest.param(name, marks=pytest.mark.slow) for name in list_models()]
)
def test_every_architecture_gives_the_same_logits(name):
    model, x = with_statistics(timm.create_model(name)), torch.randn(2, 3, 96, 96)
    expected, params = model(x), sum(p.numel() for p in model.parameters())
    assert model.fuse() is model
    assert_same(model(x), expected)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert sum(p.numel() for p in model.parameters()) < params


@torch.no_grad()
@pytest.mark.parametrize('kwargs', [{'token_dim': 64}, {'tokenizer': 'cluster'}, {'recurrent': False}], ids=str)
def test_switches_give_the_same_logits(kwargs):
    model, x = with_statistics(timm.create_model('test_vt_resnet', **kwargs)), torch.randn(2, 3, 64, 80)
    expected = model(x)
    assert_same(model.fuse()(x), expected)
    torch.compiler.reset()
    assert_same(torch.jit.script(model)(x), expected)
    assert_same(torch.compile(model, fullgraph=True, backend='eager')(x), expected)


@torch.no_grad()
@pytest.mark.parametrize('name', ['test_vt_resnet', 'test_vt_fpn'])
def test_channels_last_gives_the_same_logits_and_stays(name):
    model, x = with_statistics(timm.create_model(name)), torch.randn(2, 3, 64, 80)
    expected = model(x)
    model.fuse().to(memory_format=torch.channels_last)
    assert_same(model(x.to(memory_format=torch.channels_last)), expected)
    if name == 'test_vt_resnet':
        [last] = model.forward_intermediates(x.to(memory_format=torch.channels_last), 1, intermediates_only=True)
        assert last.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
@pytest.mark.parametrize('name', ['resnet10t', 'resnet14t', 'resnet18', 'mobilenetv3_small_050'])
def test_timms_models_give_the_same_logits(name):
    """ResNets are fused whole, deep stems and pooled shortcuts too; of others only what surely runs in order."""
    model, x = with_statistics(timm.create_model(name)), torch.randn(2, 3, 64, 64)
    expected = model(x)
    assert_same(fuse(model)(x), expected)
    if name.startswith('resnet'):
        assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@torch.no_grad()
def test_maps_and_attention_survive():
    model, x = with_statistics(timm.create_model('test_vt_resnet')), torch.randn(2, 3, 64, 64)
    expected = [*model.forward_intermediates(x, intermediates_only=True), *model.token_attention(x)]
    model.fuse()
    actual = [*model.forward_intermediates(x, intermediates_only=True), *model.token_attention(x)]
    for one, other in zip(actual, expected, strict=True):
        assert_same(one, other)


@torch.no_grad()
def test_fusing_twice_is_fusing_once():
    model, x = with_statistics(timm.create_model('test_vt_resnet')).fuse(), torch.randn(2, 3, 64, 64)
    expected = model(x)
    assert torch.equal(model.fuse()(x), expected)


def test_a_model_in_training_is_left_alone():
    model = timm.create_model('test_vt_resnet')
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match='call eval'):
        model.fuse()
    assert list(model.state_dict()) == keys


@torch.no_grad()
def test_a_norm_in_place_of_batchnorm_stays():
    """As opacus' ModuleValidator.fix puts them in: training, evaluation and fuse() are one network then."""
    torch.manual_seed(0)
    model = timm.create_model('test_vt_resnet', num_classes=3)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.BatchNorm2d):
                setattr(module, name, torch.nn.GroupNorm(8, child.num_features))
    x = torch.rand(2, 3, 64, 64)
    expected = model.train()(x)
    torch.testing.assert_close(model.eval()(x), expected)
    torch.testing.assert_close(model.fuse()(x), expected)
