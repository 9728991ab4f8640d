"""Recipes, augmentation, evaluation and training of semantic segmentation."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from helpers.segmentation import tiny
from PIL import Image
from transformers import TrainingArguments
from typer.testing import CliRunner

import vt_hub
from vt_hub.cli import main as cli
from vt_hub.cli.publishing import read_results
from vt_hub.files import read_json
from vt_hub.loading.published import EMBEDDED
from vt_hub.synthesis.shapes import CLASSES
from vt_hub.training.segmentation.data import IGNORE, SegmentationData, open_data
from vt_hub.training.segmentation.evaluate import evaluate_segmentation, fit_edges, scores
from vt_hub.training.segmentation.recipe import list_segmentation_recipes, load_segmentation_recipe
from vt_hub.training.segmentation.run import SegmentationTrainer, TrainingPairs, collate, start_model

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
STEP = 40  # grey levels between the classes of images that show them


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())


# recipes


@pytest.mark.parametrize('name', list_segmentation_recipes())
def test_shipped_recipes_load(name):
    recipe = load_segmentation_recipe(name)
    factors = [recipe.lr_factor(step) for step in range(recipe.steps)]
    assert 0.95 < max(factors) <= 1
    assert min(factors) >= 0
    assert factors[-1] < 0.02
    assert recipe.eval_every <= recipe.steps
    assert all(hash(value) is not None for value in (recipe.input_size, recipe.scale, recipe.shortest_edge))  # tuples


def test_coco_stuff_is_the_papers():
    recipe = load_segmentation_recipe('coco_stuff')
    assert (recipe.model, recipe.layout) == ('vt_fpn_resnet50', 'coco-panoptic')
    assert (recipe.batch_size, recipe.lr, recipe.steps, recipe.sync_bn) == (32, 0.04, 90_000, True)
    assert (recipe.optimizer, recipe.momentum, recipe.weight_decay, recipe.max_grad_norm) == ('sgd', 0.9, 1e-4, 0)
    assert recipe.eval_edges == (800, 1333)
    rates = {0: 0.001, 500: 0.5005, 999: 0.999001, 1000: 1, 59_990: 1, 60_010: 0.1, 79_990: 0.1, 80_010: 0.01}
    for step, factor in rates.items():
        assert recipe.lr_factor(step) == pytest.approx(factor), step


def test_lip_is_the_papers():
    recipe = load_segmentation_recipe('lip')
    assert (recipe.model, recipe.layout, recipe.input_size) == ('vt_fpn_resnet50', 'lip', (473, 473))
    assert (recipe.batch_size, recipe.lr, recipe.weight_decay, recipe.sync_bn) == (96, 0.01, 5e-4, True)
    assert (recipe.optimizer, recipe.schedule, recipe.eval_edges) == ('sgd', 'polynomial', None)
    for done in (0, 0.25, 0.5, 1):
        assert recipe.lr_factor(round(done * recipe.steps)) == pytest.approx((1 - done) ** 0.9)


def test_cosine():
    recipe = load_segmentation_recipe('shapes', {'steps': 1000, 'warmup_steps': 10})
    assert recipe.schedule == 'cosine'
    factors = {0: 0, 5: 0.5, 10: 1, 500: 0.5, 1000: 0}
    assert {step: pytest.approx(recipe.lr_factor(step), abs=1e-3) for step in factors} == factors


def test_changes_and_files(tmp_path):
    path = tmp_path / 'mine.yaml'
    path.write_text(
        'model: test_vt_fpn\nlayout: folders\nbatch_size: 2\nlr: 1e-3\nsteps: 9\ninput_size: [64, 32]\neval_every: 3\n'
    )
    recipe = load_segmentation_recipe(str(path), {'scale': [1, 2], 'flip': 0, 'weight_decay': '5e-4'})
    assert (recipe.lr, recipe.input_size, recipe.scale) == (0.001, (64, 32), (1.0, 2.0))  # YAML reads 1e-3 as text
    assert (recipe.flip, recipe.weight_decay, recipe.optimizer) == (0.0, 0.0005, 'sgd')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            {'learning_rate': 1},
            "'learning_rate' is not a setting of a segmentation recipe; use absent_classes, backbone_checkpoint, batch",
        ),
        ({'optimizer': 'adam'}, r"optimizer must be .*'sgd', 'adamw'\], not 'adam'"),
        ({'schedule': 'linear'}, r"schedule must be .*, not 'linear'"),
        ({'lr': 'high'}, "shapes: lr must be float, not 'high'"),
        ({'steps': 2.5}, r'steps must be int, not 2\.5'),
        ({'steps': '1e3'}, "steps must be int, not '1e3'"),
        ({'input_size': 64}, r'input_size must be tuple\[int, int\], not 64'),
        ({'input_size': [64]}, r'input_size must be .*, not \[64\]'),
        ({'scale': [0.5, 'x']}, 'scale must be'),
        ({'model_args': 'fpn'}, "model_args must be .*, not 'fpn'"),
        ({'steps': 0}, 'shapes: steps is 0; it must be 1 or more'),
        ({'eval_every': -1}, 'eval_every is -1; it must be 1 or more'),
        ({'scale': [0, 1]}, r'scale is \(0.0, 1.0\); it must be above 0'),
        ({'flip': 2}, 'flip is 2.0; it must be from 0 to 1'),
    ],
)
def test_wrong_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        load_segmentation_recipe('shapes', changes)


def test_wrong_recipes(tmp_path):
    with pytest.raises(
        LookupError, match="no segmentation recipe 'voc'; use camvid, coco_stuff, lip, shapes or a YAML file"
    ):
        load_segmentation_recipe('voc')
    (tmp_path / 'half.yaml').write_text('model: test_vt_fpn\nlr: 0.1\n')
    with pytest.raises(ValueError, match=r'half\.yaml is not a complete recipe: it lacks .*batch_size'):
        load_segmentation_recipe(str(tmp_path / 'half.yaml'))


# what is trained on


class Pairs(SegmentationData):
    """Pairs that are in memory."""

    def name_of(self, i):
        return f'pair {i}'

    def read_pair(self, i):
        image, mask = self.pairs[i]
        return Image.fromarray(image), mask


def shown(mask):
    """An image whose grey levels are the classes of a mask."""
    return (mask[..., None] * STEP).astype(np.uint8).repeat(3, 2)


def pairs(*masks, classes='abcd', **kwargs):
    masks = [np.asarray(mask, np.uint8) for mask in masks]
    return Pairs('memory', 'val', [(shown(mask), mask) for mask in masks], list(classes), **kwargs)


def training_pairs(data, **changes):
    recipe = load_segmentation_recipe('shapes', {'input_size': [16, 24], 'scale': [1, 1], 'flip': 0, **changes})
    return TrainingPairs(data, recipe, MEAN, STD)


def levels(pixels):
    """Grey levels 0 to 255 of a normalised image's red channel."""
    return 255 * (pixels[0] * STD[0] + MEAN[0])


