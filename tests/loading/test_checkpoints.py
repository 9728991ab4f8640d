"""Hostile and damaged files are refused by name through every entry point."""

import json
import pickle
import struct

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import vt_hub
from vt_hub.loading.checkpoints import load_folder, read_foreign
from vt_hub.loading.conversion import load_checkpoint, warm_start


class Bomb:
    def __reduce__(self):
        return (print, ('code ran',))


def header(content: bytes, **extra) -> bytes:
    """A safetensors file with a changed header."""
    (length,) = struct.unpack('<Q', content[:8])
    parsed = json.loads(content[8 : 8 + length]) | extra
    encoded = json.dumps(parsed).encode()
    return struct.pack('<Q', len(encoded)) + encoded + content[8 + length :]


def test_a_header_length_that_looks_like_a_pickle(folder):
    """The length of the header comes first; its lowest byte may be the 0x80 that pickles start with."""
    path = folder / 'model.safetensors'
    content = path.read_bytes()
    (length,) = struct.unpack('<Q', content[:8])
    padding = (0x80 - length) % 256
    path.write_bytes(
        struct.pack('<Q', length + padding) + content[8 : 8 + length] + b' ' * padding + content[8 + length :]
    )
    assert path.read_bytes()[0] == 0x80
    load_folder(folder)


def renamed(path, function):
    weights = load_file(path)
    function(weights)
    save_file(weights, path, metadata={'format': 'pt'})


DAMAGE = {
    'truncated': (lambda p: p.write_bytes(p.read_bytes()[:-100]), 'is not a whole safetensors file'),
    'cut in the header': (lambda p: p.write_bytes(p.read_bytes()[:50]), 'is not a whole safetensors file'),
    'empty': (lambda p: p.write_bytes(b''), 'is not a whole safetensors file'),
    'header of 2**60 bytes': (
        lambda p: p.write_bytes(struct.pack('<Q', 2**60) + p.read_bytes()[8:]),
        'is not a whole safetensors file',
    ),
    'offsets beyond the end': (
        lambda p: p.write_bytes(
            header(p.read_bytes(), evil={'dtype': 'F32', 'shape': [9], 'data_offsets': [0, 10**9]})
        ),
        'is not a whole safetensors file',
    ),
    'pickle': (lambda p: p.write_bytes(pickle.dumps(Bomb())), 'is a pickle'),
    'torch.save': (lambda p: torch.save({'a': torch.ones(1)}, p), 'is a pickle'),
    'missing key': (lambda p: renamed(p, lambda w: w.pop('fc.bias')), r'fc\.bias is missing'),
    'unexpected key': (lambda p: renamed(p, lambda w: w.update(x=torch.ones(1))), 'x is unexpected'),
    'wrong shape': (
        lambda p: renamed(p, lambda w: w.update({'fc.bias': torch.ones(9)})),
        r'fc\.bias is \[9\] and not \[3\]',
    ),
    'not finite': (lambda p: renamed(p, lambda w: w['fc.bias'].fill_(float('nan'))), r'not finite in fc\.bias'),
}


@pytest.fixture
def folder(tmp_path):
    return vt_hub.export(timm.create_model('test_vt_resnet', num_classes=3).eval(), tmp_path / 'm', code=False)


@pytest.mark.parametrize('damage', DAMAGE)
def test_weights_of_a_folder(folder, run, damage):
    spoil, message = DAMAGE[damage]
    path = folder / 'model.safetensors'
    spoil(path)
    with pytest.raises(ValueError, match=message) as error:
        load_folder(folder)
    assert str(path) in str(error.value)
    assert '\n' not in str(error.value)
    with pytest.raises(ValueError, match=message):
        vt_hub.load_model(str(folder))
    checks = {check.name: check.passed for check in vt_hub.verify(folder)}
    assert checks == {'checksums': False}  # nothing is loaded from it
    for target in ('again', 'out.safetensors'):
        code, out, err = run('export', folder, folder / target)
        assert code == 1
        assert str(path) in err
        assert 'code ran' not in out
        assert not (folder / target).exists()


def test_torch_hub_entry_of_a_damaged_folder(tmp_path):
    folder = vt_hub.export(timm.create_model('test_vt_resnet', num_classes=3).eval(), tmp_path / 'm')
    assert torch.hub.load(str(folder), 'model', source='local').num_classes == 3
    path = folder / 'model.safetensors'
    renamed(path, lambda weights: weights['fc.bias'].fill_(float('nan')))
    with pytest.raises(OSError, match=f'{path} is damaged'):
        torch.hub.load(str(folder), 'model', source='local')


@pytest.mark.parametrize(
    'content',
    [
        '',
        '[]',
        '{"architecture": 3}',
        '{"architecture": "test_vt_resnet", "num_classes": 3}',
        '{"architecture": "resnet18", "num_classes": 3, "pretrained_cfg": {}, "model_args": {}}',
        '{"architecture": "test_vt_resnet", "num_classes": 3, "pretrained_cfg": {"x": 1}, "model_args": {}}',
        '{"architecture": "test_vt_resnet", "num_classes": 3, "pretrained_cfg": {}, "model_args": {"x": 1}}',
    ],
)
def test_damaged_configuration(folder, content):
    (folder / 'config.json').write_text(content)
    with pytest.raises(ValueError, match=r'config\.json'):
        load_folder(folder)


@pytest.mark.parametrize('content', [b'', b'hello', pickle.dumps(Bomb()), pickle.dumps([1, 2])])
def test_foreign_pickles_run_no_code(tmp_path, capsys, content):
    path = tmp_path / 'checkpoint.pth.tar'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'checkpoint\.pth\.tar'):
        read_foreign(path)
    assert 'code ran' not in capsys.readouterr().out


