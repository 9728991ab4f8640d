import json
import logging
import os
import subprocess
import sys

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    pipeline,
)

import vt_hub
from vt_hub.network.vt_resnet import ARCHITECTURES

LABELS = [f'class {i}' for i in range(37)]


def config(**kwargs):
    labels = {'id2label': dict(enumerate(LABELS)), 'label2id': {name: i for i, name in enumerate(LABELS)}}
    return vt_hub.VTResNetConfig(
        architecture='test_vt_resnet', **(labels if 'num_labels' not in kwargs else {}), **kwargs
    )


def classifier(**kwargs):
    torch.manual_seed(0)
    return vt_hub.VTResNetForImageClassification(config(**kwargs)).eval()


@pytest.fixture
def x():
    return torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_timm_and_transformers_compute_the_same_logits(tmp_path, architecture):
    """timm -> transformers -> save_pretrained -> timm, difference 0.0 for every architecture."""
    x = torch.randn(1, 3, 64, 64)
    source = timm.create_model(architecture, num_classes=5).eval()
    expected = source(x)
    folder = vt_hub.export(source, tmp_path / 'folder', code=False)
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    assert type(model) is vt_hub.VTResNetForImageClassification
    assert model.state_dict().keys() == source.state_dict().keys()
    assert torch.equal(model(x).logits, expected)
    assert torch.equal(timm.create_model(f'local-dir:{folder}', pretrained=True).eval()(x), expected)
    model.save_pretrained(tmp_path / 'saved')
    assert torch.equal(timm.create_model(f'local-dir:{tmp_path / "saved"}', pretrained=True).eval()(x), expected)


@torch.no_grad()
def test_switches_and_channels_survive_the_round_trip(tmp_path):
    source = timm.create_model('test_vt_resnet', num_classes=3, in_chans=2, num_tokens=32, tokenizer='cluster').eval()
    x = torch.randn(2, 2, 64, 64)
    folder = vt_hub.export(source, tmp_path / 'folder', code=False)
    for loader in (AutoModelForImageClassification.from_pretrained, None):
        model = loader(folder).eval() if loader else timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
        out = model(x)
        assert torch.equal(out.logits if loader else out, source(x))


@torch.no_grad()
def test_labels_of_a_fine_tuned_model_reach_every_loader(tmp_path, x):
    model = classifier()
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert list(again.config.id2label.values()) == LABELS
    assert again.config.label2id['class 8'] == 8
    in_timm = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert list(in_timm.pretrained_cfg['label_names']) == LABELS
    assert in_timm.pretrained_cfg['num_classes'] == in_timm.num_classes == 37
    assert torch.equal(in_timm(x), model(x).logits)
    image = Image.effect_noise((99, 77), 80).convert('RGB')
    best = pipeline('image-classification', model=str(tmp_path))(image)[0]['label']
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(in_timm))
    assert best == LABELS[in_timm(transform(image)[None]).argmax()]


@torch.no_grad()
def test_a_new_head(tmp_path, x):
    model = classifier()
    model.save_pretrained(tmp_path)
    new = AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=4, ignore_mismatched_sizes=True).eval()
    assert new(x).logits.shape == (2, 4)
    assert torch.equal(new.vt.blocks[0].norm.weight, model.vt.blocks[0].norm.weight)
    new.save_pretrained(tmp_path / 'new')
    in_timm = timm.create_model(f'local-dir:{tmp_path / "new"}', pretrained=True).eval()
    assert torch.equal(in_timm(x), new(x).logits)
    with pytest.raises(RuntimeError):
        AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=4)


@torch.no_grad()
def test_half_precision(tmp_path, x):
    model = classifier()
    model.save_pretrained(tmp_path)
    for dtype in (torch.bfloat16, torch.float16):
        half = AutoModelForImageClassification.from_pretrained(tmp_path, dtype=dtype).eval()
        logits = half(x).logits  # fp32 pixels are cast
        assert logits.dtype == dtype
        torch.testing.assert_close(logits.float(), model(x).logits, rtol=0.1, atol=0.1)