@pytest.fixture
def mask():
    """Class 1 on the left, class 2 on the right, class 3 below, and a corner that does not count."""
    mask = np.zeros((16, 24), np.uint8)
    mask[:, :8], mask[:, 16:], mask[12:], mask[0, :4] = 1, 2, 3, IGNORE
    return mask


def test_a_pair_as_it_is(mask):
    dataset = training_pairs(pairs(mask))
    sample = dataset[0]
    assert (len(dataset), sample['labels'].dtype, sample['pixel_values'].dtype) == (1, torch.int64, torch.float32)
    assert np.array_equal(sample['labels'], mask)
    expected = (shown(mask) / 255 - MEAN) / STD
    torch.testing.assert_close(
        sample['pixel_values'].permute(1, 2, 0).double(), torch.from_numpy(expected), atol=1e-5, rtol=0
    )


def test_a_mirrored_pair_swaps_left_and_right(mask):
    dataset = training_pairs(pairs(mask, flip_pairs=((1, 2),)), flip=1)
    sample = dataset[0]
    expected = mask.copy()
    expected[0, :4], expected[0, -4:] = 1, IGNORE  # the mask is symmetrical but for its corner
    assert np.array_equal(sample['labels'], expected)
    assert np.array_equal(levels(sample['pixel_values']).round(), shown(mask)[:, ::-1, 0])
    plain = training_pairs(pairs(mask), flip=1)[0]
    assert np.array_equal(plain['labels'], mask[:, ::-1])


def test_half_of_the_pairs_are_mirrored(mask):
    torch.manual_seed(0)
    dataset = training_pairs(pairs(mask), flip=0.5)
    mirrored = [bool((dataset[0]['labels'][0, -4:] == IGNORE).all()) for _ in range(60)]
    assert 15 < sum(mirrored) < 45


def test_padding_does_not_count_and_is_of_the_mean_colour():
    sample = training_pairs(pairs(np.full((16, 24), 2)), scale=[0.5, 0.5])[0]
    padded = sample['labels'] == IGNORE
    assert sample['labels'].shape == (16, 24)
    assert (~padded).sum() == 8 * 12
    assert (sample['labels'][~padded] == 2).all()
    assert (sample['pixel_values'][:, padded].abs() < 0.5 / 255 / min(STD) + 1e-6).all()
    assert (levels(sample['pixel_values'])[~padded] - 2 * STEP).abs().max() < 0.01


