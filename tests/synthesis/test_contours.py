import hashlib

import torch
from scipy import ndimage

from vt_hub.synthesis.contours import contour_bank


def test_pictures_are_functions_of_seed_class_and_instance():
    bank = contour_bank(0, 6, 3, 48)
    assert (bank.shape, bank.dtype) == ((6, 3, 48, 48), torch.uint8)
    assert hashlib.sha256(bank.numpy().tobytes()).hexdigest()[:16] == '5f798feb709c9341'
    assert torch.equal(contour_bank(0, 4, 2, 48, batch_size=5), bank[:4, :2])
    assert not torch.equal(contour_bank(1, 6, 3, 48), bank)
    assert len(bank.flatten(0, 1).unique(dim=0)) == 18


def test_closed_lines_part_the_middle_from_the_rim():
    for picture in contour_bank(0, 8, 1, 256)[:, 0].numpy():
        regions, count = ndimage.label(picture == 0)
        assert count > 2
        assert regions[128, 128] not in {0, regions[0, 0]}
    share = (contour_bank(0, 40, 1, 64) > 16).float().mean((1, 2, 3))
    assert share.min() > 0.05
    assert share.max() < 0.7
