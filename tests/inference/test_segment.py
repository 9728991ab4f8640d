"""`vt-hub segment`: what it prints, and the pictures that it writes."""

import json

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from helpers.segmentation import LABELS, image_of, tiny
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

import vt_hub
from vt_hub.figures import colours
from vt_hub.inference.segment import GAP, draw_overlay, largest_class, save_picture, segment_image


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return vt_hub.export(tiny(), tmp_path_factory.mktemp('model') / 'tiny', labels=LABELS, code=False)


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
    model = timm.create_model('test_vt_resnet', num_classes=3).eval()
    return vt_hub.export(model, tmp_path_factory.mktemp('model') / 'classifier', code=False)


@pytest.fixture
def images(tmp_path):
    """Two images in a folder."""
    root = tmp_path / 'images'
    root.mkdir()
    image_of(151, 117).save(root / 'a.png')
    image_of(64, 200, 'L').save(root / 'b.jpg')
    return root


@torch.no_grad()
def classes_of(folder, path):
    """Class of every pixel, through transformers."""
    processor = AutoImageProcessor.from_pretrained(folder)
    image = Image.open(path).convert('RGB')
    outputs = AutoModelForSemanticSegmentation.from_pretrained(folder).eval()(**processor(image))
    return processor.post_process_semantic_segmentation(outputs, [(image.height, image.width)])[0].numpy()


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())


# what is printed


def test_text(run, folder, images):
    code, out, err = run('segment', images, '--model', folder)
    assert code == 0
    assert err == f'{folder} names every pixel as one of 5 classes, whatever it shows: sky, tree, road, car, dog.\n'
    lines = dict(line.split(': ') for line in out.splitlines())
    assert list(lines) == [str(images / 'a.png'), str(images / 'b.jpg')]
    for path, text in lines.items():
        found = [part.removesuffix(' %').rsplit(' ', 1) for part in text.split('  ')]
        shares = [float(share) for _, share in found]
        assert shares == sorted(shares, reverse=True)
        classes = classes_of(folder, path)
        counts = np.bincount(classes.ravel())
        assert len(found) == (counts >= 0.0005 * classes.size).sum() > 2  # what would be 0.0 % is left out
        for label, share in found:
            assert float(share) == pytest.approx(100 * (classes == LABELS.index(label)).mean(), abs=0.051)


def test_json_is_one_object_a_line(run, folder, images):
    code, out, _ = run('segment', images / '*', '--model', folder, '--json')
    assert code == 0
    results = [json.loads(line) for line in out.splitlines()]
    assert [result['image'] for result in results] == [str(images / 'a.png'), str(images / 'b.jpg')]
    for result in results:
        assert result.keys() == {'image', 'classes'}
        shares = [found['share'] for found in result['classes']]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert {found['label'] for found in result['classes']} <= set(LABELS)


# masks and overlays


def test_mask(run, folder, images, tmp_path):
    target = tmp_path / 'new' / 'mask.png'
    assert run('segment', images / 'a.png', '--model', folder, '--mask', target)[0] == 0
    with Image.open(target) as mask:
        assert (mask.mode, mask.format) == ('P', 'PNG')
        assert np.array_equal(mask, classes_of(folder, images / 'a.png'))
        palette = np.array(mask.getpalette()).reshape(-1, 3)
        assert np.array_equal(palette[: len(LABELS)], colours(len(LABELS)))
    assert files(tmp_path / 'new') == ['mask.png']


@pytest.mark.parametrize('name', ['overlay.png', 'overlay.JPG'])
def test_overlay(run, folder, images, tmp_path, name):
    target = tmp_path / 'new' / name
    assert run('segment', images / 'a.png', '--model', folder, '--overlay', target)[0] == 0
    with Image.open(target) as picture:
        assert picture.format == ('PNG' if name.endswith('png') else 'JPEG')
        assert picture.height == 117 * 5  # enlarged to 480 pixels at least
        assert picture.width > 2 * 151 * 5  # the image, the overlay, and the legend
    assert files(tmp_path / 'new') == [name]


def test_overlay_shows_classes_in_the_colours_of_its_legend():
    mask = np.zeros((500, 600), np.uint8)
    mask[100:, 50:] = 3
    mask[0, :100] = 1  # too small to be named
    picture = np.asarray(draw_overlay(Image.new('RGB', (600, 500), 'white'), mask, LABELS)).astype(int)
    assert (picture[:, :600] == 255).all()  # the image itself
    overlay = picture[:, 600 + GAP : 1200 + GAP]
    for y, x, label in ((50, 300, 0), (300, 300, 3)):
        assert np.abs(overlay[y, x] - (0.4 * 255 + 0.6 * colours(5)[label])).max() <= 1
    assert (overlay[99, 60:] == 255).all()  # a line between classes
    legend = picture[:, 1200 + GAP :].reshape(-1, 3)
    there = [(legend == colour).all(1).sum() > 50 for colour in colours(5)]
    assert there == [True, False, False, True, False]
    assert picture.shape[0] == 500