def test_crops_are_drawn_at_random_and_labels_move_with_their_pixels():
    torch.manual_seed(0)
    mask = np.arange(48)[:, None] // 24 + 2 * (np.arange(72) // 36)
    dataset = training_pairs(pairs(mask), scale=[1.5, 3], flip=0.5)
    samples = [dataset[0] for _ in range(20)]
    for sample in samples:
        assert sample['labels'].shape == (16, 24)
        assert (sample['labels'] != IGNORE).all()
        agree = (levels(sample['pixel_values']) / STEP).round() == sample['labels']
        assert agree.float().mean() > 0.85  # all but the blurred edges
    assert len({sample['labels'].numpy().tobytes() for sample in samples}) > 10


def test_edges_are_drawn_and_kept_in_proportion():
    torch.manual_seed(0)
    data = pairs(np.zeros((40, 60)), np.zeros((60, 240)))
    dataset = training_pairs(data, shortest_edge=[20, 30], longest_edge=60)
    assert {tuple(dataset[0]['labels'].shape) for _ in range(20)} == {(20, 30), (30, 45)}
    assert {tuple(dataset[1]['labels'].shape) for _ in range(20)} == {(15, 60)}
    assert dataset[1]['pixel_values'].shape == (3, 15, 60)


def test_collate_puts_a_border_around_smaller_images():
    dataset = training_pairs(pairs(np.full((40, 60), 1), np.full((60, 240), 2)), shortest_edge=[20], longest_edge=60)
    samples = [dataset[0], dataset[1]]
    batch = collate(samples)
    assert batch['pixel_values'].shape == (2, 3, 20, 60)
    assert batch['labels'].shape == (2, 20, 60)
    assert type(batch['labels']) is type(batch['pixel_values']) is torch.Tensor
    for i, (height, width) in enumerate([(20, 30), (15, 60)]):
        assert torch.equal(batch['pixel_values'][i, :, :height, :width], samples[i]['pixel_values'])
        assert torch.equal(batch['labels'][i, :height, :width], samples[i]['labels'].as_subclass(torch.Tensor))
        for values, border in ((batch['pixel_values'][i], 0), (batch['labels'][i], IGNORE)):
            assert (values[..., height:, :] == border).all()
            assert (values[..., width:] == border).all()


# evaluation


def naive_scores(masks, predictions, num_classes):
    """IoU of every class and pixel accuracy in percent, by sets of pixels."""
    true, found = (np.concatenate([np.ravel(one) for one in many]) for many in (masks, predictions))
    true, found = true[true != IGNORE], found[true != IGNORE]
    ious = []
    for c in range(num_classes):
        both, either = np.sum((true == c) & (found == c)), np.sum((true == c) | (found == c))
        ious.append(100 * both / either if either else None)
    return ious, 100 * np.mean(true == found)


def assert_scores(result, ious, accuracy):
    for value, expected in zip(result['per_class_iou'].values(), ious, strict=True):
        assert value is expected is None or value == pytest.approx(expected, abs=0.0051)
    assert result['metrics']['miou'] == pytest.approx(np.mean([iou for iou in ious if iou is not None]), abs=0.0051)
    assert result['metrics']['pixel_accuracy'] == pytest.approx(accuracy, abs=0.0051)


def test_scores_are_those_of_a_naive_loop():
    draw = np.random.default_rng(0)
    for absent in (None, 1, 3):
        kept = [c for c in range(4) if c != absent]
        true, found = draw.choice(kept, (2, 30, 40))
        confusion = torch.zeros(4, 4, dtype=torch.int64)
        for a, b in zip(true.flat, found.flat, strict=True):
            confusion[a, b] += 1
        result = scores(confusion, list('abcd'))
        assert list(result['per_class_iou']) == list('abcd')
        assert (result['per_class_iou'].get('abcd'[absent]) if absent else None) is None
        assert_scores(result, *naive_scores([true], [found], 4))


class Oracle(torch.nn.Module):
    """A model that reads the classes from images that show them, and says the next class in the top rows."""

    device = torch.device('cpu')

    def __init__(self, num_classes=4, wrong_rows=0):
        super().__init__()
        cfg = {'input_size': (3, 16, 24), 'mean': MEAN, 'std': STD, 'interpolation': 'nearest'}
        self.config = SimpleNamespace(num_labels=num_classes, pretrained_cfg=cfg)
        self.wrong_rows = wrong_rows
        self.sizes = []

    def forward(self, pixels):
        assert not self.training
        self.sizes.append(tuple(pixels.shape[2:]))
        classes = (levels(pixels[0]) / STEP).round().long()
        classes[: self.wrong_rows] += 1
        one_hot = torch.nn.functional.one_hot(classes % self.config.num_labels, self.config.num_labels)
        return SimpleNamespace(logits=one_hot.permute(2, 0, 1)[None].float())


