import pytest
import timm
import torch
from timm.models import group_parameters
from torch.nn.utils import prune

import vt_hub
from vt_hub.paper import tables

SWITCHES = [
    {'tokenizer': 'pooling'},
    {'tokenizer': 'cluster'},
    {'recurrent': False},
    {'token_mixer': 'graph'},
    {'token_mixer': 'none'},
    {'projector': False},
    {'num_tokens': 32},
    {'num_tokens': 64},
    {'token_dim': 64},
]


def tiny(**kwargs):
    torch.manual_seed(0)
    return timm.create_model('test_vt_resnet', **kwargs)


def test_size_classes_of_the_small_models():
    assert tables.cost('vt_resnet10')[0] < 2.5
    assert tables.cost('test_vt_resnet')[0] < 1


@pytest.mark.parametrize(
    ('name', 'table', 'row'),
    [
        ('vt_resnet18', '2', 'VT-R18'),
        ('vt_resnet34', '2', 'VT-R34'),  # not Table 8's: that one prices another network (19.2 M parameters)
        ('vt_resnet50', '8', 'VT-R50'),
        ('vt_resnet101', '8', 'VT-R101'),
    ],
)
def test_counts_are_the_papers(name, table, row):
    (row,) = (r for r in tables.rows() if (r.table, r.name) == (table, row))
    assert row.model == name
    assert abs(row.params_difference) < 4
    assert abs(row.macs_difference) < 3.5


@pytest.mark.parametrize('name', ['vt_resnet18', 'vt_resnet34'])
def test_ablations_keep_the_papers_order(name):
    params, macs = tables.cost(name)
    assert tables.cost(name, recurrent=False)[0] < params
    none, graph = tables.cost(name, token_mixer='none'), tables.cost(name, token_mixer='graph')
    assert graph == pytest.approx(none, rel=1e-3)
    assert graph[0] < params
    for num_tokens in (32, 64):
        more_params, more_macs = tables.cost(name, num_tokens=num_tokens)
        assert more_macs > macs
        assert 0 <= more_params - params < 0.1
    fewer_params, fewer_macs = tables.cost(name, projector=False)
    assert fewer_params < params
    assert fewer_macs < macs


def test_table_11():
    assert all(stage['paper'] == stage['computed'] for stage in tables.stages())


@torch.no_grad()
@pytest.mark.parametrize('depth', [18, 50])
def test_resnet_checkpoints_fit_the_trunk(depth):
    """A timm ResNet's stem..layer3 load as they are and compute the same map."""
    resnet = timm.create_model(f'resnet{depth}').eval()
    model = timm.create_model(f'vt_resnet{depth}').eval()
    trunk = {k: v for k, v in resnet.state_dict().items() if not k.startswith(('layer4', 'fc'))}
    result = model.load_state_dict(trunk, strict=False)
    assert not result.unexpected_keys
    assert all(key.startswith(('vt.', 'fc.')) for key in result.missing_keys)
    x = torch.randn(1, 3, 64, 64)
    expected = resnet.forward_intermediates(x, indices=[3], intermediates_only=True)[0]
    torch.testing.assert_close(model.forward_trunk(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize('kwargs', SWITCHES, ids=str)
def test_switches_train_and_trace(kwargs):
    model = tiny(num_classes=5, **kwargs).train()
    x = torch.randn(2, 3, 64, 80)
    logits = model(x)
    assert logits.shape == (2, 5)
    logits.mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    expected = model(x)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), expected)
    torch.testing.assert_close(torch.jit.script(model)(x), expected)
    for attention in model.token_attention(x):
        assert attention.shape == (2, model.forward_features(x).shape[1], 4, 5)
        torch.testing.assert_close(attention.sum((2, 3)), torch.ones(attention.shape[:2]))


@torch.no_grad()
def test_forward_features_are_tokens_and_the_head_averages_them():
    model = tiny().eval()
    x = torch.randn(2, 3, 64, 64)
    tokens = model.forward_features(x)
    assert tokens.shape == (2, 16, 96)
    torch.testing.assert_close(model.forward_head(tokens), model.fc(tokens.mean(1)))
    torch.testing.assert_close(model(x), model.forward_head(tokens))


