import argparse
import runpy
import sys

import pytest
import timm
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file

import vt_hub
from vt_hub.loading import conversion
from vt_hub.loading.checkpoints import load_folder


def tiny(seed=0, **kwargs):
    torch.manual_seed(seed)
    return timm.create_model('test_vt_resnet', **{'num_classes': 3, **kwargs}).eval()


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint as timm's train script writes it: raw and averaged weights, and its arguments."""
    path = tmp_path / 'model_best.pth.tar'
    args = argparse.Namespace(
        img_size=None, input_size=(3, 80, 80), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), interpolation='bilinear',
        crop_pct=1.0, model_kwargs={'num_tokens': 8},
    )  # fmt: skip
    torch.save(
        {
            'epoch': 7,
            'arch': 'test_vt_resnet',
            'state_dict': {f'module.{k}': v for k, v in tiny(1, num_tokens=8).state_dict().items()},
            'state_dict_ema': tiny(2, num_tokens=8).state_dict(),
            'optimizer': {'state': {}, 'param_groups': [{'lr': 0.1}]},
            'version': 2,
            'metric': 77.5,
            'args': args,
        },
        path,
    )
    return path


@pytest.mark.parametrize(('weights', 'seed'), [('ema', 2), ('raw', 1)])
def test_training_checkpoint_to_folder(tmp_path, run, checkpoint, weights, seed):
    classes = tmp_path / 'train'
    for name in ('rose', 'daisy', 'tulip'):
        (classes / name).mkdir(parents=True)
        (classes / name / '1.jpg').touch()
    (classes / '.ipynb_checkpoints').mkdir()  # holds no images, so timm counts no class
    folder = tmp_path / 'flowers'
    code, out, _ = run('export', checkpoint, folder, '--weights', weights, '--labels', classes)
    assert code == 0
    assert f'{weights} weights' in out
    model = load_folder(folder)
    expected = tiny(seed, num_tokens=8).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    cfg = model.pretrained_cfg
    assert cfg['input_size'] == (3, 80, 80) or cfg['input_size'] == [3, 80, 80]
    assert (cfg['crop_pct'], cfg['interpolation'], list(cfg['std'])) == (1.0, 'bilinear', [0.25] * 3)
    assert list(cfg['label_names']) == ['daisy', 'rose', 'tulip']  # as ImageFolder numbers them
    assert f'These are the {weights} weights of epoch 7' in (folder / 'README.md').read_text()


def test_labels_from_a_file(tmp_path, run, checkpoint):
    (tmp_path / 'labels.txt').write_text('rose \n\ndaisy\ntulip\n', 'utf-8-sig')  # as Notepad saves it
    assert run('export', checkpoint, tmp_path / 'm', '--labels', tmp_path / 'labels.txt')[0] == 0
    assert list(load_folder(tmp_path / 'm').pretrained_cfg['label_names']) == ['rose', 'daisy', 'tulip']


def test_a_checkpoint_of_published_weights_keeps_their_preprocessing(tmp_path, run, checkpoint):
    content = torch.load(checkpoint, weights_only=False)
    content['arch'] = 'vt_resnet10.digits'  # as after a fine-tuning of published weights
    content['state_dict_ema'] = timm.create_model('vt_resnet10', num_classes=2).state_dict()
    content['args'] = argparse.Namespace(model_kwargs={'num_classes': 2})
    torch.save(content, checkpoint)
    assert run('export', checkpoint, tmp_path / 'folder')[0] == 0
    model = load_folder(tmp_path / 'folder')
    assert all(torch.equal(v, content['state_dict_ema'][k]) for k, v in model.state_dict().items())
    assert list(model.pretrained_cfg['mean']) == [0.5] * 3


def test_a_start_from_published_weights_keeps_their_preprocessing(tmp_path):
    state_dict = timm.create_model('vt_resnet10', num_classes=2).state_dict()
    args = argparse.Namespace(pretrained=True)
    torch.save({'arch': 'vt_resnet10', 'state_dict': state_dict, 'args': args}, tmp_path / 'c.pth.tar')
    cfg = conversion.load_checkpoint(tmp_path / 'c.pth.tar')[0].pretrained_cfg
    assert (tuple(cfg['input_size']), cfg['crop_pct'], list(cfg['mean'])) == ((3, 64, 64), 1.0, [0.5] * 3)


@pytest.mark.parametrize('distinct', [True, False])
@pytest.mark.parametrize('tokenizer', ['filter', 'pooling', 'cluster'])
def test_bare_weights_say_whether_tokens_are_distinct(tokenizer, distinct):
    model = timm.create_model('test_vt_resnet', tokenizer=tokenizer, distinct_tokens=distinct)
    assert conversion.has_distinct_tokens(model.state_dict()) == distinct


def test_transformers_checkpoint_to_folder(tmp_path, run):
    config = vt_hub.VTResNetConfig(architecture='test_vt_resnet', id2label={0: 'no', 1: 'yes'})
    model = vt_hub.VTResNetForImageClassification(config).eval()
    model.save_pretrained(tmp_path / 'checkpoint')
    assert run('export', tmp_path / 'checkpoint', tmp_path / 'folder', '--dtype', 'fp32')[0] == 0
    x = torch.randn(1, 3, 64, 64)
    loaded = load_folder(tmp_path / 'folder')
    assert torch.equal(loaded(x), model(x).logits)
    assert list(loaded.pretrained_cfg['label_names']) == ['no', 'yes']


