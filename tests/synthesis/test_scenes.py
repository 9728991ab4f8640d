import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from vt_hub.synthesis.counters import CounterRandom, mix
from vt_hub.synthesis.fractals import BITS, fractal_bank, render_fractals, sample_system
from vt_hub.synthesis.scene_files import write_scenes
from vt_hub.synthesis.scenes import FractalScenes, compose_scenes
from vt_hub.training.classification.data import open_image_folder
from vt_hub.training.segmentation.data import read_folders

FRACTALS, SCENES = '0b4c756958d0f915', '0da4b832908c36b5'  # the hashes of published data: they must not change


def digest(*tensors):
    return hashlib.sha256(b''.join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()[:16]


@pytest.fixture(scope='module')
def bank():
    return fractal_bank(seed=0, num_classes=6, instances=2, size=48)


def test_hash_of_a_tensor_is_that_of_its_integers():
    x = torch.tensor([0, 1, 77, 2**31, 2**32 - 1])
    assert mix(x).tolist() == [mix(int(value)) for value in x]
    assert len(set(mix(torch.arange(100_000)).tolist())) == 100_000


def test_numbers_are_uniform_and_of_each_call_and_item_alone():
    items = torch.arange(2000)
    rng = CounterRandom(0, items)
    first, second = rng.uniform(20), rng.uniform(20, low=-1, high=3)
    assert first.mean() == pytest.approx(0.5, abs=0.01)
    assert first.var() == pytest.approx(1 / 12, abs=0.002)
    assert -1 <= second.min() < -0.99
    assert 2.99 < second.max() < 3
    together = torch.stack([first.flatten(), second.flatten()])
    assert abs(torch.corrcoef(together)[0, 1]) < 0.02
    assert torch.equal(CounterRandom(0, items[500:502]).uniform(20), first[500:502])
    assert not torch.equal(CounterRandom(1, items).uniform(20), first)
    counts = CounterRandom(0, items).integers(5).bincount(minlength=5)
    assert counts.min() > 330
    assert len(counts) == 5
    numbers = CounterRandom(0, items).bytes(5, 5)
    assert numbers.shape == (2000, 5, 5)
    assert numbers.float().mean() == pytest.approx(127.5, abs=1)
    assert len(numbers.unique()) == 256
    assert torch.equal(CounterRandom(0, items[500:502]).bytes(5, 5), numbers[500:502])


def test_systems_are_contractive_and_their_odds_are_whole():
    for index in range(200):
        system = sample_system(0, index)
        for a, b, c, d, *_ in system.maps:
            matrix = torch.tensor([[a, b], [c, d]], dtype=torch.float64) / 2**BITS
            assert torch.linalg.matrix_norm(matrix, ord=2) < 1
        assert system.odds == sorted(system.odds)
        assert system.odds[-1] == 65536
    assert sample_system(0, 1) != sample_system(1, 1)


def test_a_fractal_has_the_same_pixels_in_any_batch_and_bank(bank):
    assert digest(bank) == FRACTALS
    assert torch.equal(fractal_bank(0, 6, 2, 48, batch_size=5), bank)
    assert torch.equal(fractal_bank(0, 5, 1, 48, first=1)[:, 0], bank[:5, 1])
    assert not torch.equal(bank[:, 0], bank[:, 1])


def test_the_chaos_game_draws_the_attractor():
    """Three maps that halve towards the corners of a triangle draw Sierpinski's: its middle stays empty."""
    half, corners = 2 ** (BITS - 1), ((0, 0), (2**BITS, 0), (0, 2**BITS))
    maps = [[half, 0, 0, half, e, f] for e, f in corners]
    maps, odds = torch.tensor([[*maps, maps[-1]]]), torch.tensor([[21845, 43690, 65536, 65536]])
    picture = render_fractals(maps, odds, torch.tensor([5]), 64)[0]
    assert picture.max() == 255
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing='ij')
    outside = rows + columns > 68
    middle = (rows < 29) & (columns < 29) & (rows + columns > 35)
    assert not picture[outside].any()
    assert not picture[middle].any()
    assert (picture > 0).float().mean() > 0.1


def test_no_class_is_empty_or_a_blob():
    share = (fractal_bank(3, 60, 1, 48) > 0).float().mean((1, 2, 3))
    assert share.min() > 0.03
    assert share.max() < 0.9


def test_scenes_are_functions_of_seed_and_index(bank):
    images, labels, masks = compose_scenes(bank, 0, torch.arange(12), 32)
    assert images.shape == (12, 3, 32, 32)
    assert images.min() >= 0
    assert images.max() <= 1
    for ours, alone in zip((images, labels, masks), compose_scenes(bank, 0, torch.tensor([7, 3]), 32), strict=True):
        assert torch.equal(ours[[7, 3]], alone)
    assert not torch.equal(compose_scenes(bank, 1, torch.arange(12), 32)[0], images)


