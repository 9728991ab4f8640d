"""A network inside a deeper one: the same function, and parts that can learn."""

import pytest
import timm
import torch

import vt_hub
from vt_hub.loading.growing import grow
from vt_hub.network.vt_fuse import fuse


def trained(name, **kwargs):
    """A network whose norms have seen something, in float64."""
    torch.manual_seed(0)
    model = timm.create_model(name, **kwargs).double()
    for _ in range(2):
        model.train()(torch.rand(4, 3, 64, 64, dtype=torch.float64))
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize('kwargs', [{'layers': (2, 3, 1)}, {'vt_depth': 4}, {'layers': (1, 1, 2), 'vt_depth': 3}])
def test_a_deeper_network_computes_the_same(kwargs):
    small = trained('test_vt_resnet', num_classes=7)
    large = grow(small, 'test_vt_resnet', **kwargs)
    x = torch.rand(2, 3, 96, 96, dtype=torch.float64)
    torch.testing.assert_close(large(x), small(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(large.token_attention(x)[-1], small.token_attention(x)[-1])
    torch.testing.assert_close(fuse(large)(x), small(x), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(('name', 'deeper'), [('vt_resnet18', 'vt_resnet34'), ('vt_resnet50', 'vt_resnet101')])
def test_the_networks_of_the_paper(name, deeper):
    small, x = trained(name, num_classes=5).float(), torch.rand(1, 3, 96, 96)
    torch.testing.assert_close(grow(small, deeper)(x), small(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_trunk_of_a_resnet_grows():
    resnet = trained('resnet18', num_classes=3)
    model = grow(resnet, 'vt_resnet34', num_classes=2)
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    trunk = resnet.layer3(resnet.layer2(resnet.layer1(resnet.maxpool(resnet.act1(resnet.bn1(resnet.conv1(x)))))))
    torch.testing.assert_close(model.forward_trunk(x), trunk, rtol=1e-10, atol=1e-10)
    assert model.num_classes == 2


BOTTLENECKS = {'block': 'bottleneck', 'layers': (5, 4, 6)}


@torch.no_grad()
def test_bottlenecks_compute_what_basic_blocks_do():
    small = trained('test_vt_resnet', layers=(2, 2, 2))
    large = grow(small, 'test_vt_resnet', **BOTTLENECKS)
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    for level, (found, wanted) in enumerate(zip(large.forward_levels(x, 3), small.forward_levels(x, 3), strict=True)):
        torch.testing.assert_close(found[:, : wanted.shape[1]], wanted, rtol=1e-10, atol=1e-10, msg=f'level {level}')


@torch.no_grad()
def test_one_bottleneck_too_few_is_near():
    small = trained('test_vt_resnet', layers=(2, 2, 2))
    large = grow(small, 'test_vt_resnet', **BOTTLENECKS | {'layers': (3, 4, 6)})
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    wanted, found = small.forward_levels(x, 1)[1], large.forward_levels(x, 1)[1]
    before = small.layer1[0](small.maxpool(small.forward_levels(x, 0)[0]))
    assert (found[:, : wanted.shape[1]] - wanted).square().mean() < (before - wanted).square().mean()


@pytest.mark.parametrize(
    'kwargs',
    [{'layers': (2, 1, 1), 'vt_depth': 3}, {'block': 'bottleneck', 'layers': (2, 3, 4)}],
    ids=['deeper', 'wider'],
)
def test_new_parts_learn(kwargs):
    large = grow(trained('test_vt_resnet', num_classes=7).float(), 'test_vt_resnet', **kwargs)
    optimizer = torch.optim.SGD(large.parameters(), 0.1)
    x, target = torch.rand(8, 3, 64, 64), torch.arange(8) % 7
    before = {name: value.clone() for name, value in large.named_parameters()}
    large.train()
    if 'block' in kwargs:  # norms with the statistics of a batch would blow up channels that are still 0
        for norm in (module for module in large.modules() if isinstance(module, torch.nn.BatchNorm2d)):
            norm.eval()
    norms = []
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(large(x), target).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(large.parameters(), 1e9).item())
        optimizer.step()
    assert max(norms) < 1e3
    same = {name for name, value in large.named_parameters() if torch.equal(value, before[name])}
    assert not same
    if 'block' in kwargs:  # channels that the source does not need
        for name, C in (('layer2.1.conv1.weight', 32), ('layer3.1.conv1.weight', 48)):
            assert not before[name][:, 2 * C :].any()
            assert (large.get_parameter(name)[:, 2 * C :] != 0).float().mean() > 0.5


def test_what_does_not_fit_is_refused():
    small = timm.create_model('test_vt_resnet', layers=(2, 1, 1), num_classes=3)
    with pytest.raises(ValueError, match='layer1 of the source has 2 blocks, more than 1'):
        grow(small, 'test_vt_resnet')
    with pytest.raises(ValueError, match='has 2 VT modules, more than 1'):
        grow(timm.create_model('test_vt_resnet'), 'test_vt_resnet', vt_depth=1)
    with pytest.raises(ValueError, match='The stem of the source does not fit'):
        grow(small, 'vt_resnet10')
    with pytest.raises(ValueError, match=r'has no filters of its own.*vt_depth=2'):
        grow(timm.create_model('test_vt_resnet', distinct_tokens=False), 'test_vt_resnet', vt_depth=3)
    with pytest.raises(ValueError, match='Without projectors'):
        grow(timm.create_model('test_vt_resnet', projector=False), 'test_vt_resnet', vt_depth=3, projector=False)
    with pytest.raises(ValueError, match='not a VisionTransformer'):
        grow(timm.create_model('test_vit'), 'test_vt_resnet')
    with pytest.raises(ValueError, match='resnet18 is not a VT-ResNet'):
        grow(timm.create_model('resnet18'), 'resnet18')


def test_command(run, tmp_path):
    source = vt_hub.export(timm.create_model('test_vt_resnet', num_classes=2), tmp_path / 'small', labels=['a', 'b'])
    code, out, _ = run('convert', source, tmp_path / 'large', '--grow', 'test_vt_resnet')
    assert (code, out.strip()) == (0, str(tmp_path / 'large'))
    small, large = vt_hub.load_model(source), vt_hub.load_model(tmp_path / 'large')
    x = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(small(x), large(x))
    assert large.pretrained_cfg['label_names'] == ['a', 'b']
    assert 'It computes what small does' in (tmp_path / 'large' / 'README.md').read_text()
    code, _, err = run('convert', source, tmp_path / 'other', '--grow', 'vt_resnet18')
    assert code == 1
    assert 'The stem of the source does not fit' in err
    assert run('convert', source, tmp_path / 'other', '--grow', 'test_vt_resnet', '--num-classes', 3)[0] == 2


@pytest.mark.slow
def test_command_from_resnet18_to_resnet50(run, tmp_path):
    source = vt_hub.export(timm.create_model('vt_resnet18', num_classes=2), tmp_path / 'small')
    assert run('convert', source, tmp_path / 'large', '--grow', 'vt_resnet50')[0] == 0
    assert vt_hub.load_model(tmp_path / 'large').num_classes == 2
    text = (tmp_path / 'large' / 'README.md').read_text()
    assert '**The VT stage and\nthe classifier are untrained**' in text
    assert 'The smaller network is small' in text
