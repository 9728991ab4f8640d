import json
import shutil

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

import vt_hub
from vt_hub.loading.source import Source
from vt_hub.publishing import verify
from vt_hub.publishing.card import lineage, retarget
from vt_hub.publishing.model_folder import write_card, write_checksums

LABELS = ['tulip', 'rose', 'daisy']
RESULT = {
    'task': 'image-classification',
    'dataset': {'name': 'Flowers', 'type': 'flowers', 'split': 'test', 'num_images': 120},
    'metrics': {'top1': 91.25, 'top5': 100.0},
}


def tiny(**kwargs):
    torch.manual_seed(0)
    return timm.create_model('test_vt_resnet', **{'num_classes': 3, **kwargs}).eval()


@pytest.fixture
def folder(tmp_path):
    return vt_hub.export(tiny(), tmp_path / 'flowers', labels=LABELS, metrics=[RESULT])


def failures(folder):
    return {check.name: check.detail for check in verify(folder) if not check.passed}


def test_an_exported_folder_passes_in_every_loader(folder, run):
    code, out, _ = run('verify', folder, '--json')
    found = {entry['name']: entry['passed'] for entry in json.loads(out)}
    assert list(found) == [
        'checksums', 'card', 'timm local-dir', 'fixture', 'tokens', 'transformers', 'pipeline', 'code', 'remote code',
        'torch.hub',
    ]  # fmt: skip
    assert all(found.values())
    assert code == 0


@pytest.mark.parametrize('name', vt_hub.list_pretrained())
def test_embedded_folders_pass(name):
    assert not failures(name)


@pytest.mark.parametrize('dtype', ['fp16', 'bf16'])
def test_half_precision_keeps_batchnorm_statistics(tmp_path, dtype, quick):
    folder = vt_hub.export(tiny(), tmp_path / 'half', dtype=dtype)
    stored = load_file(folder / 'model.safetensors')
    half = {'fp16': torch.float16, 'bf16': torch.bfloat16}[dtype]
    for name, value in stored.items():
        if value.is_floating_point():
            assert value.dtype == (torch.float32 if 'running_' in name else half), name
    assert not failures(folder)


def test_a_grey_model(tmp_path, quick):
    assert not failures(vt_hub.export(tiny(in_chans=1), tmp_path / 'grey'))


def test_a_model_of_no_images(tmp_path, quick):
    """Four channels come from no image file, so that there is nothing to ask the pipeline."""
    found = verify(vt_hub.export(tiny(in_chans=4), tmp_path / 'radar'))
    assert all(check.passed for check in found)
    assert 'pipeline' not in {check.name for check in found}


def test_logits_in_another_memory_format(tmp_path):
    """As after a ConvNeXt; safetensors writes none that are not contiguous."""
    model = timm.create_model('test_vt_fpn', backbone='test_convnext')
    assert not failures(vt_hub.export(model.eval(), tmp_path / 'model'))


def change(path, function):
    path.write_bytes(function(path.read_bytes()))


def test_damage_is_found(folder, quick):
    change(folder / 'fixture.safetensors', lambda content: content[:-1] + b'\x01')
    found = failures(folder)
    assert 'fixture.safetensors is damaged' in found['checksums']


def test_other_weights_under_right_sums_are_found(folder, quick):
    weights = load_file(folder / 'model.safetensors')
    weights['fc.bias'] += 1
    save_file(weights, folder / 'model.safetensors', metadata={'format': 'pt'})
    write_checksums(folder)
    assert 'differ from the stored ones' in failures(folder)['fixture']


def test_remote_code_that_computes_something_else_is_found(folder):
    change(folder / 'vt_stage.py', lambda text: text.replace(b'x = x.mean(dim=1)', b'x = x.amax(dim=1)'))
    change(folder / 'vt_stage.py', lambda text: text.replace(b'else x.mean(dim=1)', b'else x.amax(dim=1)'))
    write_checksums(folder)
    assert list(failures(folder)) == ['code']  # not run unasked
    found = {check.name: check.detail for check in verify(folder, trust_remote_code=True) if not check.passed}
    assert 'differ from those through timm' in found['remote code']


def test_trusted_code_may_round_differently(folder):
    """As that of another version does, which sums in another order."""
    change(folder / 'vt_stage.py', lambda text: text.replace(b'else x.mean(dim=1)', b'else x.mean(dim=1) * (1 + 1e-6)'))
    write_checksums(folder)
    found = {check.name: check for check in verify(folder, trust_remote_code=True)}
    assert all(check.passed for check in found.values())
    assert found['remote code'].detail.endswith('of timm')
    assert found['code'].detail == "not this package's, trusted"


