"""Photographs: the recipes of the weights, and the way to a GPU."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import timm
from conftest import ROOT
from helpers.pictures import picture
from safetensors.torch import save_file

import vt_hub
from vt_hub.training.distillation import load_distillation_recipe

CARDS = ROOT / 'model_cards'


@pytest.mark.parametrize('path', sorted(CARDS.glob('*dist_in1k/**/*.yaml')), ids=lambda path: path.parent.name)
def test_recipes_of_the_weights_can_be_read(path):
    load_distillation_recipe(str(path))


@pytest.fixture
def packed(tmp_path):
    """24 photographs of two sets in four files."""
    for name, count in (('cats', 8), ('dogs', 16)):
        (tmp_path / name).mkdir()
        for number in range(count):
            picture(270, 260, seed=number + 10 * count).save(tmp_path / name / f'{number}.png')
    arguments = tmp_path / 'run.txt'
    arguments.write_text(f'--data-dir {tmp_path / "cats"} --share 1 --data-dir {tmp_path / "dogs"} --share 2')
    options = ['--arguments', arguments, '--number', '4', '--size', '256', '--mebibytes', '1']
    command = [sys.executable, CARDS / 'photographs' / 'pieces.py', *options, '--out', tmp_path / 'pieces']
    subprocess.run(command, check=True)
    return tmp_path / 'pieces'


def test_pieces_hold_each_photograph_once_and_are_small(packed):
    names = []
    for path in sorted(packed.iterdir()):
        assert path.stat().st_size <= 1 << 20
        with tarfile.open(path) as piece:
            names += piece.getnames()
    assert len(names) == len(set(names)) == 24
    assert 1 <= sum(name.startswith('cats') for name in names[:6]) <= 3  # a third, by its share


def test_the_way_to_a_gpu(packed, tmp_path):
    start, teacher = tmp_path / 'start', tmp_path / 'teacher.safetensors'
    vt_hub.export(timm.create_model('test_vt_resnet'), start)
    save_file(timm.create_model('test_resnet').state_dict(), teacher)
    script = CARDS / 'vt_resnet50.dist_in1k' / 'gpu.sh'
    options = ['--recipe', 'smoke', '--teacher', 'test_resnet', '--device', 'cpu', '--workers', '0']
    environment = os.environ | {'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}'}
    command = ['bash', script, start, teacher, packed, tmp_path / 'out', *options]
    subprocess.run(command, check=True, env=environment)
    assert vt_hub.load_model(tmp_path / 'out' / 'run' / 'model').num_classes == 1000
