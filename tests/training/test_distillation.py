"""Distillation: recipes, images, what the student learns from, runs that are stopped, and what a run leaves."""

import csv
import multiprocessing
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import vt_hub
from vt_hub.cli import main as cli
from vt_hub.files import read_json
from vt_hub.inference.scores import class_names
from vt_hub.loading.conversion import load_trained
from vt_hub.training.distillation import Folders, Stage, distill, list_distillation_recipes, load_distillation_recipe
from vt_hub.training.distillation.data import Views, is_held_out
from vt_hub.training.distillation.networks import Distiller, frozen_parts, load_start, outputs, shared_parts
from vt_hub.training.distillation.run import DistillationRun

CLASSES = 12
CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    """Two folders of pictures, and one file that is not a picture."""
    root, rng = tmp_path_factory.mktemp('photographs'), np.random.default_rng(0)
    for folder, count in (('cats', 40), ('dogs', 20)):
        (root / folder / 'inner').mkdir(parents=True)
        for number in range(count):
            colours = rng.integers(0, 255, (4, 5, 3), dtype=np.uint8)
            picture = Image.fromarray(colours).resize((100, 80), Image.Resampling.BICUBIC)
            picture.save(root / folder / 'inner' / f'{folder}_{number}.png')
    (root / 'cats' / 'broken.jpg').write_bytes(b'nothing')
    return root


@pytest.fixture(scope='module')
def data(photographs):
    return Folders([photographs / 'cats', photographs / 'dogs'], [0.25, 0.75])


@pytest.fixture(scope='module')
def teacher_file(tmp_path_factory):
    torch.manual_seed(0)
    teacher = timm.create_model('test_resnet', num_classes=CLASSES, zero_init_last=False)  # features that differ
    path = tmp_path_factory.mktemp('teacher') / 'teacher.safetensors'
    save_file(teacher.state_dict(), path)
    return path


@pytest.fixture(scope='module')
def smoke():
    return load_distillation_recipe('smoke', {'teacher_args': {'num_classes': CLASSES}})


@pytest.fixture(scope='module')
def finished(smoke, data, teacher_file, tmp_path_factory):
    """A run that nothing stopped."""
    folder = tmp_path_factory.mktemp('runs') / 'whole'
    assert distill(smoke, data, folder, teacher_file, device=CPU, workers=0) == folder / 'model'
    return folder


@pytest.fixture
def make_run(smoke, data, teacher_file, tmp_path):
    def make_run(recipe=smoke, trunk=(), student='test_vt_resnet', teacher=None):
        torch.manual_seed(0)
        teacher = teacher or load_trained('test_resnet', teacher_file, num_classes=CLASSES)
        student = timm.create_model(student, num_classes=CLASSES)
        return DistillationRun(recipe, data, student, trunk, teacher, 0, CPU, 0, tmp_path / 'unreadable.txt')

    return make_run


def smooth_images(count):
    return F.interpolate(torch.rand(count, 3, 4, 4), size=(64, 64), mode='bilinear')


@pytest.mark.parametrize('name', list_distillation_recipes())
def test_shipped_recipes_load(name):
    recipe = load_distillation_recipe(name)
    assert recipe.stage(0) == recipe.stages[0]
    assert recipe.stage(recipe.steps - 1) == recipe.stages[-1]
    student = timm.create_model(recipe.model, **recipe.model_args)
    assert {part for stage in recipe.stages for part in stage.free} <= dict(student.named_children()).keys()


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'epochs': 3}, "'epochs' is not a setting of a distillation recipe"),
        ({'steps': 0}, 'smoke: steps is 0; it must be 1 or more'),
        ({'stages': []}, r'smoke: the stages end at \[\]; the ends must increase'),
        ({'reuse': 0}, 'smoke: reuse is 0; it must be 1 or more'),
        ({'batch_size': 7}, 'smoke: batch_size is 7; it must be even'),
        ({'opt': 'adamx'}, "smoke: opt is 'adamx'; it must be the name of one of timm's optimizers"),
        ({'warmup_steps': 12}, 'warmup_steps is 12; it must be from 0 to 11'),
        ({'crop_scale': [0.5, 1.5]}, r'crop_scale is \(0.5, 1.5\)'),
        ({'stages': [{'until': 0.5, 'size': 64, 'free': []}]}, r'end at \[0.5\]'),
        ({'stages': [{'until': 1, 'size': 64}]}, 'smoke: stages must be'),
    ],
)
def test_wrong_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        load_distillation_recipe('smoke', changes)


