import json
import re
import sys

import numpy as np
import pytest
from PIL import Image

from vt_hub.training.segmentation.data import IGNORE, LAYOUTS, SegmentationData, check_pairs, open_data

HEIGHT, WIDTH = 6, 8
MASK = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH) % 3
CLASSES = ['background', 'cat', 'dog']


def find_faults(*args, **kwargs):
    return (fault for fault, _ in check_pairs(*args, **kwargs))


def save(path, array, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(path, **kwargs)
    return path


def save_pair(image, mask, values=MASK):
    save(image, np.full((HEIGHT, WIDTH, 3), 200, np.uint8))
    return save(mask, values)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def folder(tmp_path):
    """Three pairs for training and one for validation."""
    root = tmp_path / 'pets'
    for split, name in (('train', 'c.jpg'), ('train', 'a.jpg'), ('train', 'b.png'), ('val', 'd.jpg')):
        image = root / split / 'images' / name
        save_pair(image, root / split / 'masks' / f'{image.stem}.png')
    write(root / 'classes.txt', '\n'.join(CLASSES) + '\n\n')
    return root


def stems(data):
    return [image.stem for image, *_ in data.pairs]


# the layout of plain folders


def test_folders(folder):
    data = open_data(folder, 'train')
    assert (data.name, data.split, data.classes, data.flip_pairs, len(data)) == ('pets', 'train', CLASSES, (), 3)
    assert stems(data) == ['a', 'b', 'c']
    image, mask = data[1]
    assert (image.mode, image.size, mask.dtype) == ('RGB', (WIDTH, HEIGHT), np.uint8)
    assert np.array_equal(mask, MASK)
    assert data.name_of(1) == str(folder / 'train' / 'images' / 'b.png')
    assert stems(open_data(str(folder), 'val')) == ['d']
    assert sum(1 for _ in data) == 3  # and iteration ends


def test_folders_by_kind(tmp_path):
    save_pair(tmp_path / 'images' / 'val' / 'x.JPG', tmp_path / 'masks' / 'val' / 'x.png')
    write(tmp_path / 'images' / 'val' / '._x.JPG', 'left by macOS')
    write(tmp_path / 'classes.txt', 'a\nb\nc')
    assert stems(open_data(tmp_path, 'val')) == ['x']


def test_image_without_mask(folder):
    (folder / 'train' / 'masks' / 'b.png').unlink()
    (folder / 'train' / 'masks' / 'c.png').unlink()
    with pytest.raises(ValueError, match=r'masks has no mask b\.png \(2 of 3 are missing\)\.$'):
        open_data(folder, 'train')


def test_mask_without_image(folder):
    (folder / 'train' / 'images' / 'c.jpg').unlink()
    with pytest.raises(ValueError, match=r'images has no image c \(1 of 3 are missing\)\.$'):
        open_data(folder, 'train')


def test_two_images_of_one_stem(folder):
    save(folder / 'train' / 'images' / 'a.png', MASK)
    with pytest.raises(ValueError, match=r'holds both a\.jpg and a\.png'):
        open_data(folder, 'train')


def test_nothing_found(folder):
    for path in folder.glob('val/*/*'):
        path.unlink()
    with pytest.raises(ValueError, match=r'no pairs of an image in .*images and a mask NAME\.png in .*masks\.$'):
        open_data(folder, 'val')


def test_no_folders(folder, tmp_path):
    (folder / 'val' / 'images').rename(folder / 'val' / 'pictures')
    with pytest.raises(ValueError, match=r'There is no folder .*pets/val/images or .*pets/images/val\.$'):
        open_data(folder, 'val')
    with pytest.raises(ValueError, match=r'There is no folder .*nowhere\.$'):
        open_data(tmp_path / 'nowhere', 'val')


@pytest.mark.parametrize(('split', 'layout'), [('tests', 'folders'), ('train', 'voc')])
def test_unknown_layout_or_split(folder, split, layout):
    with pytest.raises(ValueError, match=f'no layout {layout} with a split {split}: layouts are folders, coco-stuff'):
        open_data(folder, split, layout)


# class names


def test_classes_override(folder, tmp_path):
    path = write(tmp_path / 'other.txt', '\ufeffx\n y \nz\n')
    assert open_data(folder, 'train', classes=path).classes == ['x', 'y', 'z']


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (None, r'There is no .*classes\.txt: it must name the classes, one per line'),
        ('a\n\nb\n', r'Line 2 of .*classes\.txt is empty'),
        ('0: a\n1: b\n', r'classes\.txt numbers its classes'),
        ('a\n' * 256, 'pets has 256 classes, but masks can hold 1 to 255'),
    ],
)
def test_bad_classes(folder, text, message):
    path = folder / 'classes.txt'
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(ValueError, match=message):
        open_data(folder, 'train')


