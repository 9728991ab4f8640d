"""The transfer evaluation of model_cards/scenes."""

import json
import sys

import numpy as np
import pytest
import timm
import torch
from conftest import ROOT
from PIL import Image
from safetensors.torch import save_file

sys.path.append(str(ROOT / 'model_cards' / 'scenes'))

import characters
import report
import tasks
import transfer

ARMS = ('vt', 'vt_scratch', 'vt_shuffled')


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    """A folder with weights, in which the images of tasks are kept."""
    folder = tmp_path_factory.mktemp('transfer')
    save_file(timm.create_model('test_vt_resnet', num_classes=3).state_dict(), folder / 'model.safetensors')
    return folder


@pytest.fixture
def arms(work):
    sources = {'vt': 'test_vt_resnet:', 'vt_scratch': 'test_vt_resnet', 'vt_shuffled': 'shuffled:test_vt_resnet:'}
    path = work / 'model.safetensors'
    return [
        transfer.parse_arm(f'{name}={source}{path if source.endswith(":") else ""}') for name, source in sources.items()
    ]


@pytest.fixture
def evaluate(work, monkeypatch, capsys):
    """Run the command on digits at smoke size; returns the report and the lines of the results."""

    def evaluate(name, *arguments):
        results, path = work / f'{name}.jsonl', work / f'{name}.json'
        options = ['--smoke', '--tasks', 'digits', '--results', results, '--report', path, '--work', work]
        monkeypatch.setattr(sys, 'argv', ['transfer.py', *map(str, [*options, *arguments])])
        transfer.main()
        return json.loads(path.read_text()), results.read_text().split('\n')[1:]

    return evaluate


@pytest.fixture
def augmented(monkeypatch):
    """The batches that networks are given while they are trained."""
    batches, augment = [], transfer.augment
    monkeypatch.setattr(transfer, 'augment', lambda *args: batches.append(augment(*args)) or batches[-1])
    return batches


@pytest.fixture
def evaluation(work, tmp_path):
    return transfer.Evaluation(transfer.SMOKE, transfer.Results(tmp_path / 'runs.jsonl'), work)


def made_up(arm, task, shots, draw, accuracy, part='test', steps=10, lr=0.1, **changes):
    facts = {'model': 'm', 'init': arm, 'data': f'{task} {part}', 'scored': 500, 'method': 'finetune', 'batch_size': 32}
    place = {'arm': arm, 'task': task, 'shots': shots, 'part': part, 'draw': draw, 'steps': steps, 'lr': lr}
    return {**facts, **place, 'accuracy': accuracy, **changes}


def test_report_is_that_computed_by_hand():
    runs = []
    for task in ('digits', 'characters', 'shapes'):
        for shots in (5, 20):
            more = 6 if (task, shots) == ('shapes', 20) else 0
            for arm, accuracies in (('vt_scratch', (50, 60, 70)), ('vt', (51, 62, 73 + more))):
                runs += [made_up(arm, task, shots, draw, a) for draw, a in enumerate(accuracies)]
                runs += [made_up(arm, task, shots, draw, 40 + draw, part='dev') for draw in (0, 1)]
                runs += [made_up(arm, task, shots, draw, 20 + 40 * draw, part='dev', lr=0.2) for draw in (0, 1)]
                runs += [made_up(arm, task, shots, 0, 99, lr=0.2)]  # not the setting chosen: 40 is less than 40.5
    runs += [made_up('vt', 'digits', 5, 3, 90), runs[0]]  # a draw that the other arm lacks, and a run done twice
    summary = report.summarise(runs)

    gains = {(row['task'], row['shots']): row for row in summary['differences']}
    assert len(gains) == 6
    margin = 4.30265 / 3**0.5  # Student's t of 2 degrees of freedom, standard deviation 1
    for row in (gains['digits', 5], gains['characters', 20]):
        assert row['pair'] == 'vt - vt_scratch'
        assert (row['n'], row['mean'], row['std']) == (3, 2, 1)
        assert (row['low'], row['high']) == pytest.approx((2 - margin, 2 + margin), abs=0.005)
    assert gains['shapes', 20]['mean'] == 4  # 1, 2 and 9
    [primary] = summary['primary']['gains']  # 1, 2 and 4, the means of six cells
    assert (primary['n'], primary['mean']) == (3, pytest.approx(7 / 3, abs=0.005))
    assert primary['high'] - primary['mean'] == pytest.approx(margin * (7 / 3) ** 0.5, abs=0.01)
    cells = {(row['arm'], row['task'], row['shots']): row for row in summary['finetuned']}
    assert cells['vt_scratch', 'digits', 5] == {
        'task': 'digits', 'shots': 5, 'arm': 'vt_scratch', 'steps': 10, 'lr': 0.1,
        'n': 3, 'mean': 60, 'std': 10, 'low': pytest.approx(60 - 10 * margin, abs=0.005),
        'high': pytest.approx(60 + 10 * margin, abs=0.005),
    }  # fmt: skip
    assert cells['vt', 'digits', 5]['n'] == 4
    text = report.markdown(summary)
    assert '- `vt - vt_scratch`: +2.3 [' in text
    assert '| digits | 5 | 69.0 ± 16.6 (4) | 60.0 ± 10.0 (3) |' in text


