"""`vt-hub train` of classifiers, around a small stand-in for timm's train script."""

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.distributed.run import parse_args

import vt_hub
from vt_hub.loading.checkpoints import load_folder
from vt_hub.publishing import verification as checks
from vt_hub.training import launch
from vt_hub.training.classification.run import TrainingRun, list_recipes

STAND_IN = """
import json, os, shutil, signal, sys
from pathlib import Path

OPTIONS = OPTION_NAMES
plan = json.loads(Path(__file__).with_name('plan.json').read_text())
value = lambda name: sys.argv[sys.argv.index(name) + 1]
run = Path(value('--output'), value('--experiment'))
seen = {'argv': sys.argv[1:], 'environ': dict(os.environ), 'cwd': os.getcwd()}
(run / 'seen.json').write_text(json.dumps(seen))
(run / 'summary.csv').write_text('epoch,train_loss,eval_top1,lr\\n0,1.0,50.0,0.1\\n')
for name, checkpoint in plan.get('checkpoints', {}).items():
    shutil.copy(checkpoint, run / name)
with open(os.environ['VT_HUB_UNREADABLE'], 'a') as file:
    file.writelines(f'{name}\\n' for name in plan.get('unreadable', []))
if plan.get('wait'):
    if plan['wait'] == 'SIGINT':  # timm's script calls it a success when it is interrupted
        signal.signal(signal.SIGINT, lambda *args: sys.exit(0))
    print('waiting', os.getpid(), flush=True)
    signal.pause()
sys.exit(plan.get('exit', 0))
"""
NAMES = ('2', '10', 'b')  # in timm's order


def draw(folder, names=NAMES, count=3):
    """A split of tiny images, each class of a colour."""
    for i, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for j in range(count):
            Image.new('RGB', (16, 16), (80 * i, 255 - 80 * i, 50 * j)).save(folder / name / f'{j}.png')


def save_checkpoint(path, metric, epoch, seed, arch='test_vt_resnet', create=None, **model_args):
    """As timm's CheckpointSaver does; returns the weights."""
    torch.manual_seed(seed)
    weights = timm.create_model(create or arch, num_classes=3, **model_args).state_dict()
    args = argparse.Namespace(model=arch, mean=None, interpolation='', input_size=None, img_size=None, model_kwargs={})
    content = {'epoch': epoch, 'arch': arch, 'state_dict': weights, 'args': args, 'version': 2, 'metric': metric}
    torch.save(content, path)
    return weights


def value(arguments, option):
    """The last value of an option, which is the one that counts; None where there is none."""
    return next((arguments[i + 1] for i in reversed(range(len(arguments))) if arguments[i] == option), None)


def fake_gpus(monkeypatch, count):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: count > 0)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: count)


@pytest.fixture
def data(tmp_path):
    draw(tmp_path / 'data' / 'train')
    draw(tmp_path / 'data' / 'val', count=1)
    return tmp_path / 'data'


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Write the stand-in with a plan of what it does; it knows the options of all recipes but those left out."""
    folder = tmp_path / 'scripts'
    folder.mkdir()
    monkeypatch.setenv('VT_HUB_TIMM_SCRIPTS', str(folder))
    monkeypatch.setenv('VT_HUB_UNREADABLE', '')  # which a run sets, taken back afterwards

    def write(without=(), **plan):
        keys = {key for name in list_recipes() for key in TrainingRun(name, tmp_path, '').settings}
        keys = (keys | {'seed', 'grad_accum_steps', 'class_map'}) - set(without)
        known = [f'--{key.replace("_", "-")}' for key in sorted(keys)]
        (folder / 'train.py').write_text(STAND_IN.replace('OPTION_NAMES', repr(known)))
        (folder / 'plan.json').write_text(json.dumps(plan))
        return folder / 'train.py'

    write()
    return write


@pytest.fixture
def train(run, data, tmp_path, script):
    """`vt-hub train` into tmp_path/run, by the smoke recipe if no other is named."""

    def train(*args, recipe='smoke', data_dir=data):
        return run(
            'train', 'classifier', '--recipe', recipe, '--data-dir', data_dir, '--output', tmp_path / 'run', *args
        )

    return train


@pytest.fixture
def command(train):
    """What --dry-run prints, as a list of arguments."""

    def command(*args, **kwargs):
        code, out, err = train(*args, '--dry-run', **kwargs)
        assert (code, err) == (0, '')
        return shlex.split(out)

    return command


@pytest.fixture
def quick_verify(monkeypatch):
    """Without the loaders in processes of their own, which take half a minute; see test_publishing.py."""
    monkeypatch.setattr(checks, '_subprocess', lambda _, folder: load_file(folder / 'fixture.safetensors')['logits'])


@pytest.fixture(scope='module')
def start(tmp_path_factory):
    """A model folder to start from, unlike its architecture's defaults."""
    torch.manual_seed(5)
    data_config = {'mean': (0.5,) * 3, 'std': (0.25,) * 3, 'input_size': (3, 64, 64)}
    model = timm.create_model('test_vt_resnet', num_classes=5, num_tokens=8, pretrained_cfg_overlay=data_config)
    return vt_hub.export(model.eval(), tmp_path_factory.mktemp('start') / 'start', license='mit', code=False)