def test_a_fixture_of_nan_is_found(folder, quick):
    stored = load_file(folder / 'fixture.safetensors')
    stored['logits'].fill_(float('nan'))
    save_file(stored, folder / 'fixture.safetensors')
    write_checksums(folder)
    assert 'differ from the stored ones' in failures(folder)['fixture']


def test_files_beside_the_sums_are_found(folder, quick):
    (folder / 'optimizer.pt').write_bytes(b'')
    assert failures(folder) == {'checksums': 'SHA256SUMS does not list optimizer.pt'}
    (folder / 'optimizer.pt').unlink()
    (folder / 'SHA256SUMS').write_text('')
    assert 'does not list' in failures(folder)['checksums']


def test_what_python_leaves_is_no_part_of_the_folder(folder, quick):
    (folder / '__pycache__').mkdir()
    (folder / '__pycache__' / 'hubconf.pyc').write_bytes(b'x')
    assert not failures(folder)
    assert 'pycache' not in vt_hub.push(folder, 'v1.0.0', repo_id='a/b', dry_run=True)


def test_a_dry_run_finds_what_the_hub_would_refuse(folder, quick):
    with pytest.raises(ValueError, match='bad name'):
        vt_hub.push(folder, 'v1.0.0', repo_id='bad name', dry_run=True)
    with pytest.raises(ValueError, match='Name a tag for the version'):
        vt_hub.push(folder, '', repo_id='a/b', dry_run=True)


def test_only_the_snippets_of_a_card_follow_the_repository():
    card = "Beside timm.create_model('resnet50').\n\n## Use it\n\nmodel = timm.create_model('x', pretrained=True)\n"
    assert retarget(card, 'me/x') == card.replace("'x'", "'hf-hub:me/x'")


def test_verify_from_within_the_folder(folder, quick, monkeypatch):
    monkeypatch.chdir(folder)
    assert not failures('.')


def test_a_card_without_the_licence_is_found(folder, quick):
    change(folder / 'README.md', lambda text: text.replace(b'license: apache-2.0', b'license: mit'))
    assert 'licence mit' in failures(folder)['card']


def test_labels_in_another_order_are_found(folder, quick):
    config = json.loads((folder / 'config.json').read_text())
    config['id2label'] = {str(i): name for i, name in enumerate(LABELS[1:] + LABELS[:1])}
    (folder / 'config.json').write_text(json.dumps(config))
    write_checksums(folder)
    assert 'timm' in failures(folder)['pipeline']


def test_verify_exits_1_on_a_difference(folder, run, quick):
    (folder / 'SHA256SUMS').unlink()
    code, out, _ = run('verify', folder)
    assert code == 1
    assert 'FAILED' in out


def test_a_folder_with_the_name_of_published_weights_is_the_one_that_is_checked(tmp_path, monkeypatch, run):
    shutil.copytree(vt_hub.pretrained_folder('vt_resnet10'), tmp_path / 'vt_resnet10.digits')
    (tmp_path / 'vt_resnet10.digits' / 'config.json').unlink()
    monkeypatch.chdir(tmp_path)
    assert 'config.json is missing' in failures('vt_resnet10.digits')['checksums']
    code, _, err = run('push', 'vt_resnet10.digits', '--repo', 'me/x', '--dry-run')
    assert code == 1
    assert 'config.json is missing' in err


def test_verify_names_a_missing_folder(tmp_path):
    with pytest.raises(LookupError, match=r'There is no folder .*nothing, and no weights of that name; there are vt_'):
        verify(tmp_path / 'nothing')


def test_card(folder):
    card = ModelCard.load(folder / 'README.md')
    assert card.data.license == 'apache-2.0'
    assert {(r.metric_name, r.metric_value) for r in card.data.eval_results} == {
        ('top-1 accuracy (%)', 91.25),
        ('top-5 accuracy (%)', 100.0),
    }
    assert card.data.library_name == 'transformers'  # whose snippet on the Hub works, with custom_code
    assert 'custom_code' in card.data.tags
    for text in (
        'This model names an image as one of 3 classes, whatever it shows: tulip, rose, daisy.',
        '| Flowers | test | 120 | 91.25 | 100.0 |',
        'local-dir:flowers',
        'wu2020visual',
    ):
        assert text in card.text


def test_a_card_has_what_a_training_started_from(tmp_path):
    sentence, metadata = lineage(Source.parse('vt_resnet10'))
    assert sentence == 'The training started from the weights of vt_resnet10.digits.'
    assert metadata == {'base_model': 'vt-hub/vt_resnet10.digits', 'base_model_relation': 'finetune'}
    assert lineage(Source.parse('hf-hub:me/flowers'))[1]['base_model'] == 'me/flowers'
    assert lineage(Source.parse('local-dir:some/folder'))[1] == {}
    folder = vt_hub.export(tiny(), tmp_path / 'new', license='mit', origin=sentence, metadata=metadata, code=False)
    card = ModelCard.load(folder / 'README.md')
    assert sentence in card.text
    assert (card.data.base_model, card.data.base_model_relation) == ('vt-hub/vt_resnet10.digits', 'finetune')


