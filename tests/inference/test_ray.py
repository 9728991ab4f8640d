"""The callable for Ray Data, by itself and in Ray."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

import vt_hub
from vt_hub.inference.batch_output import to_table
from vt_hub.inference.classify import predict_each
from vt_hub.inference.ray_data import Classify

MODEL = 'vt_resnet10.digits'


@pytest.fixture
def files(samples, tmp_path):
    """Two images, and between them a file that is none."""
    text = tmp_path / 'text.png'
    text.write_text('no image')
    return [samples / 'digit_3.png', text, samples / 'digit_8.png']


def expected(files):
    return rounded(to_table(list(predict_each(vt_hub.load_model(MODEL), files, topk=2))).to_pylist())


def rounded(rows):
    """The last digits of a score depend on how many images a batch has."""
    return [
        {**row, 'score': round(row['score'], 4), 'scores': [round(score, 4) for score in row['scores']]}
        if row['label']
        else row
        for row in rows
    ]


@pytest.mark.parametrize('read', [True, False])
def test_rows_are_those_of_predict(files, read):
    batch = {'path': np.array([str(path) for path in files])}
    if read:
        batch['bytes'] = np.array([path.read_bytes() for path in files], dtype=object)
    rows = Classify(MODEL, topk=2)(batch).to_pylist()
    assert rounded(rows) == expected(files)
    assert [row['label'] for row in rows] == ['3', None, '8']
    assert rows[1]['error'] == f'Cannot read {files[1]} as an image: it is not an image.'


def test_an_empty_file_that_was_read_already():
    [row] = Classify(MODEL)({'path': ['gone.png'], 'bytes': [b'']}).to_pylist()
    assert row['error'] == 'Cannot read gone.png as an image: it is empty.'


@pytest.mark.ray
@pytest.mark.skipif(importlib.util.find_spec('ray') is None, reason='ray is not installed')
def test_a_run_in_ray(files):
    """In a process of its own, which Ray's threads and handlers end with."""
    code = """
import json, sys
import ray
from vt_hub.inference.ray_data import Classify
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
images = ray.data.read_binary_files(sys.argv[2:], include_paths=True)
found = images.map_batches(Classify, fn_constructor_args=[sys.argv[1], 2], compute=ray.data.ActorPoolStrategy(size=1))
print(json.dumps(found.take_all()))
"""
    command = [sys.executable, '-c', code, MODEL, *map(str, files)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    rows = {row['image']: row for row in json.loads(result.stdout.splitlines()[-1])}
    assert len(rows) == 3
    for row in expected(files):
        found = rows[row['image']]
        assert (found['label'], found['labels'], found['error']) == (row['label'], row['labels'], row['error'])
        assert found['scores'] == pytest.approx(row['scores'], abs=1e-4)  # Ray makes other batches
