"""timm's scripts: where they come from, what the plug-in adds, and runs of the real ones where they are at hand."""

import hashlib
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image
from safetensors.torch import load_file

import vt_hub
from vt_hub.image_files import find_images
from vt_hub.loading.checkpoints import load_folder, read_foreign
from vt_hub.network.images import read_image
from vt_hub.publishing import verification as checks
from vt_hub.publishing import verify
from vt_hub.synthesis.shapes import CLASSES, write_shapes
from vt_hub.training.classification import timm_scripts
from vt_hub.training.classification.data import open_image_folder
from vt_hub.training.classification.timm_scripts import find_script, script_version
from vt_hub.training.plot import read_curves

SCRIPTS = os.environ.get('VT_HUB_TIMM_SCRIPTS', '')
SOURCE = b"print('a script')\n"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The empty cache folder, on a machine without the scripts but with a network."""
    monkeypatch.delenv('VT_HUB_TIMM_SCRIPTS', raising=False)
    monkeypatch.delenv('HF_HUB_OFFLINE', raising=False)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'vt_hub' / f'timm-{timm.__version__}'


@pytest.fixture
def server(monkeypatch):
    """Serves train.py, and one that breaks off in the middle; yields the paths that were asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            name = self.path.split('/')[-1]
            self.send_response(200 if name in ('train.py', 'validate.py') else 404)
            self.send_header('Content-Length', str(len(SOURCE)))
            self.end_headers()
            self.wfile.write(SOURCE if name == 'train.py' else SOURCE[:5])

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(('127.0.0.1', 0), Handler) as listening:
        address = f'http://127.0.0.1:{listening.server_port}/v{{version}}/{{name}}'
        monkeypatch.setattr(timm_scripts, 'ADDRESS', address)
        thread = threading.Thread(target=listening.serve_forever, args=[0.01])
        thread.start()
        yield asked
        listening.shutdown()
        thread.join()


def test_the_address_is_that_of_the_installed_release():
    address = timm_scripts.ADDRESS.format(version=timm.__version__, name='train.py')
    assert address.startswith('https://')
    assert address.endswith(f'/pytorch-image-models/v{timm.__version__}/train.py')


def test_given_before_the_environment_before_the_cache(tmp_path, cache, server, monkeypatch):
    places = [tmp_path / 'given.py', tmp_path / 'env' / 'train.py', cache / 'train.py']
    for path in places:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(SOURCE)
    (cache / 'train.py.sha256').write_text(hashlib.sha256(SOURCE).hexdigest())
    assert find_script('train.py') == places[2]
    monkeypatch.setenv('VT_HUB_TIMM_SCRIPTS', str(tmp_path / 'env'))
    assert find_script('train.py') == places[1]
    assert find_script('train.py', places[0]) == places[0]
    with pytest.raises(FileNotFoundError, match=r'There is no script .*/env/validate\.py'):
        find_script('validate.py')  # a named place is not passed over
    assert not server


def test_fetched_once(cache, server, capsys):
    path = find_script('train.py')
    digest = hashlib.sha256(SOURCE).hexdigest()
    assert path == cache / 'train.py'
    assert path.read_bytes() == SOURCE
    assert f'/v{timm.__version__}/train.py, sha256 {digest}\n' in capsys.readouterr().err
    assert (cache / 'train.py.sha256').read_text() == f'{digest}\n'
    assert find_script('train.py') == path
    assert server == [f'/v{timm.__version__}/train.py']
    assert capsys.readouterr().err == ''


def test_a_changed_script_in_the_cache_is_refused(cache, server):
    path = find_script('train.py')
    path.write_bytes(SOURCE + b'import os\n')
    with pytest.raises(OSError, match=f'{path} was changed after its download; remove it to download it again'):
        find_script('train.py')
    path.write_bytes(SOURCE)
    path.with_name('train.py.sha256').unlink()
    with pytest.raises(OSError, match=f'{path} was changed after its download; remove it to download it again'):
        find_script('train.py')
    path.unlink()
    assert find_script('train.py').read_bytes() == SOURCE


@pytest.mark.parametrize('name', ['validate.py', 'inference.py'])
def test_nothing_is_left_of_a_fetch_that_fails(cache, server, name):
    """One that breaks off in the middle, and one that is not there."""
    with pytest.raises(OSError, match=rf"^Cannot download http://.*/{name}: .*; put timm's {name} into a folder and"):
        find_script(name)
    assert server
    assert not [path for path in cache.rglob('*') if path.is_file()]