def test_foreign_checkpoints_that_do_not_fit(tmp_path):
    path = tmp_path / 'c.pth'
    torch.save({'state_dict': {'a': 3}}, path)
    with pytest.raises(ValueError, match='a is a int'):
        read_foreign(path)
    for content in ({'state_dict': None}, {'model': torch.ones(1)}, {1: torch.ones(1)}):
        torch.save(content, path)
        with pytest.raises(ValueError, match=str(path)):
            read_foreign(path)
    torch.save({'arch': 'resnet18', 'state_dict': {'a': torch.ones(1)}}, path)
    with pytest.raises(ValueError, match='does not say which architecture'):
        load_checkpoint(path)
    with pytest.raises(ValueError, match=r'no conv1\.weight or fc\.weight'):
        load_checkpoint(path, 'vt_resnet18')
    torch.save(timm.create_model('test_vt_resnet', num_classes=3).state_dict(), path)
    with pytest.raises(ValueError, match='does not fit the model'):
        load_checkpoint(path, 'vt_resnet10')
    torch.save({'conv1.weight': torch.ones(1)}, path)
    with pytest.raises(ValueError, match='does not have the stem'):
        warm_start(str(path))
    torch.save(timm.create_model('vt_resnet18', num_classes=3).state_dict(), path)
    with pytest.raises(ValueError, match='is a VT-ResNet already'):
        warm_start(str(path))
    with pytest.raises(ValueError, match='neither a file nor a model of timm'):
        warm_start('resnet5000')


@pytest.mark.parametrize(
    'wrap',
    [
        lambda state: {f'_orig_mod.{key}': value for key, value in state.items()},
        lambda state: {'state_dict': {f'model.{key}': value for key, value in state.items()}, 'epoch': 3},
        lambda state: {'state_dict': {f'model._orig_mod.{key}': value for key, value in state.items()}},
        lambda state: {'model_state_dict': {f'module.{key}': value for key, value in state.items()}},
        lambda state: {'model': {f'module._orig_mod.{key}': value for key, value in state.items()}},
    ],
    ids=['compiled', 'Lightning', 'Lightning, compiled', 'model_state_dict', 'DDP, compiled'],
)
def test_checkpoints_of_wrapped_networks(wrap, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model('test_vt_resnet', num_classes=3)
    torch.save(wrap(model.state_dict()), tmp_path / 'checkpoint.pt')
    loaded, _ = load_checkpoint(tmp_path / 'checkpoint.pt', 'test_vt_resnet')
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    flat = wrap(model.state_dict())
    if len(flat) > 2:
        save_file(flat, tmp_path / 'checkpoint.safetensors')
        load_checkpoint(tmp_path / 'checkpoint.safetensors', 'test_vt_resnet')


def test_another_wrapper_is_named(tmp_path):
    state = timm.create_model('test_vt_resnet', num_classes=3).state_dict()
    save_file({f'wrapped.{key}': value for key, value in state.items()}, tmp_path / 'checkpoint.safetensors')
    with pytest.raises(ValueError, match=r'no conv1\.weight or fc\.weight'):
        load_checkpoint(tmp_path / 'checkpoint.safetensors', 'test_vt_resnet')


@pytest.mark.parametrize('options', [{'max_shard_size': '100KB'}, {'variant': 'fp16'}], ids=['shards', 'variant'])
def test_folders_of_transformers_in_parts(options, tmp_path):
    torch.manual_seed(0)
    config = vt_hub.VTResNetConfig(architecture='test_vt_resnet', num_labels=3)
    model = vt_hub.VTResNetForImageClassification(config).eval()
    model.save_pretrained(tmp_path / 'saved', **options)
    assert not (tmp_path / 'saved' / 'model.safetensors').exists()
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(load_folder(tmp_path / 'saved')(x), model(x).logits)
    exported = vt_hub.export(load_folder(tmp_path / 'saved'), tmp_path / 'exported')
    assert (exported / 'model.safetensors').is_file()


def test_shards_outside_of_the_folder_are_refused(tmp_path):
    config = vt_hub.VTResNetConfig(architecture='test_vt_resnet', num_labels=3)
    vt_hub.VTResNetForImageClassification(config).save_pretrained(tmp_path / 'saved', max_shard_size='100KB')
    index = tmp_path / 'saved' / 'model.safetensors.index.json'
    index.write_text(json.dumps({'weight_map': {'fc.weight': '../other.safetensors'}}))
    with pytest.raises(ValueError, match=r'names a file that is not in its folder: \.\./other\.safetensors'):
        load_folder(tmp_path / 'saved')


def test_what_is_exported_again_keeps_dtype_and_card(run, tmp_path):
    code, out, err = run('export', 'vt_resnet10.digits', tmp_path / 'mine')
    assert code == 0, err
    published = vt_hub.pretrained_folder('vt_resnet10.digits')
    assert (tmp_path / 'mine' / 'model.safetensors').stat().st_size == (published / 'model.safetensors').stat().st_size
    assert ': 10 classes, fp16, given weights' in out
    card, before = ((folder / 'README.md').read_text() for folder in (tmp_path / 'mine', published))
    assert 'Not measured' not in card
    origin = '\nThese are the weights of vt_resnet10.digits.\n\n## Results'
    assert card.partition('## Use it')[0].replace(origin, '\n## Results') == before.partition('## Use it')[0]
    assert "timm.create_model('local-dir:mine', pretrained=True)" in card
    assert "model='mine'" in card
    assert run('export', 'vt_resnet10.digits', tmp_path / 'fp32', '--dtype', 'fp32')[0] == 0
    assert (tmp_path / 'fp32' / 'model.safetensors').stat().st_size > 1.9 * (
        published / 'model.safetensors'
    ).stat().st_size
