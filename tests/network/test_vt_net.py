"""VT-Net: a VT stage on trunks of ten families, in all loaders; what cannot be a trunk is refused."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models import group_parameters
from transformers import AutoModel, AutoModelForImageClassification, pipeline

import vt_hub
from vt_hub.loading.conversion import put_vt_stage
from vt_hub.publishing import export, verify

FAMILIES = {  # a small model of each family, and an image size that it takes
    'resnet18d': 64,
    'regnety_002': 64,
    'convnext_atto': 64,
    'tf_efficientnet_lite0': 64,
    'mobilenetv4_conv_small': 64,
    'efficientvit_b0': 64,
    'hgnetv2_b0': 64,
    'starnet_s1': 64,
    'repvgg_a0': 64,
    'swin_s3_tiny_224': 224,  # channels last
    'vit_tiny_patch16_224': 224,  # tokens
}


def net(backbone='test_efficientnet', **kwargs):
    torch.manual_seed(0)
    return timm.create_model('vt_net', backbone=backbone, vt_dim=32, token_dim=48, num_classes=3, **kwargs)


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(2, 3, 96, 96)


@pytest.mark.parametrize('backbone', FAMILIES)
def test_any_family_is_a_trunk(backbone):
    model, size = net(backbone), FAMILIES[backbone]
    x = torch.randn(2, 3, size, size)
    F.cross_entropy(model(x), torch.tensor([0, 2])).backward()
    assert all(value.grad is not None for value in model.parameters())
    model.eval()
    with torch.no_grad():
        logits = model(x)
        trunk = timm.create_model(backbone, num_classes=0).eval()
        found = trunk.load_state_dict(model.trunk.state_dict(), strict=False)
        assert not found.unexpected_keys  # the keys are the backbone's own
        level = max(i for i, info in enumerate(trunk.feature_info) if info['reduction'] == 16)
        [expected] = trunk.forward_intermediates(x, indices=[level], intermediates_only=True)
        assert torch.equal(model.forward_trunk(x), expected)
        assert [attn.shape for attn in model.token_attention(x)] == [(2, 16, size // 16, size // 16)] * 2
        torch.testing.assert_close(copy.deepcopy(model).fuse()(x), logits, rtol=1e-4, atol=1e-5)
        program = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(program(x), logits)
    assert set(group_parameters(model, model.group_matcher())) >= {0, 1, 2}


@pytest.mark.slow
@pytest.mark.parametrize('backbone', FAMILIES)
def test_any_family_becomes_an_onnx_file(backbone, tmp_path):
    size = FAMILIES[backbone]
    model = net(backbone, pretrained_cfg_overlay={'input_size': (3, size, size)}).eval()
    folder = export(model, tmp_path / 'folder', code=False)
    vt_hub.export_onnx(vt_hub.load_model(str(folder)), tmp_path / 'model.onnx')  # compares onnxruntime with torch


@pytest.mark.parametrize('backbone', ['mixer_s32_224', 'crossvit_9_240'])
def test_a_trunk_needs_a_map_of_stride_16(backbone):
    with pytest.raises(ValueError, match=rf'{backbone} has feature maps at strides \[.*\]; stride 16 is needed too'):
        net(backbone)


def test_a_trunk_needs_maps(monkeypatch):
    monkeypatch.delattr(timm.models.vgg.VGG, 'forward_intermediates')
    with pytest.raises(ValueError, match='vgg11 does not give its feature maps; choose a model with features_only in'):
        net('vgg11')


def test_the_trunk_ends_with_the_last_map_of_stride_16():
    model = net('vgg11')
    assert [info['reduction'] for info in model.feature_info] == [1, 2, 4, 8, 16, 16]
    assert (
        sum(p.numel() for p in model.trunk.parameters())
        < sum(p.numel() for p in timm.create_model('vgg11').parameters()) / 10
    )


def test_widths_follow_from_the_trunk():
    for backbone, vt_dim, token_dim in (('test_efficientnet', 96, 192), ('resnet50', 1024, 1024)):
        stage = timm.create_model('vt_net', backbone=backbone, device='meta').vt
        assert (stage.blocks[0].projector.norm.num_features, stage.blocks[0].norm.normalized_shape) == (
            vt_dim,
            (token_dim,),
        )


@torch.no_grad()
def test_all_loaders_give_the_same_logits(tmp_path, x):
    model = net(backbone_args={'pad_type': 'same'}, num_tokens=8, recurrent=False).eval()
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.running_mean)
    folder = str(export(model, tmp_path / 'folder', labels=['a', 'b', 'c']))
    expected = model(x)
    assert all(check.passed for check in verify(folder))
    for loaded in (vt_hub.load_model(folder), timm.create_model(f'local-dir:{folder}', pretrained=True).eval()):
        assert torch.equal(loaded(x), expected)
    remote = torch.hub.load(folder, 'model', source='local').eval()
    assert torch.equal(remote(x), expected)
    classifier = AutoModelForImageClassification.from_pretrained(folder).eval()
    assert torch.equal(classifier(x).logits, expected)
    tokens = AutoModel.from_pretrained(folder).eval()(x).last_hidden_state
    assert torch.equal(tokens, model.forward_features(x))
    maps = vt_hub.VTNetBackbone.from_pretrained(folder, out_features=['stage4', 'stage5']).eval()(x).feature_maps
    for found, wanted in zip(
        maps, model.forward_intermediates(x, indices=[-2, -1], intermediates_only=True), strict=True
    ):
        assert torch.equal(found, wanted)
    answer = pipeline('image-classification', model=folder)(vt_hub_picture())
    assert {entry['label'] for entry in answer} == {'a', 'b', 'c'}


def vt_hub_picture():
    from PIL import Image

    return Image.linear_gradient('L').convert('RGB')


@torch.no_grad()
def test_features_only_gives_the_levels_that_feature_info_says(x):
    model = timm.create_model('vt_net', backbone='test_convnext', features_only=True, out_indices=(1, -1)).eval()
    for found, info in zip(model(x), model.feature_info.get_dicts(), strict=True):
        assert found.shape == (2, info['num_chs'], 96 // info['reduction'], 96 // info['reduction'])


@pytest.mark.parametrize(('backbone', 'reductions'), [('test_convnext', [4, 8, 16, 16]), ('vgg11', [2, 4, 8, 16, 16])])
def test_features_only_gives_the_last_five_levels(backbone, reductions):
    assert timm.create_model('vt_net', backbone=backbone, features_only=True).feature_info.reduction() == reductions


def test_images_are_prepared_as_for_the_backbone():
    cfg = net('tf_efficientnet_lite0').pretrained_cfg
    wanted = timm.get_pretrained_cfg('tf_efficientnet_lite0')
    assert (cfg['mean'], cfg['crop_pct'], cfg['license']) == (wanted.mean, wanted.crop_pct, wanted.license)
    assert cfg['first_conv'] == 'trunk.conv_stem'
    assert timm.create_model('test_vt_net', in_chans=1).trunk.conv_stem.weight.shape[1] == 1


@pytest.fixture
def trained(tmp_path):
    """A file with the weights of a backbone."""
    torch.manual_seed(2)
    model = timm.create_model('test_efficientnet', num_classes=7).eval()
    save_file(model.state_dict(), tmp_path / 'backbone.safetensors')
    return model, tmp_path / 'backbone.safetensors'


@torch.no_grad()
def test_a_vt_stage_is_put_on_a_trained_network(trained, tmp_path, x, run):
    model, file = trained
    code, out, _ = run('convert', 'test_efficientnet', tmp_path / 'start', '--vt', '--checkpoint', file)
    assert code == 0
    assert 'into the trunk; new and untrained: ' in out
    start = vt_hub.load_model(tmp_path / 'start')
    assert start.num_classes == 7
    [wanted] = model.forward_intermediates(x, indices=[-2], intermediates_only=True)
    assert torch.equal(start.forward_trunk(x), wanted)
    assert 'The VT stage and the classifier are untrained' in (tmp_path / 'start' / 'README.md').read_text()
    code, _, err = run('convert', 'resnet18', tmp_path / 'other', '--checkpoint', file)
    assert code == 2
    assert '--checkpoint goes with --vt' in err
    with pytest.raises(ValueError, match='vt_resnet18 has a VT stage already'):
        put_vt_stage('vt_resnet18')
    with pytest.raises(LookupError, match="There is no model 'resnet9' in timm"):
        put_vt_stage('resnet9')


def test_a_classifier_that_fits_is_kept(trained):
    model, file = trained
    start, _ = put_vt_stage('test_efficientnet', file, token_dim=model.num_features)
    assert torch.equal(start.model.fc.weight, model.classifier.weight)
    assert 'into the trunk and the classifier' in str(start)
    assert '**The VT stage is untrained**' in start.prose('x')