def test_a_perfect_model(mask):
    data = pairs(np.where(mask == IGNORE, 0, mask), np.zeros_like(mask))
    result = evaluate_segmentation(Oracle(), data)
    assert result['metrics'] == {'miou': 100.0, 'pixel_accuracy': 100.0}
    assert result['per_class_iou'] == dict.fromkeys('abcd', 100.0)
    assert (result['task'], result['errors']) == ('image-segmentation', [])
    assert result['dataset'] == {'name': 'memory', 'type': 'memory', 'split': 'val', 'num_images': 2}


def test_a_model_that_errs():
    """Counted over the set, not image by image, and without the pixels that do not count."""
    draw = np.random.default_rng(0)
    masks = [draw.integers(0, 3, (16, 24)).astype(np.uint8) for _ in range(3)]
    predictions = [mask.copy() for mask in masks]
    for prediction in predictions:
        prediction[:5] = (prediction[:5] + 1) % 5
    masks[0][3:9, 5:15] = IGNORE
    data = Pairs('memory', 'val', [(shown(p), m) for p, m in zip(predictions, masks, strict=True)], list('abcde'))
    for i, (image, _) in enumerate(data.pairs):
        image[:5] = shown(predictions[i] - 1)[:5]  # what it was before the model errs
    result = evaluate_segmentation(Oracle(5, wrong_rows=5), data)
    ious, accuracy = naive_scores(masks, predictions, 5)
    assert ious[4] is None
    assert 0 < accuracy < 100
    assert_scores(result, ious, accuracy)


def test_masks_are_measured_at_their_own_size():
    mask = np.zeros((160, 240), np.uint8)
    mask[:, 120:] = 1
    model = Oracle()
    result = evaluate_segmentation(model, pairs(mask, mask[:80]))
    assert model.sizes == [(16, 24)] * 2
    assert result['metrics']['pixel_accuracy'] == 100


def test_evaluation_at_edges():
    model = Oracle()
    data = pairs(np.zeros((40, 60)), np.zeros((60, 240)), np.zeros((200, 20)))
    assert evaluate_segmentation(model, data, edges=(20, 60))['metrics']['pixel_accuracy'] == 100
    assert model.sizes == [(20, 30), (15, 60), (60, 6)]
    assert fit_edges(1, 5000, 800, 1333) == (1, 1333)


def test_evaluation_refuses():
    with pytest.raises(ValueError, match='memory has 4 classes, but the model has 3'):
        evaluate_segmentation(Oracle(3), pairs(np.zeros((16, 24))))
    with pytest.raises(ValueError, match=r'No labelled pixel of memory could be used\.'):
        evaluate_segmentation(Oracle(), pairs(np.full((16, 24), IGNORE)))
    with pytest.raises(ValueError, match=r'could be used: .*labels beyond the 4 classes'):
        evaluate_segmentation(Oracle(), pairs(np.full((16, 24), 4)))


# the commands


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    """Eight scenes to train on and four to validate on, 64 pixels wide."""
    folder = tmp_path_factory.mktemp('data') / 'tiny shapes'
    command('synthesize', 'shapes', '--out', folder, '--train', 8, '--val', 4, '--size', 64, '--workers', 1)
    return folder


@pytest.fixture
def spoiled(shapes, tmp_path):
    """A copy of the scenes, to be damaged."""
    return shutil.copytree(shapes, tmp_path / 'spoiled')


@pytest.fixture(scope='module')
def segmenter(tmp_path_factory):
    model = tiny(num_classes=len(CLASSES))
    return vt_hub.export(model, tmp_path_factory.mktemp('model') / 'tiny', labels=list(CLASSES), code=False)


def command(*args):
    """Run the command, which has to succeed."""
    result = CliRunner().invoke(cli.app, list(map(str, args)))
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.stdout


def training(data, output, *more, batch_size=2):
    return [
        'train', 'segmenter', '--recipe', 'shapes', '--data-dir', data, '--output', output,
        '--workers', 0, '--model', 'test_vt_fpn', '--steps', 4, '--batch_size', batch_size, '--eval-every', 2,
        '--input_size', '[64, 64]', '--absent-classes', 'true', *more,
    ]  # fmt: skip


@pytest.fixture(scope='module')
def finished(shapes, tmp_path_factory):
    """A whole run."""
    output = tmp_path_factory.mktemp('runs') / 'run'
    assert command(*training(shapes, output, '--lr', '2e-2')).splitlines()[-1] == str(output / 'model')
    return output


def spoil_value(data, split):
    """A mask value beyond the classes."""
    path = data / split / 'masks' / '000002.png'
    mask = np.array(Image.open(path))
    mask[3:5] = 200
    Image.fromarray(mask).save(path)
    return '000002.png', 'values 200' if split == 'train' else 'labels beyond'


def spoil_size(data, split):
    """A mask of another size than its image."""
    Image.new('L', (32, 64)).save(data / split / 'masks' / '000001.png')
    return '000001.png', '64 x 64 pixels and its mask 32 x 64'


