"""`vt-hub plot`."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from vt_hub.training.plot import plot_run, read_curves

SUMMARY = """\
epoch,train_loss,eval_loss,eval_top1,eval_top5,lr
0,2.5,2.0,30.0,60.0,0.1
1,2.0,1.5,40.0,70.0,0.1
epoch,train_loss,eval_loss,eval_top1,eval_top5,lr
1,1.9,1.4,45.0,75.0,0.1
2,1.5,1.0,0.0,80.0,0.0
"""


@pytest.fixture
def timm_run(tmp_path):
    """A run that was cut in epoch 1 and resumed."""
    (tmp_path / 'summary.csv').write_text(SUMMARY)
    return tmp_path


@pytest.fixture
def trainer_run(tmp_path):
    """A run of transformers' Trainer, which keeps the whole history in each checkpoint."""
    history = [
        {'step': 5, 'epoch': 0.5, 'loss': 1.5, 'learning_rate': 0.01, 'grad_norm': 3.0},
        {'step': 10, 'epoch': 1.0, 'loss': 1.0, 'learning_rate': 0.0},
        {'step': 10, 'epoch': 1.0, 'eval_loss': 1.2, 'eval_miou': 0.0, 'eval_pixel_accuracy': 50.0},
        {'step': 10, 'epoch': 1.0, 'train_runtime': 9.0},
    ]
    for step, count in ((5, 1), (10, 4)):
        (tmp_path / f'checkpoint-{step}').mkdir()
        state = {'log_history': history[:count]}
        (tmp_path / f'checkpoint-{step}' / 'trainer_state.json').write_text(json.dumps(state))
    return tmp_path


def test_curves_of_timms_script(timm_run):
    """Of an epoch that was trained twice the later figures count; zeros are figures."""
    epochs = [0, 1, 2]
    assert read_curves(timm_run) == (
        'epoch',
        {
            'train_loss': (epochs, [2.5, 1.9, 1.5]),
            'eval_loss': (epochs, [2.0, 1.4, 1.0]),
            'eval_top1': (epochs, [30, 45, 0]),
            'eval_top5': (epochs, [60, 75, 80]),
            'lr': (epochs, [0.1, 0.1, 0]),
        },
    )


def test_curves_of_the_trainer(trainer_run):
    assert read_curves(trainer_run) == (
        'step',
        {
            'eval_loss': ([10], [1.2]),
            'loss': ([5, 10], [1.5, 1.0]),
            'eval_miou': ([10], [0]),
            'eval_pixel_accuracy': ([10], [50]),
            'learning_rate': ([5, 10], [0.01, 0]),
        },
    )


def test_a_line_that_was_cut(timm_run):
    with open(timm_run / 'summary.csv', 'a') as file:
        file.write('3,1.2,0.9')
    curves = read_curves(timm_run)[1]
    assert curves['eval_loss'] == ([0, 1, 2, 3], [2.0, 1.4, 1.0, 0.9])
    assert curves['lr'][0] == [0, 1, 2]


@pytest.mark.parametrize('kind', ['timm_run', 'trainer_run'])
def test_picture(run, request, kind):
    folder = request.getfixturevalue(kind)
    code, out, err = run('plot', folder)
    assert (code, out, err) == (0, f'{folder / "plot.png"}\n', '')
    image = Image.open(folder / 'plot.png').convert('RGB')
    assert 3 * 400 < image.width < 3 * 900  # three panels side by side
    assert 300 < image.height < 700
    pixels = np.asarray(image).astype(int)
    coloured = np.ptp(pixels, axis=2) > 60
    third = image.width // 3
    assert all(coloured[:, i * third : (i + 1) * third].sum() > 50 for i in range(3))  # a line in each
    assert 0.5 < (pixels.min(2) > 250).mean() < 0.99


def test_only_panels_with_figures(tmp_path):
    (tmp_path / 'summary.csv').write_text('epoch,train_loss\n0,1.0\n1,0.5\n')
    plot_run(tmp_path, tmp_path / 'one.png')
    assert Image.open(tmp_path / 'one.png').width < 900


def test_the_name_says_the_format(timm_run, run):
    assert run('plot', timm_run, '--out', timm_run / 'new' / 'plot.svg')[0] == 0
    assert '<svg' in (timm_run / 'new' / 'plot.svg').read_text()
    code, _, err = run('plot', timm_run, '--out', timm_run / 'plot.xyz')
    assert code == 1
    assert err.startswith(f'error: {timm_run / "plot.xyz"} does not end in a supported picture extension')
    assert run('plot', timm_run, '--out', timm_run / 'plot.rgba')[0] == 1
    assert sorted(path.name for path in timm_run.iterdir()) == ['new', 'summary.csv']


def test_without_matplotlib(timm_run, run, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    code, out, err = run('plot', timm_run)
    assert (code, out, err) == (1, '', 'error: Pictures need matplotlib: pip install "vt_hub[explain]".\n')


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, 'has neither summary.csv nor checkpoints with trainer_state.json; it is not a run.'),
        ('', 'has no figures yet.'),
        ('epoch,train_loss,lr\n', 'has no figures yet.'),
        ('name,count\na,3\n', 'has no figures yet.'),
    ],
)
def test_no_run(run, tmp_path, content, message):
    if content is not None:
        (tmp_path / 'summary.csv').write_text(content)
    before = list(tmp_path.iterdir())
    code, _, err = run('plot', tmp_path)
    assert (code, err) == (1, f'error: {tmp_path} {message}\n')
    assert list(tmp_path.iterdir()) == before
