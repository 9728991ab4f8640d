"""Preprocessing that was saved beside weights, as transformers' Trainer does, is that of every loader."""

import json

import pytest
import timm
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

import vt_hub
from vt_hub.inference.classify import predict_each
from vt_hub.inference.preprocessing import eval_transform


@pytest.fixture
def saved(tmp_path):
    """Weights with a processor of another size and normalisation beside them."""
    folder = str(vt_hub.pretrained_folder('vt_resnet10'))
    AutoModelForImageClassification.from_pretrained(folder).save_pretrained(tmp_path / 'saved')
    changes = {'size': {'height': 96, 'width': 96}, 'image_mean': [0.1, 0.2, 0.3], 'image_std': [1.0, 1.0, 1.0]}
    processor = AutoImageProcessor.from_pretrained(folder, resample=2, **changes)
    processor.save_pretrained(tmp_path / 'saved')
    return tmp_path / 'saved'


def test_every_loader_uses_it_and_the_export_has_it(saved, samples, tmp_path, quick):
    path = samples / 'digit_7.png'
    image = Image.open(path).convert('RGB')
    expected = AutoImageProcessor.from_pretrained(saved)(image)['pixel_values'][0]
    exported = vt_hub.export(vt_hub.load_model(saved), tmp_path / 'exported')
    assert not (exported / 'preprocessor_config.json').exists()
    score = pipeline('image-classification', model=str(saved))(image)[0]['score']
    for model in (
        vt_hub.load_model(saved),
        timm.create_model(f'local-dir:{saved}', pretrained=True).eval(),
        vt_hub.load_model(exported),
    ):
        assert torch.equal(eval_transform(model)(image), expected)
        assert next(predict_each(model, [path]))['predictions'][0]['score'] == pytest.approx(score, abs=1e-5)
    cfg = json.loads((exported / 'config.json').read_text())['pretrained_cfg']
    assert (cfg['input_size'], cfg['interpolation'], cfg['mean']) == ([3, 96, 96], 'bilinear', [0.1, 0.2, 0.3])
    assert all(check.passed for check in vt_hub.verify(exported))


def test_what_the_caller_says_wins(saved):
    model = timm.create_model(f'local-dir:{saved}', pretrained_cfg_overlay={'mean': (0.5, 0.5, 0.5)})
    assert model.pretrained_cfg['mean'] == (0.5, 0.5, 0.5)
    assert tuple(model.pretrained_cfg['input_size']) == (3, 96, 96)


def test_a_processor_of_another_kind_says_nothing_of_ours(saved):
    (saved / 'preprocessor_config.json').write_text('{"image_processor_type": "ViTImageProcessor", "size": 32}')
    assert tuple(vt_hub.load_model(saved).pretrained_cfg['input_size']) == (3, 64, 64)