def spoil_image(data, split):
    """An image that ends too early."""
    path = data / split / 'images' / '000003.png'
    path.write_bytes(path.read_bytes()[:1000])
    return '000003.png', 'Cannot read'


def figures(result):
    return {key: result[key] for key in ('task', 'dataset', 'metrics', 'per_class_iou', 'errors')}


def test_evaluate(run, segmenter, shapes, tmp_path):
    code, out, _ = run(
        'evaluate', segmenter, '--task', 'segmentation', '--data-dir', shapes, '--workers', 0,
        '--result', tmp_path / 'new' / 'result.json', '--json',
    )  # fmt: skip
    assert code == 0
    result = json.loads(out)
    assert read_json(tmp_path / 'new' / 'result.json') == result
    assert files(tmp_path) == ['new/result.json']
    data = open_data(shapes, 'val')
    model = vt_hub.VTFPNForSemanticSegmentation.from_pretrained(segmenter)
    assert figures(result) == figures(evaluate_segmentation(model, data))
    assert {'hardware', 'torch', 'timm', 'transformers', 'model'} <= result.keys()
    expected = naive_scores([mask for _, mask in data], [predicted(segmenter, image) for image, _ in data], 17)
    assert_scores(result, *expected)
    code, out, _ = run('evaluate', segmenter, '--data-dir', shapes, '--workers', 0)
    assert f'mean IoU (%) {result["metrics"]["miou"]}, ' in out
    assert ', 4 images\n' in out
    assert out.splitlines()[-4].split()[0] == '1'  # the tokens of four levels


@torch.no_grad()
def predicted(folder, image):
    """Class of every pixel, through timm."""
    model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    size = image.height, image.width
    logits = torch.nn.functional.interpolate(model(transform(image)[None]), size=size, mode='bilinear')
    return logits[0].argmax(0).numpy()


def test_evaluate_counts_what_is_good(run, segmenter, spoiled, tmp_path):
    faults = [spoil(spoiled, 'val') for spoil in (spoil_value, spoil_size, spoil_image)]
    result = tmp_path / 'result.json'
    code, _, err = run('evaluate', segmenter, '--data-dir', spoiled, '--workers', 0, '--result', result)
    assert code == 1
    assert '3 of 4 images failed:' in err
    found = read_json(result)
    assert found['dataset']['num_images'] == 1
    assert len(found['errors']) == 3
    for name, reason in faults:
        assert any(name in error and reason in error for error in found['errors']), reason
        assert reason in err
    image, mask = open_data(spoiled, 'val')[0]
    assert_scores(found, *naive_scores([mask], [predicted(segmenter, image)], len(CLASSES)))
    assert 'Traceback' not in err


def test_evaluate_at_an_edge(run, segmenter, shapes):
    plain, edge, same = (
        json.loads(run('evaluate', segmenter, '--data-dir', shapes, '--workers', 0, '--json', *more)[1])
        for more in ((), ('--shortest-edge', 32), ('--shortest-edge', 999, '--longest-edge', 96))
    )
    assert edge['per_class_iou'] != plain['per_class_iou']
    assert same['per_class_iou'] == plain['per_class_iou']  # 96 pixels are the model's own input size


def test_evaluate_refuses(run, segmenter, shapes, tmp_path):
    classifier = vt_hub.export(timm.create_model('test_vt_resnet', num_classes=3).eval(), tmp_path / 'c', code=False)
    other = vt_hub.export(tiny(num_classes=3), tmp_path / 'other', code=False)
    for model, data, message in (
        (classifier, shapes, 'does classification, not segmentation.'),
        (other, shapes, 'tiny shapes has 17 classes, but the model has 3.'),
        (segmenter, tmp_path / 'nowhere', 'There is no folder'),
    ):
        args = ['--task', 'segmentation', '--data-dir', data, '--workers', 0, '--result', tmp_path / 'r.json']
        code, out, err = run('evaluate', model, *args)
        assert (code, out) == (1, '')
        assert err.splitlines()[-1].startswith('error: ')
        assert message in err.splitlines()[-1]
    assert not (tmp_path / 'r.json').exists()


def test_two_processes_find_what_one_finds(run, segmenter, spoiled, tmp_path):
    spoil_image(spoiled, 'val')
    one, two = tmp_path / 'one.json', tmp_path / 'two.json'
    args = ['evaluate', segmenter, '--data-dir', spoiled, '--workers', 0, '--result']
    assert run(*args, one)[0] == 1
    launcher = ['torch.distributed.run', '--standalone', '--nproc-per-node', 2, '-m', 'vt_hub']
    environment = os.environ | {'OMP_NUM_THREADS': str(torch.get_num_threads()), 'CUDA_VISIBLE_DEVICES': ''}
    result = subprocess.run(
        list(map(str, [sys.executable, '-m', *launcher, *args, two])), env=environment, capture_output=True, text=True
    )
    assert two.exists(), result.stderr
    assert result.returncode == 1  # for the image that is bad
    assert result.stderr.count('1 of 4 images failed:') == 1
    assert result.stdout.count('mean IoU (%)') == 1  # one of them prints
    assert figures(read_json(two)) == figures(read_json(one))
    assert len(read_json(two)['errors']) == 1


