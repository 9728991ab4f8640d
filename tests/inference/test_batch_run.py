"""`vt-hub predict --output`: tables that depend on neither the processes nor the cuts, and what is refused."""

import functools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import ROOT
from PIL import Image
from pyarrow import parquet

from vt_hub.image_files import find_images
from vt_hub.inference import batch_run as prediction_run
from vt_hub.inference import preprocessing
from vt_hub.inference.batch_output import read_jsonl
from vt_hub.inference.batch_run import Parts, Workers, predict_files, sorted_on_disk
from vt_hub.inference.classify import predict_each

IMAGES = 30
fork = multiprocessing.get_context('fork')
pytestmark = [
    pytest.mark.filterwarnings('ignore:This DataLoader will create'),  # as many as are asked for
    pytest.mark.filterwarnings('ignore:.*pin_memory'),  # there need not be a GPU
]
needs_fork = pytest.mark.skipif(
    torch.multiprocessing.get_start_method() != 'fork', reason='the fault is put into this process and inherited'
)


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return timm.create_model('test_vt_resnet', num_classes=7).eval()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Thirty files in three folders, of which two are no images."""
    folder = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    for i in range(IMAGES - 2):
        path = folder / f'{i % 3}' / f'{i}.png'
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (12, 9, 3), dtype=np.uint8)).save(path)
    (folder / '0' / 'text.png').write_text('no image')
    (folder / '2' / 'a\nlink.png').symlink_to('nowhere')
    return folder


@pytest.fixture(scope='module')
def classify(model, folder):
    """A run over the folder, in parts of eight images."""

    def classify(output, **kwargs):
        options = {'topk': 2, 'batch_size': 3, 'part_size': 8, 'workers': 1, **kwargs}
        return predict_files(model, [str(folder)], output, **options)

    return classify


@pytest.fixture(scope='module')
def expected(classify, tmp_path_factory):
    """The table of a run that nothing cut."""
    output = tmp_path_factory.mktemp('expected') / 'table.jsonl'
    assert classify(output) == (IMAGES, 2)
    return output.read_bytes()


def test_rows_are_those_of_predict(model, folder, expected):
    found = [json.loads(line) for line in expected.splitlines()]
    results = list(predict_each(model, find_images([str(folder)]), topk=2))
    for row, result in zip(found, results, strict=True):
        assert row.keys() == result.keys()
        assert (row['image'], row.get('error')) == (result['image'], result.get('error'))
        for p, q in zip(row.get('predictions', []), result.get('predictions', []), strict=True):
            assert p == {'label': q['label'], 'score': pytest.approx(q['score'], abs=2e-6)}  # in other batches
    assert sum('error' in row for row in found) == 2


@pytest.mark.parametrize('workers', [2, 5])
def test_the_number_of_workers_does_not_matter(classify, expected, tmp_path, workers):
    classify(tmp_path / 'table.jsonl', workers=workers)
    assert (tmp_path / 'table.jsonl').read_bytes() == expected
    assert os.listdir(tmp_path) == ['table.jsonl']


def test_with_a_gpu_the_main_process_classifies(classify, expected, tmp_path, monkeypatch):
    def init(workers, classifier, count):
        workers.classifier, workers.count, workers.on_gpu = classifier, count, True

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(Workers, '__init__', init)
    classify(tmp_path / 'table.jsonl', workers=2)
    torch.set_num_threads(threads)
    assert (tmp_path / 'table.jsonl').read_bytes() == expected


def test_parquet(classify, expected, tmp_path):
    classify(tmp_path / 'table.parquet')
    rows = parquet.read_table(tmp_path / 'table.parquet').to_pylist()
    for row, line in zip(rows, expected.splitlines(), strict=True):
        result = json.loads(line)
        labels, scores = ([p[key] for p in result.get('predictions', [])] or None for key in ('label', 'score'))
        assert row == {
            'image': result['image'],
            'label': labels and labels[0],
            'score': scores and scores[0],
            'labels': labels,
            'scores': scores,
            'error': result.get('error'),
        }


def test_row_groups_of_parquet_are_large(classify, tmp_path):
    classify(tmp_path / 'table.parquet', part_size=2)
    assert parquet.ParquetFile(tmp_path / 'table.parquet').num_row_groups == 1


def dying(function, times, after):
    """A function that ends the process before or after its call of that number."""
    left = [times]

    def run(*args, **kwargs):
        left[0] -= 1
        if not left[0] and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        value = function(*args, **kwargs)
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    return run


# a run renames its folder of parts once, puts a file in its place six times, and removes the folder at last
MOMENTS = [(os, 'rename', 1), *((os, 'replace', i) for i in range(1, 7)), (Path, 'unlink', 7), (shutil, 'rmtree', 3)]


@pytest.mark.parametrize('after', [False, True], ids=['before', 'after'])
@pytest.mark.parametrize(('where', 'name', 'times'), MOMENTS, ids=[f'{m[1]}-{m[2]}' for m in MOMENTS])
def test_a_kill_at_any_moment(classify, expected, tmp_path, where, name, times, after):
    output = tmp_path / 'table.jsonl'

    def child():
        setattr(where, name, dying(getattr(where, name), times, after))
        classify(output)

    process = fork.Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    if (tmp_path / 'table.jsonl.parts' / 'run.json').exists() or not output.exists():
        assert classify(output) == (IMAGES, 2)
    assert output.read_bytes() == expected


@needs_fork
def test_what_is_done_is_not_done_again(classify, expected, tmp_path, monkeypatch):
    cut(classify, tmp_path / 'table.jsonl', monkeypatch)
    done = [json.loads(line)['image'] for line in expected.splitlines()][:8]
    read = preprocessing.read_image

    def read_others(path, *args):
        assert path not in done
        return read(path, *args)

    monkeypatch.setattr(preprocessing, 'read_image', read_others)
    classify(tmp_path / 'table.jsonl')
    assert (tmp_path / 'table.jsonl').read_bytes() == expected


@pytest.mark.parametrize('kind', [signal.SIGTERM, signal.SIGINT])
def test_signals_leave_what_goes_on(run, folder, tmp_path, monkeypatch, kind):
    output = tmp_path / 'table.jsonl'
    command = ['predict', '--model', 'vt_resnet10', folder, '--output', output, '--workers', 1]
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Parts, 'write', lambda *_: signal.raise_signal(kind))
    code, out, err = run(*command)
    assert (code, out, err) == (130, '', f'{output} is not finished; the same command resumes it.\n')
    assert signal.getsignal(signal.SIGTERM) is before
    assert os.listdir(tmp_path) == ['table.jsonl.parts']
    monkeypatch.undo()
    code, out, err = run(*command)
    assert (code, out) == (1, f'{output}: {IMAGES} images\n')
    knows, failed = err.splitlines()
    assert knows.startswith('vt_resnet10 names an image as one of 10 classes')
    assert failed == f'2 of {IMAGES} images failed; the field error of each says why.'
    assert len(read_jsonl(output)) == IMAGES


ARMED: list[signal.Signals] = []  # sent as the next process is forked
if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_parent=lambda: ARMED and signal.raise_signal(ARMED.pop()))


@needs_fork
@pytest.mark.parametrize('kind', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_as_workers_start_is_not_lost(run, folder, tmp_path, kind):
    """Python drops what is raised in the functions that run after a fork, such as those of `logging` and `random`."""
    output = tmp_path / 'table.jsonl'
    ARMED.append(kind)
    code, out, err = run('predict', '--model', 'vt_resnet10', folder, '--output', output, '--workers', 2)
    assert not ARMED
    assert (code, out, err) == (130, '', f'{output} is not finished; the same command resumes it.\n')


@needs_fork
@pytest.mark.parametrize('task', ['classification', 'segmentation'])
def test_an_interrupt_as_an_evaluation_starts_is_not_lost(task):
    from torch.utils.data import DataLoader

    from vt_hub.training.classification import evaluate as classification_eval
    from vt_hub.training.segmentation import evaluate as segmentation_eval

    module = classification_eval if task == 'classification' else segmentation_eval
    ARMED.append(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        next(module.iterate(DataLoader(range(4), num_workers=1)))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_two_processes_make_the_same_table(run, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction_run, 'predict_files', functools.partial(predict_files, part_size=8))
    assert run('predict', '--model', 'vt_resnet10', folder, '--output', tmp_path / 'one.jsonl', '--workers', 1)[0] == 1
    code = 'import functools; from vt_hub.cli import main as cli; from vt_hub.inference import batch_run as run\n'
    code += 'run.predict_files = functools.partial(run.predict_files, part_size=8); cli.main()'
    (tmp_path / 'main.py').write_text(code)
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', '2', '--standalone']
    command += [tmp_path / 'main.py', 'predict', folder, '--model', 'vt_resnet10', '--json']
    command += ['--output', tmp_path / 'two.jsonl']
    environment = os.environ | {'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    assert result.returncode == 1
    summary = {'output': str(tmp_path / 'two.jsonl'), 'images': IMAGES, 'failed': 2}
    assert [json.loads(line) for line in result.stdout.splitlines()] == [summary]
    assert result.stderr.count('2 of 30 images failed') == 1
    assert (tmp_path / 'one.jsonl').read_bytes() == (tmp_path / 'two.jsonl').read_bytes()


@contextmanager
def biased(model, value):
    """A model with other weights, for a while."""
    bias = model.get_classifier().bias
    before = bias.detach().clone()
    with torch.no_grad():
        bias.fill_(value)
        yield
        bias.copy_(before)


def cut(classify, output, monkeypatch):
    """A run that stops as it writes its second part."""
    write = Parts.write

    def failing(parts, part, results):
        if part == 1:
            raise KeyboardInterrupt
        write(parts, part, results)

    monkeypatch.setattr(Parts, 'write', failing)
    with pytest.raises(KeyboardInterrupt):
        classify(output)
    monkeypatch.setattr(Parts, 'write', write)


def test_a_cut_run_goes_on_with_its_own_settings_only(classify, model, expected, tmp_path, monkeypatch):
    output = tmp_path / 'table.jsonl'
    cut(classify, output, monkeypatch)
    before = sorted(os.listdir(f'{output}.parts'))
    with pytest.raises(ValueError, match=r'table.jsonl.parts belongs to a run with topk 2, not 3; use the same, or'):
        classify(output, topk=3)
    with pytest.raises(ValueError, match='with precision fp32, not bf16'):
        classify(output, precision='bf16')
    with biased(model, 1), pytest.raises(ValueError, match=r'with model [0-9a-f]{64}, not [0-9a-f]{64}'):
        classify(output)
    output.touch()
    with pytest.raises(FileExistsError, match='is not finished; remove one of them'):
        classify(output)
    assert output.read_bytes() == b''
    output.unlink()
    assert sorted(os.listdir(f'{output}.parts')) == before
    classify(output, workers=2)
    assert len(output.read_bytes().splitlines()) == IMAGES


def test_images_are_listed_once(model, folder, tmp_path, monkeypatch):
    images = shutil.copytree(folder / '1', tmp_path / 'images')

    def classify(output, **kwargs):
        predict_files(model, [str(images)], output, part_size=4, workers=1, **kwargs)

    cut(classify, tmp_path / 'table.jsonl', monkeypatch)
    listed = sorted(images.iterdir())
    shutil.copy(listed[0], images / '0.png')
    classify(tmp_path / 'table.jsonl')
    assert [row['image'] for row in read_jsonl(tmp_path / 'table.jsonl')] == list(map(str, listed))


def test_a_damaged_part_is_named(classify, tmp_path, monkeypatch):
    output = tmp_path / 'table.jsonl'
    cut(classify, output, monkeypatch)
    part = tmp_path / 'table.jsonl.parts' / '000000.jsonl'
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(OSError, match=f'{part} is damaged; remove it and start again'):
        classify(output)
    part.unlink()
    assert classify(output) == (IMAGES, 2)


@pytest.mark.parametrize('name', ['table.csv', 'table', 'table.jsonl.gz'])
def test_outputs_of_unknown_kind(run, folder, tmp_path, name):
    code, _, err = run('predict', '--model', 'vt_resnet10', folder, '--output', tmp_path / name)
    reason = 'does not end in a supported table extension: .jsonl or .parquet.'
    assert (code, err) == (1, f'error: {tmp_path / name} {reason}\n')


def test_wrong_usage_is_caught_before_work(run, folder, tmp_path, monkeypatch):
    output, empty = tmp_path / 'table.jsonl', tmp_path / 'empty'
    empty.mkdir()
    code, _, err = run('predict', '--model', 'vt_resnet10', empty, folder, '--output', output)
    assert (code, err) == (1, f'error: There are no images in {empty}.\n')
    for missing in (tmp_path / 'missing', tmp_path / '*.png'):
        code, _, err = run('predict', '--model', 'vt_resnet10', folder, missing, '--output', output)
        assert (code, err) == (1, f'error: There is no image file or folder {missing}.\n')
    assert os.listdir(tmp_path) == ['empty']
    output.touch()
    code, _, err = run('predict', '--model', 'vt_resnet10', folder, '--output', output)
    assert (code, err) == (1, f'error: {output} exists; remove it, or name another output.\n')
    code, _, err = run('predict', folder, '--output', tmp_path / 'new.jsonl', '--model', 'vt_fpn_resnet10t')
    assert (code, err) == (1, 'error: vt_fpn_resnet10t does not classify; `vt-hub segment` segments.\n')
    assert run('predict', '--model', 'vt_resnet10', folder, '--workers', 1)[0] == 2
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    code, _, err = run('predict', '--model', 'vt_resnet10', folder, '--output', tmp_path / 'table.parquet')
    assert (code, err) == (1, 'error: Tables of predictions need pyarrow: pip install "vt_hub[parquet]".\n')


@needs_fork
@pytest.mark.parametrize('death', [lambda: os.kill(os.getpid(), signal.SIGSEGV), lambda: os._exit(1)])
def test_files_that_end_the_process_which_reads_them(classify, expected, tmp_path, monkeypatch, death):
    """Two in one batch, and one in the last part; the others are classified, in the same order."""
    rows = [json.loads(line) for line in expected.splitlines()]
    deadly = [rows[i]['image'] for i in (3, 5, 29)]
    read = preprocessing.read_image

    def read_or_die(path, *args):
        if str(path) in deadly:
            death()
        return read(path, *args)

    monkeypatch.setattr(preprocessing, 'read_image', read_or_die)
    assert classify(tmp_path / 'table.jsonl', workers=2)[0] == IMAGES
    found = read_jsonl(tmp_path / 'table.jsonl')
    assert [row['image'] for row in found] == [row['image'] for row in rows]
    for row, same in zip(found, rows, strict=True):
        if row['image'] in deadly:
            assert row['error'] == f'Cannot read {row["image"]} as an image: the process that read it died.'
        else:
            assert row.get('error') == same.get('error')
            assert ('predictions' in row) == ('predictions' in same)


@needs_fork
def test_a_process_that_dies_by_chance_costs_nothing(classify, expected, tmp_path, monkeypatch):
    read, flag = preprocessing.read_image, tmp_path / 'died'

    def die_once(path, *args):
        if path.endswith('7.png') and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return read(path, *args)

    monkeypatch.setattr(preprocessing, 'read_image', die_once)
    classify(tmp_path / 'table.jsonl', workers=2)
    assert flag.exists()
    assert (tmp_path / 'table.jsonl').read_bytes() == expected


@needs_fork
def test_errors_of_the_model_are_no_deaths(classify, model, tmp_path, monkeypatch):
    def forward(images):
        raise RuntimeError('a fault of the model')

    monkeypatch.setattr(model, 'forward', forward)
    with pytest.raises(RuntimeError, match='a fault of the model'):
        classify(tmp_path / 'table.jsonl')


@needs_fork
def test_images_that_do_not_fit_in_memory(classify, tmp_path, monkeypatch):
    class Transform:
        def __call__(self, image):
            raise MemoryError

    monkeypatch.setattr(timm.data, 'create_transform', lambda **_: Transform())
    assert classify(tmp_path / 'table.jsonl') == (IMAGES, IMAGES)
    errors = [row['error'] for row in read_jsonl(tmp_path / 'table.jsonl')]
    assert sum(error.endswith('as an image: there is too little memory.') for error in errors) == IMAGES - 2


def test_another_precision_is_named_before_the_weights(run, folder, tmp_path, monkeypatch):
    command = ['predict', '--model', 'vt_resnet10', folder, '--output', tmp_path / 'table.jsonl', '--workers', 1]
    monkeypatch.setattr(Parts, 'write', lambda *_: signal.raise_signal(signal.SIGINT))
    assert run(*command)[0] == 130
    monkeypatch.undo()
    assert 'with precision fp32, not bf16' in run(*command, '--precision', 'bf16')[2]


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_mixed_precision(run, samples, tmp_path, precision):
    command = 'predict', samples / 'digit_*.png', '--model', 'vt_resnet10'
    rows = [json.loads(line) for line in run(*command, '--json')[1].splitlines()]
    mixed = run(*command, '--json', '--precision', precision)[1]
    table = tmp_path / 'table.jsonl'
    assert run(*command, '--output', table, '--precision', precision)[0] == 0
    for row, other, written in zip(rows, map(json.loads, mixed.splitlines()), read_jsonl(table), strict=True):
        scores, others = ([p['score'] for p in result['predictions']] for result in (row, other))
        assert scores != others
        assert scores == pytest.approx(others, abs=0.02)
        assert written == other


def test_scores_that_are_not_finite_are_errors(model, folder):
    bias = model.get_classifier().bias
    before = bias.detach().clone()
    with torch.no_grad():
        bias.fill_(float('inf'))
    try:
        [row] = predict_each(model, [folder / '0' / '0.png'])
    finally:
        with torch.no_grad():
            bias.copy_(before)
    assert row == {
        'image': str(folder / '0' / '0.png'),
        'error': f'The scores of {row["image"]} are not finite in fp32.',
    }


def test_paths_are_sorted_as_by_find_images(tmp_path, monkeypatch):
    names = ['a/b.png', 'a.png', 'a b.png', 'a/b/c.png', 'B.png', 'ä.png', 'a/0/1.png', 'a0/1.png', 'a\nb.png']
    for name in names:
        (tmp_path / 'x' / name).parent.mkdir(parents=True, exist_ok=True)
        if name != 'a/b.png':
            (tmp_path / 'x' / name).touch()
    os.close(os.open(bytes(tmp_path / 'x') + b'/\xff.png', os.O_CREAT))
    found = list(map(str, find_images([str(tmp_path / 'x')])))
    assert len(found) == 9
    monkeypatch.setattr(prediction_run, 'SORTED_AT_ONCE', 2)
    assert list(sorted_on_disk(reversed(found), tmp_path)) == found
