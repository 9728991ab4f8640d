"""Hostile and damaged files are refused by name through every entry point."""

import json
import pickle
import struct

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import vt_hub
from vt_hub.checkpoints import load_folder, read_foreign
from vt_hub.conversion import load_checkpoint, save_timm_weights, warm_start


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
    with pytest.raises(ValueError, match=message):
        save_timm_weights(folder, folder / 'out.safetensors')
    assert not (folder / 'out.safetensors').exists()
    checks = {check.name: check.passed for check in vt_hub.verify(folder)}
    assert checks == {'checksums': False}  # nothing is loaded from it
    code, out, err = run('export', folder, folder / 'again')
    assert code == 1
    assert str(path) in err
    assert 'code ran' not in out
    assert not (folder / 'again').exists()


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
    with pytest.raises(ValueError, match='has not the stem'):
        warm_start(str(path))
    torch.save(timm.create_model('vt_resnet18', num_classes=3).state_dict(), path)
    with pytest.raises(ValueError, match='is a VT-ResNet already'):
        warm_start(str(path))
    with pytest.raises(ValueError, match='neither a file nor a model of timm'):
        warm_start('resnet5000')
