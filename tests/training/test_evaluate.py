"""`vt-hub evaluate` of classifiers."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from timm.data import ImageNetInfo
from timm.data.dataset_factory import _search_split

from vt_hub.files import check_place
from vt_hub.reporting import machine, write_result
from vt_hub.training.classification import evaluate as classification_eval
from vt_hub.training.classification.data import open_image_folder
from vt_hub.training.classification.evaluate import evaluate_classifier, open_for_model

CPU = torch.device('cpu')
STEP = 20  # of the red that says which row of a table an image is


class Table(torch.nn.Module):
    """A classifier whose logits for an image are the row that its colour says."""

    in_chans = 3

    def __init__(self, table, **cfg):
        super().__init__()
        self.table = torch.as_tensor(table)
        self.num_classes = self.table.shape[1]
        data_config = {'input_size': (3, 8, 8), 'interpolation': 'nearest', 'mean': (0,) * 3, 'std': (1,) * 3}
        self.pretrained_cfg = self.default_cfg = {**data_config, 'crop_pct': 1.0, **cfg}

    def forward(self, x):
        return self.table[(x[:, 0].mean((1, 2)) * 255 / STEP).round().long()]


def draw(folder, name, row):
    (folder / name).mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (9, 7), (STEP * row, 0, 0)).save(folder / name / f'{row}.png')


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    """The sample digits in class folders, under val/."""
    folder = tmp_path_factory.mktemp('digits')
    for i in range(10):
        (folder / 'val' / str(i)).mkdir(parents=True)
        shutil.copy(ROOT / 'samples' / f'digit_{i}.png', folder / 'val' / str(i))
    return folder


@pytest.fixture
def evaluate(run):
    """`vt-hub evaluate` of the embedded weights; returns its exit code, its result and stderr."""

    def evaluate(data_dir, *args):
        code, out, err = run('evaluate', 'vt_resnet10', '--data-dir', data_dir, '--workers', 0, '--json', *args)
        return code, json.loads(out) if out else None, err

    return evaluate


@pytest.mark.parametrize(('batch_size', 'workers'), [(64, 0), (5, 0), (5, 1), (1, 0)])
def test_metrics_are_those_counted_by_hand(tmp_path, batch_size, workers):
    rng = np.random.default_rng(0)
    table, targets = rng.normal(size=(12, 7)).astype('float32'), rng.integers(0, 7, 12)
    targets[:7] = range(7)
    for row, target in enumerate(targets):
        draw(tmp_path / 'set' / 'val', f'class{target}', row)
    right = table[range(12), targets]
    rank = (table > right[:, None]).sum(1)
    losses = np.log(np.exp(table).sum(1)) - right
    found = evaluate_classifier(
        Table(table), open_image_folder(tmp_path / 'set', 'val'), CPU, batch_size=batch_size, workers=workers
    )
    assert found['metrics'] == {
        'top1': round(100 * (rank == 0).mean(), 2),
        'top5': round(100 * (rank < 5).mean(), 2),
        'loss': pytest.approx(losses.mean(), abs=1e-4),
    }
    assert 0 < found['metrics']['top1'] < found['metrics']['top5'] < 100
    assert found['dataset'] == {'name': 'set', 'type': 'imagefolder', 'split': 'val', 'num_images': 12}
    assert found['errors'] == []


def test_no_top5_of_five_classes(tmp_path):
    draw(tmp_path, 'a', 0)
    found = evaluate_classifier(Table(torch.eye(5)), open_image_folder(tmp_path, 'val', list('abcde')), CPU)
    assert found['metrics'].keys() == {'top1', 'loss'}


@pytest.mark.parametrize('names', [['zebra', 'ant', 'mule'], ['mule']])
def test_labels_are_matched_by_name(tmp_path, names):
    """Whatever the order of the folders, and even if not all of the model's classes are there."""
    labels = ['zebra', 'ant', 'mule']
    for name in names:
        draw(tmp_path, name, labels.index(name))
    model = Table(torch.eye(3), label_names=labels)
    data = open_for_model(model, tmp_path)
    assert data.classes == labels
    assert evaluate_classifier(model, data, CPU)['metrics']['top1'] == 100


def test_without_labels_classes_are_numbered_in_timms_order(tmp_path):
    for i, name in enumerate(['2', '10', 'b']):
        draw(tmp_path, name, i)
    model = Table(torch.eye(3))
    data = open_for_model(model, tmp_path)
    assert data.classes == ['2', '10', 'b']
    assert evaluate_classifier(model, data, CPU)['metrics']['top1'] == 100


def test_folders_named_by_identifiers(tmp_path):
    for i, name in enumerate(['n02', 'n10']):
        draw(tmp_path, name, 1 - i)
    model = Table(torch.eye(2), label_names=['n10', 'n02'], label_descriptions={'n10': 'ant', 'n02': 'mule'})
    data = open_for_model(model, tmp_path)
    assert data.classes == ['ant', 'mule']
    assert evaluate_classifier(model, data, CPU)['metrics']['top1'] == 100