def test_a_run_ends_in_a_folder_with_its_figures(finished, shapes, run):
    result, model = read_json(finished / 'result.json'), finished / 'model'
    assert read_results([finished / 'result.json']) == [result]  # what `vt-hub card --result` needs
    scored = sum(iou is not None for iou in result['per_class_iou'].values())
    split = f'val, {scored} of 17 classes'  # a mean over fewer says so
    assert scored < 17
    assert result['dataset'] == {'name': 'tiny shapes', 'type': 'tiny shapes', 'split': split, 'num_images': 4}
    for key, value in {'lr': 0.02, 'steps': 4, 'batch_size': 2, 'seed': 0, 'num_images': 8}.items():
        assert result['training'][key] == value, key
    assert read_json(finished / 'recipe.json').items() <= result['training'].items()
    card = (model / 'README.md').read_text()
    assert (
        f'| tiny shapes | {split} | 4 | {result["metrics"]["miou"]} | {result["metrics"]["pixel_accuracy"]} |' in card
    )
    assert list(read_json(model / 'config.json')['label_names']) == list(CLASSES)
    # the weights in the folder, in fp32 and through timm, are what the figures are of
    data = open_data(shapes, 'val')
    expected = naive_scores([mask for _, mask in data], [predicted(model, image) for image, _ in data], 17)
    assert_scores(result, *expected)
    evaluated = json.loads(run('evaluate', model, '--data-dir', shapes, '--workers', 0, '--json')[1])
    assert figures(evaluated) == figures(result)
    history = read_json(finished / 'checkpoint-4' / 'trainer_state.json')['log_history']
    assert max(entry.get('eval_miou', 0) for entry in history) == pytest.approx(result['metrics']['miou'], abs=1)
    recipe = load_segmentation_recipe('shapes', {'steps': 4, 'lr': 0.02})
    rates = {entry['step']: entry['learning_rate'] for entry in history if 'learning_rate' in entry}
    assert rates == {step: pytest.approx(0.02 * recipe.lr_factor(step - 1)) for step in (2, 4)}


def test_the_folder_of_a_run_has_whole_checksums(finished, run, monkeypatch):
    from vt_hub.publishing import verification as checks

    fixture = checks.load_file(finished / 'model' / 'fixture.safetensors')['logits']
    monkeypatch.setattr(checks, '_subprocess', lambda code, folder: fixture)  # another test runs these
    assert {check.name: check.detail for check in vt_hub.verify(finished / 'model') if not check.passed} == {}


def test_norms_and_biases_do_not_decay(tmp_path):
    recipe = load_segmentation_recipe('shapes', {'model': 'test_vt_fpn'})
    model = start_model(recipe, list('abc'))
    arguments = TrainingArguments(output_dir=str(tmp_path), weight_decay=0.1, use_cpu=True, report_to='none')
    optimizer = SegmentationTrainer(recipe, model=model, args=arguments).create_optimizer()
    for group in optimizer.param_groups:
        assert all((value.ndim > 1) == (group['weight_decay'] > 0) for value in group['params'])
    assert sum(len(group['params']) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_a_run_may_start_from_other_weights(finished):
    recipe = load_segmentation_recipe(
        'shapes',
        {'model': str(finished / 'model'), 'input_size': [64, 96], 'model_args': {'pretrained_backbone': True}},
    )
    model = start_model(recipe, list('abc'))
    assert model.config.label_names == list('abc')
    assert tuple(model.config.pretrained_cfg['input_size']) == (3, 64, 96)
    trained = timm.create_model(f'local-dir:{finished / "model"}', pretrained=True).state_dict()
    for name, value in model.state_dict().items():
        assert name.startswith('head.predictor') or torch.equal(value, trained[name]), name


def test_a_backbone_may_start_from_a_file(tmp_path):
    torch.manual_seed(1)
    whole = timm.create_model('test_resnet', num_classes=7)
    torch.save(whole.state_dict(), tmp_path / 'backbone.pth')
    changes = {'model': 'test_vt_fpn', 'backbone_checkpoint': str(tmp_path / 'backbone.pth')}
    recipe = load_segmentation_recipe('shapes', changes | {'model_args': {'pretrained_backbone': True}})
    trunk, trained = start_model(recipe, list('abc')).backbone.state_dict(), whole.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in trunk.items())
    plain = {name: value for name, value in trained.items() if not name.endswith('num_batches_tracked')}
    torch.save(plain, tmp_path / 'backbone.pth')  # as other packages write it
    trunk = start_model(recipe, list('abc')).backbone.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in trunk.items())
    torch.save({'conv1.0.weight': trained['conv1.0.weight']}, tmp_path / 'backbone.pth')
    with pytest.raises(ValueError, match=r'backbone\.pth does not fit the model'):
        start_model(recipe, list('abc'))


