"""ONNX files: the same numbers as torch at any batch and size, errors that leave nothing behind, int8."""

import copy
import errno
import shutil
import sys

import onnx
import onnxruntime
import pytest
import timm
import torch
from conftest import ROOT
from helpers.networks import build
from safetensors.torch import load_file

import vt_hub
from vt_hub.publishing import onnx_file, verify
from vt_hub.publishing import verification as checks
from vt_hub.publishing.hub import push
from vt_hub.publishing.model_folder import with_code, write_checksums

PIP_LINE = 'pip install "vt_hub[onnx]"'


def outputs(path, pixels):
    """By name, as a user of onnxruntime would compute them."""
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, map(torch.from_numpy, session.run(names, {'pixel_values': pixels.numpy()})), strict=True))


@pytest.fixture(scope='module')
def digits():
    """The held-out digits as pixels (N, 3, 64, 64), and their labels."""
    sys.path.insert(0, str(ROOT / 'model_cards' / 'vt_resnet10.digits'))
    try:
        import train
    finally:
        sys.path.pop(0)
    model = timm.create_model('vt_resnet10', pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    _, (images, labels) = train.split(dev=False)
    return torch.stack([transform(train.to_pil(image).convert('RGB')) for image in images]), torch.from_numpy(labels)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A model folder with the ONNX graph of a network that gives attention maps too."""
    model = build('test_vt_resnet', tokenizer='pooling', num_classes=3)
    return vt_hub.export(model, tmp_path_factory.mktemp('folders') / 'flowers', onnx=True, attention=True)


@torch.no_grad()
def test_a_folder_holds_the_graph_and_its_attention_maps(folder):
    assert '  onnx/model.onnx\n' in (folder / 'SHA256SUMS').read_text()
    model = vt_hub.load_model(str(folder))
    for shape in ((1, 3, 64, 64), (3, 3, 80, 112), (2, 3, 97, 71)):
        pixels = torch.randn(shape)
        found = outputs(folder / 'onnx' / 'model.onnx', pixels)
        assert list(found) == ['logits', 'attention_1', 'attention_2']
        for ours, theirs in zip([model(pixels), *model.token_attention(pixels)], found.values(), strict=True):
            torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)


def test_the_file_says_what_is_free_and_nothing_of_the_machine(folder):
    graph = onnx.load(folder / 'onnx' / 'model.onnx').graph
    (pixels,) = graph.input
    sizes = [dim.dim_param or dim.dim_value for dim in pixels.type.tensor_type.shape.dim]
    assert (pixels.name, sizes) == ('pixel_values', ['batch', 3, 'height', 'width'])
    content = (folder / 'onnx' / 'model.onnx').read_bytes()
    for path in (ROOT, timm.__path__[0], torch.__path__[0]):
        assert str(path).encode() not in content


@torch.no_grad()
@pytest.mark.parametrize(
    ('name', 'kwargs'),
    [
        ('test_vt_fpn', {}),
        pytest.param('test_vt_resnet', {'tokenizer': 'cluster', 'in_chans': 1}, marks=pytest.mark.slow),
    ],
)
def test_a_model_in_training_gives_its_logits_and_stays_as_it_is(name, kwargs, tmp_path):
    """benchmarks/onnx_parity.py has every architecture."""
    model = build(name, **kwargs)
    training = copy.deepcopy(model).train()
    training.set_grad_checkpointing(True)
    vt_hub.export_onnx(training, tmp_path / 'model.onnx')
    assert training.training
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in training.state_dict().items())
    for shape in ((1, 64, 64), (3, 80, 112), (2, 97, 71)):
        pixels = torch.randn(shape[0], model.in_chans, *shape[1:])
        found = outputs(tmp_path / 'model.onnx', pixels)['logits']
        torch.testing.assert_close(found, model(pixels), rtol=0, atol=1e-4)


def test_digits_are_read_as_by_torch_and_by_int8_nearly_so(digits, tmp_path, run, samples, monkeypatch):
    pixels, labels = digits
    code, out, _ = run('export', 'vt_resnet10.digits', tmp_path / 'digits.onnx')
    assert code == 0
    assert out.startswith(f'{tmp_path / "digits.onnx"}: fp32, within ')
    with torch.inference_mode():
        classes = timm.create_model('vt_resnet10', pretrained=True).eval()(pixels).argmax(1)
    assert torch.equal(outputs(tmp_path / 'digits.onnx', pixels)['logits'].argmax(1), classes)

    # the same graph again, in no time
    monkeypatch.setattr(onnx_file, 'write', lambda *args: shutil.copy(tmp_path / 'digits.onnx', args[-1]))
    images = shutil.copytree(samples, tmp_path / 'images')
    (images / 'torn.png').write_bytes(b'no image')
    code, out, err = run('export', 'vt_resnet10.digits', tmp_path / 'int8.onnx', '--int8', images)
    assert (code, err.count('warning: ')) == (0, 1)
    assert f'warning: Cannot read {images / "torn.png"} as an image: it is not an image.\n' in err
    assert 'int8, the class of fp32 in 100.0 % of the calibration images' in out
    found = outputs(tmp_path / 'int8.onnx', pixels)['logits'].argmax(1)
    assert (found == labels).float().mean() > 0.98
    assert (tmp_path / 'int8.onnx').stat().st_size < 0.3 * (tmp_path / 'digits.onnx').stat().st_size


def failures(folder):
    return {check.name: check.detail for check in verify(folder) if not check.passed}


def pixels_of(folder):
    return load_file(folder / 'fixture.safetensors')['pixel_values'].float()


@pytest.fixture
def changed(folder, tmp_path, monkeypatch):
    """The folder again, to be changed; the loaders that need a process of their own left out."""
    monkeypatch.setattr(checks, '_subprocess', lambda code, folder: vt_hub.load_model(str(folder))(pixels_of(folder)))
    return with_code(folder, tmp_path / 'flowers')


@torch.inference_mode()
def test_verify_runs_the_graph(changed, monkeypatch):
    assert 'onnx/model.onnx' in push(changed, 'v1.0.0', 'org/flowers', dry_run=True)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, 'onnxruntime', None)
        assert failures(changed) == {'onnx': f'ONNX needs onnxruntime: {PIP_LINE}.'}

    other = onnx.load(changed / 'onnx' / 'model.onnx')
    bias = next(value for value in other.graph.initializer if value.name.endswith('fc.bias'))
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 1, bias.name))
    onnx.save(other, changed / 'onnx' / 'model.onnx')
    assert 'onnx/model.onnx is damaged' in failures(changed)['checksums']
    write_checksums(changed)
    assert 'differ from the stored ones' in failures(changed)['onnx']


def test_a_graph_that_computes_something_else_is_not_kept(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, 'write', lambda *args: shutil.copy(folder / 'onnx' / 'model.onnx', args[-1]))
    model = vt_hub.load_model(str(folder))
    model.fc.bias.data[0] += 0.01
    reason = r'^onnxruntime gives logits that differ .* on a batch of 1 at 64 x 96 pixels; nothing was written\.$'
    with pytest.raises(ValueError, match=reason):
        vt_hub.export(model, tmp_path / 'flowers', onnx=True, attention=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('args', 'reason'),
    [
        (['there.onnx'], 'there.onnx exists already'),
        (['new', '--weights', 'raw'], 'There is no checkpoint vt_resnet10.digits; --model and --weights go with one'),
        (['new.onnx', '--model', 'vt_resnet10'], '--model and --weights go with one'),
        (['new.onnx', '--int8', 'nothing'], 'Cannot read nothing as an image: No such file'),
        (['new.onnx', '--int8', 'empty'], 'Cannot read empty as an image: it is a folder without images'),
        (['new.onnx', '--int8', 'broken'], 'Cannot read broken/digit.png as an image: it is not an image'),
    ],
)
def test_wrong_calls_say_so_and_write_nothing(args, reason, tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('empty', 'broken'):
        (tmp_path / name).mkdir()
    (tmp_path / 'broken' / 'digit.png').write_text('no image')
    (tmp_path / 'there.onnx').write_text('')
    before = sorted(tmp_path.rglob('*'))
    code, _, err = run('export', 'vt_resnet10.digits', *args)
    assert code == 1
    assert err.startswith('error: ')
    assert reason in err
    assert err.count('\n') == 1
    assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize(
    ('args', 'reason'),
    [
        (['new.onnx', '--labels', '.'], 'new.onnx would be a .onnx file, which takes no --labels'),
        (['new.onnx', '--dtype', 'fp16', '--license', 'mit'], 'which takes no --dtype, --license'),
        (['new', '--int8', 'broken'], 'new would be a model folder, which takes no --int8'),
        (['new', '--attention'], 'new would be a model folder without --onnx, which takes no --attention'),
        (['new.safetensors', '--onnx'], 'new.safetensors would be a .safetensors file, which takes no --onnx'),
    ],
)
def test_options_that_do_not_go_together(args, reason, tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run('export', 'vt_resnet10.digits', *args)
    assert code == 2
    assert reason in ' '.join(err.replace('│', ' ').split())
    assert not list(tmp_path.iterdir())


def fill_disk(*_, **__):
    raise OSError(errno.ENOSPC, 'No space left on device')


@pytest.mark.parametrize('missing', ['onnx', 'onnxscript', 'onnxruntime'])
def test_a_missing_package_is_named(missing, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModuleNotFoundError, match=f'ONNX needs {missing}: ') as error:
        vt_hub.export_onnx(build('test_vt_resnet'), tmp_path / 'model.onnx')
    assert str(error.value).endswith(f'{PIP_LINE}.')


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, 'write', fill_disk)
    with pytest.raises(OSError, match=r'Cannot write .*model\.onnx: No space left on device; nothing was written'):
        vt_hub.export(build('test_vt_resnet'), tmp_path / 'flowers', onnx=True)
    assert not list(tmp_path.iterdir())


def test_other_models_are_refused(tmp_path):
    for model in (build('test_vt_resnet', num_classes=0), timm.create_model('test_resnet')):
        with pytest.raises(ValueError, match='Only a VT-ResNet, VT-Net or VT-FPN with a classifier exports to ONNX'):
            vt_hub.export_onnx(model, tmp_path / 'model.onnx')
    with pytest.raises(ValueError, match='VT-FPN cannot export attention maps'):
        vt_hub.export_onnx(build('test_vt_fpn'), tmp_path / 'model.onnx', attention=True)


@torch.no_grad()
@pytest.mark.parametrize(('opset', 'ir'), [(17, 8), (18, 8), (20, 9), (22, 10)])
def test_the_opset_is_chosen_and_the_ir_is_the_lowest_that_holds_it(opset, ir, tmp_path, run):
    model = vt_hub.export(build('test_vt_resnet', num_classes=3), tmp_path / 'folder')
    path = tmp_path / 'model.onnx'
    code, _, err = run('export', model, path, '--opset', opset)
    assert code == 0, err
    written = onnx.load(path)
    assert (written.opset_import[0].version, written.ir_version) == (opset, ir)
    pixels = torch.rand(2, 3, 75, 107)
    torch.testing.assert_close(outputs(path, pixels)['logits'], vt_hub.load_model(model)(pixels), rtol=0, atol=1e-5)


def test_opsets_without_the_operators_are_refused(tmp_path, run):
    with pytest.raises(ValueError, match='opset 17 or higher, not 16'):
        vt_hub.export_onnx(build('test_vt_resnet'), tmp_path / 'model.onnx', opset=16)
    assert run('export', 'vt_resnet10.digits', tmp_path / 'folder', '--opset', 18)[0] == 2


@torch.no_grad()
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize(
    ('name', 'kwargs'),
    [
        ('test_vt_resnet', {}),
        ('test_vt_resnet', {'distinct_tokens': False, 'token_mixer': 'graph'}),
        ('test_vt_fpn', {}),
        ('test_vt_fpn', {'decoder': 'fpn'}),
    ],
)
def test_torchs_older_exporter_leaves_batch_and_size_free(name, kwargs, fused, tmp_path):
    """As timm's own script calls it. Pooling and cluster tokenizers pool adaptively, which it cannot do at any size."""
    model = build(name, **kwargs)
    model = model.fuse() if fused else model
    axes = {'pixel_values': {0: 'batch', 2: 'height', 3: 'width'}, 'logits': {0: 'batch'}}
    names = {'input_names': ['pixel_values'], 'output_names': ['logits'], 'dynamic_axes': axes}
    torch.onnx.export(
        model, torch.rand(1, 3, 96, 128), tmp_path / 'model.onnx', dynamo=False, opset_version=17, **names
    )
    for size in ((4, 3, 96, 128), (2, 3, 64, 64), (3, 3, 75, 107)):
        pixels = torch.rand(size)
        found = outputs(tmp_path / 'model.onnx', pixels)['logits']
        torch.testing.assert_close(found, model(pixels), rtol=0, atol=1e-5)