def test_arguments(command, data, tmp_path, script):
    arguments = command('--seed', 3, '--workers', 1)
    assert arguments[:2] == [sys.executable, str(script())]
    assert Path(value(arguments, '-c')).name == 'smoke.yaml'
    assert Path(value(arguments, '-c')).is_file()
    assert value(arguments, '--device-modules') == 'vt_hub.training.classification.timm_plugin'
    assert value(arguments, '--data-dir') == str(data)
    assert value(arguments, '--num-classes') == '3'
    assert value(arguments, '--output') == str(tmp_path)
    assert value(arguments, '--experiment') == 'run'
    assert value(arguments, '--batch-size') == '8'  # the recipe's
    assert (value(arguments, '--seed'), value(arguments, '--workers')) == ('3', '1')
    assert not {'--class-map', '--grad-accum-steps', '--resume', '--dataset'} & set(arguments)


def test_the_current_folder_as_output(run, data, tmp_path, monkeypatch, script):
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    out = run('train', 'classifier', '--recipe', 'smoke', '--data-dir', data, '--output', '.', '--dry-run')[1]
    assert value(shlex.split(out), '--output') == str(tmp_path)
    assert value(shlex.split(out), '--experiment') == 'here'


def test_further_arguments_win_over_the_recipe(command):
    arguments = command('--epochs', 7, '--lr=0.5', '--model', 'vt_resnet18')
    assert value(arguments, '--epochs') == '7'
    assert '--lr=0.5' in arguments
    assert value(arguments, '--model') == 'vt_resnet18'
    assert arguments.index('-c') < arguments.index('--epochs')


def test_data_sets_of_timms_other_readers(command):
    arguments = command('--num-classes', 101, data_dir='hfds/food101')
    assert value(arguments, '--dataset') == 'hfds/food101'
    assert value(arguments, '--num-classes') == '101'
    assert '--data-dir' not in arguments


def test_data_sets_of_readers_that_need_a_folder(command, data, tmp_path, monkeypatch):
    arguments = command('--dataset', 'wds/', '--num-classes', 101)
    assert (value(arguments, '--dataset'), value(arguments, '--data-dir')) == ('wds/', str(data))
    monkeypatch.chdir(tmp_path)
    data.rename('hfds')
    arguments = command(data_dir='hfds/')  # a folder that is there is no name
    assert (value(arguments, '--data-dir'), value(arguments, '--num-classes')) == ('hfds/', '3')


def test_what_a_recipe_says_of_what_is_set_here_is_overridden(command, tmp_path):
    (tmp_path / 'own.yaml').write_text('model: test_vt_resnet\nbatch_size: 8\ngrad_accum_steps: 4\nclass_map: x.txt\n')
    arguments = command(recipe=tmp_path / 'own.yaml')
    assert (value(arguments, '--grad-accum-steps'), value(arguments, '--class-map')) == ('1', '')