@pytest.mark.parametrize('size', [(1, 2000), (2000, 1), (5000, 3000)])
def test_a_picture_stays_within_bounds(size):
    mask = np.zeros(size[::-1], np.uint8)
    picture = draw_overlay(Image.new('RGB', size), mask, LABELS)
    assert max(picture.size) < 2 * 2048 + 800


def test_a_wide_image_is_above_its_overlay():
    picture = np.asarray(draw_overlay(Image.new('RGB', (1500, 500), 'white'), np.zeros((500, 1500), np.uint8), LABELS))
    assert picture.shape[0] == 2 * 500 + GAP
    assert (picture[:500, :1500] == 255).all()
    assert (picture[500 + GAP :, 1000] < 255).all()


def test_an_enlarged_mask_has_no_stairs():
    mask = np.tri(60, dtype=np.uint8)
    picture = np.asarray(draw_overlay(Image.new('RGB', (60, 60)), mask, LABELS))[:, 480 + GAP : 960 + GAP]
    border = (picture == 255).all(2)[40:440]
    rows = [np.flatnonzero(row) for row in border]
    assert all(len(row) for row in rows)  # a diagonal line, not steps of eight pixels
    assert max(len(row) for row in rows) <= 4


def test_a_long_legend_fits():
    mask = np.arange(182, dtype=np.uint8).repeat(30).reshape(182, 30)
    picture = np.asarray(draw_overlay(Image.new('RGB', (30, 182)), mask, [f'class {i}' for i in range(182)]))
    legend = picture[:, -200:].reshape(-1, 3)
    assert all((legend == colour).all(1).any() for colour in colours(182))


@pytest.mark.parametrize('num_classes', [1, 20, 54, 182, 255])
def test_colours_differ(num_classes):
    assert len(np.unique(colours(num_classes), axis=0)) == num_classes


def test_folders_for_several_images(run, folder, images, tmp_path):
    masks, overlays = tmp_path / 'masks', tmp_path / 'some' / 'overlays'
    code, out, err = run('segment', images, '--model', folder, '--mask', masks, '--overlay', overlays)
    assert (code, len(out.splitlines())) == (0, 2)
    assert 'failed' not in err
    assert files(masks) == files(overlays) == ['a.png', 'b.png']
    for path in images.iterdir():
        assert np.array_equal(Image.open(masks / f'{path.stem}.png'), classes_of(folder, path))


def test_one_image_into_a_folder_that_exists(run, folder, images, tmp_path):
    (tmp_path / 'masks').mkdir()
    assert run('segment', images / 'b.jpg', '--model', folder, '--mask', tmp_path / 'masks')[0] == 0
    assert files(tmp_path / 'masks') == ['b.png']


def test_grey_models(run, images, tmp_path):
    grey = vt_hub.export(tiny(in_chans=1, num_classes=3), tmp_path / 'grey', code=False)
    code, out, err = run('segment', images, '--model', grey, '--mask', tmp_path / 'masks', '--json')
    assert (code, err) == (0, '')
    assert {found['label'] for line in out.splitlines() for found in json.loads(line)['classes']} <= {'0', '1', '2'}
    assert np.asarray(Image.open(tmp_path / 'masks' / 'a.png')).shape == (117, 151)


# what goes wrong


def test_bad_files_are_named_and_the_others_done(run, folder, images, tmp_path):
    bad = [images / 'broken.png', images / 'text.png']
    bad[0].write_bytes((images / 'a.png').read_bytes()[:500])
    bad[1].write_text('no image')
    missing = tmp_path / 'missing.png'
    masks, overlays = tmp_path / 'masks', tmp_path / 'overlays'
    code, out, err = run('segment', images, missing, '--model', folder, '--mask', masks, '--overlay', overlays)
    assert code == 1
    assert [line.split(': ')[0] for line in out.splitlines()] == [str(images / 'a.png'), str(images / 'b.jpg')]
    assert '3 of 5 images failed:' in err
    assert all(f'Cannot read {path} as an image' in err for path in (*bad, missing))
    assert files(masks) == files(overlays) == ['a.png', 'b.png']


def test_a_bad_image_alone_leaves_nothing(run, folder, tmp_path):
    target = tmp_path / 'mask.png'
    assert run('segment', tmp_path / 'missing.png', '--model', folder, '--mask', target)[0] == 1
    assert list(tmp_path.iterdir()) == []