def test_offline(run, cache, server, monkeypatch, tmp_path):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    code, out, err = run('timm', 'benchmark')
    assert (code, out) == (1, '')
    assert err == (
        f"error: timm's benchmark.py is not in {cache} and HF_HUB_OFFLINE forbids its download; put timm's "
        f'benchmark.py into a folder and set VT_HUB_TIMM_SCRIPTS to that folder.\n'
    )
    assert not server


@pytest.mark.parametrize('version', ['0.0.1', timm.__version__])
def test_a_checkout_of_another_version(run, tmp_path, version):
    """Its script would import the timm beside it."""
    for split in ('train', 'val'):
        (tmp_path / 'data' / split / 'a').mkdir(parents=True)
        Image.new('RGB', (16, 16)).save(tmp_path / 'data' / split / 'a' / '0.png')
    (tmp_path / 'bare.yaml').write_text('model: test_vt_resnet\nbatch_size: 1\n')
    script = tmp_path / 'train.py'
    script.write_text("'--model' '--batch-size'")
    assert script_version(script) is None
    (tmp_path / 'timm').mkdir()
    (tmp_path / 'timm' / 'version.py').write_text(f"__version__ = '{version}'\n")
    assert script_version(script) == version
    arguments = ['--recipe', tmp_path / 'bare.yaml', '--data-dir', tmp_path / 'data', '--output', tmp_path / 'run']
    code, _, err = run('train', 'classifier', *arguments, '--train-script', script, '--dry-run')
    warning = f'warning: {script} runs with timm 0.0.1 beside it, not {timm.__version__}.\n'
    assert (code, err) == (0, warning if version == '0.0.1' else '')


def test_the_script_runs_with_our_models_and_its_own_arguments(run, tmp_path, monkeypatch):
    monkeypatch.setenv('VT_HUB_TIMM_SCRIPTS', str(tmp_path))
    (tmp_path / 'inference.py').write_text(
        'import json, sys, timm\n'
        'with open(sys.argv[1], "w") as file:\n'
        '    json.dump([sys.argv, __name__, timm.is_model("vt_resnet10")], file)\n'
        'sys.exit(4)\n'
    )
    assert run('timm', 'inference', tmp_path / 'seen.json', '--batch-size', 4, '-x')[0] == 4
    argv = [str(tmp_path / name) for name in ('inference.py', 'seen.json')]
    assert json.loads((tmp_path / 'seen.json').read_text()) == [[*argv, '--batch-size', '4', '-x'], '__main__', True]


@pytest.mark.parametrize(
    ('given', 'named'),
    [
        (['--model', 'local-dir:/models/mine.v2'], ['--results-file', 'mine.v2']),
        (['--model=hf-hub:org/name'], ['--results-file', 'name']),
        (['-m', 'a/b', '--results-file', 'my.csv'], ['--results-file', 'b']),  # the last one counts
        (['--model', 'vt_resnet10'], []),
    ],
)
def test_results_of_a_model_with_a_slash_have_a_name(tmp_path, given, named):
    from vt_hub.training.classification.timm_scripts import runner

    (tmp_path / 'inference.py').touch()
    (tmp_path / 'validate.py').touch()
    assert runner(tmp_path / 'inference.py', given)[4:] == [*named, *given]
    assert runner(tmp_path / 'validate.py', given)[4:] == given


def test_the_plugin_names_images_that_cannot_be_read(tmp_path):
    """As timm's train script imports it, with and without processes that read."""
    folder = tmp_path / 'train' / 'a'
    folder.mkdir(parents=True)
    for name in ('0', '2', '4', '5', '6'):
        Image.effect_noise((40, 40), 60).save(folder / f'{name}.png')
    (folder / '1.png').write_bytes((folder / '0.png').read_bytes()[:1000])
    (folder / '3.png').write_text('no image')
    (folder / 'caf\udce9.png').write_text('a name in Latin-1')
    (tmp_path / 'val' / 'a').mkdir(parents=True)
    (tmp_path / 'val' / 'a' / '0.png').write_text('no image')
    code = f"""
import importlib, json, timm.data
importlib.import_module('vt_hub.training.classification.timm_plugin')
root, counts = {str(tmp_path)!r}, []
for workers in (0, 2):
    dataset = timm.data.create_dataset('', root=root, split='train', is_training=True)
    loader = timm.data.create_loader(
        dataset, (3, 32, 32), 4, is_training=True, use_prefetcher=False, num_workers=workers, persistent_workers=False
    )
    counts.append(sum(len(images) for images, _ in loader))
try:
    timm.data.create_dataset('', root=root, split='validation')[0]
except ValueError as error:
    counts.append(str(error))
print(json.dumps(counts))
"""
    environment = os.environ | {'VT_HUB_UNREADABLE': str(tmp_path / 'unreadable.txt')}
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    *counts, error = json.loads(result.stdout)
    assert counts == [8, 8]
    assert error == 'Cannot read image 0 as an image: it is not an image.'  # no end of bad ones is an error
    names = os.fsdecode((tmp_path / 'unreadable.txt').read_bytes()).splitlines()
    bad = [str(folder / name) for name in ('1.png', '3.png', 'caf\udce9.png')]
    assert sorted(name for name in names if name.startswith(str(folder))) == sorted(2 * bad)
    assert names[2 * len(bad) :] == [str(tmp_path / 'val' / 'a' / '0.png')] * 50