def test_folders_of_imagenet_are_named_by_synset(tmp_path):
    names = [description.split(', ')[0] for description in ImageNetInfo('imagenet-1k').label_descriptions()]
    model = Table(torch.zeros(1, 1000), label_names=names)
    for synset in ('n02123045', 'n01440764'):
        draw(tmp_path / 'val', synset, 0)
    data = open_for_model(model, tmp_path)
    assert [data.classes[target] for target in data.targets] == ['tench', 'tabby']
    shutil.rmtree(tmp_path / 'val')
    draw(tmp_path / 'val', 'tench', 0)
    assert open_for_model(model, tmp_path).targets == [0]
    draw(tmp_path / 'val', 'crane', 0)  # a bird and a machine
    with pytest.raises(ValueError, match='Two classes of the model are called crane'):
        open_for_model(model, tmp_path)


def test_other_names_than_the_models_are_refused(tmp_path):
    """Numbered in order they would give a figure, and a wrong one."""
    for i, name in enumerate(['Ameise', 'Maultier', 'Zebra']):
        draw(tmp_path, name, i)
    with pytest.raises(ValueError, match=r'\(Ameise, ...\), but the model 3 \(zebra, ...\); use its labels as names'):
        open_for_model(Table(torch.eye(3), label_names=['zebra', 'ant', 'mule']), tmp_path)


def test_the_embedded_weights_know_the_samples(evaluate, digits):
    code, result, err = evaluate(digits)
    assert (code, err) == (0, '')
    assert (result['metrics']['top1'], result['metrics']['top5']) == (100, 100)
    assert result['dataset'] == {'name': digits.name, 'type': 'imagefolder', 'split': 'val', 'num_images': 10}


def test_unreadable_images_are_named(evaluate, digits, tmp_path, samples):
    shutil.copytree(digits / 'val', tmp_path / 'val')
    bad = [tmp_path / 'val' / '3' / 'cut.png', tmp_path / 'val' / '7' / 'text.png']
    bad[0].write_bytes((samples / 'digit_3.png').read_bytes()[:100])
    bad[1].write_text('no image')
    code, result, err = evaluate(tmp_path, '--batch-size', 1)
    assert code == 1
    assert err.splitlines()[0] == '2 of 12 images failed:'
    assert [str(path) in line for path, line in zip(bad, err.splitlines()[1:], strict=True)] == [True, True]
    assert (result['metrics']['top1'], result['dataset']['num_images'], len(result['errors'])) == (100, 10, 2)


def test_no_readable_image(evaluate, tmp_path):
    for name in ('0', '1'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'x.png').touch()
    code, result, err = evaluate(tmp_path)
    assert (code, result) == (1, None)
    assert err.startswith(f'error: No image under {tmp_path} could be read: Cannot read {tmp_path / "0" / "x.png"}')


def test_splits(evaluate, digits, tmp_path):
    """DIR/val, DIR itself, and DIR/train if it is asked for."""
    metrics = evaluate(digits)[1]['metrics']
    assert evaluate(digits / 'val')[1]['metrics'] == metrics
    shutil.copytree(digits / 'val' / '4', tmp_path / 'train' / '4')
    assert evaluate(tmp_path, '--split', 'train')[1]['dataset']['num_images'] == 1
    code, _, err = evaluate(tmp_path)
    assert (code, err) == (1, f'error: There is no folder {tmp_path / "val"} of class folders.\n')
    code, _, err = evaluate(digits, '--split', 'train')
    assert (code, err) == (1, f'error: There is no folder {digits / "train"} of class folders.\n')


@pytest.mark.parametrize(
    'folders', [['val'], ['validation'], ['valid'], ['eval'], ['evaluation'], ['val', 'validation'], ['valid', 'eval']]
)
@pytest.mark.parametrize('split', ['val', 'validation'])
def test_splits_are_looked_for_as_timm_does(tmp_path, folders, split):
    for name in folders:
        draw(tmp_path / name, 'a', 0)
    assert str(open_image_folder(tmp_path, split).root) == _search_split(str(tmp_path), split)


def test_what_does_not_fit_is_refused(evaluate, digits, tmp_path):
    for i, name in enumerate('abc'):
        draw(tmp_path, name, i)
    code, _, err = evaluate(tmp_path)
    hint = 'use its labels as names of the class folders.'
    assert (code, err) == (1, f'error: {tmp_path} has 3 classes (a, ...), but the model 10 (0, ...); {hint}\n')
    code, _, err = evaluate(digits, '--task', 'segmentation')
    assert (code, err) == (1, 'error: vt_resnet10 does classification, not segmentation.\n')
    assert evaluate(digits, '--task', 'classification')[0] == 0
    assert evaluate(digits, '--longest-edge', 9)[0] == 2
    code, _, err = evaluate(digits, '--reduce-labels')
    assert code == 2
    assert 'are for segmentation' in ' '.join(err.replace('│', ' ').split())


