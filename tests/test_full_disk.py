"""A full disk is said with the name of what could not be written, and nothing is left behind."""

import errno
import json
import shutil

import pytest
import timm
import torch
from safetensors import SafetensorError

import vt_hub
from vt_hub.files import replaced_whole, written_whole

FULL = OSError(errno.ENOSPC, 'No space left on device')


@pytest.mark.parametrize('write', [replaced_whole, written_whole])
@pytest.mark.parametrize(
    'error',
    [
        FULL,
        SafetensorError('Error while serializing: I/O error: No space left on device (os error 28)'),
        RuntimeError('[enforce fail at inline_container.cc:664] . unexpected pos: No space left on device'),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_libraries_raise_gets_the_name(write, error, tmp_path):
    message = rf'Cannot write {tmp_path / "out"}: No space left on device; nothing was written\.$'
    with pytest.raises(OSError, match=message), write(tmp_path / 'out'):
        raise error
    assert not list(tmp_path.iterdir())


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(ValueError, match='something else'), replaced_whole(tmp_path / 'out'):
        raise ValueError('something else')
    with pytest.raises(PermissionError), written_whole(tmp_path / 'out'):
        raise PermissionError(errno.EACCES, 'Permission denied', 'there')


@pytest.fixture
def full(monkeypatch):
    """A disk that is full whenever an image, a table or weights are written."""

    def fail(*args, **kwargs):
        raise FULL

    monkeypatch.setattr('PIL.Image.Image.save', fail)
    monkeypatch.setattr('vt_hub.publishing.model_folder.save_file', fail)
    monkeypatch.setattr('vt_hub.inference.batch_run.table_writer', fail)


def test_every_command_that_writes(full, run, samples, tmp_path):
    scene = shutil.copy(samples / 'scene.png', tmp_path / 'scene.png')
    for arguments, place in (
        (('segment', scene, '--mask', tmp_path / 'mask.png'), 'mask.png'),
        (('segment', scene, '--overlay', tmp_path / 'overlay.png'), 'overlay.png'),
        (('export', 'vt_resnet10.digits', tmp_path / 'folder'), 'folder'),
        (('predict', '--model', 'vt_resnet10', samples / 'digit_7.png', '--output', tmp_path / 'table.jsonl'), ''),
    ):
        code, _, err = run(*arguments)
        assert code == 1, arguments
        assert f'Cannot write {tmp_path / place}' in err
        assert 'No space left on device; nothing was written.' in err
        assert not (tmp_path / place).is_file()
    assert not (tmp_path / 'folder').exists()


def test_export_in_python(tmp_path, full):
    torch.manual_seed(0)
    with pytest.raises(OSError, match=r'Cannot write .*folder: No space left on device'):
        vt_hub.export(timm.create_model('test_vt_resnet', num_classes=3), tmp_path / 'folder')
    assert json.dumps([path.name for path in tmp_path.iterdir()]) == '[]'
