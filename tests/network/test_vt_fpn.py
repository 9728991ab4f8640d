import pytest
import timm
import torch
import torch.nn.functional as F
from test_layers import (
    apply,
    assert_close,
    linear,
    naive_layer_norm,
    naive_pool,
    naive_projector,
    naive_transformer,
    rows,
)
from timm.layers import convert_sync_batchnorm
from torch.utils.flop_counter import FlopCounterMode

from vt_hub.network.vt_fpn import SHAPES, VTFPN, VTDecoder
from vt_hub.paper import tables
from vt_hub.synthesis.shapes import CLASSES


def tiny(decoder='vt', **kwargs):
    torch.manual_seed(0)
    arguments = {
        'backbone': 'test_resnet',
        'num_classes': 5,
        'dim': 16,
        'token_dim': 24,
        'num_tokens': 4,
        'hidden_dim': 8,
        **kwargs,
    }
    return VTFPN(decoder=decoder, **arguments)


def macs(size, num_classes, backbone, decoder):
    """Multiply-accumulates in 10**9 of the decoder and of the whole network."""
    with torch.device('meta'):
        model = VTFPN(backbone=backbone, decoder=decoder, num_classes=num_classes, device='meta').eval()
        image = torch.empty(1, 3, *size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        logits = model(image)
    assert logits.shape == (1, num_classes, -(-size[0] // 4), -(-size[1] // 4))
    counts = counter.get_flop_counts()
    return [sum(counts[name].values()) / 2e9 for name in ('VTFPN.decoder', 'Global')]


@pytest.mark.parametrize(
    ('size', 'num_classes', 'vt', 'fpn'), [((800, 1216), 54, 8.5, 55.1), ((473, 473), 20, 2.0, 12.8)]
)
def test_decoder_macs_are_those_of_tables_9_and_10(size, num_classes, vt, fpn):
    assert macs(size, num_classes, 'resnet50', 'vt')[0] == pytest.approx(vt, rel=0.04)
    assert macs(size, num_classes, 'resnet50', 'fpn')[0] == pytest.approx(fpn, rel=0.01)


def test_totals_are_those_of_tables_9_and_10():
    """With the stride where the paper's ResNet has it; timm's ResNet costs up to 4.3 % more."""
    for row in tables.segmentation():
        assert abs(row['total, stride in the 1x1']['difference']) < 1
        assert abs(row['total']['difference']) < 4.5


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@torch.no_grad()
def test_decoder_is_the_papers_equations_over_all_levels(float64):
    """Against a transcription in float64: pool each level, one transformer over all tokens, project its own back."""
    torch.manual_seed(0)
    num_tokens = 3
    decoder = VTDecoder([4, 6], dim=5, token_dim=8, num_tokens=num_tokens, distinct_tokens=False).eval()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter)
    maps = [torch.randn(2, 4, 6, 5), torch.randn(2, 6, 3, 3)]
    actual, tokens, attention = decoder.forward_tokens(maps)
    for b in range(2):
        laterals, pooled = [], []
        for i, x in enumerate(maps):
            lateral = decoder.laterals[i]
            X = rows(x[b]) @ lateral.weight[:, :, 0, 0].t() + lateral.bias
            laterals.append(X.t().reshape(5, *x.shape[2:]))
        laterals[0] = laterals[0] + laterals[1].repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :, :5]
        for i in range(2):
            T, A = naive_pool(laterals[i], linear(decoder.tokenizers[i].filters), 5**0.5)
            assert_close(attention[i][b], A)
            pooled.append(apply(T, decoder.tokenizers[i].proj))
        T = naive_layer_norm(naive_transformer(torch.cat(pooled), decoder.mixer), decoder.norm)
        assert_close(tokens[b], T)
        for i, own in enumerate(T.split(num_tokens)):
            assert_close(rows(actual[i][b]), naive_projector(laterals[i], own, decoder.projectors[i]))


@pytest.mark.parametrize('decoder', ['vt', 'fpn'])
def test_every_parameter_gets_a_gradient(decoder):
    model = tiny(decoder).train()
    model(torch.randn(2, 3, 64, 96)).pow(2).mean().backward()
    assert all(p.grad is not None for name, p in model.named_parameters()), decoder


@torch.no_grad()
@pytest.mark.parametrize('decoder', ['vt', 'fpn'])
@pytest.mark.parametrize('size', [(64, 64), (65, 97), (96, 33), (119, 70)])
def test_any_size(decoder, size):
    logits = tiny(decoder).eval()(torch.randn(1, 3, *size))
    assert logits.shape == (1, 5, -(-size[0] // 4), -(-size[1] // 4))
    assert logits.isfinite().all()


@torch.no_grad()
def test_tokens_carry_across_levels():
    """What changes in the coarsest map reaches the finest: only the shared transformer can take it there."""
    decoder = VTDecoder([4, 4], dim=8, token_dim=12, num_tokens=2, top_down=False).eval()
    for projector in decoder.projectors:
        torch.nn.init.ones_(projector.norm.weight)  # it starts at zero
    fine, coarse = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 4, 4)
    assert not torch.equal(decoder([fine, coarse])[0], decoder([fine, coarse + torch.randn(1, 4, 4, 4)])[0])


@torch.no_grad()
def test_top_down_adds_coarser_maps_before_the_tokens():
    maps = [torch.randn(1, 4, size, size) for size in (9, 5, 3)]
    plain, merged = (VTDecoder([4, 4, 4], 8, 12, 2, top_down=top_down).eval() for top_down in (False, True))
    merged.load_state_dict(plain.state_dict())
    fine, middle, coarse = (lateral(x) for lateral, x in zip(plain.laterals, maps, strict=True))
    middle = middle + F.interpolate(coarse, size=(5, 5))
    for actual, expected in zip(merged(maps), (fine + F.interpolate(middle, size=(9, 9)), middle, coarse), strict=True):
        assert_close(actual, expected)  # the projected tokens start at zero


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="Unknown decoder 'x'; use 'vt' or 'fpn'"):
        tiny('x')
    with pytest.raises(ValueError, match=r'vt_resnet18 has feature maps at strides .*; stride 32 is needed too'):
        VTFPN(backbone='vt_resnet18')
    with pytest.raises(ValueError, match='Segmentation needs classes, not 0'):
        tiny('vt', num_classes=0)
    with pytest.raises(ValueError, match='Segmentation needs classes, not 0'):
        tiny('vt').reset_classifier(0)


def test_a_folder_of_timms_own(tmp_path):
    model = timm.create_model('test_vt_fpn', num_classes=3).eval()
    model.reset_classifier(4, None)
    timm.models.save_for_hf(model, tmp_path, model_args={'num_classes': 4})
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize('backbone', ['mvitv2_tiny', 'swin_tiny_patch4_window7_224'])
def test_backbones_that_do_not_compute_with_maps(backbone):
    """One has tokens inside, the other channels last."""
    model = VTFPN(backbone=backbone, num_classes=2)
    model.set_grad_checkpointing()
    logits = model(torch.rand(1, 3, 224, 224))
    assert logits.shape == (1, 2, 56, 56)
    logits.sum().backward()
    assert all(value.grad is not None for value in model.backbone.parameters())


@torch.no_grad()
@pytest.mark.parametrize('backbone', ['test_resnet', 'test_efficientnet'])
def test_ready_for_synchronized_batch_norm(backbone):
    model = tiny(backbone=backbone).eval()
    x = torch.randn(1, 3, 64, 64)
    expected, keys = model(x), list(model.state_dict())
    converted = convert_sync_batchnorm(model)
    norms = [module for module in converted.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    assert all(isinstance(norm, torch.nn.SyncBatchNorm) for norm in norms)
    assert list(converted.state_dict()) == keys
    assert torch.equal(converted(x), expected)


def test_labels_of_the_shapes_weights_are_the_generators():
    assert SHAPES == CLASSES
