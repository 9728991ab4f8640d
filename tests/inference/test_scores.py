"""What scores mean, from a folder's configuration, wherever they are shown."""

import json

import pytest
import timm
import torch
from PIL import Image
from transformers import AutoModelForImageClassification, pipeline

import vt_hub
from vt_hub.demo import answers
from vt_hub.inference.batch_run import fingerprint
from vt_hub.inference.classify import predict_each
from vt_hub.inference.scores import meaning_of, scores_of, shown
from vt_hub.loading.conversion import load_source

LABELS = {1: ['size'], 3: ['dog', 'cat', 'sun']}
KINDS = [  # problem type, outputs, what the scores mean
    (None, 3, 'probability'),
    ('single_label_classification', 3, 'probability'),
    ('multi_label_classification', 3, 'presence'),
    (None, 1, 'presence'),
    ('regression', 1, 'value'),
    ('regression', 3, 'value'),
]


@pytest.fixture(params=KINDS, ids=str)
def kind(request):
    return request.param


@pytest.fixture
def folder(kind, tmp_path):
    """A model folder whose logits are 4, 4 and -4, or 12.5, for every image."""
    problem, outputs, _ = kind
    torch.manual_seed(0)
    config = vt_hub.VTResNetConfig(architecture='test_vt_resnet', id2label=LABELS[outputs], problem_type=problem)
    model = vt_hub.VTResNetForImageClassification(config)
    torch.nn.init.zeros_(model.fc.weight)
    model.fc.bias.data = torch.tensor([12.5] if outputs == 1 else [4.0, 4.0, -4.0])
    model.save_pretrained(tmp_path / 'saved')
    return vt_hub.export(load_source(str(tmp_path / 'saved'))[0], tmp_path / 'folder', license='mit')


@pytest.fixture
def image(tmp_path):
    path = tmp_path / 'image.png'
    Image.effect_noise((96, 96), 80).convert('RGB').save(path)
    return path


def test_every_door_says_the_same(kind, folder, image, run, quick):
    _, outputs, meaning = kind
    labels = LABELS[outputs]
    model = vt_hub.load_model(folder)
    assert meaning_of(model) == meaning
    expected = {
        result['label']: result['score']
        for result in pipeline('image-classification', model=str(folder))(Image.open(image), top_k=outputs)
    }
    if meaning == 'value':
        assert expected == dict(zip(labels, [12.5] if outputs == 1 else [4.0, 4.0, -4.0], strict=True))
    found = [
        next(predict_each(model, [image]))['predictions'],
        vt_hub.explain(model, Image.open(image)).predictions,
        json.loads(run('predict', image, '--model', folder, '--json')[1])['predictions'],
    ]
    for predictions in found:
        assert {p['label']: p['score'] for p in predictions} == pytest.approx(expected, abs=1e-5)
    printed = run('predict', image, '--model', folder)[1]
    assert f'{labels[0]} {shown(model, expected[labels[0]])}' in printed
    scores, _ = answers.classify(model, image)
    if meaning == 'value':
        assert all(f'{label} {expected[label]:.4g}' in scores for label in labels)
    else:
        assert scores == pytest.approx(expected, abs=1e-5)
    assert all(check.passed for check in vt_hub.verify(folder))


def test_the_kind_stays_with_the_weights(kind, folder, tmp_path):
    problem, outputs, meaning = kind
    again = vt_hub.export(vt_hub.load_model(folder), tmp_path / 'again')
    assert json.loads((again / 'config.json').read_text()).get('problem_type') == problem
    assert 'problem_type' not in json.loads((again / 'config.json').read_text())['model_args']
    for model in (
        timm.create_model(f'local-dir:{again}', pretrained=True),
        AutoModelForImageClassification.from_pretrained(again),
    ):
        assert meaning_of(model) == meaning
        assert scores_of(model, torch.zeros(1, outputs)).sum().item() == pytest.approx(
            {'probability': 1, 'presence': 0.5 * outputs, 'value': 0}[meaning]
        )


def test_a_run_with_other_scores_is_another_run():
    torch.manual_seed(0)
    model = timm.create_model('test_vt_resnet', num_classes=3)
    before = fingerprint(model)
    model.problem_type = 'multi_label_classification'
    assert fingerprint(model) != before