def fails(result, *parts):
    """Exit code 1 and one sentence, which has the parts."""
    code, out, err = result
    assert (code, out) == (1, '')
    assert err.startswith('error: ')
    assert err.count('\n') == 1
    assert all(str(part) in err for part in parts), err


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            ['--mask', 'mask.jpg', '--overlay', 'overlay.png'],
            'is not a PNG; only that format keeps the values of a mask.',
        ),
        (['--mask', 'mask', '--overlay', 'overlay.png'], 'is not a PNG'),
        (
            ['--mask', 'mask.png', '--overlay', 'overlay.psd'],
            'overlay.psd does not end in a supported picture',
        ),
        (['--mask', 'mask.png', '--overlay', 'overlay'], 'overlay does not end in a supported picture'),
        (['--mask', 'same.png', '--overlay', 'same.png'], 'would overwrite each other in same.png'),
        (['--mask', 'images/../a.png', '--overlay', 'a.png'], 'would overwrite each other in a.png'),
        (['--mask', 'images/a.png'], 'a.png would be overwritten'),
        (['--overlay', 'images'], 'a.png would be overwritten'),
    ],
)
def test_wrong_outputs_leave_nothing(run, folder, images, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    before = (images / 'a.png').read_bytes()
    fails(run('segment', 'images/a.png', '--model', folder, *options), message)
    assert files(tmp_path) == ['images/a.png', 'images/b.jpg']
    assert (images / 'a.png').read_bytes() == before


def test_one_picture_for_several_images_is_refused(run, folder, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(run('segment', 'images', '--model', folder, '--overlay', 'o.jpg'), 'o.jpg is one picture, and there are 2')
    assert files(tmp_path) == ['images/a.png', 'images/b.jpg']


def test_classes_are_enlarged_in_parts_as_they_would_be_together():
    logits = torch.randn(1, 21, 5, 7).round(decimals=1)
    logits[:, 20] = logits[:, 3]  # of equal logits the first counts
    enlarged = F.interpolate(logits, size=(33, 40), mode='bilinear', align_corners=False)
    mask = largest_class(logits, (33, 40))
    assert mask.dtype == torch.uint8
    assert torch.equal(mask.long(), enlarged[0].argmax(0))


def test_in_the_models_precision():
    model, image = timm.create_model('test_vt_fpn').eval(), image_of(96, 96)
    expected = segment_image(model, image)[0]
    assert (segment_image(model.bfloat16(), image)[0] == expected).mean() > 0.9


def test_more_classes_than_a_mask_can_name_are_refused():
    with pytest.raises(ValueError, match='The model has 300 classes, but a mask can hold only 256'):
        segment_image(timm.create_model('test_vt_fpn', num_classes=300).eval(), Image.new('RGB', (64, 64)))


def test_an_image_that_is_named_twice_is_written_once(run, folder, images, tmp_path):
    twice = [images / 'a.png', images / 'a.png']
    assert run('segment', *twice, '--model', folder, '--mask', tmp_path / 'out')[0] == 0
    assert files(tmp_path / 'out') == ['a.png']


def test_images_of_the_same_name(run, folder, images, tmp_path):
    image_of(40, 40).save(images / 'a.jpg')
    for option in ('--mask', '--overlay'):
        fails(run('segment', images, '--model', folder, option, tmp_path / 'out'), 'Images of the same name', 'out')
    assert not (tmp_path / 'out').exists()
    assert run('segment', images, '--model', folder)[0] == 0


def test_a_classifier_does_not_segment(run, classifier, images, tmp_path):
    result = run('segment', images / 'a.png', '--model', classifier, '--mask', tmp_path / 'mask.png')
    fails(result, 'test_vt_resnet does not segment; `vt-hub predict` classifies')
    assert files(tmp_path) == ['images/a.png', 'images/b.jpg']


def test_a_segmenter_does_not_classify(run, folder, images):
    fails(
        run('predict', images / 'a.png', '--model', folder), 'test_vt_fpn does not classify; `vt-hub segment` segments'
    )


def test_pictures_of_unknown_formats_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r'x\.psd does not end in a supported picture extension, such as \.png'):
        save_picture(Image.new('RGB', (9, 9)), tmp_path / 'x.psd')


def test_an_older_picture_stays_if_the_new_one_fails(tmp_path, monkeypatch):
    path = tmp_path / 'old.png'
    path.write_bytes(b'old')

    def fail(picture, file, *args, **kwargs):
        file.write_bytes(b'half')
        raise OSError('disk full')

    monkeypatch.setattr(Image.Image, 'save', fail)
    with pytest.raises(OSError, match='disk full'):
        save_picture(Image.new('RGB', (9, 9)), path)
    assert (files(tmp_path), path.read_bytes()) == (['old.png'], b'old')