def test_device(command, monkeypatch):
    fake_gpus(monkeypatch, 1)
    assert '--device' not in command()  # a GPU is timm's default
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
        (['--device-batch-size', 4096], '2048', None),
        (['-b', 512], '512', None),
        (['-b512'], '512', None),
        (['--batch-size=512', '--nproc-per-node', 2], '256', None),
        (['-b', 64, '--batch-size', 512, '--device-batch-size', 128], '128', '4'),
    ],
)
def test_the_batch_is_divided(command, tmp_path, monkeypatch, args, batch, steps):
    fake_gpus(monkeypatch, 8)
    (tmp_path / 'own.yaml').write_text('model: test_vt_resnet\nbatch_size: 2048\n')
    arguments = command(*args, '--num-classes', 101, recipe=tmp_path / 'own.yaml', data_dir='hfds/food101')
    assert value(arguments, '-c') == str(tmp_path / 'own.yaml')
    assert value(arguments, '--batch-size') == batch
    assert value(arguments, '--grad-accum-steps') == steps


def test_torchrun_understands_the_launch(command, monkeypatch, script):
    fake_gpus(monkeypatch, 8)
    arguments = command('--nproc-per-node', 8)
    assert arguments[:3] == [sys.executable, '-m', 'torch.distributed.run']
    parsed = parse_args(arguments[3:])
    assert (parsed.nproc_per_node, parsed.standalone, parsed.training_script) == ('8', True, str(script()))
    assert parsed.training_script_args[0] == '-c'

    machines = ['--nnodes', 2, '--node-rank', 1, '--master-addr', 'first', '--master-port', 1234]
    parsed = parse_args(command('--nproc-per-node', 4, *machines)[3:])
    assert (parsed.nproc_per_node, parsed.nnodes, parsed.node_rank) == ('4', '2', 1)
    assert (parsed.master_addr, parsed.master_port, parsed.standalone) == ('first', 1234, False)


def test_exit_codes_of_a_command():
    before = [signal.getsignal(number) for number in launch.SIGNALS]
    assert launch.run([sys.executable, '-c', 'raise SystemExit(3)']) == 3
    assert launch.run([sys.executable, '-c', 'import os; os.kill(os.getpid(), 9)']) == 128 + 9
    assert launch.run([sys.executable, '-c', '']) == 0
    # a session of its own, so that the terminal's Ctrl-C reaches it once
    assert launch.run([sys.executable, '-c', 'import os; raise SystemExit(os.getsid(0) != os.getpid())']) == 0
    assert [signal.getsignal(number) for number in launch.SIGNALS] == before


@pytest.mark.parametrize('kept', [NAMES[1:], ('b',), NAMES])
def test_a_class_map_where_validation_lacks_a_class(train, data, tmp_path, kept):
    """timm numbers the classes of each split by itself, so that without one 10 would be class 0 there."""
    for name in set(NAMES) - set(kept):
        shutil.rmtree(data / 'val' / name)
    train()
    arguments = json.loads((tmp_path / 'run' / 'seen.json').read_text())['argv']
    class_map = value(arguments, '--class-map') or ''
    assert bool(class_map) == (kept != NAMES)
    reader = timm.data.create_dataset('', root=str(data), split='validation', class_map=class_map).reader
    assert {Path(path).parent.name: target for path, target in reader.samples} == {
        name: NAMES.index(name) for name in kept
    }


def test_a_script_that_lacks_an_option_is_refused(train, script, tmp_path):
    path = script(without=['checkpoint_hist'])
    code, out, err = train()
    assert (code, out) == (1, '')
    assert err == f'error: {path} does not know checkpoint_hist, set by the recipe smoke; use a newer one.\n'
    assert not (tmp_path / 'run').exists()


def test_dry_run_makes_nothing(train, tmp_path):
    before = sorted(tmp_path.rglob('*'))
    code, out, _ = train('--dry-run')
    assert code == 0
    assert len(out.splitlines()) == 1
    assert sorted(tmp_path.rglob('*')) == before