@torch.no_grad()
@pytest.mark.parametrize('size', [(64, 64), (65, 97), (224, 160), (320, 64)])
@pytest.mark.parametrize('in_chans', [1, 3, 6])
def test_any_input(size, in_chans):
    assert tiny(in_chans=in_chans).eval()(torch.randn(1, in_chans, *size)).isfinite().all()


@torch.no_grad()
def test_batch_order_and_size_do_not_matter():
    model, x = tiny().eval(), torch.randn(4, 3, 64, 64)
    torch.testing.assert_close(model(x.flip(0)).flip(0), model(x))
    torch.testing.assert_close(torch.cat([model(i[None]) for i in x]), model(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('kwargs', [{}, {'tokenizer': 'cluster'}, {'tokenizer': 'pooling'}], ids=str)
def test_channels_last_changes_nothing(kwargs, training):
    model, x = tiny(**kwargs).double().train(training), torch.randn(2, 3, 64, 64).double()
    expected, (expected_map,) = model.forward_intermediates(x, indices=[4])
    model.to(memory_format=torch.channels_last)
    tokens, (feature_map,) = model.forward_intermediates(x.to(memory_format=torch.channels_last), indices=[4])
    torch.testing.assert_close(tokens, expected)
    torch.testing.assert_close(feature_map, expected_map)
    assert feature_map.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
@pytest.mark.parametrize('feature_cls', ['list', 'getter', None])
def test_features_only(feature_cls):
    model = tiny(features_only=True, **({'feature_cls': feature_cls} if feature_cls else {})).eval()
    x = torch.randn(1, 3, 64, 96)
    maps = model(x)
    assert [m.shape[1] for m in maps] == model.feature_info.channels() == [16, 16, 32, 48, 64]
    assert [64 // m.shape[2] for m in maps] == model.feature_info.reduction() == [2, 4, 8, 16, 16]
    expected = tiny().eval().forward_intermediates(x, intermediates_only=True)
    for actual, wanted in zip(maps, expected, strict=True):
        torch.testing.assert_close(actual, wanted)


@torch.no_grad()
def test_a_level_at_each_stride(tmp_path):
    """What decoders of segmentation_models_pytorch ask for; they give `features_only` alone, so it is in the folder."""
    torch.manual_seed(0)
    model = tiny(output_stride=32).eval()
    backbone = timm.create_model(
        f'local-dir:{vt_hub.export(model, tmp_path / "folder")}', pretrained=True, features_only=True
    )
    assert backbone.feature_info.reduction() == [2, 4, 8, 16, 32]
    x = torch.randn(2, 3, 80, 64)
    maps = backbone.eval()(x)
    assert [tuple(m.shape[2:]) for m in maps] == [(40, 32), (20, 16), (10, 8), (5, 4), (3, 2)]
    same = tiny().eval()
    same.load_state_dict(model.state_dict())
    torch.testing.assert_close(same(x), model(x))
    fine = same.forward_intermediates(x, intermediates_only=True)[-1]
    torch.testing.assert_close(maps[-1][..., :2, :], torch.nn.functional.avg_pool2d(fine, 2))
    model.prune_intermediate_layers([3])
    assert model.forward_features(x).shape == (2, 48, 5, 4)
    with pytest.raises(ValueError, match='output_stride is 16 or 32, not 8'):
        tiny(output_stride=8)


def test_features_only_leaves_no_parameter_without_gradient():
    model = tiny(features_only=True)
    model(torch.randn(2, 3, 64, 64))[-1].sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@torch.no_grad()
def test_a_new_head_on_a_pruned_model_pools_the_map():
    model = tiny().eval()
    model.prune_intermediate_layers([4])
    model.reset_classifier(7, 'avg')
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(x), model.fc(model.forward_features(x).mean((2, 3))))


def test_gradient_checkpointing_keeps_gradients():
    x, gradients = torch.randn(2, 3, 64, 64), []
    for enable in (False, True):
        model = tiny().train()
        model.set_grad_checkpointing(enable)
        model(x).pow(2).mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@torch.no_grad()
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('kwargs', [{}, {'tokenizer': 'pooling'}, {'tokenizer': 'cluster'}], ids=str)
def test_compiles_without_graph_breaks(kwargs, memory_format):
    torch.compiler.reset()
    model, x = tiny(**kwargs).eval(), torch.randn(2, 3, 64, 64).to(memory_format=memory_format)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend='eager')(x), model(x))