def test_one_image_in_ten_is_held_out(data, photographs):
    trained = [path for part in data.parts for path in part]
    assert not set(trained) & set(data.held_out)
    readable = set(photographs.rglob('*.png'))
    assert set(trained) | set(data.held_out) == readable | {photographs / 'cats' / 'broken.jpg'}
    assert data.held_out
    assert all(is_held_out(Path('elsewhere') / path.name) for path in data.held_out)


def test_folders_have_their_shares(smoke, data, tmp_path, monkeypatch):
    from vt_hub.training.distillation import data as module

    drawn = Counter()
    read = module.read_image
    monkeypatch.setattr(module, 'read_image', lambda path: drawn.update([path.name[:4]]) or read(path))
    views = Views(smoke, data, 0, tmp_path / 'unreadable.txt')
    random.seed(0)
    for _ in range(400):
        views.draw()
    assert 0.68 < drawn['dogs'] / 400 < 0.82
    assert [part['share'] for part in data.describe()] == [0.25, 0.75]
    by_number = Folders(data.folders).describe()
    assert [part['num_images'] for part in by_number] == [len(part) for part in data.parts]
    assert by_number[0]['share'] == pytest.approx(len(data.parts[0]) / sum(map(len, data.parts)), abs=1e-4)


def test_a_file_that_cannot_be_read_is_named_once(smoke, data, tmp_path):
    views = Views(smoke, data, 0, tmp_path / 'unreadable.txt')
    random.seed(0)
    images = [views.draw() for _ in range(400)]
    assert len(images) == 400
    assert (tmp_path / 'unreadable.txt').read_text().count('broken.jpg') == 1


def test_a_view_is_a_function_of_its_number(smoke, data, tmp_path):
    views = Views(smoke, data, 0, tmp_path / 'unreadable.txt')
    first = views[3]
    views[4]
    assert torch.equal(views[3], first)
    assert not torch.equal(views[4], first)
    assert not torch.equal(Views(smoke, data, 1, tmp_path / 'unreadable.txt')[3], first)
    assert first.shape == (3, 64, 64)
    assert views[len(views) - 1].shape == (3, 96, 96)  # of the last stage


@pytest.mark.parametrize(('free', 'own'), [((), 0), (('layer2', 'layer3', 'vt'), 5), (('vt',), 7)])
def test_losses(make_run, free, own):
    run = make_run()
    run.enter(Stage(1.0, 64, free))
    assert len(run.own) == own
    images = run.to_device(next(run.loader(0, 1)))
    run.calibrate()
    run.net.eval()
    with torch.no_grad():
        losses, logits, wanted = run.losses(run.net, *run.targets(images, run.net.student))
        teacher, student = run.teacher, run.net.student
        x = (images - run.normalization[1][0]) / run.normalization[1][1]
        features = teacher.forward_head(teacher.forward_features(x), pre_logits=True)
        standard = (features - run.net.mean) / run.net.std
        x = (images - run.normalization[0][0]) / run.normalization[0][1]
        found = run.net.features(student.forward_head(student.forward_features(x), pre_logits=True))
    assert losses[0].item() == pytest.approx(F.mse_loss(found, standard).item(), rel=0.05)
    torch.testing.assert_close(wanted, teacher.fc(features), rtol=0.05, atol=0.01)
    kl = (wanted.softmax(1) * (wanted.log_softmax(1) - logits.log_softmax(1))).sum(1).mean()
    assert losses[2].item() == pytest.approx(kl.item(), abs=1e-5)


def test_what_helps_is_folded_into_the_classifier(make_run):
    run = make_run()
    run.enter(run.recipe.stages[0])
    run.calibrate()
    net = run.net.eval().double()
    x = run.to_device(next(run.loader(0, 1))).double()
    with torch.no_grad():
        features, _, _ = outputs(net.student, x)
        expected = net.classifier(net.features(features) * net.std + net.mean)
        torch.testing.assert_close(net.fold()(x), expected)


