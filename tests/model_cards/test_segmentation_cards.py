"""model_cards/segmentation.py: what is published of a run."""

import runpy

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import vt_hub
from vt_hub.files import read_json
from vt_hub.reporting import write_result
from vt_hub.training.segmentation.data import SegmentationData

CLASSES = ['road', 'car', 'sky', 'tree', 'house']


@pytest.fixture
def data(tmp_path):
    pairs = []
    for number in range(2):
        image, mask = (tmp_path / f'{number}_{kind}.png' for kind in ('image', 'mask'))
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (64, 96, 3), np.uint8)).save(image)
        Image.fromarray(np.full((64, 96), number, np.uint8)).save(mask)
        pairs.append((image, mask))
    return SegmentationData('streets', 'test', pairs, CLASSES)


def test_a_published_run_says_how_much_its_tokens_differ(data, tmp_path):
    run, card, out = (tmp_path / name for name in ('run', 'test_vt_fpn.streets', 'out'))
    config = vt_hub.VTFPNConfig(architecture='test_vt_fpn', id2label=dict(enumerate(CLASSES)))
    vt_hub.VTFPNForSemanticSegmentation(config).save_pretrained(run / 'model')
    write_result(run / 'held_out.json', {'training': {'steps': 7}})
    card.mkdir()
    (card / 'card.md').write_text('After {{ results[0].training.steps }} steps.\n')
    publish_run = runpy.run_path(str(ROOT / 'model_cards' / 'segmentation.py'))['publish_run']
    measured = {
        'task': 'image-segmentation',
        'dataset': {'name': 'streets', 'type': 'streets', 'split': 'test', 'num_images': 2},
        'metrics': {'miou': 61.0},
    }
    publish_run(run, card, lambda model: measured, data, out)
    result = read_json(card / 'result.json')
    assert [level['num_tokens'] for level in result['tokens']] == [4] * 4
    text = (out / 'README.md').read_text()
    assert 'After 7 steps.' in text
    assert '## Tokens' in text
    assert f'| 4 | {result["tokens"][3]["cosine"]} |' in text
