import hashlib
import subprocess
import sys

import pytest
import torch

from vt_hub.synthesis.counters import CounterRandom, mix
from vt_hub.synthesis.fractals import BITS, fractal_bank, render_fractals, sample_system
from vt_hub.synthesis.scenes import compose_scenes


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


def test_systems_are_contractive_and_their_odds_are_whole():
    for index in range(200):
        system = sample_system(0, index)
        for a, b, c, d, *_ in system.maps:
            matrix = torch.tensor([[a, b], [c, d]], dtype=torch.float64) / 2**BITS
            assert torch.linalg.matrix_norm(matrix, ord=2) < 1
        assert system.odds == sorted(system.odds)
        assert system.odds[-1] == 65536
    assert sample_system(0, 1) != sample_system(1, 1)


def test_a_fractal_has_the_same_pixels_in_any_batch_and_process(bank):
    assert torch.equal(fractal_bank(0, 6, 2, 48, batch_size=5), bank)
    code = (
        'import hashlib; from vt_hub.synthesis.fractals import fractal_bank; '
        'print(hashlib.sha256(fractal_bank(0, 6, 2, 48).numpy().tobytes()).hexdigest())'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == hashlib.sha256(bank.numpy().tobytes()).hexdigest()


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