def test_nothing_is_left_uninitialised(tmp_path, x):
    """Building on the meta device and loading a headless checkpoint leaves no memory as it was found."""
    model = vt_hub.VTResNetModel(config())
    model.save_pretrained(tmp_path)
    real = torch.empty

    def poisoned(*args, **kwargs):
        out = real(*args, **kwargs)
        return out.fill_(float('nan')) if out.is_floating_point() and out.device.type == 'cpu' else out

    torch.empty = poisoned
    try:
        loaded = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    finally:
        torch.empty = real
    assert all(value.isfinite().all() for value in loaded.state_dict().values())
    own = model.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in loaded.state_dict().items() if name in own)


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (lambda weights: weights.pop('layer1.0.bn1.weight'), r'lacks layer1\.0\.bn1\.weight'),
        (lambda weights: weights.pop('fc.bias'), r'lacks fc\.bias'),
        (lambda weights: weights['fc.bias'].fill_(float('nan')), r'not finite in fc\.bias'),
    ],
)
def test_from_pretrained_refuses_what_would_load_as_noise(tmp_path, spoil, message):
    classifier().save_pretrained(tmp_path)
    weights = load_file(tmp_path / 'model.safetensors')
    spoil(weights)
    save_file(weights, tmp_path / 'model.safetensors', metadata={'format': 'pt'})
    with pytest.raises(ValueError, match=message):
        AutoModelForImageClassification.from_pretrained(tmp_path)


def test_loading_info_is_still_to_be_had(tmp_path):
    classifier().save_pretrained(tmp_path)
    model, info = vt_hub.VTResNetModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model) is vt_hub.VTResNetModel
    assert not info['missing_keys']


def test_initialisation_is_timms():
    ours, timms = classifier().state_dict(), timm.create_model('test_vt_resnet', num_classes=37).state_dict()
    for name, value in ours.items():
        torch.testing.assert_close(value.float().norm(), timms[name].float().norm(), rtol=0.25, atol=1e-6, msg=name)


@torch.no_grad()
def test_base_model(tmp_path, x):
    model = classifier()
    model.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path).eval()
    output = base(x, output_hidden_states=True, output_attentions=True)
    timm_model = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    tokens, maps = timm_model.forward_intermediates(x)
    assert torch.equal(output.last_hidden_state, tokens)
    assert torch.equal(output.pooler_output, tokens.mean(1))
    assert all(torch.equal(a, b) for a, b in zip(output.hidden_states, maps, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(output.attentions, timm_model.token_attention(x), strict=True))
    torch.testing.assert_close(output.attentions[0].sum((2, 3)), torch.ones(2, 16))
    assert isinstance(base(x, return_dict=False), tuple)
    assert model(x, output_attentions=True).attentions[1].shape == (2, 16, 6, 6)
    assert model(x).attentions is None


@torch.no_grad()
@pytest.mark.parametrize('stages', [['stage1', 'stage3'], ['stem', 'stage1', 'stage2', 'stage3', 'stage4'], ['stage4']])
def test_backbone(tmp_path, x, stages):
    model = classifier()
    model.save_pretrained(tmp_path)
    backbone = vt_hub.VTResNetBackbone.from_pretrained(tmp_path, out_features=stages).eval()
    maps = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval().forward_intermediates(x)[1]
    names = ['stem', 'stage1', 'stage2', 'stage3', 'stage4']
    for name, actual in zip(stages, backbone(x).feature_maps, strict=True):
        assert torch.equal(actual, maps[names.index(name)])
    assert backbone.channels == [maps[names.index(name)].shape[1] for name in stages]
    backbone.save_pretrained(tmp_path / 'backbone')
    again = vt_hub.VTResNetBackbone.from_pretrained(tmp_path / 'backbone').eval()
    assert again.out_features == stages
    assert torch.equal(again(x).feature_maps[-1], backbone(x).feature_maps[-1])
    assert type(AutoBackbone.from_config(backbone.config)) is vt_hub.VTResNetBackbone


def test_backbone_has_no_parameter_without_gradient(x):
    backbone = vt_hub.VTResNetBackbone(config(out_features=['stage2', 'stage4']))
    sum(m.sum() for m in backbone(x).feature_maps).backward()
    assert all(p.grad is not None for p in backbone.parameters())


@pytest.mark.parametrize(
    ('labels', 'problem_type'),
    [
        (torch.tensor([1, 2]), None),
        (torch.rand(2, 37).round(), 'multi_label_classification'),
        (torch.rand(2, 37), 'regression'),
    ],
)
def test_losses(x, labels, problem_type):
    model = classifier(problem_type=problem_type)
    output = model(x, labels=labels)
    expected = {
        None: torch.nn.functional.cross_entropy,
        'multi_label_classification': torch.nn.functional.binary_cross_entropy_with_logits,
        'regression': torch.nn.functional.mse_loss,
    }[problem_type](output.logits, labels)
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_gradient_checkpointing_keeps_gradients(x):
    gradients = []
    for enable in (False, True):
        model = classifier().train()
        if enable:
            newer = getattr(model, 'activation_checkpointing_enable', None)  # what it is called in newer releases
            (newer or model.gradient_checkpointing_enable)()
            assert model.vt.grad_checkpointing
        model(x, labels=torch.tensor([0, 1])).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


def test_attention_has_one_implementation(tmp_path):
    classifier().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match='scaled_dot_product_attention'):
        AutoModelForImageClassification.from_pretrained(tmp_path, attn_implementation='sdpa')


