"""What a user may write for a model, read in one place."""

import json
from pathlib import Path

import pytest

import vt_hub
from vt_hub.loading.source import Source


@pytest.mark.parametrize(
    ('text', 'kind', 'architecture', 'published'),
    [
        ('vt_resnet10', 'model', 'vt_resnet10', 'vt_resnet10.digits'),
        ('vt_resnet10.digits', 'model', 'vt_resnet10', 'vt_resnet10.digits'),
        ('vt_resnet34', 'model', 'vt_resnet34', None),
        ('vt_resnet10.nope', 'model', 'vt_resnet10', None),
        ('resnet18.a1_in1k', 'other', 'resnet18', None),
        ('no/such/place', 'other', 'no/such/place', None),
    ],
)
def test_names(text, kind, architecture, published):
    source = Source.parse(text)
    assert (source.kind, source.architecture, source.published) == (kind, architecture, published)
    assert source.is_ours == (kind == 'model')
    assert source.timm_name == text


def test_folders(tmp_path, monkeypatch):
    folder = tmp_path / 'vt_resnet10'
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    assert Source.parse('vt_resnet10').kind == 'model'  # an empty folder that is called like a model
    (folder / 'config.json').write_text(json.dumps({'architecture': 'vt_resnet50'}))
    for text in ('vt_resnet10', 'local-dir:vt_resnet10', folder):
        source = Source.parse(text)
        assert (source.kind, source.architecture, source.is_ours) == ('folder', 'vt_resnet50', True)
        assert source.folder() == source.path == Path(str(text).removeprefix('local-dir:'))
        assert source.timm_name == f'local-dir:{source.path}'


def test_the_hub():
    source = Source.parse('hf-hub:vt-hub/vt_resnet10.digits')
    assert (source.kind, source.repo, source.is_folder) == ('hub', 'vt-hub/vt_resnet10.digits', True)


def test_folders_of_published_weights():
    assert Source.parse('vt_resnet10').folder() == vt_hub.pretrained_folder('vt_resnet10.digits')
    with pytest.raises(LookupError, match='There is no folder resnet18, and no weights of that name; there are'):
        Source.parse('resnet18').folder()
