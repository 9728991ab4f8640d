import json
import os
import pty
import re
import shutil
import subprocess
import sys

import pytest
import timm
from conftest import CATS
from PIL import Image

import vt_hub
from vt_hub.cli import main as cli
from vt_hub.cli.main import GROUPS
from vt_hub.loading.published import PRETRAINED
from vt_hub.paper import tables


def test_predict_reads_the_samples(run, samples):
    code, out, err = run('predict', '--model', 'vt_resnet10.digits', samples / 'digit_*.png', '--topk', 1)
    assert code == 0
    assert err == (
        'vt_resnet10.digits names an image as one of 10 classes, whatever it shows: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9. '
        "Handwritten digits, trained on four fifths of the 1797 images of scikit-learn's load_digits.\n"
    )
    lines = out.splitlines()
    assert len(lines) >= 5
    for line in lines:
        name, prediction = line.rsplit(': ', 1)
        assert name[-5] == prediction[0], line  # digit_7.png: 7 99.1 %


def test_predict_names_photographs(run, samples):
    photographs = samples / 'cat.png', samples / 'coffee.png'
    assert run('predict', *photographs)[2] == (
        "vt_resnet18.dist_in1k names an image as one of ImageNet's 1,000 classes. "
        'Photographs, distilled from a ResNet-18 on images without labels.\n'
    )
    lines = run('predict', *photographs, '--json')[1].splitlines()
    cat, coffee = ([p['label'] for p in json.loads(line)['predictions']] for line in lines)
    assert cat[0] in CATS
    assert {'espresso', 'cup'} & set(coffee)


def test_predict_json_is_one_object_a_line(run, samples):
    code, out, _ = run(
        'predict', '--model', 'vt_resnet10', samples / 'digit_*.png', '--json', '--batch-size', 2, '--topk', 99
    )
    assert code == 0
    for line in out.splitlines():
        result = json.loads(line)
        scores = [p['score'] for p in result['predictions']]
        assert len(scores) == 10
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1, abs=1e-4)


def test_predict_goes_on_without_bad_files_and_exits_1(run, samples, tmp_path):
    good = sorted(samples.glob('*.png'))[:2]
    bad = [tmp_path / name for name in ('truncated.png', 'empty.png', 'text.png', 'missing.png')]
    bad[0].write_bytes(good[0].read_bytes()[:100])
    bad[1].write_bytes(b'')
    bad[2].write_text('no image')
    code, out, err = run('predict', '--model', 'vt_resnet10', good[0], *bad, good[1], '--batch-size', 2)
    assert code == 1
    assert [line.split(':')[0] for line in out.splitlines()] == [str(path) for path in good]
    assert '4 of 6 images failed:' in err
    assert all(f'Cannot read {path} as an image' in err for path in bad)


def test_predict_any_mode_and_size(run, tmp_path):
    for i, mode in enumerate(['1', 'L', 'LA', 'P', 'RGBA', 'CMYK']):
        Image.new(mode, (1 + 40 * i, 3)).save(tmp_path / f'{mode}.{"tif" if mode == "CMYK" else "png"}')
    code, out, _ = run('predict', '--model', 'vt_resnet10', tmp_path)
    assert code == 0
    assert len(out.splitlines()) == 6


def test_predict_without_images(run, samples, tmp_path):
    code, out, err = run('predict', '--model', 'vt_resnet10', tmp_path, samples / 'digit_1.png', tmp_path / '*.gif')
    assert code == 1
    assert len(out.splitlines()) == 1
    assert '2 of 3 images failed' in err
    assert f'Cannot read {tmp_path} as an image: it is a folder without images' in err


def test_predict_prints_names_that_are_not_unicode(samples, tmp_path):
    name = os.fsencode(tmp_path) + b'/\xff.png'
    os.symlink(samples / 'digit_3.png', name)
    command = [sys.executable, '-m', 'vt_hub', 'predict', '--model', 'vt_resnet10', name, '--topk', '1']
    result = subprocess.run(command, capture_output=True, env=os.environ)
    assert (result.returncode, result.stderr.count(b'\n')) == (0, 1)
    assert result.stdout.startswith(name + b': 3 ')


def test_predict_with_a_grey_model(run, samples, tmp_path):
    folder = vt_hub.export(timm.create_model('test_vt_resnet', in_chans=1, num_classes=2).eval(), tmp_path / 'grey')
    assert run('predict', samples, '--model', folder)[0] == 0


def test_predict_with_a_folder_as_model(run, samples):
    folder = vt_hub.pretrained_folder('vt_resnet10')
    assert run('predict', samples, '--model', folder)[:2] == run('predict', samples, '--model', 'vt_resnet10')[:2]


def test_an_empty_folder_hides_no_model(run, samples, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'vt_resnet10').mkdir()
    assert run('predict', str(samples), '--model', 'vt_resnet10')[0] == 0


def test_unknown_model_names_the_nearest(run, samples):
    code, _, err = run('predict', samples, '--model', 'vt_resnet05')
    assert code == 1
    assert err.startswith("error: There is no model or folder 'vt_resnet05'; did you mean ")
    assert 'vt_resnet50' in err