def test_only_free_parts_learn(make_run, smoke):
    recipe = load_distillation_recipe(
        'smoke',
        {'teacher_args': {'num_classes': CLASSES}, 'stages': [{'until': 1, 'size': 64, 'free': ['layer3', 'vt']}]},
    )
    run = make_run(recipe, trunk=['conv1', 'layer3'])
    before = {name: value.clone() for name, value in run.net.student.state_dict().items()}
    for _ in range(3):
        run.train_step()
    changed = {
        name.split('.')[0]
        for name, value in run.net.student.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == {'layer3', 'vt'}
    rates = {group['lr'] for group in run.optimizer.param_groups}
    assert len(rates) == 2
    assert max(rates) == pytest.approx(min(rates) * 10, rel=0.2)  # trunk_lr


def test_a_part_that_stops_learning_keeps_its_statistics(make_run):
    stages = [{'until': until, 'size': 64, 'free': free} for until, free in ((0.5, []), (1, ['vt']))]
    changes = {
        'teacher_args': {'num_classes': CLASSES},
        'steps': 2,
        'warmup_steps': 0,
        'block': 1,
        'reuse': 1,
        'stages': stages,
    }
    run = make_run(load_distillation_recipe('smoke', changes))
    run.train_step()
    before = run.net.student.bn1.running_mean.clone()
    run.train_step()
    assert torch.equal(run.net.student.bn1.running_mean, before)


def test_maps_at_more_strides_are_learned(make_run):
    changes = {'teacher_args': {'num_classes': CLASSES}, 'strides': [8, 16], 'features': 0.0, 'logits': 0.0}
    run = make_run(load_distillation_recipe('smoke', changes))
    run.enter(run.recipe.stages[-1])
    run.calibrate()
    losses, _, _ = run.losses(run.net, *run.targets(run.to_device(next(run.loader(0, 1))), run.net.student))
    losses[1].backward()
    assert [helper.conv.in_channels for helper in run.net.maps] == [64, 32, 48]  # last, stride 8, stride 16
    assert all(helper.conv.weight.grad.abs().max() > 0 for helper in run.net.maps)
    assert run.net.student.layer2[0].downsample[0].weight.grad.abs().max() > 0
    with pytest.raises(ValueError, match=r'VTResNet has maps at strides \[2, 4, 8, 16\] and a last one; none at 5'):
        make_run(load_distillation_recipe('smoke', changes | {'strides': [5]}))


def test_steps_use_each_view_of_their_block(make_run, smoke):
    run = make_run()
    run.enter(smoke.stages[0])
    images = [run.to_device(views) for views in run.loader(0, smoke.block)]
    run.mix = None
    drawn = []
    for run.step in range(smoke.block * smoke.reuse):
        drawn.append(run.draw()[1])  # the teacher's features
    features = torch.cat([run.targets(views, run.net.student)[1] for views in images])
    for part in range(0, len(drawn), smoke.block):
        used = torch.cat(drawn[part : part + smoke.block])
        assert not torch.equal(used, features)
        torch.testing.assert_close(used.sort(0).values, features.sort(0).values)
    assert len({tuple(part.flatten().tolist()) for part in drawn}) == len(drawn)  # in another order each time
    run.step += 1
    assert not torch.isin(run.draw()[1], features).all()  # of the next block


@pytest.mark.slow
def test_compiled_networks_learn_the_same(data, smoke, teacher_file, finished, tmp_path):
    distill(smoke, data, tmp_path / 'run', teacher_file, device=CPU, workers=0, compile_networks=True)
    losses = []
    for folder in (finished, tmp_path / 'run'):
        with open(folder / 'summary.csv') as file:
            losses.append([float(row['features_loss']) for row in csv.DictReader(file)])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@torch.no_grad()
@pytest.mark.parametrize('frozen', [0, 1, 3, 6, 7])
def test_parts_that_both_have_run_once(frozen):
    torch.manual_seed(0)
    teacher = timm.create_model('resnet18', num_classes=CLASSES).eval()
    student = timm.create_model('vt_resnet18', num_classes=CLASSES).eval()
    assert shared_parts(student.requires_grad_(False), teacher, 64) == ([], None)
    student.load_state_dict({k: v for k, v in teacher.state_dict().items() if k[:2] != 'fc'}, strict=False)
    names = ['conv1', 'bn1', 'act1', 'maxpool', 'layer1', 'layer2', 'layer3']
    for name in names[frozen:]:
        getattr(student, name).requires_grad_(True)
    parts, level = shared_parts(student, teacher, 64)
    assert (len(parts), level) == {0: (0, None), 1: (0, None), 3: (3, 0), 6: (6, 2), 7: (7, 3)}[frozen]
    assert parts == names[: len(parts)]
    x = torch.rand(2, 3, 64, 64)
    _, _, begun = outputs(teacher, x, level=level)
    torch.testing.assert_close(outputs(student, begun, parts)[:2], outputs(student, x)[:2])
    assert isinstance(student.layer1, torch.nn.Sequential)  # back in its place
    assert len(student.layer1) == 2
    assert shared_parts(student.half().float(), teacher, 64) == (parts, level)  # weights are published in float16


@torch.no_grad()
@pytest.mark.parametrize(
    ('shared', 'free', 'own'), [(0, 'layer3.1', 7), (3, 'layer3.1', 4), (4, 'layer2', 1), (0, 'conv1', 0)]
)
def test_frozen_parts_run_once_for_each_view(shared, free, own):
    torch.manual_seed(0)
    student = timm.create_model('vt_resnet18', num_classes=CLASSES).eval().requires_grad_(False)
    student.get_submodule(free).requires_grad_(True)
    order = ['conv1', 'bn1', 'act1', 'maxpool', 'layer1', 'layer2', 'layer3.0', 'layer3.1']
    parts = frozen_parts(student, order[:shared])
    assert parts == order[shared:][:own]
    begun = x = torch.rand(2, 3, 64, 64)
    for name in order[: shared + own]:
        begun = student.get_submodule(name)(begun)
    torch.testing.assert_close(outputs(student, begun, order[: shared + own])[:2], outputs(student, x)[:2])
    assert student.get_submodule('layer3.0').conv1.weight.shape == (256, 128, 3, 3)  # back in its place


@torch.no_grad()
@pytest.mark.parametrize(
    ('backbone', 'free', 'shared'),
    [
        ('test_efficientnet', 'blocks.3', 5),  # the stem, its norm and three stages
        ('test_convnext', 'stages.2', 4),
        ('test_vit', 'blocks.1', 0),  # it computes with tokens, so its first parts do not give a map
        ('test_resnet', 'layer3', 12),  # the stem has seven parts
    ],
)
def test_a_backbone_gives_its_maps_to_its_student(backbone, free, shared):
    torch.manual_seed(0)
    teacher = timm.create_model(backbone).eval()
    student = timm.create_model('vt_net', backbone=backbone).eval().requires_grad_(False)
    student.trunk.load_state_dict(teacher.state_dict(), strict=False)
    size = teacher.default_cfg['input_size'][-1]
    x = torch.rand(2, 3, size, size)
    for part, expected in (('', 1), (free, shared)):
        student.trunk.get_submodule(part).requires_grad_(bool(part))
        parts, level = shared_parts(student, teacher, size)
        assert len(parts) == expected
        begun = x if level is None else outputs(teacher, x, level=level)[2]
        torch.testing.assert_close(outputs(student, begun, parts)[:2], outputs(student, x)[:2])
    student.trunk.requires_grad_(True)
    assert shared_parts(student, teacher, size) == ([], None)


def test_a_backbone_of_another_image_size_is_compared_at_that_size():
    args = {'img_size': 96}  # it takes no other; timm's weights have 160
    teacher = timm.create_model('test_vit', **args).eval()
    student = timm.create_model('vt_net', backbone='test_vit', backbone_args=args).eval().requires_grad_(False)
    student.trunk.load_state_dict(teacher.state_dict(), strict=False)
    student.trunk.get_submodule('blocks.1').requires_grad_(True)
    assert shared_parts(student, teacher, 96) == ([], None)


@torch.no_grad()
def test_the_last_map_always_runs():
    """A network that only learns its classifier still gives its last map."""
    student = timm.create_model('resnet18', num_classes=CLASSES).eval().requires_grad_(False)
    parts = frozen_parts(student, [])
    assert parts == ['conv1', 'bn1', 'act1', 'maxpool', 'layer1', 'layer2', 'layer3']


def test_a_run_leaves_a_model_folder(smoke, finished):
    assert all(check.passed for check in vt_hub.verify(finished / 'model'))
    result = read_json(finished / 'result.json')
    assert result['training']['num_images'] == 2 * 2 * 16  # views of two blocks, each used three times
    assert result['training']['data'][0]['name'] == 'cats'
    assert len(result['tokens']) == 2
    with open(finished / 'summary.csv') as file:
        rows = list(csv.DictReader(file))
    assert [row['step'] for row in rows] == ['3', '6', '9', '12']
    assert {'features_loss', 'held_out_agreement', 'cosine_1', 'spread_2'} <= rows[0].keys()
    assert float(rows[1]['features_loss']) < float(rows[0]['features_loss'])
    state = torch.load(finished / 'state.pt', weights_only=True)['ema']
    shipped = load_file(finished / 'model' / 'model.safetensors')
    assert torch.equal(shipped['vt.blocks.0.mixer.k.weight'], state['module.student.vt.blocks.0.mixer.k.weight'])


def test_a_run_names_the_files_that_it_could_not_read(data, teacher_file, tmp_path):
    recipe = load_distillation_recipe('smoke', {'teacher_args': {'num_classes': CLASSES}, 'block': 1, 'reuse': 1})
    distill(recipe, data, tmp_path, teacher_file, device=CPU, workers=0)
    assert (tmp_path / 'unreadable.txt').read_text().count('broken.jpg') == 1


def test_a_run_in_pieces_is_the_same_run(smoke, data, teacher_file, finished, tmp_path):
    pieces = 0
    while distill(smoke, data, tmp_path / 'run', teacher_file, minutes=0, device=CPU, workers=0) is None:
        pieces += 1
    assert pieces == smoke.steps - 1
    whole, cut = (load_file(run / 'model' / 'model.safetensors') for run in (finished, tmp_path / 'run'))
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    logs = [(run / 'summary.csv').read_text().splitlines() for run in (finished, tmp_path / 'run')]
    assert [line.rpartition(',')[0] for line in logs[0]] == [line.rpartition(',')[0] for line in logs[1]]


def test_workers_read_the_same_views(smoke, data, teacher_file, finished, tmp_path):
    distill(smoke, data, tmp_path / 'run', teacher_file, device=CPU, workers=2)
    one, other = (load_file(run / 'model' / 'model.safetensors') for run in (finished, tmp_path / 'run'))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize('workers', [0, 2])
def test_a_signal_to_all_processes_ends_a_run_after_its_step(smoke, data, teacher_file, tmp_path, workers):
    def interrupted(steps, total, title):
        for step in steps:
            if step == 2:
                signal.raise_signal(signal.SIGTERM)
                readers = multiprocessing.active_children()
                assert len(readers) == workers
                for reader in readers:
                    reader.terminate()
                    reader.join(0.3)
                assert all(reader.is_alive() for reader in readers)  # without them the step would fail
            yield step

    assert distill(smoke, data, tmp_path, teacher_file, device=CPU, workers=workers, progress=interrupted) is None
    assert torch.load(tmp_path / 'state.pt', weights_only=True)['step'] == 3


def test_lines_of_a_run_that_was_killed_are_not_written_twice(tmp_path):
    from vt_hub.training.resumable import log

    for step in (5, 10, 15, 10):
        log(tmp_path / 'summary.csv', step, loss=step / 10)
    assert (tmp_path / 'summary.csv').read_text().splitlines() == ['step,loss', '5,0.5', '10,1.0']


def test_lite_files_of_pypi_fit_by_their_order(tmp_path):
    torch.manual_seed(0)
    net = timm.create_model('tf_efficientnet_lite0', num_classes=3)
    renamed = {f'tensor{number}': value for number, value in enumerate(net.state_dict().values())}
    torch.save(renamed, tmp_path / 'lite0.pth')
    loaded = load_trained('tf_efficientnet_lite0', tmp_path / 'lite0.pth', num_classes=3)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in net.state_dict().items())
    with pytest.raises(ValueError, match='does not fit the model'):
        load_trained('tf_efficientnet_lite1', tmp_path / 'lite0.pth', num_classes=3)


