"""Pretraining on scenes: recipes, the loss, runs that are cut, and what a run leaves."""

import csv
import json
import signal

import pytest
import timm
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import vt_hub
from vt_hub.cli import main as cli
from vt_hub.files import read_json
from vt_hub.training import pretraining
from vt_hub.training.plot import read_curves
from vt_hub.training.pretraining import (
    Pretrainer,
    PretrainingRun,
    hit_rate,
    list_pretraining_recipes,
    load_pretraining_recipe,
    pretrain,
    soften_attention,
)

STAGE = {'until': 1, 'size': 64, 'objects': [1, 2], 'scale': [0.3, 0.9], 'spread': 1}


@pytest.fixture(scope='module')
def smoke():
    return load_pretraining_recipe('smoke', {'steps': 6})


@pytest.fixture(scope='module')
def finished(smoke, tmp_path_factory):
    """A run that nothing cut."""
    folder = tmp_path_factory.mktemp('runs') / 'whole'
    assert pretrain(smoke, folder, device='cpu') == folder / 'model'
    return folder


@pytest.mark.parametrize('name', list_pretraining_recipes())
def test_shipped_recipes_load(name):
    recipe = load_pretraining_recipe(name)
    assert recipe.stage(0) == recipe.stages[0]
    assert recipe.stage(recipe.steps - 1) == recipe.stages[-1]


def test_stages_follow_one_another():
    recipe = load_pretraining_recipe('scenes', {'steps': 100, 'warmup_steps': 0})
    assert [recipe.stages.index(recipe.stage(step)) for step in (0, 14, 15, 29, 30, 79, 80, 99)] == [
        0,
        0,
        1,
        1,
        2,
        2,
        3,
        3,
    ]
    assert recipe.stages[1].objects == (1, 2)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'epochs': 3}, "'epochs' is not a setting of a pretraining recipe"),
        ({'stages': [{'until': 1, 'size': 64}]}, 'smoke: stages must be'),
        ({'stages': ['all']}, r"smoke: stages must be .*, not \['all'\]"),
        ({'stages': [{'until': 1, 'pixels': 64}]}, "'pixels' is not a setting of a pretraining recipe; use objects"),
        ({'stages': []}, r'end at \[\]'),
        ({'classes': 0}, 'smoke: classes is 0; it must be 1 or more'),
        ({'soften_every': 0}, 'soften_every is 0; it must be 1 or more'),
        ({'steps': 2}, 'warmup_steps is 2; it must be from 0 to 1'),
        ({'warmup_steps': -5}, 'warmup_steps is -5; it must be from 0 to '),
        ({'stages': [STAGE | {'until': 0.5}]}, r'end at \[0.5\]'),
        ({'stages': [STAGE, STAGE | {'until': 0.5}]}, r'end at \[1.0, 0.5\]'),
        ({'stages': [STAGE | {'size': 72}]}, 'scenes of 72 pixels'),
        ({'stages': [STAGE | {'objects': [3, 1]}]}, 'are not ranges above 0'),
        ({'stages': [STAGE | {'objects': [0, 0]}]}, 'are not ranges above 0'),
        ({'stages': [STAGE | {'scale': [0, 0.9]}]}, 'are not ranges above 0'),
        ({'lr': 'high'}, "smoke: lr must be float, not 'high'"),
    ],
)
def test_wrong_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        load_pretraining_recipe('smoke', changes)


def test_loss_is_of_what_can_be_seen_and_of_every_cell(smoke):
    torch.manual_seed(0)
    net = Pretrainer(smoke)
    net.eval()
    images, masks = torch.rand(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.int64)
    masks[0, :, 32:] = 3  # class 2 on the right half
    labels = torch.zeros(2, 8)
    labels[0, 2] = labels[0, 5] = labels[1, 1] = 1
    with torch.no_grad():
        loss, logits = net(images, labels, masks)
        scene = -0.9 * torch.stack([logits[0].log_softmax(0)[[2, 5]].mean(), logits[1].log_softmax(0)[1]])
        expected = (scene - 0.1 * logits.log_softmax(1).mean(1)).mean()
        maps = net.model.forward_intermediates((images - 0.5) / 0.5, indices=[2, 3], intermediates_only=True)
        for head, x in zip(net.heads, maps, strict=True):
            logs, half = head(x).log_softmax(1), x.shape[-1] // 2
            right, rest = logs[0, 3, :, half:], torch.cat([logs[0, 0, :, :half].flatten(), logs[1, 0].flatten()])
            dense = (right.sum() + 0.1 * rest.sum()) / (right.numel() + 0.1 * rest.numel())
            expected = expected - 0.5 * dense
    assert loss.item() == pytest.approx(expected.item(), abs=1e-4)
    assert [x.shape[-1] for x in maps] == [8, 4]


def test_hit_rate():
    logits = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    labels = torch.tensor([[0.0, 1, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1]])
    assert hit_rate(logits, labels) == 50