def odd_images(root):
    """Two classes of images that readers differ on; returns the files."""
    noise = Image.effect_noise((60, 40), 80).convert('RGB')
    turned = Image.Exif()
    turned[0x0112] = 6
    for name in ('dark', 'light'):
        folder = root / name
        folder.mkdir(parents=True)
        level = 9000 if name == 'dark' else 40000
        Image.fromarray(np.full((40, 60), level, np.uint16)).save(folder / 'sixteen.png')
        noise.save(folder / 'turned.jpg', exif=turned)
        noise.save(folder / 'a.webp')
        noise.convert('CMYK').save(folder / 'b.jpg')
        for number, suffix in enumerate(('tif', 'gif', 'bmp')):
            noise.save(folder / f'{number}.{suffix}')
        noise.convert('LA').save(folder / 'transparent.png')
        (folder / '._a.png').write_bytes(b'of a Mac')
        (folder / '.ipynb_checkpoints').mkdir()
        noise.save(folder / '.ipynb_checkpoints' / 'a-checkpoint.png')
        (folder / 'notes.txt').write_text('no image')
    return find_images([str(root)])


def test_training_sees_the_files_and_the_pixels_that_prediction_sees(tmp_path):
    files = odd_images(tmp_path / 'train')
    assert len(files) == 16
    code = f"""
import importlib, json, timm.data, numpy as np
importlib.import_module('vt_hub.training.classification.timm_plugin')
dataset = timm.data.create_dataset('', root={str(tmp_path)!r}, split='train', is_training=True)
names = [dataset.filename(i, absolute=True) for i in range(len(dataset))]
np.savez({str(tmp_path / 'seen.npz')!r}, **{{name: np.asarray(dataset[i][0]) for i, name in enumerate(names)}})
print(json.dumps([names, [dataset[i][1] for i in range(len(dataset))], dataset.reader.class_to_idx]))
"""
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    names, targets, classes = json.loads(result.stdout)
    evaluated = open_image_folder(tmp_path, 'train')
    assert names == [str(path) for path in evaluated.files]
    assert sorted(names) == sorted(map(str, files))
    assert targets == evaluated.targets
    assert classes == {'dark': 0, 'light': 1}
    assert [path.name for path in evaluated.skipped] == ['notes.txt', 'notes.txt']
    with np.load(tmp_path / 'seen.npz') as seen:
        for path in evaluated.files:
            assert np.array_equal(seen[str(path)], np.asarray(read_image(path))), path
    means = [np.asarray(read_image(tmp_path / 'train' / name / 'sixteen.png')).mean() for name in classes]
    assert means == [pytest.approx(35, abs=1), pytest.approx(155.5, abs=1)]


real = pytest.mark.skipif(
    not Path(SCRIPTS, 'train.py').is_file(), reason="VT_HUB_TIMM_SCRIPTS names no folder with timm's train.py"
)
SMALL = ['--model', 'test_vt_resnet', '--img-size', 64, '--batch-size', 16, '--workers', 0, '--epochs', 1]


@pytest.fixture(scope='module')
def objects(tmp_path_factory):
    """32 images to train on and 16 to validate on, of 16 classes."""
    folder = tmp_path_factory.mktemp('data') / 'objects'
    list(write_shapes(folder, 32, 16, size=32, objects=True, workers=1))
    return folder