def test_a_file_may_leave_out_the_counters_of_norms(teacher_file, tmp_path):
    kept = {key: value for key, value in load_file(teacher_file).items() if 'num_batches' not in key}
    save_file(kept, tmp_path / 'teacher.safetensors')
    loaded = load_trained('test_resnet', tmp_path / 'teacher.safetensors').state_dict()
    assert len(kept) < len(loaded)
    assert all(torch.equal(loaded[key], value) for key, value in kept.items())


def test_a_trunk_gives_the_parts_that_it_has(teacher_file, tmp_path):
    torch.manual_seed(1)
    trained = timm.create_model('vt_resnet10', num_classes=3)
    trunk = {k: v for k, v in trained.state_dict().items() if k[:2] not in ('vt', 'fc') and 'num_batches' not in k}
    save_file(trunk, tmp_path / 'trunk.safetensors')
    student = timm.create_model('vt_resnet10', num_classes=5)
    assert load_start(student, tmp_path / 'trunk.safetensors') == ['conv1', 'bn1', 'layer1', 'layer2', 'layer3']
    assert torch.equal(student.layer3[0].conv1.weight, trained.layer3[0].conv1.weight)
    with pytest.raises(ValueError, match=r'(conv1|layer1) of .* does not fit the model'):
        load_start(timm.create_model('vt_resnet50'), tmp_path / 'trunk.safetensors')
    save_file({'stem.weight': torch.zeros(1)}, tmp_path / 'other.safetensors')
    with pytest.raises(ValueError, match='has no part of the student; its tensors begin with stem'):
        load_start(student, tmp_path / 'other.safetensors')