# masks


def one_pair(tmp_path, mask, image=None, **kwargs):
    """Data of one pair; the mask is an array or an image."""
    image = image or save(tmp_path / 'a.jpg', np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    return SegmentationData('one', 'val', [(image, save(tmp_path / 'a.png', mask))], CLASSES, **kwargs)


def test_palette_mask_keeps_indices(tmp_path):
    mask = Image.fromarray(MASK)
    mask.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    data = one_pair(tmp_path, mask)
    assert Image.open(data.pairs[0][1]).mode == 'P'
    assert np.array_equal(data[0][1], MASK)


@pytest.mark.parametrize(('mode', 'values'), [('1', MASK > 1), ('I;16', MASK.astype(np.uint16))])
def test_mask_modes(tmp_path, mode, values):
    data = one_pair(tmp_path, values)
    assert Image.open(data.pairs[0][1]).mode == mode
    mask = data[0][1]
    assert np.array_equal(mask, values)
    assert mask.dtype == np.uint8


@pytest.mark.parametrize(
    ('mask', 'message'),
    [
        (np.stack([MASK] * 3, -1), 'masks must hold class indices in one channel, but the mode is RGB'),
        (np.stack([MASK] * 4, -1), 'masks must hold class indices in one channel, but the mode is RGBA'),
        (MASK.astype(np.uint16) + 255, 'mask values must be 0 to 255, but are 255 to 257'),
    ],
)
def test_refused_masks(tmp_path, mask, message):
    with pytest.raises(ValueError, match=rf'^Cannot read .*a\.png as a mask: {message}\.$'):
        one_pair(tmp_path, mask)[0]


def test_sizes_differ(tmp_path):
    with pytest.raises(ValueError, match=r'a\.jpg has 8 x 6 pixels and its mask 8 x 5\.$'):
        one_pair(tmp_path, MASK[1:])[0]


def test_image_is_turned_by_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    image = save(tmp_path / 'a.jpg', np.zeros((HEIGHT, WIDTH, 3), np.uint8), exif=exif)
    with pytest.raises(ValueError, match=r'has 6 x 8 pixels and its mask 8 x 6; images are turned by their EXIF'):
        one_pair(tmp_path, MASK, image)[0]
    assert one_pair(tmp_path, MASK.T.copy(), image)[0][0].size == (HEIGHT, WIDTH)


def test_reduce_labels(folder):
    values = MASK.copy()
    values[0] = [0, 1, 2, 150, 253, 254, 255, 0]
    save(folder / 'val' / 'masks' / 'd.png', values)
    reduced = open_data(folder, 'val', reduce_labels=True)[0][1]
    assert reduced.dtype == np.uint8
    assert reduced[0].tolist() == [255, 0, 1, 149, 252, 253, 255, 255]
    assert np.array_equal(open_data(folder, 'val')[0][1], values)


# COCO-Stuff

COCO_LABELS = '0: unlabeled\n1: person\n2: traffic light\n3: wood\n'


@pytest.mark.parametrize('images', ['images', '.'])
@pytest.mark.parametrize('masks', ['annotations', 'stuffthingmaps_trainval2017', 'stuffthingmaps'])
def test_coco_stuff(tmp_path, images, masks):
    write(tmp_path / 'labels.txt', COCO_LABELS)
    for split, name in (('train', '000000000009'), ('val', '000000000139')):
        year = f'{split}2017'
        save_pair(tmp_path / images / year / f'{name}.jpg', tmp_path / masks / year / f'{name}.png')
    data = open_data(tmp_path, 'val', 'coco-stuff')
    assert stems(data) == ['000000000139']
    assert data.classes == ['person', 'traffic light', 'wood']  # the value is the label's number less one
    assert np.array_equal(data[0][1], MASK)


def test_coco_stuff_needs_labels(tmp_path):
    save_pair(tmp_path / 'val2017' / '1.jpg', tmp_path / 'annotations' / 'val2017' / '1.png')
    with pytest.raises(ValueError, match=r'There is no .*labels\.txt: copy labels\.txt of https://.*cocostuff there'):
        open_data(tmp_path, 'val', 'coco-stuff')
    for text in ('person\ntraffic light\n', '0: unlabeled\n2: bicycle\n'):
        write(tmp_path / 'labels.txt', text)
        with pytest.raises(ValueError, match=r'is not labels\.txt of https://'):
            open_data(tmp_path, 'val', 'coco-stuff')


# COCO's panoptic annotation


def panoptic_png(ids):
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)


