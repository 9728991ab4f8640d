import os

import pytest

from vt_hub.image_files import find_images
from vt_hub.network.images import read_image


def test_a_folder_is_searched_for_what_is_read_as_an_image(tmp_path):
    for name in ('clip.mpg', 'paper.pdf', 'table.h5', '._a.png', '.thumbnails/b.png', 'c.png', 'd/e.webp', 'f.txt'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_images([str(tmp_path)])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ['c.png', 'd/e.webp']


def test_find_images(tmp_path):
    (tmp_path / 'sub').mkdir()
    names = ['b.png', 'a.JPG', 'notes.txt', 'sub/c.webp']
    for name in names:
        (tmp_path / name).write_bytes(b'')
    found = [p.relative_to(tmp_path).as_posix() for p in find_images([str(tmp_path)])]
    assert found == ['a.JPG', 'b.png', 'sub/c.webp']
    assert find_images([str(tmp_path / '*.png')]) == [tmp_path / 'b.png']
    assert find_images([str(tmp_path / 'notes.txt'), 'missing.png'])[0].name == 'notes.txt'
    nothing = [str(tmp_path / '*.gif'), str(tmp_path / 'sub')]
    (tmp_path / 'sub' / 'c.webp').unlink()
    assert [str(path) for path in find_images(nothing)] == nothing
    with pytest.raises(ValueError, match='it is a folder without images'):
        read_image(nothing[1])


def test_links_that_lead_nowhere_are_found(tmp_path):
    (tmp_path / 'folder.png').mkdir()
    (tmp_path / 'folder.png' / 'a.png').touch()
    (tmp_path / 'loop.png').symlink_to('loop.png')
    (tmp_path / 'nowhere.png').symlink_to('missing')
    (tmp_path / 'link.png').symlink_to('folder.png')
    (tmp_path / 'folder.png' / 'back').symlink_to('..')
    os.mkfifo(tmp_path / 'pipe.png')
    found = [path.relative_to(tmp_path).as_posix() for path in find_images([str(tmp_path)])]
    assert found == ['folder.png/a.png', 'link.png/a.png', 'loop.png', 'nowhere.png']


def test_a_file_whose_name_looks_like_a_pattern(tmp_path):
    path = tmp_path / 'digit[1].png'
    path.write_bytes(b'')
    assert find_images([str(path)]) == [path]