def test_a_card_has_a_picture(tmp_path, quick):
    Image.new('RGB', (30, 20)).save(tmp_path / 'drawn.webp')
    folder = vt_hub.export(tiny(), tmp_path / 'new', license='mit', picture=tmp_path / 'drawn.webp')
    assert '(explanation.webp)' in (folder / 'README.md').read_text()
    assert not failures(folder)
    write_card(folder)
    assert '(explanation.webp)' in (folder / 'README.md').read_text()


def test_card_command(folder, tmp_path, run, quick):
    (tmp_path / 'r.json').write_text(json.dumps({**RESULT, 'metrics': {'top1': 12.5}}))
    (tmp_path / 'about.md').write_text('Read by {{ results[0].dataset.num_images }} bees.')
    args = ['card', folder, '--result', tmp_path / 'r.json', '--prose', tmp_path / 'about.md', '--repo', 'me/flowers']
    assert run(*args)[0] == 0
    text = (folder / 'README.md').read_text()
    assert 'Read by 120 bees.' in text
    assert "'hf-hub:me/flowers'" in text
    assert "model='me/flowers'" in text
    assert '12.5' in text
    assert not failures(folder)


def test_a_card_is_not_lost(folder, run):
    before = (folder / 'README.md').read_text()
    for args, code in ((['card', folder], 2), (['card', folder, '--repo', 'me/flowers'], 0)):
        assert run(*args)[0] == code
        assert '91.25' in (folder / 'README.md').read_text()
    after = (folder / 'README.md').read_text()
    assert after == before.replace('local-dir:flowers', 'hf-hub:me/flowers').replace("='flowers'", "='me/flowers'")


def test_the_licence_stays_with_the_weights(tmp_path):
    first = vt_hub.export(tiny(), tmp_path / 'first', license='cc-by-nc-4.0', code=False)
    second = vt_hub.export(vt_hub.load_model(str(first)), tmp_path / 'second', code=False)
    assert ModelCard.load(second / 'README.md').data.license == 'cc-by-nc-4.0'


def test_two_classes_may_have_one_name(tmp_path, quick):
    """ImageNet has two cranes: classes are told apart by their numbers."""
    torch.manual_seed(0)
    folder = vt_hub.export(tiny(), tmp_path / 'birds', labels=['crane', 'stork', 'crane'])
    assert vt_hub.load_model(folder).pretrained_cfg['label_names'] == ['crane', 'stork', 'crane']
    config = AutoConfig.from_pretrained(folder)
    assert config.id2label == {0: 'crane', 1: 'stork', 2: 'crane'}
    assert all(check.passed for check in vt_hub.verify(folder))


def test_export_refuses_and_leaves_nothing(tmp_path):
    (tmp_path / 'there').mkdir()
    with pytest.raises(FileExistsError, match='exists already'):
        vt_hub.export(tiny(), tmp_path / 'there')
    with pytest.raises(ValueError, match='has 3 classes, but 2 labels'):
        vt_hub.export(tiny(), tmp_path / 'new', labels=['a', 'b'])
    broken = tiny()
    broken.fc.weight.data[0, 0] = float('inf')
    with pytest.raises(ValueError, match=r'fc\.weight has values that are not finite'):
        vt_hub.export(broken, tmp_path / 'new')
    with pytest.raises(ValueError, match='Only a VT-ResNet, VT-Net or VT-FPN with a classifier'):
        vt_hub.export(tiny(num_classes=0), tmp_path / 'new')
    with pytest.raises(ValueError, match='not made by timm'):
        vt_hub.export(vt_hub.VTResNet(), tmp_path / 'new')
    with pytest.raises(ValueError, match=r'as after fuse\(\); export the unchanged model'):
        vt_hub.export(tiny().eval().fuse(), tmp_path / 'new')
    with pytest.raises(Exception, match='undefined'):
        vt_hub.export(tiny(), tmp_path / 'new', prose='{{ nothing_of_that_name }}')
    assert [path.name for path in tmp_path.iterdir()] == ['there']


def test_timm_and_transformers_models_export_alike(tmp_path):
    first = vt_hub.export(tiny(), tmp_path / 'a' / 'm', labels=LABELS)
    model = vt_hub.VTResNetForImageClassification.from_pretrained(first)
    second = vt_hub.export(model, tmp_path / 'b' / 'm')
    for path in first.iterdir():
        assert (second / path.name).read_bytes() == path.read_bytes(), path.name