def panoptic(tmp_path, **changes):
    """One image with a person (7), a dog (70000), a banner (300), a wall (16777214), and ids of no segment."""
    ids = np.array([[7, 70000, 300, 16777214, 0, 9, 16777215, 300]] * HEIGHT)
    annotation = {
        'file_name': '000000000139.png',
        'image_id': 139,
        'segments_info': [
            {'id': 16777214, 'category_id': 199},
            {'id': 7, 'category_id': 1},
            {'id': 70000, 'category_id': 18},
            {'id': 300, 'category_id': 92},
            {'id': 9, 'category_id': 0},  # of no category
        ],
    }
    table = {
        'categories': [  # not in the order of their ids
            {'id': 199, 'name': 'wall-other-merged', 'isthing': 0},
            {'id': 1, 'name': 'person', 'isthing': 1},
            {'id': 92, 'name': 'banner', 'isthing': 0},
            {'id': 18, 'name': 'dog', 'isthing': 1},
            {'id': 93, 'name': 'blanket', 'isthing': 0},
        ],
        'annotations': [annotation | changes],
    }
    write(tmp_path / 'annotations' / 'panoptic_val2017.json', json.dumps(table))
    save(tmp_path / 'val2017' / '000000000139.jpg', np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    save(tmp_path / 'annotations' / 'panoptic_val2017' / '000000000139.png', panoptic_png(ids))
    return tmp_path


def test_coco_panoptic(tmp_path):
    data = open_data(panoptic(tmp_path), 'val', 'coco-panoptic')
    assert data.classes == ['things', 'banner', 'blanket', 'wall-other-merged']
    mask = data[0][1]
    assert (mask.shape, mask.dtype) == ((HEIGHT, WIDTH), np.uint8)
    assert mask[0].tolist() == [0, 0, 1, 3, IGNORE, IGNORE, IGNORE, 1]
    assert list(find_faults(data, 4)) == [None]


def test_coco_panoptic_as_detectron2_has_it(tmp_path):
    panoptic(tmp_path)
    (tmp_path / 'annotations' / 'panoptic_val2017').rename(tmp_path / 'panoptic_val2017')
    assert open_data(tmp_path, 'val', 'coco-panoptic')[0][1][0, 2] == 1


@pytest.mark.parametrize('name', ['../000000000139.png', 'a/000000000139.png', '..\\000000000139.png', '..'])
def test_coco_panoptic_refuses_paths(tmp_path, name):
    with pytest.raises(ValueError, match=rf'names the file {re.escape(name)}, which is outside its folder'):
        open_data(panoptic(tmp_path, file_name=name), 'val', 'coco-panoptic')


def test_coco_panoptic_damaged(tmp_path):
    with pytest.raises(ValueError, match='is not a panoptic annotation of COCO: KeyError 5'):
        open_data(panoptic(tmp_path, segments_info=[{'id': 1, 'category_id': 5}]), 'val', 'coco-panoptic')
    with pytest.raises(ValueError, match=r'has no image 000000000001 \(1 of 1 are missing\)'):
        open_data(panoptic(tmp_path, file_name='000000000001.png'), 'val', 'coco-panoptic')
    with pytest.raises(ValueError, match=r'Cannot read .*panoptic_train2017\.json: No such file'):
        open_data(tmp_path, 'train', 'coco-panoptic')


# Look Into Person


@pytest.mark.parametrize(
    ('images', 'masks'),
    [
        ('.', '.'),
        ('TrainVal_images/TrainVal_images', '/'.join(['TrainVal_parsing_annotations'] * 3)),
    ],
)
def test_lip(tmp_path, images, masks):
    for name in ('77_471474', '1000_1234574', '5_5'):
        image = tmp_path / images / 'train_images' / f'{name}.jpg'
        save_pair(image, tmp_path / masks / 'train_segmentations' / f'{name}.png')
    write(tmp_path / images / 'train_id.txt', '77_471474\n1000_1234574\n')
    write(tmp_path / '__MACOSX' / 'train_segmentations' / '._5_5.png', '')
    data = open_data(tmp_path, 'train', 'lip')
    assert stems(data) == ['1000_1234574', '77_471474']
    assert np.array_equal(data[0][1], MASK)
    assert len(data.classes) == 20
    assert [(data.classes[a], data.classes[b]) for a, b in data.flip_pairs] == [
        ('Left-arm', 'Right-arm'),
        ('Left-leg', 'Right-leg'),
        ('Left-shoe', 'Right-shoe'),
    ]


def test_lip_incomplete(tmp_path):
    save_pair(tmp_path / 'val_images' / '1_1.jpg', tmp_path / 'val_segmentations' / '1_1.png')
    with pytest.raises(ValueError, match=r'There is no val_id\.txt in .*, nor up to three levels below'):
        open_data(tmp_path, 'val', 'lip')
    write(tmp_path / 'val_id.txt', '1_1\n2_2\n')
    with pytest.raises(ValueError, match=r'val_images has no image 2_2 \(1 of 2 are missing\)'):
        open_data(tmp_path, 'val', 'lip')


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_camvid(tmp_path, split):
    image, mask = tmp_path / split / '0001TP.png', tmp_path / f'{split}annot' / '0001TP.png'
    save_pair(image, mask, np.where(MASK == 2, 11, MASK).astype(np.uint8))
    data = open_data(tmp_path, split, 'camvid')
    assert np.array_equal(data[0][1], np.where(MASK == 2, 255, MASK))
    assert (data.split, len(data.classes), data.classes[8]) == (split, 11, 'car')


# the datasets library


def save_rows(folder, column='annotation', splits=('train', 'validation', 'test'), mask=MASK):
    datasets = pytest.importorskip('datasets')
    image = Image.new('RGB', (WIDTH, HEIGHT))
    features = datasets.Features(
        {'image': datasets.Image(), 'label': datasets.Value('int64'), column: datasets.Image()}
    )
    rows = [{'image': image, 'label': 3, column: Image.fromarray(mask)}] * 2
    splits = {name: datasets.Dataset.from_list(rows[: 1 + (name == 'train')], features) for name in splits}
    datasets.DatasetDict(splits).save_to_disk(folder / 'rows')
    return folder / 'rows', write(folder / 'classes.txt', '\n'.join(CLASSES))


@pytest.mark.parametrize('column', ['annotation', 'mask', 'labels'])
def test_datasets(tmp_path, column):
    source, classes = save_rows(tmp_path, column)
    data = open_data(source, 'train', 'datasets', classes, reduce_labels=True)
    assert (data.name, len(data), data.classes) == ('rows', 2, CLASSES)
    image, mask = data[1]
    assert (image.mode, image.size) == ('RGB', (WIDTH, HEIGHT))
    assert np.array_equal(mask, np.array([255, 0, 1])[MASK])
    assert data.name_of(1) == 'row 1 of rows (train)'
    assert len(open_data(source, 'val', 'datasets', classes)) == 1


def test_datasets_faults(tmp_path):
    source, classes = save_rows(tmp_path, mask=np.stack([MASK] * 3, -1))
    data = open_data(source, 'val', 'datasets', classes)
    assert list(find_faults(data, 3)) == [
        'Cannot read row 0 of rows (val): masks must hold class indices in one channel, but the mode is RGB.'
    ]


def test_datasets_errors(tmp_path):
    source, classes = save_rows(tmp_path, splits=('train', 'dev'))
    with pytest.raises(ValueError, match=r"no split validation or val or test; its splits are \['train', 'dev'\]"):
        open_data(source, 'val', 'datasets', classes)
    with pytest.raises(ValueError, match='needs a file of class names'):
        open_data(source, 'train', 'datasets')
    with pytest.raises(ValueError, match=r'^Cannot read the data set .*: .*\.$'):
        open_data(tmp_path, 'train', 'datasets', classes)
    (tmp_path / 'other').mkdir()
    source, classes = save_rows(tmp_path / 'other', 'depth')
    with pytest.raises(ValueError, match=r"needs the columns image and .*; it has \['image', 'depth'\]"):
        open_data(source, 'train', 'datasets', classes)


def test_datasets_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, 'datasets', None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "vt_hub\[train\]"'):
        LAYOUTS['datasets']('someone/something', 'train', CLASSES)


# checking everything


@pytest.fixture
def faulty(tmp_path):
    """Six pairs, of which the first and the last are good."""
    for name in 'abcdef':
        save_pair(tmp_path / 'val' / 'images' / f'{name}.jpg', tmp_path / 'val' / 'masks' / f'{name}.png')
    images, masks = tmp_path / 'val' / 'images', tmp_path / 'val' / 'masks'
    data = open_data(tmp_path, 'val', classes=write(tmp_path / 'classes.txt', '\n'.join(CLASSES)))
    (images / 'b.jpg').write_bytes((images / 'b.jpg').read_bytes()[:300])
    (masks / 'c.png').unlink()
    save(masks / 'd.png', MASK.T.copy())
    save(masks / 'e.png', np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH))
    save(masks / 'f.png', np.where(MASK == 1, np.uint8(IGNORE), MASK))
    return data


