import itertools
import random

import numpy as np
import pytest
import timm
import torch
from helpers.pictures import picture
from PIL import Image
from transformers import AutoImageProcessor

import vt_hub

CFG = {'input_size': (3, 64, 64), 'mean': (0.4, 0.5, 0.6), 'std': (0.2, 0.3, 0.25), 'crop_pct': 0.9}


@pytest.mark.parametrize(
    ('crop_pct', 'interpolation'), list(itertools.product([0.875, 0.9, 0.95, 1.0], ['bicubic', 'bilinear']))
)
def test_equals_timms_transform_on_any_size(crop_pct, interpolation):
    """200 random sizes for every crop fraction and interpolation: difference 0.0."""
    cfg = {**CFG, 'crop_pct': crop_pct, 'interpolation': interpolation}
    processor = vt_hub.VTResNetImageProcessor(pretrained_cfg=cfg)
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=cfg), is_training=False)
    draw = random.Random(f'{crop_pct} {interpolation}')
    for _ in range(200):
        image = picture(draw.randint(1, 150), draw.randint(1, 150))
        assert torch.equal(processor(image)['pixel_values'][0], transform(image)), image.size


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGBA', 'CMYK', 'I;16'])
def test_any_mode(mode):
    image = Image.fromarray(np.full((30, 40), 40000, np.uint16)) if mode == 'I;16' else picture(40, 30, mode)
    processor = vt_hub.VTResNetImageProcessor(pretrained_cfg=CFG)
    pixels = processor(image)['pixel_values']
    assert pixels.shape == (1, 3, 64, 64)
    if mode == 'I;16':
        torch.testing.assert_close(pixels[0, 0], torch.full((64, 64), (40000 / 65535 - 0.4) / 0.2), rtol=0, atol=0.02)
    else:
        assert torch.equal(pixels, processor(image.convert('RGB'))['pixel_values'])


def test_exif_orientation():
    image = picture(40, 20)
    image.getexif()[0x0112] = 3
    turned = picture(40, 20).rotate(180)
    processor = vt_hub.VTResNetImageProcessor(pretrained_cfg=CFG)
    assert torch.equal(processor(image)['pixel_values'], processor(turned)['pixel_values'])


def test_arrays_tensors_and_batches_are_the_same_images():
    image = picture(70, 50)
    array = np.asarray(image)
    processor = vt_hub.VTResNetImageProcessor(pretrained_cfg=CFG)
    expected = processor(image)['pixel_values']
    for same in (
        array,
        array.transpose(2, 0, 1),
        torch.from_numpy(array.copy()).permute(2, 0, 1),
        (array / 255).astype(np.float32),
        [image],
    ):
        assert torch.equal(processor(same)['pixel_values'], expected)
    batch = processor([image, picture(10, 90), array])['pixel_values']
    assert batch.shape == (3, 3, 64, 64)
    assert torch.equal(batch[2:], expected)
    assert processor(torch.from_numpy(np.stack([array, array])))['pixel_values'].shape == (2, 3, 64, 64)
    assert isinstance(processor(image, return_tensors='np')['pixel_values'], np.ndarray)


def test_size_and_crop_for_one_call():
    processor = vt_hub.VTResNetImageProcessor(pretrained_cfg=CFG)
    image = picture(200, 100)
    assert processor(image, size=96)['pixel_values'].shape == (1, 3, 96, 96)
    assert processor(image, size=(96, 32))['pixel_values'].shape == (1, 3, 96, 32)
    other = vt_hub.VTResNetImageProcessor(pretrained_cfg={**CFG, 'crop_pct': 1.0})
    assert torch.equal(processor(image, crop_pct=1.0)['pixel_values'], other(image)['pixel_values'])
    assert processor(image)['pixel_values'].shape == (1, 3, 64, 64)


def test_crop_when_loading(tmp_path):
    vt_hub.VTResNetImageProcessor(pretrained_cfg=CFG).save_pretrained(tmp_path)
    processor = vt_hub.VTResNetImageProcessor.from_pretrained(tmp_path, crop_pct=1.0)
    other = vt_hub.VTResNetImageProcessor(pretrained_cfg={**CFG, 'crop_pct': 1.0})
    assert processor.crop_pct == 1
    assert torch.equal(processor(picture(200, 100))['pixel_values'], other(picture(200, 100))['pixel_values'])


def test_without_a_description_it_is_the_architectures():
    assert vt_hub.VTResNetImageProcessor().size == {'height': 224, 'width': 224}
    assert vt_hub.VTFPNImageProcessor().size == {'height': 512, 'width': 512}


def test_squash_is_timms():
    cfg = {**CFG, 'crop_mode': 'squash', 'crop_pct': 1.0}
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=cfg), is_training=False)
    image = picture(200, 100)
    processor = vt_hub.VTResNetImageProcessor(pretrained_cfg=cfg)
    assert torch.equal(processor(image)['pixel_values'][0], transform(image))