def test_imagenet_names_come_from_timm(tmp_path):
    names = class_names(timm.create_model('test_resnet', num_classes=1000))
    assert (names[0], names[281], names[134], names[517]) == ('tench', 'tabby', 'crane', 'crane')
    assert class_names(timm.create_model('test_resnet', num_classes=7)) is None
    assert class_names(vt_hub.load_model('vt_resnet10.digits')) == list('0123456789')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'teacher': 'nosuch'}, "There is no model 'nosuch' in timm"),
        ({'model': 'nosuch'}, "There is no model 'nosuch' in timm"),
        ({'model': vt_hub.pretrained_folder('vt_resnet10.digits').as_posix()}, 'has 10 classes and the teacher 12'),
        (
            {'stages': [{'until': 1, 'size': 64, 'free': ['layer9']}]},
            'has no part layer9; its parts are',
        ),
        ({'teacher': 'test_vit'}, 'does not fit the model'),
    ],
)
def test_a_run_that_cannot_start_leaves_nothing(smoke, data, teacher_file, tmp_path, changes, message):
    recipe = load_distillation_recipe('smoke', {'teacher_args': {'num_classes': CLASSES}, **changes})
    with pytest.raises((LookupError, ValueError), match=message):
        distill(recipe, data, tmp_path / 'run', teacher_file, device=CPU)
    assert not (tmp_path / 'run').exists()


