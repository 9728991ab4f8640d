"""A run over files made to hurt: it ends, and accounts for every one."""

import os
import stat
from pathlib import Path

import pytest
import timm
from helpers.hostile_images import write_hostile
from pyarrow import parquet

from vt_hub.image_files import find_images
from vt_hub.inference.batch_output import read_jsonl, unicode
from vt_hub.inference.batch_run import predict_files

COUNT = 500


@pytest.fixture(scope='module')
def hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp('hostile')
    write_hostile(folder, COUNT)
    return folder


def files_in(folder):
    """All that is neither a folder nor a link to one, nor something that is no file."""
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            if not os.path.exists(path) or stat.S_ISREG(os.stat(path).st_mode):
                yield path


@pytest.mark.filterwarnings('ignore')  # Pillow's, of damaged metadata
def test_every_file_is_accounted_for(hostile, tmp_path):
    model = timm.create_model('test_vt_resnet').eval()
    total, failed = predict_files(model, [str(hostile)], tmp_path / 'table.jsonl', workers=2, part_size=64)
    rows = read_jsonl(tmp_path / 'table.jsonl')
    found = [row['image'] for row in rows]
    assert sorted(found) == sorted(files_in(hostile))
    assert found == list(map(str, find_images([str(hostile)])))
    assert COUNT > total == len(rows) > COUNT * 0.9
    assert all(('error' in row) != ('predictions' in row) for row in rows)
    assert sum('error' in row for row in rows) == failed
    assert COUNT * 0.3 < failed < COUNT * 0.8
    assert not any('process that read it died' in row.get('error', '') for row in rows)
    predict_files(model, [str(hostile)], tmp_path / 'table.parquet', workers=1)
    table = parquet.read_table(tmp_path / 'table.parquet')
    assert table['image'].to_pylist() == list(map(unicode, found))
    assert [error is None for error in table['error'].to_pylist()] == ['error' not in row for row in rows]


def test_the_files_are_the_same_from_the_same_seed(tmp_path):
    for name in 'ab':
        write_hostile(tmp_path / name, 50)
    for path in map(Path, files_in(tmp_path / 'a')):
        other = tmp_path / 'b' / path.relative_to(tmp_path / 'a')
        assert path.is_symlink() == other.is_symlink()
        assert path.is_symlink() or path.read_bytes() == other.read_bytes()