def test_grey_models_get_one_channel():
    cfg = {**CFG, 'input_size': (1, 64, 64), 'mean': (0.5,), 'std': (0.5,)}
    assert vt_hub.VTResNetImageProcessor(pretrained_cfg=cfg)(picture(9, 9))['pixel_values'].shape == (1, 1, 64, 64)


def test_save_and_load(tmp_path):
    processor = vt_hub.VTResNetImageProcessor(pretrained_cfg=CFG, size=96, crop_pct=0.8)
    vt_hub.VTResNetForImageClassification(
        vt_hub.VTResNetConfig(architecture='test_vt_resnet', pretrained_cfg=CFG)
    ).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    image = picture(123, 77)
    assert processor.size == {'height': 96, 'width': 96}
    for loaded in (
        AutoImageProcessor.from_pretrained(tmp_path),
        vt_hub.VTResNetImageProcessor.from_pretrained(tmp_path),
    ):
        assert torch.equal(loaded(image)['pixel_values'], processor(image)['pixel_values'])
    (tmp_path / 'preprocessor_config.json').unlink()
    of_the_model = AutoImageProcessor.from_pretrained(tmp_path)
    plain = vt_hub.VTResNetImageProcessor(pretrained_cfg=CFG)
    assert torch.equal(of_the_model(image)['pixel_values'], plain(image)['pixel_values'])


def test_arrays_of_other_kinds():
    processor = vt_hub.VTResNetImageProcessor(pretrained_cfg={**CFG, 'mean': (0.5,) * 3, 'std': (0.5,) * 3})
    white = {
        'bool': np.ones((9, 9), bool),
        'grey': np.full((9, 9), 255, np.uint8),
        'uint16': np.full((9, 9), 65535, np.uint16),
        'float in 0..1': np.ones((9, 9, 3), np.float32),
        'float in 0..255': np.full((9, 9, 3), 255.0),
        'rgba': np.full((9, 9, 4), 255, np.uint8),
        'bf16': torch.ones(3, 9, 9, dtype=torch.bfloat16),
    }
    for name, image in white.items():
        assert torch.equal(processor(image)['pixel_values'], torch.ones(1, 3, 64, 64)), name
        assert torch.equal(processor([image, image])['pixel_values'], torch.ones(2, 3, 64, 64)), name


def test_what_transformers_users_set_counts_or_is_refused(tmp_path):
    vt_hub.VTResNetImageProcessor(pretrained_cfg=CFG).save_pretrained(tmp_path)
    image = picture(70, 50)
    plain = AutoImageProcessor.from_pretrained(tmp_path)
    other = AutoImageProcessor.from_pretrained(tmp_path, image_mean=[0, 0, 0], image_std=[1, 1, 1])
    mean, std = torch.tensor(CFG['mean']).view(3, 1, 1), torch.tensor(CFG['std']).view(3, 1, 1)
    torch.testing.assert_close(other(image)['pixel_values'], plain(image)['pixel_values'] * std + mean)
    assert (other.image_mean, other.image_std) == ([0, 0, 0], [1, 1, 1])
    with pytest.raises(ValueError, match='do_normalize cannot be turned off'):
        plain(image, do_normalize=False)
    with pytest.raises(ValueError, match='do_resize cannot be turned off'):
        AutoImageProcessor.from_pretrained(tmp_path, do_resize=False)
    with pytest.raises(AttributeError, match='size'):
        plain.size = {'height': 32, 'width': 32}  # would change what is saved, and not what is computed
    with pytest.raises(ValueError, match='a height and a width, not shortest_edge'):
        plain(image, size={'shortest_edge': 64})
    with pytest.raises(ValueError, match='no image'):
        plain([])


@pytest.mark.parametrize(
    'array',
    [np.full((9, 9), 300), np.full((9, 9), 4000, np.int16), np.full((9, 9, 3), -0.5), np.full((9, 9), np.nan)],
)
def test_arrays_that_are_no_images_are_refused(array):
    with pytest.raises(ValueError, match='An image has values from'):
        vt_hub.VTResNetImageProcessor(pretrained_cfg=CFG)(array)


@pytest.mark.parametrize('shape', [(6, 64, 64), (0, 0, 3), (0, 9), (2, 9, 9), (3, 3, 9, 9, 9), (5,)])
def test_shapes_that_are_not_an_images_are_refused(shape):
    with pytest.raises(ValueError, match=r'An image is \(height, width\), with 1, 3 or 4 channels|no image'):
        vt_hub.VTResNetImageProcessor(pretrained_cfg=CFG)(np.zeros(shape, np.uint8))