def test_folders_that_cannot_be_used_are_named(photographs, tmp_path):
    with pytest.raises(FileNotFoundError, match='There is no folder'):
        Folders([tmp_path / 'nosuch'])
    with pytest.raises(FileNotFoundError, match='There are no images in'):
        Folders([tmp_path])
    (tmp_path / 'a.png').write_bytes(b'no')
    with pytest.raises(ValueError, match=r'None of 1 tested images can be read, such as .*a\.png'):
        Folders([tmp_path])
    with pytest.raises(ValueError, match=r'Each of 1 folders needs one share of 0 or more, not \[0.5, 0.5\]'):
        Folders([photographs], [0.5, 0.5])


def test_another_recipe_is_refused(smoke, data, teacher_file, finished):
    recipe = load_distillation_recipe('smoke', {'teacher_args': {'num_classes': CLASSES}, 'steps': 13})
    with pytest.raises(ValueError, match='was started with steps = 12, not 13'):
        distill(recipe, data, finished, teacher_file)
    with pytest.raises(ValueError, match='was started with data'):
        distill(smoke, Folders(data.folders), finished, teacher_file)


def test_any_network_of_timm_can_be_the_student(smoke, data, teacher_file, tmp_path):
    changes = {'model': 'test_vit', 'steps': 3, 'stages': [{'until': 1, 'size': 160, 'free': []}], 'input_size': 160}
    recipe = load_distillation_recipe('smoke', {'teacher_args': {'num_classes': CLASSES}, **changes})
    folder = distill(recipe, data, tmp_path / 'run', teacher_file, device=CPU, workers=0)
    loaded = timm.create_model(f'local-dir:{folder}', pretrained=True)
    assert torch.equal(loaded.head.weight, load_file(folder / 'model.safetensors')['head.weight'])
    assert loaded.num_classes == CLASSES