def test_primary_number_needs_every_cell():
    runs = [made_up(arm, 'digits', 5, draw, 50, part=part) for arm in ARMS for draw in (0, 1) for part in tasks.PARTS]
    summary = report.summarise(runs)
    assert summary['primary']['gains'] == []
    assert [row['mean'] for row in summary['differences']] == [0, 0]
    assert 'mean of digits, characters and shapes' not in report.markdown(summary)


def test_a_chosen_setting_without_test_runs_is_named():
    runs = [made_up('vt', 'digits', 5, draw, 50, part) for part in tasks.PARTS for draw in (0, 1)]
    runs += [run | {'lr': 0.3, 'accuracy': 60.0} for run in runs if run['part'] == 'dev']
    with pytest.raises(ValueError, match='for vt, digits, 5 shots has no run'):
        report.summarise(runs)


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        ({'init': 'other'}, 'The runs of vt differ in model or init'),
        ({'data': 'other'}, 'of digits test differ in data'),
    ],
)
def test_runs_of_different_weights_or_images_are_not_mixed(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        report.summarise([made_up('vt', 'digits', 5, 0, 50), made_up('vt', 'digits', 5, 1, 50, **change)])


def test_an_evaluation_that_was_killed_goes_on(evaluate, arms, work):
    path = work / 'model.safetensors'
    arguments = ['--arm', f'vt=test_vt_resnet:{path}', '--arm', 'vt_scratch=test_vt_resnet']
    whole, lines = evaluate('whole', *arguments)
    assert {row['arm']: row['n'] for row in whole['finetuned']} == {'vt': 2, 'vt_scratch': 2}
    assert len(whole['frozen']) == 3 + 2  # three readers of pixels, one of each arm's features

    kept = len(lines) // 2
    (work / 'cut.jsonl').write_text('\n'.join(['', *lines[:kept], lines[kept][:40]]))
    resumed, resumed_lines = evaluate('cut', *arguments)
    assert resumed == whole
    assert resumed_lines[:kept] == lines[:kept]
    assert len(resumed_lines) == len(lines) + 1  # the piece of a line is still there
    assert evaluate('cut', *arguments)[1] == resumed_lines
    assert evaluate('cut') == (whole, resumed_lines)  # no arm: the report alone


def test_all_arms_see_the_same_images(evaluation, arms, augmented):
    seen = []
    for arm in arms:
        evaluation.tuned(arm, 'digits', 1, 'test', draw=1, steps=3, lr=1e-3)
        seen.append(torch.stack(augmented))
        augmented.clear()
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0][0], seen[0][1])


def test_statistics_are_those_of_the_weights_at_the_end(arms, augmented):
    model = arms[0].create(num_classes=2, seed=0)
    before = model.conv1.weight.clone()
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    transfer.finetune(
        model, arms[0].as_input(images), np.array([0, 1, 0, 1, 0, 1]), lr=1e-2, steps=3, batch_size=4, seed=0
    )
    assert not torch.equal(model.conv1.weight, before)
    maps = model.conv1(torch.cat(augmented[3:]))  # after three steps, the same number of batches again
    torch.testing.assert_close(model.bn1.running_mean, maps.mean((0, 2, 3)), atol=0.01, rtol=0.01)


