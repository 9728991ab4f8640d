"""model_cards/scenes/publish.py: a model folder of a pretraining, and its card before and after an evaluation."""

import json
import shutil
import sys

import pytest
import torch
from conftest import ROOT
from huggingface_hub import ModelCard
from test_transfer import made_up

from vt_hub.loading.source import load_folder
from vt_hub.network.checksums import file_sha256
from vt_hub.publishing import verify
from vt_hub.training.pretraining import load_pretraining_recipe, pretrain

sys.path.append(str(ROOT / 'model_cards' / 'scenes'))

import publish
import report

NAME = 'test_vt_resnet.scenes'


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Run the command with its files in a folder of the test."""
    shutil.copy(publish.ROOT / 'card.md', tmp_path)
    monkeypatch.setattr(publish, 'ROOT', tmp_path)

    def command(*arguments):
        monkeypatch.setattr(sys, 'argv', ['publish.py', NAME, *map(str, arguments)])
        publish.main()

    return command


def test_a_run_becomes_a_folder_and_an_evaluation_its_card(command, tmp_path):
    run, folder = tmp_path / 'run', tmp_path / NAME
    pretrain(load_pretraining_recipe('smoke', {'steps': 3}), run, device='cpu')
    command('--run', run, '--out', folder)
    assert all(check.passed for check in verify(folder))
    trained, stored = load_folder(run / 'model').state_dict(), load_folder(folder).state_dict()
    for name, value in trained.items():  # weights in half precision, statistics as they were
        expected = value if 'running_' in name else value.half().float() if value.is_floating_point() else value
        assert torch.equal(stored[name], expected), name

    text = (folder / 'README.md').read_text()
    result = json.loads((tmp_path / f'{NAME}.json').read_text())
    assert '48 scenes of fractals' in text  # 3 steps of 16
    assert f"timm.create_model('{NAME}', pretrained=True)" in text
    assert 'Not measured yet' in text
    assert [entry.metric_value for entry in ModelCard(text).data.eval_results] == [result['metrics']['hit_rate']]

    gains = {'vt': 80.0, 'vt_scratch': 70.0}
    runs = [
        made_up(arm, 'digits', 5, draw, gains[arm], part)
        for arm in gains
        for draw in (0, 1, 2)
        for part in ('dev', 'test')
    ]
    weights = (folder / 'model.safetensors').read_bytes()
    found = report.summarise(runs)
    path = tmp_path / 'report.json'
    path.write_text(json.dumps(found))
    with pytest.raises(SystemExit):  # of other weights
        command('--report', path, '--out', folder)
    assert not (tmp_path / f'{NAME}.transfer.json').exists()
    arm = next(arm for arm in found['arms'] if arm['arm'] == 'vt')
    arm['init'] = file_sha256(folder / 'model.safetensors')[:16]
    path.write_text(json.dumps(found))
    command('--report', path, '--out', folder)
    text = (folder / 'README.md').read_text()
    assert 'Not measured yet' not in text
    assert '| digits | 5 | +10.0 [+10.0, +10.0] (3) |' in text
    assert {entry.metric_value for entry in ModelCard(text).data.eval_results} == {result['metrics']['hit_rate'], 80.0}
    assert (folder / 'model.safetensors').read_bytes() == weights
    assert all(check.passed for check in verify(folder))

    pretrain(load_pretraining_recipe('smoke', {'steps': 4}), tmp_path / 'other', device='cpu')
    command('--run', tmp_path / 'other', '--out', tmp_path / 'other' / NAME)
    assert 'Not measured yet' in (tmp_path / 'other' / NAME / 'README.md').read_text()