def test_config_writes_one_truth(tmp_path):
    written = config()
    written.num_labels = 5
    written.save_pretrained(tmp_path)
    raw = written.to_dict()
    assert raw['num_classes'] == raw['pretrained_cfg']['num_classes'] == len(raw['label_names']) == 5
    assert raw['model_args'] is not None
    assert 'num_classes' not in raw['model_args']
    again = AutoConfig.from_pretrained(tmp_path).to_dict() | {'_name_or_path': ''}
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(raw))


def test_config_names_the_architectures_it_knows():
    with pytest.raises(ValueError, match="Unknown architecture 'vt_resnet1000'; use one of 'vt_resnet10'"):
        vt_hub.VTResNetConfig(architecture='vt_resnet1000')


@torch.no_grad()
def test_timm_wrapper_loads_the_folder_without_model_type(tmp_path, x):
    from transformers import TimmWrapperForImageClassification

    folder = vt_hub.export(timm.create_model('test_vt_resnet', num_classes=37).eval(), tmp_path / 'f', labels=LABELS)
    raw = json.loads((folder / 'config.json').read_text())
    del raw['model_type']
    (folder / 'config.json').write_text(json.dumps(raw))
    wrapper = TimmWrapperForImageClassification.from_pretrained(folder).eval()
    assert torch.equal(wrapper(x).logits, timm.create_model(f'local-dir:{folder}', pretrained=True).eval()(x))
    assert wrapper.config.id2label[8] == 'class 8'


def test_the_pipeline_is_silent(tmp_path, caplog, recwarn):
    folder = vt_hub.export(classifier(), tmp_path / 'folder', code=False)
    with caplog.at_level(logging.WARNING):
        loggers = [logging.getLogger(name) for name in ('transformers', 'timm', 'huggingface_hub')]
        for logger in loggers:
            logger.addHandler(caplog.handler)
        try:
            classify = pipeline('image-classification', model=str(folder))
            assert len(classify(Image.new('RGB', (50, 60)))) == 5
        finally:
            for logger in loggers:
                logger.removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records] == []
    assert [str(warning.message) for warning in recwarn.list] == []


REMOTE = """
import sys; sys.modules['vt_hub'] = None
import os, warnings, torch
from pathlib import Path
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, pipeline
root = Path(sys.argv[1])
x = load_file(root / 'x.safetensors')['x']
with torch.no_grad():
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        remote = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True).eval()
        assert type(remote).__module__.startswith('transformers_modules')
        hub = torch.hub.load(str(folder), 'model', source='local').eval()
        save_file({'remote': remote(x).logits, 'hub': hub(x)}, root / f'{folder.name}.safetensors')
sys.stderr.flush(); print('quiet from here', file=sys.stderr)
classify = pipeline('image-classification', model=str(folder), trust_remote_code=True)
assert classify(Image.new('RGB', (50, 60)))
"""


