"""The recipes against section 5 of the paper, through timm's own factories."""

import re
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
import yaml
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.task import LogitDistillationTask

from vt_hub.loading.source import list_models
from vt_hub.training.classification.run import RECIPES, TrainingRun, list_recipes

DEFAULTS = {  # those of timm's train script that the optimizer and the scheduler see
    'opt': 'sgd',
    'opt_kwargs': {},
    'momentum': 0.9,
    'weight_decay': 2e-5,
    'sched': 'cosine',
    'epochs': 300,
    'decay_epochs': 90,
    'decay_rate': 0.1,
    'warmup_epochs': 5,
    'warmup_lr': 1e-5,
    'warmup_prefix': False,
    'min_lr': 0.0,
    'drop': 0.0,
    'drop_path': None,
}


def settings(name):
    return yaml.safe_load((RECIPES / f'{name}.yaml').read_text())


def arguments(name):
    return SimpleNamespace(**DEFAULTS | settings(name))


def optimizer_of(name, model):
    args = arguments(name)
    return create_optimizer_v2(model, **optimizer_kwargs(cfg=args), **args.opt_kwargs)


def rates(name):
    """The learning rate of every epoch, stepped as timm's train script steps it."""
    args = arguments(name)
    optimizer = optimizer_of(name, torch.nn.Linear(1, 1))
    scheduler, epochs = create_scheduler_v2(optimizer, **scheduler_kwargs(args))
    found = []
    for epoch in range(epochs):
        (rate,) = {group['lr'] for group in optimizer.param_groups}
        found.append(rate)
        scheduler.step(epoch + 1)
    return found


def test_all_are_listed():
    assert {'basic', 'advanced', 'finetune', 'smoke'} == set(list_recipes())


@pytest.mark.parametrize('name', list_recipes())
def test_a_recipe_is_a_flat_mapping_of_options(name):
    recipe = settings(name)
    for key, value in recipe.items():
        assert re.fullmatch('[a-z_]+', key)
        assert isinstance(value, dict if key.endswith('_kwargs') else (str, int, float, bool, list)), key
    assert recipe['model'].split('.')[0] in list_models()
    assert recipe['batch_size'] > 0
    assert len(rates(name)) == recipe['epochs'] + recipe.get('warmup_prefix', False) * recipe['warmup_epochs']


@pytest.mark.parametrize('name', list_recipes())
def test_the_model_of_a_recipe_passes_the_check(name, tmp_path):
    TrainingRun(name, tmp_path, 'data').check_model()  # finetune's weights exist, too


@pytest.mark.parametrize(
    ('name', 'start'),
    [('basic', '# Section 5.1: "'), ('advanced', '# Section 5.2: "'), ('finetune', '# Fine-'), ('smoke', '# Two ')],
)
def test_a_comment_names_the_source(name, start):
    assert (RECIPES / f'{name}.yaml').read_text().startswith(start)


def test_basic_rate():
    assert rates('basic') == pytest.approx([0.1] * 30 + [0.01] * 30 + [0.001] * 30, rel=1e-12)


def test_basic_optimizer_decays_every_parameter():
    """ "A momentum of 0.9, and a weight decay of 4e-5", with nothing exempt."""
    model = timm.create_model('test_vt_resnet', num_classes=2)
    optimizer = optimizer_of('basic', model)
    assert type(optimizer) is torch.optim.SGD
    covered = [parameter for group in optimizer.param_groups for parameter in group['params']]
    assert {id(parameter) for parameter in covered} == {id(parameter) for parameter in model.parameters()}
    for group in optimizer.param_groups:
        assert (group['nesterov'], group['momentum'], group['weight_decay']) == (True, 0.9, 4e-5)


def test_basic_trains_plainly():
    recipe = settings('basic')
    assert (recipe['batch_size'], recipe['smoothing'], recipe['color_jitter']) == (256, 0.0, 0.0)
    assert not {'aa', 'mixup', 'cutmix', 'reprob', 'drop', 'drop_path', 'model_ema'} & recipe.keys()


def test_advanced_rate():
    """The paper's rule exactly: 5 epochs from 0.01 in equal steps towards 0.16, then 0.16 * 0.9875^k in the others."""
    found = rates('advanced')
    assert len(found) == 400
    assert found[:5] == pytest.approx([0.01, 0.04, 0.07, 0.1, 0.13], rel=1e-12)
    assert found[5:] == pytest.approx([0.16 * 0.9875**k for k in range(395)], rel=1e-12)
    assert max(found) == 0.16


def test_advanced_optimizer():
    optimizer = optimizer_of('advanced', timm.create_model('test_vt_resnet', num_classes=2))
    assert type(optimizer) is timm.optim.RMSpropTF
    assert {group['momentum'] for group in optimizer.param_groups} == {0.9}
    assert {group['eps'] for group in optimizer.param_groups} == {0.002}
    assert max(group['weight_decay'] for group in optimizer.param_groups) == 4e-5


def test_advanced_settings_are_the_papers():
    expected = {
        'batch_size': 2048,
        'sync_bn': True,
        'smoothing': 0.1,
        'aa': 'original',
        'drop': 0.2,
        'drop_path': 0.1,
        'model_ema': True,
        'model_ema_decay': 0.99985,
        'distill_loss_weight': 0.8,
        'task_loss_weight': 0.2,
    }
    recipe = settings('advanced')
    assert {key: recipe[key] for key in expected} == expected
    teacher = timm.get_pretrained_cfg(recipe['kd_model_name'])
    assert (teacher.architecture, teacher.num_classes) == ('fbnetv3_g', 1000)


def test_advanced_survival_and_dropout():
    """The last block survives with probability 0.9."""
    args = arguments('advanced')
    model = timm.create_model(args.model, drop_rate=args.drop, drop_path_rate=args.drop_path)
    paths = [m.drop_prob for m in model.modules() if type(m).__name__ == 'DropPath']
    assert paths == sorted(paths)
    assert paths[-1] == pytest.approx(0.1)
    torch.manual_seed(0)
    features = torch.ones(1, 16, model.num_features)
    model.fc = torch.nn.Identity()
    dropped = (model.train().forward_head(features) == 0).float().mean().item()
    assert dropped == pytest.approx(0.2, abs=0.06)


def test_advanced_loss():
    """0.8 of the distance from the teacher's distribution and 0.2 of the cross-entropy."""
    args = arguments('advanced')
    assert args.kd_distill_type == 'logit'
    torch.manual_seed(0)
    student, teacher = (timm.create_model('test_vt_resnet', num_classes=7).eval() for _ in range(2))
    task = LogitDistillationTask(
        student,
        teacher,
        torch.nn.CrossEntropyLoss(),
        loss_type=args.kd_loss_type,
        distill_loss_weight=args.distill_loss_weight,
        task_loss_weight=args.task_loss_weight,
        temperature=args.kd_temperature,
        verbose=False,
    )
    images, targets = torch.randn(3, 3, 64, 64), torch.tensor([0, 3, 6])
    with torch.no_grad():
        logits, truth = student(images), teacher(images).softmax(1)
        distance = (truth * (truth.log() - logits.log_softmax(1))).sum(1).mean()
        expected = 0.8 * distance + 0.2 * F.cross_entropy(logits, targets)
        assert task(images, targets)['loss'].item() == pytest.approx(expected.item(), rel=1e-5)