def test_a_result_that_cannot_be_written_is_found_before_the_images_are_read(evaluate, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(classification_eval, 'evaluate_classifier', None)
    file = digits / 'val' / '4' / 'digit_4.png'
    for path, reason in (
        (tmp_path, f'{tmp_path}: Is a directory'),
        (file / 'x' / 'r.json', f'{file}: Not a directory'),
    ):
        assert evaluate(digits, '--result', path)[::2] == (1, f'error: Cannot use {reason}.\n')
    assert evaluate(tmp_path, '--result', tmp_path / 'new' / 'result.json')[0] == 1
    assert not (tmp_path / 'new').exists()


def test_a_result_goes_where_a_link_leads_and_replaces_no_device(tmp_path):
    (tmp_path / 'link.json').symlink_to(tmp_path / 'result.json')
    write_result(tmp_path / 'link.json', {'n': 1})
    assert (tmp_path / 'link.json').is_symlink()
    assert json.loads((tmp_path / 'result.json').read_text()) == {'n': 1}
    os.mkfifo(tmp_path / 'pipe')
    for write in (check_place, lambda path: write_result(path, {})):
        with pytest.raises(OSError, match='Not a regular file'):
            write(tmp_path / 'pipe')
    assert (tmp_path / 'pipe').is_fifo()


def test_the_result_file_is_what_cards_are_made_of(evaluate, run, digits, tmp_path):
    path, folder = tmp_path / 'result.json', tmp_path / 'model'
    printed = evaluate(digits, '--result', path)[1]
    result = json.loads(path.read_text())
    assert result.pop('images_per_second') > 0
    assert result == {key: value for key, value in printed.items() if key != 'images_per_second'}
    assert result['model'] == 'vt_resnet10'
    row = f'| {digits.name} | val | 10 | 100.0 | 100.0 |'
    assert run('export', 'vt_resnet10', folder, '--result', path)[0] == 0
    assert row in (folder / 'README.md').read_text()
    (tmp_path / 'about.md').write_text('Digits.')
    assert run('card', folder, '--result', path, '--prose', tmp_path / 'about.md')[0] == 0
    assert row in (folder / 'README.md').read_text()


def test_a_text_that_is_no_template_is_named(run, tmp_path):
    for text in ('{{ open', '{{ nothing.of_that }}'):
        (tmp_path / 'about.md').write_text(text)
        code, _, err = run('export', 'vt_resnet10', tmp_path / 'out', '--prose', tmp_path / 'about.md')
        assert (code, err.count('\n')) == (1, 1)
        assert err.startswith('error: The template of the card cannot be filled in: ')
        assert not (tmp_path / 'out').exists()


def test_the_printed_line(run, digits):
    code, out, _ = run('evaluate', 'vt_resnet10', '--data-dir', digits, '--workers', 0)
    assert code == 0
    figures, *tokens = out.splitlines()
    assert figures.startswith('top-1 accuracy (%) 100.0, loss 0.')
    assert figures.endswith(', top-5 accuracy (%) 100.0, 10 images')
    assert 'cosine' in tokens[0]
    assert [line.split()[0] for line in tokens[1:]] == ['1', '2']


def test_two_processes_measure_the_same(evaluate, digits, tmp_path):
    """Twelve files in four batches, two for each; of one class a wrong image, of another one that cannot be read."""
    shutil.copytree(digits / 'val', tmp_path / 'val')
    shutil.copy(tmp_path / 'val' / '4' / 'digit_4.png', tmp_path / 'val' / '5')  # not all is right
    (tmp_path / 'val' / '8' / 'text.png').write_text('no image')
    expected = evaluate(tmp_path, '--batch-size', 3)[1]
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', '2', '--standalone', '-m']
    command += ['vt_hub', 'evaluate', 'vt_resnet10', '--data-dir', tmp_path, '--batch-size', '3', '--workers', '0']
    environment = os.environ | {'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1'}
    result = subprocess.run(
        [*map(str, command), '--result', str(tmp_path / 'result.json')],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert result.returncode == 1
    assert result.stderr.count('1 of 12 images failed:') == 1
    assert result.stdout.count('11 images') == 1  # one of the processes says it
    found = json.loads((tmp_path / 'result.json').read_text())
    assert found['metrics'] == expected['metrics']
    assert found['metrics']['top1'] == round(1000 / 11, 2)
    assert (found['dataset'], found['errors']) == (expected['dataset'], expected['errors'])


def test_the_hardware_is_that_of_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'a GPU')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert machine(torch.device('cuda'))['hardware'] == '1 x a GPU'
    assert machine(CPU)['hardware'].endswith('thread(s)')