def test_command(photographs, tmp_path, monkeypatch):
    torch.manual_seed(0)
    teacher = timm.create_model('test_resnet')
    save_file(teacher.state_dict(), tmp_path / 'teacher.safetensors')
    arguments = ['distill', '--recipe', 'smoke', '--data-dir', str(photographs / 'cats'), '--share', '0.2']
    arguments += ['--data-dir', str(photographs / 'dogs'), '--share', '0.8', '--device', 'cpu', '--steps', '4']
    arguments += ['--teacher-checkpoint', str(tmp_path / 'teacher.safetensors'), '--output', str(tmp_path / 'run')]
    invoke = CliRunner().invoke
    first = invoke(cli.app, [*arguments, '--minutes', '0'])
    assert 'is not finished; the same command resumes it.' in first.stdout
    last = invoke(cli.app, arguments)
    assert last.stdout.strip() == str(tmp_path / 'run' / 'model')
    told = last.stderr.strip().splitlines()
    assert 'held out agreement' in told[0]
    assert told[-1] == f'next: vt-hub predict IMAGE --model {tmp_path / "run" / "model"}'
    assert vt_hub.load_model(tmp_path / 'run' / 'model').num_classes == 1000
    assert read_json(tmp_path / 'run' / 'model' / 'config.json')['id2label']['281'] == 'tabby'


def test_processes_share_the_views(photographs, teacher_file, tmp_path):
    """Under torchrun each process takes a part of every batch; one writes."""
    save_file(timm.create_model('test_resnet').state_dict(), tmp_path / 'teacher.safetensors')
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', '-m', 'vt_hub']
    command += ['distill', '--recipe', 'smoke', '--data-dir', str(photographs), '--device', 'cpu', '--steps', '4']
    command += ['--teacher-checkpoint', str(tmp_path / 'teacher.safetensors'), '--workers', '0']
    command += ['--output', str(tmp_path / 'run')]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / 'run' / 'model')
    with open(tmp_path / 'run' / 'summary.csv') as file:
        assert [row['step'] for row in csv.DictReader(file)] == ['3', '4']


def test_a_student_with_the_same_features_begins_at_its_teacher(teacher_file):
    """The linear layer begins at the regression of the teacher's features, which here are the student's own."""
    teacher = load_trained('test_resnet', teacher_file, num_classes=CLASSES)
    student = load_trained('test_resnet', teacher_file, num_classes=CLASSES)
    net = Distiller(student, teacher, 64).eval()
    with torch.no_grad():
        *calibration, other = (outputs(teacher, smooth_images(64)) for _ in range(5))
        net.calibrate((found[:2], found[:2]) for found in calibration)
        standard = (other[0] - net.mean) / net.std
        found = net.features(other[0])
        alive = net.std > net.std.min()
        assert standard.std(0)[alive].mean().item() == pytest.approx(1, abs=0.15)
        assert F.mse_loss(found, standard).item() < 0.2
        cells = torch.cat([maps[0] for _, maps, _ in calibration]).transpose(0, 1).flatten(1)
        torch.testing.assert_close(net.maps[0].mean.flatten(), cells.mean(1))
        alive = cells.std(1) > 0.1 * cells.std(1).mean()
        torch.testing.assert_close(net.maps[0].std.flatten()[alive], cells.std(1)[alive], rtol=1e-3, atol=1e-6)