@torch.no_grad()
def test_remote_code_and_torch_hub_without_the_package(tmp_path):
    """Every architecture, in a process where `import vt_hub` fails: logits equal to timm's, and a silent pipeline."""
    root = tmp_path / 'root'
    x = torch.randn(1, 3, 64, 64)
    expected = {}
    for architecture in ARCHITECTURES:
        model = timm.create_model(architecture, num_classes=3).eval()
        expected[architecture] = model(x)
        vt_hub.export(model, root / architecture)
    save_file({'x': x}, root / 'x.safetensors')
    environment = os.environ | {
        'OMP_NUM_THREADS': str(torch.get_num_threads()),  # sums are rounded alike by as many threads only
        'HF_MODULES_CACHE': str(tmp_path / 'modules'),
        'HF_HUB_OFFLINE': '1',
        'HF_HUB_DISABLE_PROGRESS_BARS': '1',
    }
    result = subprocess.run(
        [sys.executable, '-c', REMOTE, str(root)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    for architecture, logits in expected.items():
        found = load_file(root / f'{architecture}.safetensors')
        assert torch.equal(found['remote'], logits), architecture
        assert torch.equal(found['hub'], logits), architecture
    assert result.stderr.split('quiet from here')[1].strip() == ''


@pytest.mark.parametrize('first', ['vt_hub', 'transformers'])
def test_registration_does_not_depend_on_the_order_of_imports(tmp_path, first):
    classifier().save_pretrained(tmp_path)
    imports = {'vt_hub': 'import vt_hub', 'transformers': 'from transformers import AutoModel, AutoImageProcessor'}
    second = 'transformers' if first == 'vt_hub' else 'vt_hub'
    code = (
        f'{imports[first]}\n{imports[second]}\nimport sys\n'
        'assert type(AutoModel.from_pretrained(sys.argv[1])) is vt_hub.VTResNetModel\n'
        'assert type(AutoImageProcessor.from_pretrained(sys.argv[1])) is vt_hub.VTResNetImageProcessor'
    )
    result = subprocess.run([sys.executable, '-c', code, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    'load',
    [
        "AutoModelForImageClassification.from_pretrained('m', trust_remote_code=True)",
        "torch.hub.load('m', 'model', source='local')",
    ],
)
def test_a_folders_own_code_yields_to_the_package(tmp_path, load):
    vt_hub.export(timm.create_model('test_vt_resnet', num_classes=3).eval(), tmp_path / 'm')
    code = (
        'import timm, torch\nfrom transformers import AutoModelForImageClassification\n'
        f'{load}\nimport vt_hub\n'
        "assert type(timm.create_model('vt_resnet10', pretrained=True)) is vt_hub.VTResNet\n"
        "assert type(timm.create_model('test_vt_fpn')) is vt_hub.VTFPN\n"
        f'{load}\n'
        "assert type(timm.create_model('vt_resnet10')) is vt_hub.VTResNet"
    )
    environment = os.environ | {'HF_MODULES_CACHE': str(tmp_path / 'modules')}
    result = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert 'Overwriting' not in result.stderr


def test_image_processor_is_found(tmp_path):
    classifier().save_pretrained(tmp_path)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is vt_hub.VTResNetImageProcessor


@torch.no_grad()
def test_weights_on_disk_compute_the_same(tmp_path, x):
    folder = vt_hub.export(timm.create_model('test_vt_resnet', num_classes=5), tmp_path / 'folder', code=False)
    cls = vt_hub.VTResNetForImageClassification
    offloaded = cls.from_pretrained(folder, device_map={'': 'disk'}, offload_folder=tmp_path / 'disk').eval()
    assert all(value.is_meta for value in offloaded.parameters())
    assert torch.equal(offloaded(x).logits, cls.from_pretrained(folder).eval()(x).logits)


def test_a_folder_of_timms_own_loads(tmp_path, x):
    source = timm.create_model('test_vt_resnet', num_classes=5).eval()
    timm.models.save_for_hf(source, tmp_path, model_args={'num_classes': 5})
    model = vt_hub.VTResNetForImageClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(model(x).logits, source(x))


def test_grey_model_from_a_configuration(tmp_path):
    model = vt_hub.VTResNetForImageClassification(config(model_args={'in_chans': 1})).eval()
    model.save_pretrained(tmp_path)
    pixels = AutoImageProcessor.from_pretrained(tmp_path)(Image.new('RGB', (50, 40), 'white'))['pixel_values']
    assert pixels.shape == (1, 1, 96, 96)
    loaded = vt_hub.VTResNetForImageClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(pixels).logits, model(pixels).logits)


def test_labels_with_gaps_are_refused():
    with pytest.raises(ValueError, match=r'names the classes \[1, 2\]'):
        vt_hub.VTResNetConfig(id2label={1: 'a', 2: 'b'})


def test_a_new_classifier_is_in_the_configuration(tmp_path, x):
    model = classifier()
    model.reset_classifier(7)
    assert model(x, labels=torch.tensor([6, 0])).loss.isfinite()
    model.save_pretrained(tmp_path)
    loaded = vt_hub.VTResNetForImageClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(x).logits, model(x).logits)


@torch.no_grad()
@pytest.mark.parametrize('cls', [vt_hub.VTResNetModel, vt_hub.VTResNetForImageClassification, vt_hub.VTResNetBackbone])
def test_replicas_of_data_parallel_run(x, cls):
    model = cls(config()).eval()
    expected = model(x).to_tuple()[0]
    model.parameters = lambda recurse=True: iter(())  # as theirs
    torch.testing.assert_close(model(x).to_tuple()[0], expected, rtol=0, atol=0)


def test_gradient_checkpointing_is_told():
    model = classifier()
    assert not model.is_gradient_checkpointing
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


def test_public_names_are_listed():
    assert set(vt_hub.__all__) <= set(dir(vt_hub))