def test_the_exit_code_is_passed_on(train, script, tmp_path, monkeypatch):
    script(exit=3, unreadable=['b.png', 'a.png', 'b.png'])
    monkeypatch.chdir(tmp_path)
    code, out, err = train()
    assert code == 3
    seen = json.loads((tmp_path / 'run' / 'seen.json').read_text())
    assert shlex.split(out)[2:] == seen['argv']  # what was printed is what was run
    assert seen['cwd'] == str(tmp_path)
    assert err == '2 images could not be read:\n  a.png\n  b.png\n'
    assert not (tmp_path / 'run' / 'model').exists()


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGINT', 'SIGHUP'])
def test_a_signal_reaches_the_script_and_ends_both(data, script, tmp_path, name):
    save_checkpoint(tmp_path / 'c', 50.0, 0, 0)
    script(wait=name, checkpoints={'checkpoint-0.pth.tar': str(tmp_path / 'c')})
    command = [sys.executable, '-m', 'vt_hub', 'train', 'classifier', '--recipe', 'smoke', '--data-dir', str(data)]
    with subprocess.Popen([*command, '--output', str(tmp_path / 'run')], stdout=subprocess.PIPE, text=True) as process:
        line = next(line for line in process.stdout if line.startswith('waiting'))
        process.send_signal(signal.Signals[name])
        try:
            assert process.wait(60) == 128 + signal.Signals[name]
            with pytest.raises(ProcessLookupError):
                os.kill(int(line.split()[1]), 0)
        except BaseException:
            process.kill()
            os.kill(int(line.split()[1]), signal.SIGKILL)
            raise
    assert not (tmp_path / 'run' / 'model').exists()  # there is more to train


def test_the_best_checkpoint_becomes_a_verified_folder(train, script, run, data, tmp_path, quick_verify):
    """Not the last, and not what a resumed run called its best."""
    weights = {}
    for seed, (name, metric) in enumerate({'checkpoint-9': 40, 'checkpoint-10': 70, 'model_best': 55}.items()):
        weights[name] = save_checkpoint(tmp_path / name, float(metric), 9 + seed, seed)
    paths = {f'{name}.pth.tar': str(tmp_path / name) for name in weights}
    script(checkpoints=paths | {'last.pth.tar': str(tmp_path / 'model_best')})
    code, out, err = train()
    folder = tmp_path / 'run' / 'model'
    assert code == 0
    assert out.splitlines()[-1] == str(folder)
    assert err.splitlines()[-1] == f'next: vt-hub predict IMAGE --model {folder}'
    assert 'top-1 accuracy (%)' in err.splitlines()[-2]
    model = load_folder(folder)
    assert all(torch.equal(tensor, weights['checkpoint-10'][key]) for key, tensor in model.state_dict().items())
    assert list(model.pretrained_cfg['label_names']) == list(NAMES)
    assert run('verify', folder)[0] == 0

    result = json.loads((tmp_path / 'run' / 'result.json').read_text())
    evaluated = json.loads(run('evaluate', folder, '--data-dir', data, '--workers', 0, '--json')[1])
    assert result['metrics'] == evaluated['metrics']
    assert result['dataset'] == {'name': 'data', 'type': 'imagefolder', 'split': 'val', 'num_images': 3}
    assert result['training'] == {'recipe': 'smoke', 'epoch': 10}
    assert result['timm'] == timm.__version__
    card = (folder / 'README.md').read_text()
    assert 'These are the raw weights of epoch 10 of the recipe `smoke`.' in card
    assert f'| data | val | 3 | {result["metrics"]["top1"]} |' in card


def test_an_export_that_is_not_what_was_trained_is_reported(train, script, data, tmp_path, quick_verify):
    shutil.rmtree(data / 'val')
    draw(data / 'val', count=100)
    save_checkpoint(tmp_path / 'c', 99.0, 0, 0)
    script(checkpoints={'checkpoint-0.pth.tar': str(tmp_path / 'c')})
    err = train()[2]
    measured = json.loads((tmp_path / 'run' / 'result.json').read_text())['metrics']['top1']
    assert measured < 90
    assert f'had 99.00 % validation accuracy in training, but has {measured:.2f} % as exported' in err
    for metric, args in ((measured, ()), (measured + 0.9, ()), (0.1, ('--eval-metric', 'loss'))):
        shutil.rmtree(tmp_path / 'run')
        save_checkpoint(tmp_path / 'c', metric, 0, 0)
        code, _, err = train(*args)
        assert code == 0
        assert 'warning' not in err


def test_training_from_a_folder_keeps_its_structure_and_preprocessing(train, script, start, tmp_path, quick_verify):
    name = f'local-dir:{start}'
    weights = save_checkpoint(tmp_path / 'c', 1.0, 0, 1, arch=name, create='test_vt_resnet', num_tokens=8)
    script(checkpoints={'checkpoint-0.pth.tar': str(tmp_path / 'c')})
    assert train('--model', start)[0] == 0
    arguments = json.loads((tmp_path / 'run' / 'seen.json').read_text())['argv']
    assert value(arguments, '--model') == name
    assert '--pretrained' in arguments
    model = load_folder(tmp_path / 'run' / 'model')
    assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())
    cfg = model.pretrained_cfg
    assert (list(cfg['mean']), list(cfg['std'])) == ([0.5] * 3, [0.25] * 3)
    assert (list(cfg['input_size']), cfg['license']) == ([3, 64, 64], 'mit')
    assert list(cfg['label_names']) == list(NAMES)