def test_find_faults(faulty):
    faults = list(find_faults(faulty, 3))
    assert faults[0] is None
    assert re.fullmatch(r'Cannot read .*b\.jpg as an image: .*\.', faults[1])
    assert re.fullmatch(r'Cannot read .*c\.png as a mask: No such file or directory\.', faults[2])
    assert re.fullmatch(r'.*d\.jpg has 8 x 6 pixels and its mask 6 x 8; .*\.', faults[3])
    assert re.fullmatch(
        r'The mask of .*e\.jpg has the values 3, 4, 5, 6, 7 and 40 more; allowed are 0 to 2 and 255\.', faults[4]
    )
    assert faults[5] is None
    assert len(faults) == 6


def test_find_faults_does_not_depend_on_workers(faulty):
    assert list(find_faults(faulty, 3, workers=2)) == list(find_faults(faulty, 3))
    many = SegmentationData('many', 'val', list(faulty.pairs) * 10, CLASSES)  # several chunks
    assert list(find_faults(many, 3, workers=2)) == list(find_faults(faulty, 3)) * 10


def test_find_faults_of_some(faulty):
    everything = list(find_faults(faulty, 3))
    assert list(find_faults(faulty, 3, indices=[4, 0, 2])) == [everything[4], None, everything[2]]


def test_find_faults_goes_pair_by_pair(faulty):
    faults = find_faults(faulty, 3)
    assert next(faults) is None
    (faulty.pairs[1][1]).unlink()  # not read yet
    faulty.pairs[1][0].write_bytes(faulty.pairs[0][0].read_bytes())
    assert 'b.png as a mask' in next(faults)


def test_find_faults_after_reducing_labels(tmp_path):
    data = one_pair(tmp_path, MASK, reduce_labels=True)
    assert list(find_faults(data, 2)) == [None]
    (fault,) = find_faults(data, 1)
    assert 'has the values 1 after reducing the labels; allowed are 0 to 0 and 255.' in fault