def test_model_without_weights(run, samples):
    code, _, err = run('predict', samples, '--model', 'vt_resnet101')
    assert code == 1
    assert err.startswith('error: No pretrained weights exist for vt_resnet101; they exist for ')
    assert err.count('\n') == 1


def test_wrong_usage_exits_2(run):
    assert run('predict')[0] == 2
    assert run('nonsense')[0] == 2
    assert run('predict', 'x.png', '--topk', 0)[0] == 2


def test_an_output_that_cannot_be_written_is_named(run, samples, tmp_path):
    (tmp_path / 'file').touch()
    target = tmp_path / 'file' / 'explanation.png'
    code, _, err = run('explain', '--model', 'vt_resnet10', samples / 'digit_7.png', '--out', target)
    assert (code, err.count('\n')) == (1, 1)
    assert err.startswith(f'error: Cannot use {tmp_path / "file"}')


def test_a_picture_of_no_format_is_refused_at_once(run, samples, tmp_path):
    code, _, err = run('explain', samples, '--model', 'no_model', '--out', tmp_path / 'x.xyz', '--json')
    assert code == 1
    assert 'There is no model' in err  # a folder of pictures has no format
    code, _, err = run('explain', samples / 'digit_7.png', '--model', 'no_model', '--out', tmp_path / 'x.xyz')
    assert code == 1
    assert 'x.xyz does not end in a supported picture extension' in err