def test_a_checkpoint_from_a_folder_that_is_not_ours(run, tmp_path):
    (tmp_path / 'config.json').write_text('{}')
    save_checkpoint(tmp_path / 'c', 1.0, 0, 0, arch=f'local-dir:{tmp_path}', create='test_vt_resnet')
    code, _, err = run('export', tmp_path / 'c', tmp_path / 'folder')
    assert code == 1
    assert f'error: {tmp_path / "c"} does not say which architecture it is' in err


def test_a_model_that_is_not_ours_is_not_exported(train, script, tmp_path):
    save_checkpoint(tmp_path / 'c', 1.0, 0, 0, arch='test_resnet')
    script(checkpoints={'checkpoint-0.pth.tar': str(tmp_path / 'c')})
    code, out, _ = train('--model', 'test_resnet')
    assert code == 0
    assert 'checkpoint-0.pth.tar: test_resnet is not one of our models and is not exported' in out
    assert not (tmp_path / 'run' / 'model').exists()


def test_the_validation_data_is_that_of_timm(train, script, data, tmp_path, quick_verify):
    (data / 'val').rename(data / 'test')
    draw(data / 'valid', count=2)
    save_checkpoint(tmp_path / 'c', 1.0, 0, 0)
    script(checkpoints={'checkpoint-0.pth.tar': str(tmp_path / 'c')})
    assert train('--val-split', 'test')[0] == 0
    result = json.loads((tmp_path / 'run' / 'result.json').read_text())
    assert (result['dataset']['split'], result['dataset']['num_images']) == ('test', 3)


def test_names_of_unreadable_images_are_any_bytes(tmp_path):
    (tmp_path / 'unreadable.txt').write_bytes(b'b.png\na\xff.png\nb.png\n')
    assert TrainingRun('smoke', tmp_path, '').unreadable() == [os.fsdecode(b'a\xff.png'), 'b.png']


def test_the_best_loss_is_the_lowest(tmp_path):
    for epoch, loss in enumerate([0.9, 0.4, 0.6]):
        torch.save({'state_dict': {}, 'metric': loss}, tmp_path / f'checkpoint-{epoch}.pth.tar')
    assert TrainingRun('smoke', tmp_path, '').best_checkpoint().name == 'checkpoint-0.pth.tar'
    by_loss = TrainingRun('smoke', tmp_path, '', ['--eval-metric', 'loss'])
    assert by_loss.best_checkpoint().name == 'checkpoint-1.pth.tar'


def test_a_run_without_checkpoints(train, tmp_path):
    code, _, err = train()
    assert (code, err) == (1, f'error: {tmp_path / "run"} has no checkpoint with finite weights.\n')


def test_resume(train, command, tmp_path):
    """Only from a checkpoint that is there, and only if asked for."""
    assert '--resume' not in command('--resume')
    folder = tmp_path / 'run'
    folder.mkdir()
    (folder / 'last.pth.tar').touch()
    assert '--resume' not in command()  # no epoch was finished
    (folder / 'summary.csv').touch()
    assert value(command('--resume'), '--resume') == str(folder / 'last.pth.tar')
    code, _, err = train()
    assert code == 1
    assert err == f'error: {folder} holds a run already; resume it with --resume or name another folder.\n'
    (folder / 'model').mkdir()
    code, _, err = train('--resume')
    assert code == 1
    assert err == f'error: {folder / "model"} exists already; move it, or name another folder.\n'


def move_to_root(data):
    for path in sorted((data / 'train').rglob('*.png')):
        path.rename(data / 'train' / f'{path.parent.name}-{path.name}')