@pytest.fixture
def train(run, objects, tmp_path, monkeypatch):
    """`vt-hub train` into tmp_path/run; returns the model folder, which was verified."""
    # without the loaders in processes of their own, which take half a minute; see test_publishing.py
    monkeypatch.setattr(checks, '_subprocess', lambda _, folder: load_file(folder / 'fixture.safetensors')['logits'])
    monkeypatch.setenv('VT_HUB_UNREADABLE', '')  # which a run sets, taken back afterwards

    def train(recipe, *args):
        code, out, err = run(
            'train', 'classifier', '--recipe', recipe, '--data-dir', objects, '--output', tmp_path / 'run', *args
        )
        assert code == 0, err
        return Path(out.splitlines()[-1])

    return train


def check_model_folder(folder):
    assert all(check.passed for check in verify(folder))
    model = load_folder(folder)
    assert sorted(model.pretrained_cfg['label_names']) == sorted(CLASSES[1:])
    result = json.loads((folder.parent / 'result.json').read_text())
    assert result['dataset']['num_images'] == 16
    return model


@real
def test_basic_and_one_epoch_more(train, tmp_path):
    folder = train('basic', *SMALL)
    check_model_folder(folder)
    assert 'raw weights of epoch 0 of the recipe `basic`' in (folder / 'README.md').read_text()
    assert read_curves(tmp_path / 'run')[1]['lr'] == ([0], [0.1])
    folder.rename(tmp_path / 'first')
    check_model_folder(train('basic', *SMALL, '--epochs', 2, '--resume'))
    assert read_curves(tmp_path / 'run')[1]['lr'] == ([0, 1], [0.1, 0.1])
    assert read_foreign(tmp_path / 'run' / 'last.pth.tar')[1]['epoch'] == 1
    assert (tmp_path / 'run' / 'summary.csv').read_text().count('epoch') == 2  # begun again by the script


@real
def test_advanced_with_a_teacher_of_our_own(train, tmp_path):
    teacher = vt_hub.export(timm.create_model('test_vt_resnet', num_classes=16).eval(), tmp_path / 'teacher')
    folder = train('advanced', *SMALL, '--warmup-epochs', 0, '--kd-model-name', f'local-dir:{teacher}')
    check_model_folder(folder)
    assert 'ema weights of epoch 0 of the recipe `advanced`' in (folder / 'README.md').read_text()
    args = read_foreign(tmp_path / 'run' / 'last.pth.tar')[1]['args']
    assert (args['kd_model_name'], args['distill_loss_weight']) == (f'local-dir:{teacher}', 0.8)


@real
def test_finetuning_of_the_embedded_weights(train):
    model = check_model_folder(train('finetune', '--model', 'vt_resnet10', *SMALL[2:]))
    digits = load_folder(vt_hub.pretrained_folder('vt_resnet10'))
    assert model.pretrained_cfg['architecture'] == 'vt_resnet10'
    change = (model.conv1.weight - digits.conv1.weight).norm() / digits.conv1.weight.norm()
    assert 0 < change < 0.1  # it began there


@real
def test_a_killed_run_goes_on(train, objects, tmp_path):
    """All its processes die in the second epoch; --resume begins after the last that was finished."""
    command = [sys.executable, '-m', 'vt_hub', 'train', 'classifier', '--recipe', 'smoke', '--data-dir', objects]
    command += ['--output', tmp_path / 'run', *SMALL, '--epochs', 500]
    with subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        assert any('Train: 1 [' in line for line in process.stdout)
        os.killpg(process.pid, signal.SIGKILL)
    assert not (tmp_path / 'run' / 'model').exists()
    last = read_foreign(tmp_path / 'run' / 'last.pth.tar')[1]['epoch']
    check_model_folder(train('smoke', *SMALL, '--epochs', last + 2, '--resume'))
    assert read_foreign(tmp_path / 'run' / 'last.pth.tar')[1]['epoch'] == last + 1
    assert read_curves(tmp_path / 'run')[1]['train_loss'][0] == list(range(last + 2))


@real
def test_timms_validation_of_the_embedded_weights(run, samples, tmp_path):
    for i in range(10):
        (tmp_path / 'digits' / str(i)).mkdir(parents=True)
        shutil.copy(samples / f'digit_{i}.png', tmp_path / 'digits' / str(i))
    arguments = ['--model', 'vt_resnet10', '--pretrained', '--data-dir', tmp_path / 'digits', '--device', 'cpu']
    arguments += ['--workers', 0, '--results-file', tmp_path / 'results.json', '--results-format', 'json']
    assert run('timm', 'validate', *arguments)[0] == 0
    results = json.loads((tmp_path / 'results.json').read_text())
    assert (results['model'], results['top1']) == ('vt_resnet10', 100)