def test_learning_rate_rises_and_falls(smoke):
    recipe = load_pretraining_recipe('smoke', {'steps': 100, 'warmup_steps': 10, 'lr': 1e-2})
    schedule = PretrainingRun(recipe, 0, torch.device('cpu')).schedule
    rates = [schedule._get_lr(step)[0] for step in range(100)]
    assert rates[0] == 0
    assert rates[5] == pytest.approx(5e-3)
    assert max(rates) == rates[10] == pytest.approx(1e-2)
    assert rates[55] == pytest.approx((1e-2 + 1e-5) / 2)
    assert rates[99] < 2e-5


def test_norms_and_biases_do_not_decay(smoke):
    groups = PretrainingRun(smoke, 0, torch.device('cpu')).optimizer.param_groups
    decay = {group['weight_decay']: {p.ndim for p in group['params']} for group in groups}
    assert decay[0.02].isdisjoint({0, 1})
    assert decay[0.0] == {1}


def test_a_run_leaves_a_model_folder(finished):
    assert all(check.passed for check in vt_hub.verify(finished / 'model'))
    config = read_json(finished / 'model' / 'config.json')
    assert config['id2label']['2'] == 'fractal 2'
    assert config['pretrained_cfg']['mean'] == config['pretrained_cfg']['std'] == [0.5, 0.5, 0.5]
    assert config['pretrained_cfg']['input_size'] == [3, 96, 96]  # that of the last stage
    model = timm.create_model(f'local-dir:{finished / "model"}', pretrained=True, num_classes=7)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    result = read_json(finished / 'result.json')
    assert result['training']['num_images'] == 6 * 16
    assert f'| {result["metrics"]["hit_rate"]} |' in (finished / 'model' / 'README.md').read_text()
    assert read_curves(finished)[1]['loss'][0] == [6.0]


def test_weights_are_averages_with_statistics_of_their_own(smoke, finished):
    state = torch.load(finished / 'state.pt', weights_only=True)
    shipped = load_file(finished / 'model' / 'model.safetensors')
    averaged, last = state['ema']['module.model.fc.weight'], state['net']['model.fc.weight']
    assert torch.equal(shipped['fc.weight'], averaged)
    assert not torch.equal(averaged, last)
    assert not torch.equal(shipped['bn1.running_mean'], state['ema']['module.model.bn1.running_mean'])
    assert shipped['bn1.num_batches_tracked'] == pretraining.RECALIBRATION


def test_attention_is_softened_to_that_of_a_new_model():
    torch.manual_seed(0)
    model, new = (timm.create_model('test_vt_resnet') for _ in range(2))
    sharp = {'k', 'q', 'key', 'query'}
    before = {name: value.clone() for name, value in model.named_parameters()}
    for name, value in model.named_parameters():
        if name.split('.')[-2] in sharp:
            value.data *= 30
    soften_attention(model)
    assert {name.split('.')[-2] for name in before} >= sharp
    for name, value in model.named_parameters():
        if name.split('.')[-2] in sharp:
            norm, usual = (torch.linalg.matrix_norm(w, 2).item() for w in (value, new.get_parameter(name)))
            assert norm == pytest.approx(usual, rel=0.15)
            torch.testing.assert_close(value / value.norm(), before[name] / before[name].norm())
        else:
            assert torch.equal(value, before[name])
    softened = {name: value.clone() for name, value in model.named_parameters()}
    model.vt.blocks[0].mixer.k.weight.data *= 0.1
    softened['vt.blocks.0.mixer.k.weight'] *= 0.1
    soften_attention(model)  # only what is sharp
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, softened[name])


def test_attention_stays_soft_while_it_trains():
    run = PretrainingRun(load_pretraining_recipe('smoke', {'soften_every': 2}), 0, torch.device('cpu'))
    first, second = run.net.model.vt.blocks
    watched = [first.mixer.k, first.mixer.q, first.projector.key, second.mixer.q]
    usual = [torch.linalg.matrix_norm(layer.weight, 2).item() for layer in watched]
    for layer in watched:
        layer.weight.data *= 30
    ratios = []
    for _ in range(2):
        run.train_step()
        norms = [torch.linalg.matrix_norm(layer.weight, 2).item() for layer in watched]
        ratios.append([norm / before for norm, before in zip(norms, usual, strict=True)])
    assert min(ratios[0]) > 20
    assert max(ratios[1]) < 1.2


def test_the_export_keeps_what_training_learned(finished):
    """The tokens of the folder differ as those of the averaged weights that trained."""
    state = torch.load(finished / 'state.pt', weights_only=True)['ema']
    shipped = load_file(finished / 'model' / 'model.safetensors')
    learned = [name for name, _ in timm.create_model('test_vt_resnet', num_classes=3).named_parameters()]
    assert all(torch.equal(shipped[name], state[f'module.model.{name}']) for name in learned)
    result = json.loads((finished / 'result.json').read_text())
    assert [module['cosine'] < 0.95 and module['spread'] > 0.02 for module in result['tokens']] == [True, True]