@pytest.mark.parametrize(
    ('prepare', 'args', 'message'),
    [
        (shutil.rmtree, [], 'There is no folder {data}/train of class folders.'),
        (lambda data: shutil.rmtree(data / 'val'), [], 'There is no folder {data}/val of class folders.'),
        (
            lambda data: (shutil.rmtree(data / 'train'), (data / 'train').mkdir()),
            [],
            '{data}/train does not have class folders with images.',
        ),
        (move_to_root, [], '{data}/train does not have class folders with images.'),
        (
            lambda data: draw(data / 'val', ['zebra']),
            [],
            '{data}/val has the class zebra, which is not one of the 3 known ones.',
        ),
        (None, ['-b', 10], '{data}/train has 9 images, but a batch has 10; use a smaller --batch-size.'),
        (None, ['--num-classes', 4], '{data}/train has 3 classes, not 4.'),
        (None, ['--recipe', 'nonsense'], "There is no recipe 'nonsense'; use advanced, basic, finetune, smoke or a "),
        (None, ['--recipe', '{own}'], '{own} is not a recipe: it is not a mapping of arguments.'),
        (None, ['--recipe', '{torn}'], '{torn} is not a recipe: it is not YAML.'),
        (None, ['--recipe', '{bare}'], 'The recipe {bare} does not name a model; name one with --model.'),
        (None, ['--model', 'vt_resnet05'], "There is no model 'vt_resnet05'; use a model of `vt-hub list` or of timm."),
        (None, ['--model', 'local-dir:{data}'], 'Cannot read {data}/config.json: No such file'),
        (None, ['--model', 'vt_fpn_resnet50'], 'vt_fpn_resnet50 does not classify; a recipe for segmentation trains '),
        (None, ['--recipe', 'finetune', '--model', 'vt_resnet34'], 'No pretrained weights exist for vt_resnet34; '),
        (
            None,
            ['--recipe', 'advanced', '-b', 8],
            'The teacher fbnetv3_g.ra2_in1k has 1000 classes, but the data has 3; name',
        ),
        (None, ['--kd-model-name', 'local-dir:{start}'], 'The teacher local-dir:{start} has 5 classes, but the data'),
        (None, ['--kd-model-name', 'nonsense'], "There is no teacher 'nonsense' in timm."),
        (None, ['--nproc-per-node', 3], '3 processes need as many GPUs, but there are 2; '),
        (None, ['-b', 9, '--nproc-per-node', 2], 'A batch of 9 images cannot be divided among 2 processes.'),
        (None, ['--device-batch-size', 3], 'A batch of 8 images cannot be divided among 1 processes in steps of 3.'),
        (None, ['--experiment', 'foo'], '--experiment, or its full name, is set by vt-hub train'),
        (None, ['--batch=16'], '--batch, or its full name, is set by vt-hub train'),
        (None, ['--train-script', '{data}/train.py'], "There is no script {data}/train.py of timm's."),
    ],
)
def test_errors_before_anything_starts(train, data, start, tmp_path, monkeypatch, prepare, args, message):
    fake_gpus(monkeypatch, 2)
    names = {'data': data, 'start': start}
    for name, text in (('own', '- 1\n'), ('bare', 'epochs: 1\n'), ('torn', 'epochs: [1\n')):
        names[name] = tmp_path / f'{name}.yaml'
        names[name].write_text(text)
    if prepare:
        prepare(data)
    code, out, err = train(*(str(argument).format(**names) for argument in args))
    assert (code, out) == (1, '')
    assert err.startswith(f'error: {message.format(**names)}')
    assert err.count('\n') == 1
    assert not (tmp_path / 'run').exists()


def test_published_weights_are_loaded(command):
    arguments = command('--model', 'vt_resnet10.digits')
    assert arguments[arguments.index('--model') :][:3] == ['--model', 'vt_resnet10.digits', '--pretrained']


def test_the_tag_of_published_weights_is_named(command):
    """timm's validate.py would prepare images as for ImageNet by the name that the checkpoint has."""
    assert value(command('--model', 'vt_resnet10', '--pretrained'), '--model') == 'vt_resnet10.digits'
    assert value(command('--pretrained', '--model', 'vt_resnet18'), '--model') == 'vt_resnet18.dist_in1k'
    assert value(command('-b', 8, recipe='finetune'), '--model') == 'vt_resnet18.dist_in1k'
    assert value(command('--model', 'vt_resnet18'), '--model') == 'vt_resnet18'
    assert value(command('--model', 'test_resnet', '--pretrained'), '--model') == 'test_resnet'