def test_init_weights_after_to_empty():
    with torch.device('meta'):
        model = timm.create_model('test_vt_resnet', device='meta')
    model.to_empty(device='cpu')
    for tensor in model.state_dict().values():
        tensor.fill_(float('nan') if tensor.is_floating_point() else -1)
    torch.manual_seed(0)
    model.init_weights()
    reference = tiny()
    for (name, value), expected in zip(model.state_dict().items(), reference.state_dict().values(), strict=True):
        assert value.isfinite().all(), name
        torch.testing.assert_close(value.float().norm(), expected.float().norm(), rtol=0.2, atol=1e-6, msg=name)


@torch.no_grad()
@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('kwargs', SWITCHES, ids=str)
def test_autocast_is_close(kwargs, training):
    model, x = tiny(num_classes=5, layers=(1, 1, 1), vt_depth=3, **kwargs), torch.randn(4, 3, 64, 64)
    model(x)  # statistics
    model.train(training)
    expected = model(x)
    with torch.autocast('cpu', torch.bfloat16):
        actual = model(x)
    assert (actual.float() - expected).norm() < 0.1 * expected.norm()


def test_bf16_stays_bf16():
    assert tiny(dtype=torch.bfloat16).eval()(torch.randn(1, 3, 64, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_wrong_arguments_are_refused():
    with pytest.raises(TypeError):
        tiny(not_an_argument=1)
    with pytest.raises(ValueError, match="Unknown block 'x'"):
        tiny(block='x')
    with pytest.raises(AssertionError, match='global_pool'):
        tiny(global_pool='catavgmax')
    with pytest.raises(AssertionError, match='global_pool'):
        tiny().reset_classifier(5, 'max')


def test_layer_decay_goes_from_the_stem_to_the_head():
    model = tiny()
    for coarse in (False, True):
        layer = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
        names = ['conv1.weight', 'layer1.0.conv1.weight', 'layer2.0.conv1.weight', 'layer3.0.conv1.weight',
                 'vt.embed.0.weight', 'vt.blocks.0.norm.weight', 'vt.blocks.1.norm.weight', 'fc.weight']  # fmt: skip
        order = [layer[name] for name in names if not (coarse and name.startswith('vt.blocks.1'))]
        assert order == list(range(len(order)))


def test_stochastic_depth_reaches_every_stage():
    rates = [m.drop_prob for m in tiny(drop_path_rate=0.4).modules() if type(m).__name__ == 'DropPath']
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.4)


@pytest.mark.parametrize('feature_cls', ['list', 'dict', 'getter'])
def test_levels_are_what_feature_info_says(feature_cls):
    backbone = tiny(features_only=True, feature_cls=feature_cls).eval()
    maps = backbone(torch.randn(1, 3, 64, 64))
    channels = [x.shape[1] for x in (maps.values() if isinstance(maps, dict) else maps)]
    assert channels == backbone.feature_info.channels()


@pytest.mark.parametrize('feature_cls', ['hook', 'fx'])
def test_features_that_would_be_others_are_refused(feature_cls):
    with pytest.raises(ValueError, match='Hooks and fx cannot return the last map'):
        tiny(features_only=True, feature_cls=feature_cls)


def test_hooks_and_pruning_reach_every_layer():
    """Nothing reads a layer's weights behind its back: hooks run, and replaced weights count."""
    model = tiny()
    called = []
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    for module in linears:
        prune.l1_unstructured(module, 'weight', 0.5)
        module.register_forward_hook(lambda module, *_: called.append(module))
    for _ in range(2):
        model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert set(called) == set(linears)