def test_pictures_keep_the_folders_of_their_images(run, samples, tmp_path):
    for name in ('train/a', 'train/b', 'val/a'):
        (tmp_path / 'images' / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(samples / 'digit_3.png', tmp_path / 'images' / f'{name}.jpg.png')
    images = [tmp_path / 'images' / 'train' / '..' / 'train', tmp_path / 'images' / 'val']
    assert run('explain', '--model', 'vt_resnet10', *images, '--out', tmp_path / 'out')[0] == 0
    found = sorted(path.relative_to(tmp_path / 'out').as_posix() for path in (tmp_path / 'out').rglob('*.*'))
    assert found == ['train/a.jpg.png', 'train/b.jpg.png', 'val/a.jpg.png']


def test_version(run):
    assert run('--version') == (0, f'{vt_hub.__version__}\n', '')


def test_what_was_not_foreseen_is_named_as_such(run, monkeypatch):
    monkeypatch.setattr(tables, 'markdown', lambda: [][0])
    code, _, err = run('tables', '--markdown')
    assert (code, err) == (1, 'error: IndexError: list index out of range. VT_HUB_DEBUG=1 shows where.\n')


def test_traceback_only_when_asked_for(run, monkeypatch):
    monkeypatch.setenv('VT_HUB_DEBUG', '1')
    monkeypatch.setattr(sys, 'argv', ['vt-hub', 'info', 'nonsense'])
    with pytest.raises(LookupError):
        cli.main()


def test_list(run):
    code, out, _ = run('list', '--json')
    models = {entry['model']: entry for entry in json.loads(out)}
    assert code == 0
    assert {'vt_resnet10', 'vt_resnet18', 'vt_resnet34', 'vt_resnet50', 'vt_resnet101'} <= models.keys()
    assert not any(name.startswith('test_') for name in models)
    assert models['vt_resnet10']['pretrained'] == ['vt_resnet10.digits']
    lines = {line.split()[0]: line for line in run('list')[1].splitlines()}
    assert lines['vt_resnet10'].split()[1:] == [
        '1.7',
        'M',
        '0.72',
        'G',
        '224',
        'digits',
        '99.7',
        '%',
        'top-1',
        'accuracy',
    ]
    assert lines['vt_resnet101'].split()[1:] == ['41.2', 'M', '7.23', 'G', '224']


def test_list_pretrained(run):
    entries = json.loads(run('list', '--pretrained', '--json')[1])
    assert [entry['name'] for entry in entries] == vt_hub.list_pretrained()
    for entry in entries:
        assert entry['license'] == 'apache-2.0'
        assert entry['metrics']
        assert len(entry['sha256']) == 64
    lines = run('list', '--pretrained')[1].splitlines()
    assert len(lines) == 3 * len(entries)
    for entry, title, knows, measured in zip(entries, lines[::3], lines[1::3], lines[2::3], strict=True):
        assert title.startswith(f'{entry["name"]}: ')
        assert knows == f'  {entry["knows"]}.'
        assert measured.endswith(f'on {entry["metrics"][0]["dataset"]}.')


def test_info(run):
    entry = json.loads(run('info', 'vt_resnet10.digits', '--json')[1])
    assert entry['labels'] == list('0123456789')
    assert entry['tokens'] == [16, 256]
    assert entry['weights']['sha256']
    assert json.loads(run('info', 'test_vt_resnet', '--json')[1])['pretrained'] is False
    text = run('info', 'vt_resnet10')[1]
    for part in ('names an image as one of 10 classes', '99.7 % top-1 accuracy', '3.4 MB', entry['weights']['sha256']):
        assert part in text
    assert 'nothing yet: these weights are random' in run('info', 'test_vt_resnet')[1]


def test_no_line_of_the_terminal_is_cut_by_force():
    """At 80 columns: names and sha256 are whole, paragraphs of the help have the terminal's width."""
    environment = {**os.environ, 'COLUMNS': '80', 'HF_HUB_OFFLINE': '1', 'TERM': 'xterm'}

    def shown(*arguments):
        ours, theirs = pty.openpty()
        os.set_blocking(ours, False)
        subprocess.run([sys.executable, '-m', 'vt_hub', *arguments], stdout=theirs, env=environment, check=True)
        os.close(theirs)
        text = os.read(ours, 100_000).decode()
        os.close(ours)
        return re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', text).splitlines()

    lines = [
        line
        for arguments in (['list'], ['list', '--pretrained'], ['info', 'vt_resnet10'])
        for line in shown(*arguments)
    ]
    assert len(lines) > 30
    assert max(map(len, lines)) <= 80
    words = ' '.join(lines).split()
    for name in vt_hub.list_models():
        assert name in words or name.startswith('test_')
    assert PRETRAINED['vt_resnet10.digits'] in words
    help_text = shown('predict', '--help')
    assert max(map(len, help_text)) <= 80
    assert ' With --output, worker processes read the images, and a GPU computes if there' in map(str.rstrip, help_text)
    assert not any('range>' in line for line in help_text)


def test_tables(run):
    report = json.loads(run('tables', '--json')[1])
    assert {row['table'] for row in report['rows']} == set('12345678')
    assert len(report['stages']) == 16
    assert [row['table'] for row in report['segmentation']] == ['9'] * 4 + ['10'] * 4
    assert run('tables', '--markdown')[1] == tables.markdown()
    assert 'VT-R101' in run('tables')[1]


def test_a_closed_pipe_is_no_error(samples):
    command = f'{sys.executable} -m vt_hub list | true'
    result = subprocess.run(command, shell=True, capture_output=True, text=True, env=os.environ)
    assert result.stderr == ''


COMMANDS = [c.name or c.callback.__name__ for c in cli.app.registered_commands]
COMMANDS += [f'{group} {function.__name__}' for group, (_, functions) in GROUPS.items() for function in functions]


@pytest.mark.parametrize('command', COMMANDS)
def test_every_command_has_help_with_an_example(run, command):
    code, out, _ = run(*command.split(), '--help')
    assert code == 0
    assert f'vt-hub {command}' in out.split('Example')[1]


@pytest.mark.parametrize(
    'arguments',
    [
        ('predict', '--model', 'vt_resnet10', 'digit_7.png', 'digit_8.png', '--json'),
        ('segment', 'scene.png', '--json'),
        ('explain', '--model', 'vt_resnet10', 'digit_7.png', '--json'),
    ],
    ids=lambda arguments: arguments[0],
)
def test_output_that_is_redirected_at_a_terminal_is_whole(samples, tmp_path, arguments):
    """The bar is on the terminal, where stderr is; JSON lines are in the file, as long as they are."""
    paths = [str(samples / name) if name.endswith('.png') else name for name in arguments]
    if arguments[0] == 'explain':
        paths += ['--out', str(tmp_path / 'sheet.png')]
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    with open(tmp_path / 'out.json', 'w') as out:
        code = 'import sys; from vt_hub.cli.main import main; main()'
        environment = {**os.environ, 'TERM': 'xterm', 'COLUMNS': '80'}
        command = [sys.executable, '-c', code, *paths]
        done = subprocess.run(command, stdout=out, stderr=theirs, env=environment, check=False)
    os.close(theirs)
    seen = os.read(ours, 100_000)
    os.close(ours)
    assert done.returncode == 0, seen
    lines = (tmp_path / 'out.json').read_text().splitlines()
    assert [json.loads(line) for line in lines] if arguments[0] == 'predict' else json.loads('\n'.join(lines))
    assert max(map(len, lines)) > 80 or arguments[0] != 'predict'
    assert b'"label"' not in seen


def test_names_that_the_outputs_encoding_lacks(samples, tmp_path):
    folder = tmp_path / 'snow ☃'
    folder.mkdir()
    names = ['a.png', os.fsdecode(b'caf\xe9.png'), 'b.png']
    for name in names:
        shutil.copy(samples / 'digit_7.png', folder / name)
    code = 'from vt_hub.cli.main import main; main()'
    command = [sys.executable, '-c', code, 'predict', str(folder), '--model', 'vt_resnet10', '--topk', '1']
    environment = {**os.environ, 'PYTHONIOENCODING': 'cp1252'}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all(b'snow \\u2603' in line and b': 7 ' in line for line in lines)


@pytest.mark.parametrize('command', ['predict', 'segment', 'explain'])
def test_addresses_are_not_taken_for_files(run, command, tmp_path):
    out = ['--out', tmp_path / 'sheet.png'] if command == 'explain' else []
    code, _, err = run(command, 'https://example.com/cat.jpg', *out)
    assert code == 1
    assert 'https://example.com/cat.jpg is a URL, but only files can be read; download the image first.' in err