def test_the_users_arguments_win(command):
    arguments = command('-j', 4, '--workers', 1, '--seed', 3)
    assert value(arguments, '-j') == '4'
    assert arguments.index('-j') > arguments.index('--workers')  # the last one counts
    assert arguments[arguments.index('--seed') + 1] == '3'


def test_seed_and_workers_of_a_recipe(command, tmp_path):
    path = tmp_path / 'own.yaml'
    path.write_text('model: test_vt_resnet\nbatch_size: 8\nseed: 5\n')
    arguments = command(recipe=path)
    assert '--seed' not in arguments
    assert value(arguments, '--workers') == '2'
    assert value(command('--seed', 0, recipe=path), '--seed') == '0'
    path.write_text('model: test_vt_resnet\nbatch_size: 8\nworkers: 0\n')
    arguments = command(recipe=path)
    assert '--workers' not in arguments
    assert value(arguments, '--seed') == '0'


def test_a_recipe_of_the_other_task_is_refused(train, run, data, tmp_path):
    code, _, err = train(recipe='shapes')
    assert code == 2
    assert 'shapes is a recipe of `vt-hub train segmenter`' in ' '.join(err.replace('│', ' ').split())
    code, _, err = run('train', 'segmenter', '--recipe', 'basic', '--data-dir', data, '--output', tmp_path / 'run')
    assert (code, err[:48]) == (1, "error: There is no segmentation recipe 'basic'; ")


def test_a_dry_run_of_segmentation_checks_the_data(run, data, tmp_path):
    options = ['--recipe', 'shapes', '--data-dir', data, '--output', tmp_path / 'run']
    code, out, err = run('train', 'segmenter', *options, '--dry-run')
    assert (code, out) == (1, '')
    assert str(data) in err


def test_a_data_set_of_unknown_classes(train):
    code, _, err = train(data_dir='hfds/food101')
    assert (code, err[:61]) == (1, 'error: The number of classes of hfds/food101 is unknown; set ')


def test_a_full_disk(train, tmp_path, monkeypatch):
    """Four checkpoints, of SGD's weights and momentum: two kept, the last and the one being written."""
    model = timm.create_model('vt_resnet18', device='meta')
    needed = 4 * 2 * sum(4 * p.numel() for p in model.parameters())
    monkeypatch.setattr(shutil, 'disk_usage', lambda folder: SimpleNamespace(free=needed - 1))
    code, _, err = train('-b', 8, recipe='basic')
    gigabytes = f'{needed / 1e9:.1f} GB'
    assert (code, err) == (1, f'error: {tmp_path} has {gigabytes} left, but the checkpoints need {gigabytes}.\n')
    monkeypatch.setattr(shutil, 'disk_usage', lambda folder: SimpleNamespace(free=needed))
    assert train('--dry-run', '-b', 8, recipe='basic')[0] == 0


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--input-size', '4', '64', '64', '--input-img-mode', 'RGBA'], 'in 3 channels or 1, not in 4'),
        (['--in-chans', '4'], 'in 3 channels or 1, not in 4'),
        (['--input-img-mode', 'RGBA'], r'A model of 3 channel\(s\) reads images as RGB, not as RGBA'),
        (['--in-chans', '1', '--input-img-mode', 'RGB'], r'A model of 1 channel\(s\) reads images as L, not as RGB'),
        (['--split-bn', '--aug-splits', '3'], 'which cannot become a model folder'),
    ],
)
def test_what_no_folder_can_be_made_of_is_said_before_training(train, options, message):
    code, out, err = train(*options)
    assert (code, out) == (1, '')
    assert re.search(message, err)


def test_grey_images_come_with_what_they_need(command):
    arguments = command('--in-chans', '1')
    assert value(arguments, '--input-img-mode') == 'L'
    assert float(value(arguments, '--mean')) == pytest.approx((0.485 + 0.456 + 0.406) / 3)
    assert float(value(arguments, '--std')) == pytest.approx((0.229 + 0.224 + 0.225) / 3)
    assert value(command('--in-chans', '1', '--mean', '0.2'), '--mean') == '0.2'
    assert value(command(), '--input-img-mode') is None


def test_what_is_left_out_of_the_data_is_named(command, train, data):
    (data / 'train' / NAMES[0] / 'notes.txt').write_text('no image')
    _, _, err = train('--dry-run')
    assert f'1 files of {data / "train"} are not images and are left out, such as' in err
    assert 'notes.txt' in err