def test_classes_may_have_weights(tmp_path):
    recipe = load_segmentation_recipe('shapes', {'model': 'test_vt_fpn', 'class_weights': [1.0, 0.0, 4.0]})
    model = start_model(recipe, list('abc')).eval()
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to='none')
    trainer = SegmentationTrainer(recipe, model=model, args=arguments)
    x, labels = torch.rand(2, 3, 64, 64), torch.randint(3, (2, 64, 64))
    labels[:, :9] = IGNORE
    with torch.no_grad():
        loss = trainer.compute_loss(model, {'pixel_values': x, 'labels': labels})
        logits = model(x).logits
        logits = torch.nn.functional.interpolate(logits, size=(64, 64), mode='bilinear')
        chances = logits.log_softmax(1).gather(1, labels.clamp(max=2)[:, None])[:, 0]
    weights = torch.tensor([1.0, 0.0, 4.0])[labels.clamp(max=2)] * (labels != IGNORE)
    torch.testing.assert_close(loss, -(weights * chances).sum() / weights.sum())


def test_weights_fit_the_classes(shapes, run, tmp_path):
    fails(run(*training(shapes, tmp_path / 'run', '--class-weights', '[1.0, 2.0]')), '2 class weights, but')


def fails(result, *parts):
    """Exit code 1 and one line, after what is said of masks; it has the parts."""
    code, _, err = result
    *told, error = err.splitlines()
    assert code == 1
    assert error.startswith('error: ')
    assert all('no pixel of any mask' in line for line in told)
    assert all(part in err for part in parts), err


def test_a_run_is_not_overwritten(finished, shapes, run):
    before = {name: (finished / name).stat().st_mtime_ns for name in files(finished)}
    fails(run(*training(shapes, finished, '--lr', '2e-2')), 'holds a run already; resume it with --resume')
    fails(run(*training(shapes, finished, '--resume')), 'was started with lr = 0.02, not ')
    fails(run(*training(shapes, finished, '--lr', '2e-2', '--resume', '--seed', 1)), 'seed = 0, not 1')
    assert {name: (finished / name).stat().st_mtime_ns for name in files(finished)} == before


def test_a_finished_run_is_left_as_it_is(finished, shapes):
    before = {name: (finished / name).stat().st_mtime_ns for name in files(finished)}
    output = command(*training(shapes, finished, '--lr', '2e-2', '--resume'))
    assert output.splitlines() == [str(finished / 'model')]
    assert {name: (finished / name).stat().st_mtime_ns for name in files(finished)} == before


def test_a_run_that_was_cut_goes_on_from_the_last_whole_checkpoint(shapes, tmp_path):
    output = tmp_path / 'run'
    command(*training(shapes, output))
    first = read_json(output / 'checkpoint-2' / 'trainer_state.json')['log_history']
    changed = (output / 'checkpoint-2' / 'model.safetensors').stat().st_mtime_ns
    for state in (b'', b'{"epoch": '):  # not written yet, or half
        (output / 'checkpoint-4' / 'trainer_state.json').write_bytes(state)
        (output / 'result.json').unlink()
        shutil.rmtree(output / 'model')
        printed = command(*training(shapes, output, '--resume'))
        assert printed.splitlines()[-1] == str(output / 'model')
        state = read_json(output / 'checkpoint-4' / 'trainer_state.json')
        assert state['global_step'] == 4
        assert [entry for entry in state['log_history'] if entry['step'] <= 2] == first  # these were not done again
        assert (output / 'checkpoint-2' / 'model.safetensors').stat().st_mtime_ns == changed
        assert read_json(output / 'result.json')['dataset']['num_images'] == 4
        assert predicted(output / 'model', Image.new('RGB', (64, 64))).shape == (64, 64)


@pytest.mark.parametrize('split', ['train', 'val'])
@pytest.mark.parametrize('spoil', [spoil_value, spoil_size, spoil_image])
def test_bad_data_is_named_before_training(run, spoiled, tmp_path, spoil, split):
    name, reason = spoil(spoiled, split)
    reason = 'values 200' if spoil is spoil_value else reason
    count = 8 if split == 'train' else 4
    result = run(*training(spoiled, tmp_path / 'run'))
    fails(result, f'error: 1 of {count} pairs of spoiled are bad. ', f'{split}/', name, reason)
    assert not (tmp_path / 'run').exists()