def test_arms_differ_in_what_they_are_named_for_only(arms, work):
    vt, scratch, shuffled = (arm.create(num_classes=5, seed=1).state_dict() for arm in arms)
    stored = timm.create_model('test_vt_resnet', num_classes=3, checkpoint_path=str(work / 'model.safetensors'))
    for key, value in stored.state_dict().items():
        if key.startswith('fc.'):
            assert vt[key].shape[0] == 5
            assert torch.equal(vt[key], scratch[key])
            assert torch.equal(vt[key], shuffled[key])
        else:
            assert torch.equal(vt[key], value)
            assert torch.equal(shuffled[key].flatten().sort()[0], value.flatten().sort()[0])
            assert torch.equal(shuffled[key], value) == (value.ndim < 2)
    assert not torch.equal(vt['conv1.weight'], scratch['conv1.weight'])
    assert not torch.equal(arms[1].create(5, seed=2).conv1.weight, scratch['conv1.weight'])


def test_settings_are_chosen_without_the_test_part(evaluation, arms, monkeypatch):
    parts = []
    load = transfer.load_task
    monkeypatch.setattr(transfer, 'load_task', lambda *args: parts.append(args[1]) or load(*args))
    steps, lr = evaluation.choose(arms[0], 'digits', 1)
    assert set(parts) == {'dev'}
    runs = evaluation.results.read()
    assert {run['part'] for run in runs} == {'dev'}
    assert {(run['steps'], run['lr']) for run in runs} == {(2, 1e-3), (2, 4e-3), (6, lr)}
    assert steps in (2, 6)


@pytest.mark.parametrize('task', ['digits', 'shapes', 'fractals', 'contours'])
def test_parts_share_no_image(task, work):
    dev, test = (tasks.load_task(task, part, 32, 4, work) for part in tasks.PARTS)
    assert dev.num_classes == test.num_classes
    assert not {image.tobytes() for image in dev.images} & {image.tobytes() for image in test.images}


@pytest.mark.parametrize('make_bank', [tasks.fractal_bank, tasks.contour_bank])
def test_parts_have_other_classes(make_bank):
    pictures = [
        {one.numpy().tobytes() for one in make_bank(tasks.SEEDS[part], 20, 1, 32)[:, 0]} for part in tasks.PARTS
    ]
    assert not pictures[0] & pictures[1]


def test_scored_scenes_show_other_pictures(work, monkeypatch):
    banks = []
    compose = tasks.compose_scenes
    monkeypatch.setattr(
        tasks, 'compose_scenes', lambda bank, *args, **kw: banks.append(bank) or compose(bank, *args, **kw)
    )
    part = tasks.fractals('test', 32, 3)
    assert not {one.numpy().tobytes() for one in banks[0].flatten(0, 1)} & {
        one.numpy().tobytes() for one in banks[1].flatten(0, 1)
    }
    assert (part.support ^ part.scored).all()
    assert part.support.sum() > 50
    assert part.scored.sum() > 50


def test_a_draw_is_scored_on_other_images(work):
    part = tasks.load_task('digits', 'test', 32, 3, work)
    few, _ = part.draw(1, 0, 500)
    many, scored = part.draw(5, 0, 500)
    assert np.bincount(part.labels[many]).tolist() == [5] * 10
    assert set(few) <= set(many)
    assert len(set(scored)) == 500
    assert not set(scored) & set(many)
    assert set(many) != set(part.draw(5, 1, 500)[0])


def test_characters_are_scored_with_other_fonts(tmp_path, monkeypatch):
    families = {'support': 'DejaVuSans.ttf', 'dev': 'DejaVuSerif.ttf', 'test': 'DejaVuSansMono.ttf'}
    monkeypatch.setattr(characters, 'FONTS', {group: {'fonts-dejavu-core': [file]} for group, file in families.items()})
    try:
        fonts = {group: characters.find_fonts(group) for group in families}
    except FileNotFoundError as error:
        pytest.skip(str(error))
    used = []
    monkeypatch.setattr(
        characters,
        'character',
        lambda rng, text, fonts, size: used.append(fonts) or np.zeros((size, size, 3), np.uint8),
    )
    for name in tasks.PARTS:
        used.clear()
        part = tasks.load_task('characters', name, 16, 2, tmp_path)
        assert [fonts['support'] if support else fonts[name] for support in part.support] == used
        train, scored = part.draw(2, 0, 500)
        assert part.support[train].all()
        assert not part.support[scored].any()
        assert np.bincount(part.labels[scored]).tolist() == [2] * 62


