"""`vt_hub.predict`, `segment` and `explain`: a name or a model, images or paths, one or several."""

import numpy as np
import pytest
import timm
from PIL import Image

import vt_hub

CLASSIFIER, SEGMENTER = 'vt_resnet10', 'vt_fpn_resnet10t'


@pytest.fixture
def seven(samples):
    return samples / 'digit_7.png'


def test_predict(seven, samples):
    model = vt_hub.load_model(CLASSIFIER)
    best = vt_hub.predict(CLASSIFIER, seven, topk=2)
    assert [list(found) for found in best] == [['label', 'score']] * 2
    assert best[0]['label'] == '7'
    assert best[0]['score'] > 0.9 > best[1]['score']
    for same in (str(seven), Image.open(seven)):
        assert vt_hub.predict(model, same, topk=2) == best
    assert vt_hub.predict(model, [seven, samples / 'digit_3.png', Image.open(seven)], topk=2)[::2] == [best, best]
    assert vt_hub.predict(model, []) == []


def test_segment(samples):
    model, path = vt_hub.load_model(SEGMENTER), samples / 'scene.png'
    found = vt_hub.segment(SEGMENTER, path)
    with Image.open(path) as image:
        assert found['mask'].shape == (image.height, image.width)
        both = vt_hub.segment(model, [path, image])
    assert found['classes'][0]['label'] == 'background'
    assert sum(part['share'] for part in found['classes']) == pytest.approx(1, abs=1e-4)
    for other in both:
        assert other['classes'] == found['classes']
        assert np.array_equal(other['mask'], found['mask'])


def test_explain(seven):
    found = vt_hub.explain(CLASSIFIER, seven)
    assert found.predictions[0]['label'] == '7'
    assert found.predictions == vt_hub.explain(vt_hub.load_model(CLASSIFIER), Image.open(seven)).predictions


def test_wrong_models_and_images(seven, tmp_path):
    with pytest.raises(ValueError, match='does not segment'):
        vt_hub.segment(CLASSIFIER, seven)
    with pytest.raises(ValueError, match='does not classify'):
        vt_hub.predict(SEGMENTER, seven)
    with pytest.raises(ValueError, match='was made without classes'):
        vt_hub.predict(timm.create_model('test_vt_resnet', num_classes=0).eval(), seven)
    with pytest.raises(LookupError, match='did you mean vt_resnet10'):
        vt_hub.predict('vt_resnet_10', seven)
    for function, model in ((vt_hub.predict, CLASSIFIER), (vt_hub.segment, SEGMENTER), (vt_hub.explain, CLASSIFIER)):
        with pytest.raises(ValueError, match=r'no\.png'):
            function(model, tmp_path / 'no.png')