def scenes_digest(bank, batch_size, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    batches = [compose_scenes(bank, 0, items, 61) for items in torch.arange(30).split(batch_size)]
    torch.set_num_threads(before)
    return digest(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_fractal_has_the_same_pixels_on_a_gpu():
    assert digest(fractal_bank(seed=0, num_classes=6, instances=2, size=48, device='cuda').cpu()) == FRACTALS


@pytest.mark.parametrize(('batch_size', 'threads'), [(30, 1), (30, 2), (7, 1), (1, 1)])
def test_scenes_have_the_same_bits_in_any_batch_and_number_of_threads(bank, batch_size, threads):
    assert scenes_digest(bank, batch_size, threads) == SCENES


def test_scenes_have_the_same_bits_without_vector_instructions():
    code = """
import hashlib, torch
from vt_hub.synthesis.fractals import fractal_bank
from vt_hub.synthesis.scenes import compose_scenes
bank = fractal_bank(0, 6, 2, 48)
print(torch.backends.cpu.get_cpu_capability())
for parts in ([bank], compose_scenes(bank, 0, torch.arange(30), 61)):
    print(hashlib.sha256(b''.join(part.numpy().tobytes() for part in parts)).hexdigest()[:16])
"""
    environment = {**os.environ, 'ATEN_CPU_CAPABILITY': 'default'}
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.split() == ['DEFAULT', FRACTALS, SCENES]


def test_objects_keep_their_size_and_stay_upright():
    """Squares of half the image's side, and the upper halves of the same ones."""
    square = torch.full((1, 1, 40, 40), 255, dtype=torch.uint8)
    half = square.clone()
    half[..., 20:, :] = 0
    masks, halves = (
        compose_scenes(bank, 0, torch.arange(60), 64, objects=(1, 1), scale=(0.5, 0.5))[2] for bank in (square, half)
    )
    inside = ~torch.cat([masks[:, [0, -1]], masks[:, :, [0, -1]].mT], 1).any((1, 2))
    assert inside.sum() > 5
    shares, half_shares = masks.float().mean((1, 2)), halves.float().mean((1, 2))
    assert shares.max() < 0.27
    torch.testing.assert_close(shares[inside], torch.full_like(shares[inside], 0.25), atol=0.02, rtol=0)
    torch.testing.assert_close(half_shares[inside], torch.full_like(shares[inside], 0.125), atol=0.02, rtol=0)
    rows = torch.arange(64.0)[:, None]
    middle, upper = ((rows * found).sum((1, 2)) / found.sum((1, 2)) for found in (masks[inside], halves[inside]))
    assert (upper < middle - 5).all()


def test_masks_show_where_objects_are(bank):
    """The same scenes without fractals differ there, and elsewhere by the edges and their blur at most."""
    images, _, masks = compose_scenes(bank, 0, torch.arange(20), 64)
    empty, _, nothing = compose_scenes(torch.zeros_like(bank), 0, torch.arange(20), 64)
    assert not nothing.any()
    changed = (images - empty).abs().amax(1) > 0.01
    near = torch.nn.functional.max_pool2d((masks > 0).float(), 5, 1, 2) > 0
    assert changed[masks > 0].float().mean() > 0.98
    assert not changed[~near].any()


def test_labels_are_the_classes_that_the_mask_shows(bank):
    _, labels, masks = compose_scenes(bank, 0, torch.arange(40), 48)
    for label, mask in zip(labels, masks, strict=True):
        shown = torch.bincount(mask.flatten(), minlength=7)[1:] > 0.004 * 48**2
        assert torch.equal(label.bool(), shown)
    assert (labels.sum(0) > 0).all()


def test_number_of_objects(bank):
    """A curriculum's first scenes hold one object each, later ones more."""
    one = compose_scenes(bank, 0, torch.arange(40), 48, objects=(1, 1))[1].sum(1)
    more = compose_scenes(bank, 0, torch.arange(40), 48, objects=(3, 5))[1].sum(1)
    assert one.max() == 1
    assert more.mean() > 2


def test_scenes_as_a_data_set_of_torch():
    data = FractalScenes(num_classes=5, seed=2, size=32, length=10)
    image, label, mask = data[3]
    assert (image.shape, image.dtype) == ((3, 32, 32), torch.uint8)
    assert (label.shape, mask.shape) == ((5,), (32, 32))
    images, labels, masks = next(iter(DataLoader(data, batch_size=4)))
    assert torch.equal(images[3], image)
    assert torch.equal(labels[3], label)
    assert torch.equal(masks[3], mask)
    expected = compose_scenes(data.bank, 2, torch.arange(4), 32)[0]
    assert (images / 255 - expected).abs().max() < 0.5 / 255 + 1e-6
    assert len(list(data)) == len(data) == 10
    with pytest.raises(IndexError):
        data[10]


def test_train_and_val_share_neither_scene_nor_picture():
    train, val = (FractalScenes(num_classes=4, size=32, length=30, split=split) for split in ('train', 'val'))
    for one, other in (
        (train.bank.flatten(0, 1), val.bank.flatten(0, 1)),
        (train.draw(range(30))[0], val.draw(range(30))[0]),
    ):
        assert not {digest(picture) for picture in one} & {digest(picture) for picture in other}
    alike = torch.corrcoef(torch.cat([train.bank[:, 0], val.bank[:, 0]]).float().flatten(1))[:4, 4:]
    assert torch.equal(alike.argmax(1), torch.arange(4))  # the same classes
    assert alike.diag().min() > 0.8


def test_write_scenes(tmp_path):
    folder = tmp_path / 'new' / 'scenes'
    paths = list(write_scenes(folder, 34, 2, seed=7, size=24, num_classes=5))
    assert len(paths) == 36
    assert all(path.is_file() for path in paths)
    assert list(folder.parent.iterdir()) == [folder]
    for split, count in (('train', 34), ('val', 2)):
        data, written = FractalScenes(5, 7, 24, count, split), read_folders(folder, split)
        assert written.classes == ['background', *(f'fractal_00{i}' for i in range(5))]
        assert len(written) == count
        rows = [json.loads(line) for line in (folder / split / 'metadata.jsonl').read_text().splitlines()]
        for i, row in zip(range(count), rows, strict=True):
            image, label, mask = data[i]
            assert np.array_equal(written[i][0], image.permute(1, 2, 0))
            assert np.array_equal(written[i][1], mask)
            assert row == {
                'file_name': f'images/{i:06d}.png',
                'mask_file_name': f'masks/{i:06d}.png',
                'labels': [1 + k for k in range(5) if label[k]],
            }
    sheet = np.asarray(Image.open(folder / 'contact_sheet.png'))
    assert sheet.shape == (6 * 26, 8 * 26, 3)
    assert np.array_equal(sheet[1:25, 1:25], Image.open(folder / 'train' / 'images' / '000000.png'))
    background = np.asarray(Image.open(folder / 'train' / 'masks' / '000000.png')) == 0
    assert np.array_equal((sheet[1:25, 27:51] == 64).all(-1), background)


def test_write_objects(tmp_path):
    """Folders of classes, as timm's train script reads them, with every class in either split."""
    folder = tmp_path / 'objects'
    assert len(list(write_scenes(folder, 12, 5, size=24, num_classes=5, objects=True))) == 17
    train, val = (open_image_folder(folder, split) for split in ('train', 'val'))
    assert train.classes == val.classes == [f'fractal_00{i}' for i in range(5)]
    assert [train.targets.count(i) for i in range(5)] == [3, 3, 2, 2, 2]
    assert val.targets == [0, 1, 2, 3, 4]
    assert (folder / 'train' / 'fractal_001' / '000006.png').is_file()
    assert Image.open(folder / 'contact_sheet.png').size == (8 * 26, 26)
    assert not (folder / 'classes.txt').exists()


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match='at most 254 classes, not 255'):
        next(write_scenes(tmp_path / 'scenes', 1, 1, num_classes=255))
    with pytest.raises(ValueError, match='9 images are too few to show 10 classes'):
        next(write_scenes(tmp_path / 'scenes', 20, 9, num_classes=10, objects=True))
    with pytest.raises(FileExistsError, match='exists already'):
        next(write_scenes(tmp_path, 1, 1))
    written = write_scenes(tmp_path / 'scenes', 40, 1, size=16, num_classes=2)
    next(written)
    written.close()
    assert not list(tmp_path.iterdir())


def test_the_command(run, tmp_path):
    arguments = ['--train', 3, '--val', 2, '--size', 16, '--classes', 2, '--seed', 4]
    code, out, err = run('synthesize', 'scenes', '--out', tmp_path / 'scenes', *arguments)
    assert (code, err) == (0, '')
    assert out.startswith(f'{tmp_path / "scenes"}: 5 images in ')
    image = np.asarray(Image.open(tmp_path / 'scenes' / 'val' / 'images' / '000001.png'))
    assert np.array_equal(image, FractalScenes(2, 4, 16, 2, 'val')[1][0].permute(1, 2, 0))
    assert run('synthesize', 'scenes', '--objects', '--out', tmp_path / 'objects', *arguments)[0] == 0
    assert (tmp_path / 'objects' / 'val' / 'fractal_001' / '000001.png').is_file()
    code, _, err = run('synthesize', 'scenes', '--out', tmp_path / 'scenes')
    assert (code, err) == (1, f'error: {tmp_path / "scenes"} exists already; name another folder or remove it.\n')
