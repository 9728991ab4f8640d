import shutil

import pytest
import timm
import torch

import vt_hub
from vt_hub.loading import checked, published

NAME = 'vt_resnet10.digits'


def test_default_tag_and_full_name_load_the_same_weights():
    first, second = (timm.create_model(name, pretrained=True).state_dict() for name in ('vt_resnet10', NAME))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert vt_hub.pretrained_folder('vt_resnet10') == vt_hub.pretrained_folder(NAME)


def test_pretrained_adapts_to_other_heads_and_inputs():
    for kwargs in ({'num_classes': 7}, {'num_classes': 0}, {'in_chans': 1}):
        model = timm.create_model('vt_resnet10', pretrained=True, **kwargs)
        reference = timm.create_model('vt_resnet10', pretrained=True)
        assert torch.equal(model.layer1[0].conv1.weight, reference.layer1[0].conv1.weight)
    features = timm.create_model('vt_resnet10', pretrained=True, features_only=True).eval()
    assert len(features(torch.randn(1, 3, 64, 64))) == 5


def test_folder_and_registry_describe_the_same_weights():
    ours = timm.create_model('vt_resnet10', pretrained=True).pretrained_cfg
    folder = timm.create_model(f'local-dir:{vt_hub.pretrained_folder(NAME)}', pretrained=True).pretrained_cfg
    for key in ('input_size', 'mean', 'std', 'crop_pct', 'interpolation', 'num_classes', 'label_names', 'license'):
        assert list(ours[key]) == list(folder[key]) if isinstance(ours[key], tuple) else ours[key] == folder[key], key


@pytest.mark.parametrize('name', ['vt_resnet34', 'vt_resnet101', 'test_vt_resnet'])
def test_an_architecture_without_weights_says_so(name):
    with pytest.raises(LookupError, match=f'No pretrained weights exist for {name}; they exist for .*{NAME}'):
        timm.create_model(name, pretrained=True)


@pytest.mark.parametrize('name', ['vt_resnet18', 'vt_resnet34', 'vt_resnet50', 'vt_resnet101'])
def test_without_weights_an_architecture_is_the_papers(name):
    """Weights of 64 pixels and other classes, where there are any, are not to shape a training from scratch."""
    model = timm.create_model(name, device='meta')
    config = vt_hub.VTResNetConfig(architecture=name)
    assert model.num_classes == 1000
    for cfg in (model.pretrained_cfg, config.pretrained_cfg):
        assert tuple(cfg['input_size']) == (3, 224, 224)


def test_unknown_tag():
    with pytest.raises(LookupError, match=r'No pretrained weights exist for vt_resnet10\.nope'):
        timm.create_model('vt_resnet10.nope', pretrained=True)


@pytest.fixture
def embedded(tmp_path, monkeypatch):
    shutil.copytree(published.EMBEDDED / NAME, tmp_path / NAME)
    monkeypatch.setattr(published, 'EMBEDDED', tmp_path)
    monkeypatch.setattr(checked, 'MEMORY', tmp_path / 'cache' / 'checked.json')
    return tmp_path / NAME / 'model.safetensors'


def test_a_folder_is_hashed_once(embedded, monkeypatch):
    hashed = []
    check = checked.check_folder
    monkeypatch.setattr(checked, 'check_folder', lambda *args: hashed.append(args) or check(*args))
    for _ in range(2):
        timm.create_model('vt_resnet10', pretrained=True)
    assert len(hashed) == 1
    embedded.write_bytes(embedded.read_bytes())  # written again, as by an installation
    timm.create_model('vt_resnet10', pretrained=True)
    assert len(hashed) == 2
    for content in ('', '[]', '{"other folder": []}'):  # a cache that says nothing
        checked.MEMORY.write_text(content)
        timm.create_model('vt_resnet10', pretrained=True)
    assert len(hashed) == 5


def test_a_cache_that_cannot_be_written_is_no_error(embedded, tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    monkeypatch.setattr(checked, 'MEMORY', tmp_path / 'file' / 'checked.json')
    timm.create_model('vt_resnet10', pretrained=True)


def test_damage_is_found_after_a_check_that_passed(embedded):
    timm.create_model('vt_resnet10', pretrained=True)
    content = bytearray(embedded.read_bytes())
    content[-1] ^= 1
    embedded.write_bytes(content)
    with pytest.raises(OSError, match=published.PRETRAINED[NAME]):
        timm.create_model('vt_resnet10', pretrained=True)


def test_a_damaged_file_is_refused_by_its_sha256(embedded):
    content = bytearray(embedded.read_bytes())
    content[-1] ^= 1
    embedded.write_bytes(content)
    with pytest.raises(OSError, match=published.PRETRAINED[NAME]):
        timm.create_model('vt_resnet10', pretrained=True)


def test_a_missing_file_is_named(embedded):
    embedded.unlink()
    with pytest.raises(OSError, match=f'{embedded} is missing.*; reinstall'):
        timm.create_model('vt_resnet10', pretrained=True)


def test_a_source_of_the_callers_own_is_left_alone(tmp_path):
    own = timm.create_model('test_vt_resnet', num_classes=3).state_dict()
    model = timm.create_model(
        'test_vt_resnet',
        pretrained=True,
        num_classes=3,
        pretrained_cfg_overlay={'state_dict': own, 'num_classes': 3},
    )
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