def test_folder_to_a_timm_file(tmp_path, run):
    folder = vt_hub.export(tiny(), tmp_path / 'm', dtype='fp16', code=False)
    assert run('export', folder, tmp_path / 'plain.safetensors')[0] == 0
    model = timm.create_model('test_vt_resnet', num_classes=3, checkpoint_path=str(tmp_path / 'plain.safetensors'))
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in load_folder(folder).state_dict().items())
    assert all(v.dtype != torch.float16 for v in load_file(tmp_path / 'plain.safetensors').values())
    code, _, err = run('export', folder, tmp_path / 'plain.safetensors')
    assert code == 1
    assert 'exists already' in err
    assert run('export', folder, tmp_path / 'half.safetensors', '--dtype', 'fp16')[0] == 0
    halves = load_file(tmp_path / 'half.safetensors')
    assert {v.dtype for k, v in halves.items() if k.endswith('weight')} == {torch.float16}
    assert halves.keys() == model.state_dict().keys()


def test_bare_weights_of_a_vt_resnet_need_export(tmp_path, run):
    save_file(tiny().state_dict(), tmp_path / 'plain.safetensors')
    code, _, err = run('convert', tmp_path / 'plain.safetensors', tmp_path / 'out')
    assert code == 1
    assert 'is a VT-ResNet already; `vt-hub export --model` makes a folder of it' in err
    assert run('export', tmp_path / 'plain.safetensors', tmp_path / 'out', '--model', 'test_vt_resnet')[0] == 0
    for source in (tmp_path / 'out', 'vt_resnet10.digits'):
        code, _, err = run('convert', source, tmp_path / 'start')
        assert code == 1
        assert 'is a VT-ResNet already; `vt-hub export` makes a folder of it' in err


def test_a_card_says_which_published_weights_these_are(tmp_path, run):
    assert run('export', 'vt_resnet10', tmp_path / 'copy', '--dtype', 'fp16')[0] == 0
    assert 'These are the weights of vt_resnet10.digits.' in (tmp_path / 'copy' / 'README.md').read_text()


def test_a_training_checkpoint_of_a_resnet_is_a_start(tmp_path, run):
    torch.save({'arch': 'resnet18', 'state_dict': timm.create_model('resnet18').state_dict()}, tmp_path / 'r.pth.tar')
    code, out, _ = run('convert', tmp_path / 'r.pth.tar', tmp_path / 'start', '--num-classes', 4)
    assert code == 0
    assert 'copied 90 tensors' in out
    assert load_folder(tmp_path / 'start').num_classes == 4


@pytest.mark.parametrize('depth', [18, 34, 50, 101])
def test_warm_start_takes_the_trunk(tmp_path, depth):
    resnet = timm.create_model(f'resnet{depth}').eval()
    path = tmp_path / 'resnet.safetensors'
    save_file(resnet.state_dict(), path)
    start = conversion.warm_start(str(path), num_classes=5)
    assert start.model.pretrained_cfg['architecture'] == f'vt_resnet{depth}'
    assert start.model.num_classes == 5
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = resnet.forward_intermediates(x, indices=[3], intermediates_only=True)[0]
        assert torch.equal(start.model.forward_trunk(x), expected)
    assert all(name.startswith(('vt.', 'fc.')) for name in start.new)
    assert all(name.startswith(('layer4.', 'fc.')) for name in start.unused)
    assert len(start.copied) + len(start.new) == len(start.model.state_dict())


@pytest.fixture
def offline(monkeypatch):
    """timm without downloads, which are its own."""
    create = timm.create_model

    def random(name, pretrained=False, **kwargs):
        return create(name, pretrained=pretrained and name.startswith('vt_'), **kwargs)

    monkeypatch.setattr(timm, 'create_model', random)


def test_warm_start_from_the_registry_says_what_is_untrained(tmp_path, offline, run):
    code, out, _ = run('convert', 'resnet18.a1_in1k', tmp_path / 'start', '--num-classes', 4)
    assert code == 0
    assert 'copied 90 tensors (2.79 M values)' in out
    card = (tmp_path / 'start' / 'README.md').read_text()
    assert '**The VT stage and the classifier are untrained**' in card
    model = load_folder(tmp_path / 'start')
    assert model.num_classes == 4
    assert model.pretrained_cfg['crop_pct'] == timm.get_pretrained_cfg('resnet18.a1_in1k').crop_pct


def script(name):
    return runpy.run_path(str(ROOT / 'conversion' / f'{name}.py'))


def test_the_script_that_starts_all_of_them(tmp_path, offline, monkeypatch, capsys):
    main = script('warm_start_all')['main']
    assert [name.split('.')[0] for name in main.__globals__['RESNETS']] == [f'resnet{n}' for n in (18, 34, 50, 101)]
    monkeypatch.setitem(main.__globals__, 'RESNETS', ('resnet18.a1_in1k',))
    monkeypatch.setattr(sys, 'argv', ['warm_start_all.py', str(tmp_path)])
    main()
    assert 'copied 90 tensors' in capsys.readouterr().out
    assert load_folder(tmp_path / 'vt_resnet18').num_classes == 1000


def test_the_script_that_publishes_goes_on_after_a_failure(monkeypatch, capsys):
    pushed = []

    def push(folder, tag, dry_run):
        pushed.append((folder.name, tag, dry_run))
        if 'digits' in folder.name:
            raise OSError('the Hub is down')
        return folder.name

    monkeypatch.setattr(vt_hub, 'push', push)
    monkeypatch.setattr(sys, 'argv', ['publish_pretrained.py', '--tag', 'v2', '--dry-run'])
    assert script('publish_pretrained')['main']() == 1
    assert pushed == [(name, 'v2', True) for name in vt_hub.list_pretrained()]
    out, err = capsys.readouterr()
    assert out.splitlines() == [name for name in vt_hub.list_pretrained() if 'digits' not in name]
    assert err == 'error: the Hub is down\n'