def test_a_run_in_pieces_is_the_same_run(smoke, finished, tmp_path):
    pieces = 0
    while pretrain(smoke, tmp_path / 'run', minutes=0, device='cpu') is None:  # one step at a time
        pieces += 1
    assert pieces == smoke.steps - 1
    whole, cut = (load_file(run / 'model' / 'model.safetensors') for run in (finished, tmp_path / 'run'))
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


def test_a_signal_ends_a_run_after_its_step(smoke, tmp_path):
    def interrupted(steps, total, title):
        assert total == smoke.steps
        for step in steps:
            if step == 2:
                signal.raise_signal(signal.SIGTERM)
            yield step

    before = signal.getsignal(signal.SIGTERM)
    assert pretrain(smoke, tmp_path, device='cpu', progress=interrupted) is None
    assert torch.load(tmp_path / 'state.pt', weights_only=True)['step'] == 3
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ('model', 'device', 'message'),
    [
        ('nosuch', 'cpu', "There is no model 'nosuch' in timm"),
        ('test_vit', 'cpu', 'needs 8 and 16'),
        ('test_vt_resnet', 'cuda', 'There is no CUDA device; use --device cpu'),
    ],
)
def test_a_run_that_cannot_start_leaves_nothing(tmp_path, monkeypatch, model, device, message):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises((LookupError, ValueError), match=message):
        pretrain(load_pretraining_recipe('smoke', {'model': model}), tmp_path / 'run', device=device)
    assert not (tmp_path / 'run').exists()


def test_held_out_scenes_are_others(smoke):
    run = PretrainingRun(smoke, 0, torch.device('cpu'))
    trained, held_out = (run.scenes(0, smoke.stages[-1], first)[0] for first in (0, pretraining.HELD_OUT_FIRST))
    assert not torch.equal(trained, held_out)
    assert (
        max(recipe.steps * recipe.batch_size for recipe in map(load_pretraining_recipe, list_pretraining_recipes()))
        < pretraining.HELD_OUT_FIRST
    )


def test_another_recipe_does_not_go_on(smoke, finished, tmp_path):
    with pytest.raises(ValueError, match=r'was started with steps = 6, not 7\.'):
        pretrain(load_pretraining_recipe('smoke', {'steps': 7}), finished)
    with pytest.raises(ValueError, match=r'was started with seed = 0, not 1\.'):
        pretrain(smoke, finished, seed=1)
    assert pretrain(smoke, finished) == finished / 'model'  # nothing is left to do


@pytest.mark.parametrize(
    ('bad', 'found', 'minutes'),
    [(3, 4, None), (5, 6, None), (1, 2, 0)],
    ids=['before softening', 'at the end', 'before it is saved'],
)
def test_weights_that_are_not_finite_end_the_run(smoke, tmp_path, monkeypatch, bad, found, minutes):
    def scenes(run, batch, *args):
        images, labels, masks = compose(run, batch, *args)
        return images * float('nan' if batch == bad else 1), labels, masks

    assert pretrain(smoke, tmp_path, minutes=0, device='cpu') is None
    compose = PretrainingRun.scenes
    monkeypatch.setattr(PretrainingRun, 'scenes', scenes)
    with pytest.raises(FloatingPointError, match=f'not finite by step {found}; start again in another folder'):
        pretrain(smoke, tmp_path, minutes=minutes, device='cpu')
    state = torch.load(tmp_path / 'state.pt', weights_only=True)
    assert state['step'] == 1
    assert all(weight.isfinite().all() for weight in state['net'].values())
    assert not (tmp_path / 'summary.csv').exists()


def test_any_architecture_of_timm_can_be_pretrained(tmp_path):
    recipe = load_pretraining_recipe('smoke', {'steps': 3, 'model': 'test_resnet'})
    folder = pretrain(recipe, tmp_path / 'run', device='cpu')
    assert [path.name for path in folder.iterdir()] == ['model.safetensors']
    model = timm.create_model('test_resnet', num_classes=8)
    model.load_state_dict(load_file(folder / 'model.safetensors'))


def test_command(tmp_path):
    run = CliRunner().invoke
    arguments = ['pretrain', '--recipe', 'smoke', '--steps', '3', '--device', 'cpu', '--output', str(tmp_path / 'run')]
    first = run(cli.app, [*arguments, '--minutes', '0'])
    assert first.exit_code == 0
    assert 'is not finished; the same command resumes it.' in first.stdout
    assert run(cli.app, arguments).stdout.strip() == str(tmp_path / 'run' / 'model')
    with open(tmp_path / 'run' / 'summary.csv') as file:
        assert [row['step'] for row in csv.DictReader(file)] == ['3']