def test_a_tensor_with_a_gradient_is_an_image():
    processor, tensor = vt_hub.VTResNetImageProcessor(pretrained_cfg=CFG), torch.rand(3, 70, 50)
    expected = processor(tensor)['pixel_values']
    assert torch.equal(processor(tensor.clone().requires_grad_())['pixel_values'], expected)


def test_the_layout_of_an_array_can_be_told():
    processor, array = vt_hub.VTResNetImageProcessor(pretrained_cfg=CFG), np.random.default_rng(0).random((3, 40, 3))
    last = processor(array, input_data_format='channels_last')['pixel_values']
    first = processor(array, input_data_format='channels_first')['pixel_values']
    assert torch.equal(processor(array)['pixel_values'], last)
    assert torch.equal(processor(np.moveaxis(array, 0, -1), input_data_format='channels_last')['pixel_values'], first)
    assert not torch.equal(first, last)


@pytest.mark.parametrize('resample', [0, 1, 2, 3, 4, 5])
def test_resample_is_timms_interpolation(resample, tmp_path):
    names = {0: 'nearest', 1: 'lanczos', 2: 'bilinear', 3: 'bicubic', 4: 'box', 5: 'hamming'}
    cfg, image = {**CFG, 'interpolation': names[resample]}, picture(200, 100)
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=cfg), is_training=False)
    plain = vt_hub.VTResNetImageProcessor(pretrained_cfg=CFG)
    plain.save_pretrained(tmp_path / 'plain')
    given = vt_hub.VTResNetImageProcessor(pretrained_cfg=CFG, resample=resample)
    given.save_pretrained(tmp_path / 'given')
    processors = (
        given,
        AutoImageProcessor.from_pretrained(tmp_path / 'plain', resample=resample),
        AutoImageProcessor.from_pretrained(tmp_path / 'given'),
    )
    for processor in processors:
        assert processor.resample == resample
        assert torch.equal(processor(image)['pixel_values'][0], transform(image))
    assert torch.equal(plain(image, resample=Image.Resampling(resample))['pixel_values'][0], transform(image))


@pytest.mark.parametrize('kind', [vt_hub.VTResNetImageProcessor, vt_hub.VTFPNImageProcessor])
@pytest.mark.parametrize(
    ('option', 'message'),
    [
        (
            {'crop_size': 128},
            'crop_size=128 is not an option of this image processor; it takes size, crop_pct, resample',
        ),
        ({'foo': 1}, 'foo=1 is not an option'),
        ({'rescale_factor': 0.5}, 'rescale_factor=0.5 is not an option'),
        ({'do_rescale': False}, 'do_rescale cannot be turned off'),
        ({'resample': 99}, r'resample=99 is not one of PIL\.Image\.Resampling'),
        ({'data_format': 'channels_last'}, 'data_format'),
    ],
)
def test_options_are_used_or_refused_by_name(kind, option, message, tmp_path):
    plain, image = kind(pretrained_cfg=CFG), picture(70, 50)
    plain.save_pretrained(tmp_path)
    for refused in (
        lambda: kind(pretrained_cfg=CFG, **option),
        lambda: AutoImageProcessor.from_pretrained(tmp_path, **option),
        lambda: plain(image, **option),
    ):
        with pytest.raises(ValueError, match=message):
            refused()


@pytest.mark.parametrize('kind', [vt_hub.VTResNetImageProcessor, vt_hub.VTFPNImageProcessor])
def test_what_transformers_own_processors_take_for_a_call(kind):
    processor, image = kind(pretrained_cfg=CFG), picture(70, 50)
    expected = processor(image)['pixel_values']
    same = {
        'do_resize': True, 'do_rescale': True, 'rescale_factor': 1 / 255, 'do_normalize': True, 'do_convert_rgb': True,
        'input_data_format': None, 'data_format': 'channels_first', 'device': 'cpu', 'resample': None,
        'size': {'height': 64, 'width': 64},
    }  # fmt: skip
    assert torch.equal(processor(image, **same)['pixel_values'], expected)
    array = processor(image, return_tensors='np')['pixel_values']
    assert isinstance(array, np.ndarray)
    assert np.array_equal(array, expected.numpy())
    raw = processor(image, image_mean=[0, 0, 0], image_std=[1, 1, 1])['pixel_values']
    assert 0 <= raw.min() <= raw.max() <= 1


def test_label_maps_are_whole_numbers():
    processor, image = vt_hub.VTFPNImageProcessor(pretrained_cfg=CFG), picture(9, 9)
    assert processor(image, np.full((9, 9), 2.0))['labels'].unique().item() == 2
    with pytest.raises(ValueError, match='values that are not whole numbers'):
        processor(image, np.full((9, 9), 1.5))
    with pytest.raises(ValueError, match=r'is \(height, width\) of class indices, not \(9, 9, 1\)'):
        processor(image, np.zeros((9, 9, 1), np.uint8))
