"""The figure of vt_resnet10.digits, measured again on the held-out fifth."""

import json
import sys

import timm
from conftest import ROOT

CARD = ROOT / 'model_cards' / 'vt_resnet10.digits'


def test_held_out_accuracy_is_the_published_one(monkeypatch):
    monkeypatch.setattr(sys, 'path', [str(CARD), *sys.path])
    import train

    _, (images, labels) = train.split(dev=False)
    top1 = train.evaluate(timm.create_model('vt_resnet10', pretrained=True).eval(), images, labels)
    result = json.loads((CARD / 'result.json').read_text())
    assert result['dataset']['num_images'] == len(labels)
    assert abs(top1 - result['metrics']['top1']) < 0.3  # one image, which another processor may read otherwise
    assert top1 >= 98