def test_groups_of_fonts_are_disjoint():
    groups = list(characters.FONTS.values())
    packages = [package for group in groups for package in group]
    files = [file for group in groups for names in group.values() for file in names]
    assert len(set(packages)) == len(packages) >= 15
    assert len(set(files)) == len(files)


def test_missing_fonts_are_named_with_the_command_that_installs_them(monkeypatch, tmp_path):
    monkeypatch.setattr(characters, 'FOLDER', tmp_path)
    with pytest.raises(FileNotFoundError, match=r'has no Cantarell-Regular.otf; .*apt-get install .*fonts-cantarell'):
        characters.find_fonts('dev')


@pytest.mark.parametrize('text', ['vt', 'vt=nothing', '=test_vt_resnet', 'vt=shuffled:test_vt_resnet'])
def test_an_arm_must_name_a_model(text):
    with pytest.raises(transfer.argparse.ArgumentTypeError, match='is not an arm; use NAME=MODEL'):
        transfer.parse_arm(text)


def test_an_arm_is_a_model_folder():
    folder = ROOT / 'vt_hub' / 'pretrained' / 'vt_resnet10.digits'
    arm = transfer.parse_arm(f'vt={folder}')
    assert (arm.model, arm.shuffled) == ('vt_resnet10', False)
    pretrained = timm.create_model('vt_resnet10', pretrained=True)
    assert torch.equal(arm.create(num_classes=4, seed=0).conv1.weight, pretrained.conv1.weight)


def test_photographs_are_read_from_the_folder(tmp_path):
    """Each part has its own photographs, some of each class, square and of one size."""
    for name in ('cifar/train/a', 'cifar/train/b', 'cifar/test/a', 'flowers/flowers/rose', 'imagenette/val/n01'):
        (tmp_path / name).mkdir(parents=True)
        for number in range(6):
            colour = (40 * number, len(name), 0)
            Image.new('RGB', (30, 20), colour).save(tmp_path / name / f'{number}.png')
    train, test = (tasks.load_task('cifar10', part, 16, 4, tmp_path) for part in tasks.PARTS)
    assert train.images.shape == (8, 16, 16, 3)
    assert train.labels.tolist() == 4 * [0] + 4 * [1]
    assert train.num_classes == 2
    assert test.labels.tolist() == 4 * [0]
    reds = [
        {int(image[0, 0, 0]) for image in tasks.load_task('flowers', part, 16, 9, tmp_path).images}
        for part in tasks.PARTS
    ]
    assert reds == [{0, 80, 160}, {40, 120, 200}]  # no photograph is in both
    assert len(tasks.load_task('imagenette', 'test', 16, 9, tmp_path).labels) == 6


def test_an_arm_reads_images_as_its_folder_says(work, tmp_path):
    arm = transfer.parse_arm(f'vt=test_vt_resnet:{work / "model.safetensors"}')
    images = np.full((1, 2, 2, 3), 255, dtype=np.uint8)
    assert arm.as_input(images).unique().tolist() == [1]
    config = {'architecture': 'test_vt_resnet', 'pretrained_cfg': {'mean': [0.5, 0.5, 0.5], 'std': [0.25, 0.25, 0.25]}}
    (tmp_path / 'config.json').write_text(json.dumps({**config, 'model_args': {'num_tokens': 8}}))
    (tmp_path / 'model.safetensors').write_bytes((work / 'model.safetensors').read_bytes())
    arm = transfer.parse_arm(f'vt={tmp_path}')
    assert arm.as_input(images).unique().tolist() == [2]
    with pytest.raises(ValueError, match='does not fit'):
        arm.create(3, 0)  # eight tokens
