"""The figures of vt_fpn_resnet10t.shapes, measured again on its held-out scenes."""

from conftest import ROOT

import vt_hub
from vt_hub.files import read_json
from vt_hub.synthesis.shapes import write_shapes
from vt_hub.training.segmentation.data import open_data
from vt_hub.training.segmentation.evaluate import evaluate_segmentation, load_segmenter

NAME = 'vt_fpn_resnet10t.shapes'


def test_held_out_figures_are_the_published_ones(tmp_path):
    result = read_json(ROOT / 'model_cards' / NAME / 'result.json')
    count = result['dataset']['num_images']
    assert sum(1 for _ in write_shapes(tmp_path / 'held_out', 0, count, 1)) == count
    model = load_segmenter(vt_hub.pretrained_folder(NAME))
    found = evaluate_segmentation(model, open_data(tmp_path / 'held_out', 'val'))
    for name, value in result['metrics'].items():
        assert abs(found['metrics'][name] - value) < 0.05, name  # another processor rounds otherwise
    for name, value in result['per_class_iou'].items():
        assert abs(found['per_class_iou'][name] - value) < 0.2, name