@torch.no_grad()
def test_a_student_goes_on_with_what_this_teacher_taught_it():
    """Few views are enough then: the linear layer is in its classifier, at any temperature."""
    torch.manual_seed(0)
    teacher = timm.create_model('test_resnet', num_classes=200).eval()
    student = timm.create_model('test_vt_resnet', num_classes=200).eval()
    x = smooth_images(64)
    calibration = [(outputs(student, x)[:2], outputs(teacher, x)[:2])]
    first = Distiller(student, teacher, 64).eval()
    first.calibrate(calibration)
    logits = first.fold()(x)
    for value in student.get_classifier().parameters():
        value /= 1.7
    few = [(outputs(student, x[:8])[:2], outputs(teacher, x[:8])[:2])]
    second = Distiller(student, teacher, 64).eval()
    second.calibrate(few)
    assert torch.corrcoef(torch.stack([second.fold()(x).flatten(), logits.flatten()]))[0, 1] > 0.99
    torch.nn.init.normal_(student.get_classifier().weight)  # one that no teacher made
    third = Distiller(student, teacher, 64).eval()
    third.calibrate(calibration)
    torch.testing.assert_close(third.fold()(x), logits, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_maps_begin_at_a_regression():
    teacher, student = (timm.create_model(name).eval() for name in ('test_resnet', 'test_vt_resnet'))
    x = smooth_images(64)
    of_student, of_teacher = (outputs(net, x)[:2] for net in (student, teacher))
    net = Distiller(student, teacher, 64).eval()
    net.calibrate([(of_student, of_teacher)])
    assert net.maps[0].error(net.maps[0](of_student[1][0]), of_teacher[1][0]) < 0.9


@torch.no_grad()
def test_weights_give_networks_with_fewer_tokens(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model('test_vt_resnet', num_classes=3).eval()
    folder = vt_hub.export(model, tmp_path / 'folder')
    fewer = timm.create_model(f'local-dir:{folder}', pretrained=True, num_tokens=4).eval()
    x = torch.rand(2, 3, 64, 64)
    assert fewer.forward_features(x).shape == (2, 4, 96)
    state = {k: v[:4] if k.endswith('tokenizer.filters') else v for k, v in model.state_dict().items()}
    fewer_still = timm.create_model('test_vt_resnet', num_classes=3, num_tokens=4).eval()
    fewer_still.load_state_dict(state)
    assert torch.equal(fewer(x), fewer_still(x))
    published = timm.create_model('vt_resnet10', pretrained=True, num_tokens=2).eval()
    assert published.forward_features(x).shape == (2, 2, 256)


def test_nested_tokens_train_every_number_of_them(make_run):
    changes = {'teacher_args': {'num_classes': CLASSES}, 'nested_tokens': True, 'maps': 0.0}
    run = make_run(load_distillation_recipe('smoke', changes))
    counts, first = [], run.fewer_tokens

    def seen(net):
        fewer = first(net)
        counts.append({len(value) for value in fewer.values()})
        return fewer

    run.fewer_tokens = seen
    before = run.net.student.vt.blocks[0].tokenizer.filters.clone()
    for _ in range(12):
        run.train_step()
    assert all(len(count) == 1 for count in counts)  # the same in all modules
    used = {next(iter(count)) for count in counts}
    assert len(used) > 3
    assert used <= set(range(1, 17))
    moved = (run.net.student.vt.blocks[0].tokenizer.filters - before).norm(dim=1)
    assert (moved > 0).all()
    run.net.eval()
    assert run.fewer_tokens(run.net) == {}


def test_a_vt_net_learns_from_its_own_backbone(data, tmp_path):
    """Without a teacher; from a folder of `convert --vt`, and in one step from a recipe."""
    torch.manual_seed(0)
    backbone = timm.create_model('test_efficientnet', num_classes=CLASSES)
    save_file(backbone.state_dict(), tmp_path / 'backbone.safetensors')
    changes = {
        'model': 'vt_net',
        'model_args': {'backbone': 'test_efficientnet', 'vt_dim': 32, 'token_dim': 48},
        'teacher': None,
        'teacher_args': {'num_classes': CLASSES},
        'steps': 4,
        'block': 1,
        'reuse': 2,
        'stages': [
            {'until': 0.5, 'size': 64, 'free': ['vt', 'fc']},
            {'until': 1, 'size': 64, 'free': ['trunk.blocks.3']},
        ],
    }
    recipe = load_distillation_recipe('smoke', changes)
    folder = distill(recipe, data, tmp_path / 'run', tmp_path / 'backbone.safetensors', device=CPU, workers=0)
    model = vt_hub.load_model(folder)
    own, taught = backbone.state_dict(), model.trunk.state_dict()
    changed = {key.rpartition('.')[0] for key in taught if not torch.equal(taught[key], own[key])}
    assert changed
    assert all(name.startswith('blocks.3') for name in changed)
    again = load_distillation_recipe('smoke', {**changes, 'model': str(folder), 'model_args': {}})
    assert distill(again, data, tmp_path / 'again', tmp_path / 'backbone.safetensors', device=CPU, workers=0)


def test_only_a_vt_net_has_a_teacher_of_its_own(data, tmp_path):
    recipe = load_distillation_recipe('smoke', {'teacher': None})
    with pytest.raises(ValueError, match='test_vt_resnet is not a VT-Net, so it needs a teacher: name a timm model'):
        distill(recipe, data, tmp_path / 'run', device=CPU, workers=0)
