"""Do tokens differ? The measures, where they are told, and what training makes of both arithmetics."""

import importlib
import json

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import ROOT
from timm.data import dataset_factory

import vt_hub
from vt_hub.inference.diversity import TokenDiversity, average, measure_module, warning_of
from vt_hub.publishing import export, verify

STEPS = 40


def images_with_two_squares(count):
    """Noise with a red and a green square somewhere; the class says in which quarters."""
    x, quarters = 0.3 * torch.randn(count, 3, 64, 64), torch.randint(0, 4, (count, 2))
    for image, pair in zip(x, quarters.tolist(), strict=True):
        for channel, quarter in enumerate(pair):
            top, left = 32 * (quarter // 2) + torch.randint(0, 16, ()), 32 * (quarter % 2) + torch.randint(0, 16, ())
            image[channel, top : top + 16, left : left + 16] += 2
    return x, 4 * quarters[:, 0] + quarters[:, 1]


def trained(distinct):
    torch.manual_seed(0)
    model = timm.create_model('test_vt_resnet', num_classes=16, distinct_tokens=distinct)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(STEPS):
        x, labels = images_with_two_squares(32)
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def test_training_keeps_tokens_apart_and_the_papers_arithmetic_does_not():
    torch.manual_seed(1)
    x, _ = images_with_two_squares(32)
    apart, together = (vt_hub.token_diversity(trained(distinct), x) for distinct in (True, False))
    assert len(apart) == len(together) == 2
    assert all(module.collapsed for module in together)
    for ours, papers in zip(apart, together, strict=True):
        assert ours.cosine < 0.9 < 0.99 < papers.cosine
        assert ours.spread > max(0.05, 10 * papers.spread)


def test_measures_of_known_tokens():
    one_place = torch.zeros(2, 4, 9)
    one_place[..., 3] = 1
    same = measure_module(torch.ones(2, 4, 6), one_place)
    assert (same.cosine, same.spread, same.entropy) == pytest.approx((1, 0, 0), abs=1e-6)
    apart = measure_module(torch.eye(4).expand(2, -1, -1), torch.eye(4, 9).expand(2, -1, -1))
    # |e_l - mean|^2 = (3/4)^2 + 3 (1/4)^2 = 3/4
    assert (apart.cosine, apart.spread, apart.entropy) == pytest.approx((0, 0.75**0.5, 0), abs=1e-6)
    uniform = measure_module(torch.eye(4)[None], torch.full((1, 4, 9), 1 / 9))
    assert (uniform.cosine, uniform.entropy) == pytest.approx((1, 1))
    assert same.collapsed
    assert uniform.collapsed
    assert not apart.collapsed


def test_one_token_is_not_a_collapse():
    assert not measure_module(torch.ones(2, 1, 6), torch.full((2, 1, 9), 1 / 9)).collapsed


def test_average_is_by_module():
    found = average([[TokenDiversity(0.2, 0.4, 0.6, 8)], [TokenDiversity(0.4, 0.8, 0.2, 8)]])
    assert [(m.cosine, m.spread, m.entropy, m.num_tokens) for m in found] == [pytest.approx((0.3, 0.6, 0.4, 8))]


def test_every_module_and_every_level_is_measured():
    x = torch.randn(2, 3, 64, 64)
    assert len(vt_hub.token_diversity(timm.create_model('test_vt_resnet').eval(), x)) == 2
    levels = vt_hub.token_diversity(timm.create_model('test_vt_fpn').eval(), x)
    assert [level.num_tokens for level in levels] == [4] * 4
    assert vt_hub.token_diversity(timm.create_model('test_vt_fpn', decoder='fpn').eval(), x) == []


def test_the_warning_names_the_modules():
    apart, alike = TokenDiversity(0.3, 0.4, 0.5, 16), TokenDiversity(0.999, 0.001, 1.0, 16)
    assert warning_of([apart, apart]) == ''
    assert warning_of([apart, alike]).startswith('the tokens are nearly the same in module 2 (cosine 0.999')
    assert warning_of([alike, alike]).startswith('the tokens are nearly the same in modules 1 (')


@pytest.mark.parametrize('distinct', [False, True])
def test_verify_warns_of_tokens_that_are_one(distinct, tmp_path, quick):
    torch.manual_seed(0)
    model = timm.create_model('test_vt_resnet', num_classes=3, distinct_tokens=distinct).eval()
    export(model, tmp_path / 'new', code=False)
    check = next(check for check in verify(tmp_path / 'new') if check.name == 'tokens')
    assert check.passed
    assert check.warning is not distinct
    assert check.verdict == ('ok' if distinct else 'warning')


def test_explain_says_it(run):
    code, out, _ = run('explain', '--model', 'vt_resnet10', str(ROOT / 'samples' / 'digit_7.png'), '--json')
    assert code == 0
    found = json.loads(out)['diversity']
    assert [set(module) for module in found] == [{'cosine', 'spread', 'entropy', 'num_tokens'}] * 2
    assert found[0]['cosine'] < 0.9  # these weights keep their tokens apart


def test_training_logs_it_at_every_evaluation(caplog, monkeypatch):
    """The hook that timm's train script is given: once for each module and evaluation, whatever the batches."""
    model, x = timm.create_model('test_vt_resnet'), torch.randn(2, 3, 64, 64)
    monkeypatch.setattr(dataset_factory, 'ImageDataset', dataset_factory.ImageDataset)  # which the import replaces
    hook = importlib.import_module('vt_hub.training.classification.timm_plugin').MONITOR
    try:
        with caplog.at_level('INFO', logger='train'), torch.no_grad():
            for training in (True, False, False, True, False):
                model.train(training)(x)
    finally:
        hook.remove()
    told = [record.message.split(':')[0] for record in caplog.records if 'cosine' in record.message]
    assert told == ['Tokens of module 1', 'Tokens of module 2'] * 2


def test_cards_say_it_and_call_a_collapse_a_limit(tmp_path):
    result = {
        'task': 'image-classification',
        'dataset': {'name': 'd', 'type': 'd', 'split': 'val', 'num_images': 8},
        'metrics': {'top1': 50.0},
    }
    alike = TokenDiversity(0.999, 0.001, 1.0, 16).to_dict()
    model = timm.create_model('test_vt_resnet', num_classes=3)
    export(model, tmp_path / 'm', metrics=[{**result, 'tokens': [alike]}], code=False)
    card = (tmp_path / 'm' / 'README.md').read_text()
    assert '| 1 | 0.999 | 0.001 | 1.0 |' in card
    assert 'Limit: the tokens are nearly the same in module 1' in card


def older_folder(folder):
    """As the package wrote folders before it knew `distinct_tokens`."""
    model = timm.create_model('test_vt_resnet', num_classes=3, distinct_tokens=False).eval()
    export(model, folder, code=False)
    config = json.loads((folder / 'config.json').read_text())
    assert config['model_args'].pop('distinct_tokens') is False
    (folder / 'config.json').write_text(json.dumps(config))
    return model


@torch.no_grad()
def test_folders_from_before_keep_the_papers_arithmetic(tmp_path):
    model, x = older_folder(tmp_path / 'old'), torch.randn(2, 3, 64, 64)
    expected = model(x)
    assert torch.equal(vt_hub.load_model(tmp_path / 'old')(x), expected)
    loaded = timm.create_model(f'local-dir:{tmp_path / "old"}', pretrained=True).eval()
    assert torch.equal(loaded(x), expected)
    assert torch.equal(
        vt_hub.VTResNetForImageClassification.from_pretrained(tmp_path / 'old').eval()(x).logits, expected
    )


def test_published_weights_say_which_arithmetic_is_theirs():
    for name in vt_hub.list_pretrained():
        config = json.loads((vt_hub.pretrained_folder(name) / 'config.json').read_text())
        assert vt_hub.load_model(name).distinct_tokens is config['model_args']['distinct_tokens']


@torch.no_grad()
@pytest.mark.parametrize('distinct', [False, True])
def test_both_arithmetics_are_kept_by_an_export(distinct, tmp_path):
    model, x = timm.create_model('test_vt_resnet', distinct_tokens=distinct).eval(), torch.randn(2, 3, 64, 64)
    export(model, tmp_path / 'm', code=False)
    again = vt_hub.load_model(tmp_path / 'm')
    assert again.distinct_tokens is distinct
    assert torch.equal(again(x), model(x))
