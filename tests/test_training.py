"""`vt-hub train` of classifiers around a small stand-in for timm's train script."""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import timm
import torch
from conftest import ROOT
from PIL import Image
from safetensors.torch import load_file

import vt_hub
from vt_hub.checkpoints import load_folder
from vt_hub.publishing import checks
from vt_hub.training.classification import RECIPES, TrainingRun, list_recipes
from vt_hub.training.launch import Launch

STAND_IN = """
import json, os, shutil, signal, sys
from pathlib import Path

OPTIONS = OPTION_NAMES
plan = json.loads(Path(__file__).with_name('plan.json').read_text())
value = lambda name: sys.argv[sys.argv.index(name) + 1]
run = Path(value('--output'), value('--experiment'))
seen = {'argv': sys.argv, 'environ': dict(os.environ), 'cwd': os.getcwd(), 'recipe': Path(value('-c')).read_text()}
(run / 'seen.json').write_text(json.dumps(seen))
(run / 'summary.csv').write_text('epoch,train_loss,eval_top1,lr\\n0,1.0,50.0,0.1\\n')
for name, checkpoint in plan.get('checkpoints', {}).items():
    shutil.copy(checkpoint, run / name)
with open(os.environ['VT_HUB_UNREADABLE'], 'a') as file:
    file.writelines(f'{name}\\n' for name in plan.get('unreadable', []))
if 'wait' in plan:
    if plan['wait'] == 'SIGINT':  # timm's script ends well when it is interrupted
        signal.signal(signal.SIGINT, lambda *args: sys.exit(0))
    print('waiting', flush=True)
    signal.pause()
sys.exit(plan.get('exit', 0))
"""
NAMES = ('2', '10', 'b')  # in timm's order


def options(without=()):
    """The options that the recipes need, as the source of a script has them."""
    keys = {key for name in list_recipes() for key in TrainingRun(name, Path(), '').settings}
    return sorted(f'--{key.replace("_", "-")}' for key in keys - set(without))


def draw(folder, names=NAMES, count=2):
    """A split of tiny images, each class of a colour."""
    for i, name in enumerate(names):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for j in range(count):
            Image.new('RGB', (16, 16), (80 * i, 255 - 80 * i, 50 * j)).save(folder / name / f'{j}.png')
    return folder


def save_checkpoint(path, metric, epoch, seed, arch='test_vt_resnet', num_classes=3, model_kwargs=None, **args):
    """As timm's CheckpointSaver does."""
    torch.manual_seed(seed)
    model = timm.create_model('test_vt_resnet', num_classes=num_classes, **(model_kwargs or {}))
    args = argparse.Namespace(model=arch, mean=None, std=None, interpolation='', crop_pct=None, **args)
    args.input_size, args.img_size, args.model_kwargs = None, 64, model_kwargs or {}
    content = {'epoch': epoch, 'arch': arch, 'state_dict': model.state_dict(), 'args': args, 'version': 2}
    torch.save(content | {'metric': metric}, path)
    return model.state_dict()


@pytest.fixture
def data(tmp_path):
    draw(tmp_path / 'data' / 'train')
    draw(tmp_path / 'data' / 'val', count=1)
    return tmp_path / 'data'


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Write the stand-in: what it does is its plan."""
    monkeypatch.setattr(os, 'environ', os.environ.copy())  # a run adds to it, for its processes
    folder = tmp_path / 'scripts'
    monkeypatch.setenv('VT_HUB_TIMM_SCRIPTS', str(folder))

    def write(without=(), **plan):
        folder.mkdir(exist_ok=True)
        (folder / 'train.py').write_text(STAND_IN.replace('OPTION_NAMES', repr(options(without))))
        (folder / 'plan.json').write_text(json.dumps(plan))
        return folder / 'train.py'

    write()
    return write


@pytest.fixture
def train(run, data, tmp_path, script):
    """`vt-hub train` into tmp_path/run, by the smoke recipe unless another is given."""

    def train(*args, data_dir=data, recipe='smoke'):
        return run('train', '--recipe', recipe, '--data-dir', data_dir, '--output', tmp_path / 'run', *args)

    return train


@pytest.fixture
def command(train, monkeypatch):
    """What --dry-run prints, as a list of arguments."""

    def command(*args, **kwargs):
        code, out, err = train('--dry-run', *args, **kwargs)
        assert (code, err) == (0, '')
        return shlex.split(out)

    return command


def value(arguments, option):
    """The last value of an option, which is the one that counts; None where there is none."""
    found = [arguments[i + 1] for i, argument in enumerate(arguments) if argument == option]
    return found[-1] if found else None


def seen(tmp_path):
    return json.loads((tmp_path / 'run' / 'seen.json').read_text())


def fake_gpus(monkeypatch, count):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: count > 0)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: count)


def quick_verify(monkeypatch):
    """The loaders in processes of their own take half a minute; tests/test_publishing.py runs them."""
    monkeypatch.setattr(checks, '_subprocess', lambda _, folder: load_file(folder / 'fixture.safetensors')['logits'])


def test_arguments_of_one_process(command, data, tmp_path, script):
    arguments = command('--seed', 3, '--workers', 1)
    assert arguments[:2] == [sys.executable, str(script())]
    assert Path(value(arguments, '-c')).name == 'smoke.yaml'
    assert value(arguments, '--device-modules') == 'vt_hub.training.timm_plugin'
    assert value(arguments, '--data-dir') == str(data)
    assert value(arguments, '--num-classes') == '3'
    assert value(arguments, '--output') == str(tmp_path)
    assert value(arguments, '--experiment') == 'run'
    assert value(arguments, '--batch-size') == '8'  # the recipe's
    assert (value(arguments, '--seed'), value(arguments, '--workers')) == ('3', '1')
    assert value(arguments, '--device') == ('cuda' if torch.cuda.is_available() else 'cpu')
    assert not {'--class-map', '--grad-accum-steps', '--resume', '--dataset'} & set(arguments)


def test_a_gpu_is_timms_default(command, monkeypatch):
    fake_gpus(monkeypatch, 1)
    assert '--device' not in command()
    assert value(command('--device', 'cuda:1'), '--device') == 'cuda:1'
    fake_gpus(monkeypatch, 0)
    assert value(command(), '--device') == 'cpu'
    assert command('--device', 'mps').count('--device') == 1


@pytest.mark.parametrize(
    ('args', 'batch', 'steps'),
    [
        (['--nproc-per-node', 8], '256', None),
        (['--nproc-per-node', 8, '--nnodes', 2], '128', None),
        (['--device-batch-size', 64], '64', '32'),
        (['--nproc-per-node', 4, '--device-batch-size', 128], '128', '4'),
        (['-b', 512], '512', None),
        (['--batch-size=512', '--nproc-per-node', 2], '256', None),
        (['-b', 64, '--batch-size', 512, '--device-batch-size', 512], '512', None),
    ],
)
def test_the_batch_is_divided(command, monkeypatch, args, batch, steps):
    """2048 in `advanced`, over all processes."""
    fake_gpus(monkeypatch, 8)
    own = draw_teacher = ['--kd-model-name', str_teacher(monkeypatch)]
    arguments = command(*args, *own, recipe='advanced')
    assert draw_teacher
    assert value(arguments, '--batch-size') == batch
    assert value(arguments, '--grad-accum-steps') == steps