def test_the_first_of_many_bad_pairs_are_named(run, spoiled, tmp_path):
    for path in (spoiled / 'train' / 'masks').iterdir():
        Image.new('L', (32, 64)).save(path)
    fails(run(*training(spoiled, tmp_path / 'run')), '8 of 8 pairs', '000000', '000002', ' And 5 more.')


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        (['--batch_size', 16], 'tiny shapes has 8 training pairs; a batch needs 16.'),
        (['--batch_size', 4, '--device_batch_size', 3], 'A batch of 4 images cannot be split over 1 x 3.'),
        (['--lr', 'high'], "lr must be float, not 'high'."),
        (['--model', 'vt_fpn_vgg'], 'vt_fpn_vgg is not a segmentation model; use one of '),
        (
            ['--model', 'vt_fpn_vgg', '--model_args', '{pretrained_backbone: true}'],
            'vt_fpn_vgg is not a segmentation model',
        ),
        (['--model', 'vt_resnet10.digits'], 'vt_resnet10.digits is not a segmentation model; use one of '),
        (['--model_args', '{decoder: unet}'], "Unknown decoder 'unet'"),
        (['--recipe', 'voc'], "There is no segmentation recipe 'voc'"),
        (['--data-dir', 'nowhere'], 'There is no folder nowhere.'),
        (['--layout', 'lip'], 'There is no train_id.txt'),
    ],
)
def test_a_run_that_cannot_start_leaves_nothing(run, shapes, tmp_path, more, message):
    fails(run(*training(shapes, tmp_path / 'run', *more)), message)
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        (['--batch_size', 16], 'tiny shapes has 8 training pairs; a batch needs 16.'),
        (['--model', 'vt_resnet10.digits'], 'vt_resnet10.digits is not a segmentation model'),
        (['--model', str(EMBEDDED / 'vt_resnet10.digits')], 'vt_resnet10.digits is not a segmentation model'),
        (['--output', '{finished}'], 'holds a run already; resume it with --resume'),
    ],
)
def test_a_dry_run_finds_it_too(run, shapes, finished, tmp_path, more, message):
    more = [str(argument).format(finished=finished) for argument in more]
    fails(run(*training(shapes, tmp_path / 'run', '--dry-run', *more)), message)
    assert run(*training(shapes, tmp_path / 'run', '--dry-run'))[0] == 0
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('more', [['--steps'], ['--steps', '['], ['steps', '4'], ['--lr=0.1']])
def test_wrong_usage_exits_2(run, shapes, tmp_path, more):
    code, out, err = run(*training(shapes, tmp_path / 'run', *more))
    assert (code, out) == (2, '')
    assert 'Invalid value' in err


def test_a_batch_is_split_over_processes(shapes, tmp_path, monkeypatch, run):
    monkeypatch.setenv('WORLD_SIZE', '3')
    fails(run(*training(shapes, tmp_path / 'run')), 'A batch of 2 images cannot be split over 3 x 1.')


def test_reduced_labels_in_training(shapes):
    """With reduced labels the background does not count, and the others move down."""
    data = replace(open_data(shapes, 'val'), classes=list(CLASSES[1:]), reduce_labels=True)
    whole = open_data(shapes, 'val')[0][1].astype(int)
    sample = training_pairs(data, input_size=[64, 64])[0]
    assert np.array_equal(sample['labels'], np.where(whole == 0, IGNORE, whole - 1))


@pytest.fixture
def binary(tmp_path):
    """Masks of 0 and 255, as most programs draw two classes."""
    for split in ('train', 'val'):
        for kind in ('images', 'masks'):
            (tmp_path / 'data' / split / kind).mkdir(parents=True)
        for i in range(4):
            mask = np.zeros((64, 64), np.uint8)
            mask[:16] = 255
            Image.fromarray(mask).save(tmp_path / 'data' / split / 'masks' / f'{i}.png')
            Image.effect_noise((64, 64), 60).convert('RGB').save(tmp_path / 'data' / split / 'images' / f'{i}.png')
    (tmp_path / 'data' / 'classes.txt').write_text('background\nlesion\n')
    return tmp_path / 'data'


def test_a_class_that_occurs_in_no_mask_is_named_before_training(binary, tmp_path):
    arguments = [str(argument) for argument in training(binary, tmp_path / 'run')]
    place = arguments.index('--absent-classes')
    refused = CliRunner().invoke(cli.app, arguments[:place] + arguments[place + 2 :])
    assert refused.exit_code == 1
    assert 'data, train: 25.0 % of the pixels are 255 and are ignored.' in refused.stderr
    assert 'data, train: no pixel of any mask is lesion; masks hold class numbers from 0' in str(refused.exception)
    assert not (tmp_path / 'run').exists()
    told = CliRunner().invoke(cli.app, arguments)
    assert told.exit_code == 0
    assert 'data, val: no pixel of any mask is lesion.' in told.stderr
