"""VT-FPN in timm, transformers and the pipeline: one folder, the same logits."""

import json

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from helpers.pictures import picture
from helpers.segmentation import CFG, LABELS, image_of, tiny
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

import vt_hub


def config(**kwargs):
    return vt_hub.VTFPNConfig(
        architecture='test_vt_fpn', id2label=dict(enumerate(LABELS)), pretrained_cfg=CFG, **kwargs
    )


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """A folder of each decoder, and the timm model that it was exported from."""
    root = tmp_path_factory.mktemp('folders')
    models = {decoder: tiny(decoder=decoder) for decoder in ('vt', 'fpn')}
    return {
        decoder: (vt_hub.export(model, root / decoder, labels=LABELS, code=decoder == 'vt'), model)
        for decoder, model in models.items()
    }


@pytest.fixture
def folder(folders):
    return folders['vt'][0]


@pytest.fixture
def segmenter(folder):
    return AutoModelForSemanticSegmentation.from_pretrained(folder).eval()


@pytest.fixture
def x():
    return torch.randn(2, 3, 65, 97, generator=torch.Generator().manual_seed(0))


def timm_model(folder, **kwargs):
    return timm.create_model(f'local-dir:{folder}', pretrained=True, **kwargs).eval()


# the same logits from every loader


@torch.no_grad()
@pytest.mark.parametrize('decoder', ['vt', 'fpn'])
def test_timm_and_transformers_compute_the_same_logits(tmp_path, folders, decoder, x):
    """timm -> folder -> transformers -> save_pretrained -> timm, difference 0.0."""
    folder, source = folders[decoder]
    expected = source(x)
    assert expected.shape == (2, 5, 17, 25)
    assert len(expected.argmax(1).unique()) > 2
    model = AutoModelForSemanticSegmentation.from_pretrained(folder).eval()
    assert type(model) is vt_hub.VTFPNForSemanticSegmentation
    assert model.state_dict().keys() == source.state_dict().keys()
    assert torch.equal(model(x).logits, expected)
    assert torch.equal(timm_model(folder)(x), expected)
    model.save_pretrained(tmp_path)
    assert torch.equal(timm_model(tmp_path)(x), expected)
    assert list(timm_model(tmp_path).pretrained_cfg['label_names']) == LABELS


def test_an_exported_folder_passes_in_every_loader(folder):
    """Remote code and torch.hub in processes where `import vt_hub` fails among them."""
    checks = vt_hub.verify(folder)
    assert {check.name: check.detail for check in checks if not check.passed} == {}
    found = {check.name: check.detail for check in checks}
    assert found['remote code'] == found['torch.hub'] == found['transformers'] == 'equal to timm'
    assert int(found['pipeline'].split(' masks')[0]) > 2


@torch.no_grad()
@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_the_pipeline_gives_the_largest_logit_at_every_pixel(folder, mode):
    image = image_of(151, 117, mode)
    model = timm_model(folder)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    logits = model(transform(image.convert('RGB'))[None])
    expected = F.interpolate(logits, size=(117, 151), mode='bilinear', align_corners=False)[0].argmax(0)
    results = pipeline('image-segmentation', model=str(folder))(image)
    assert len(results) == len(expected.unique()) > 2
    for result in results:
        mask = torch.from_numpy(np.array(result['mask']))
        assert torch.equal(mask == 255, expected == LABELS.index(result['label'])), result['label']
        assert ((mask == 0) | (mask == 255)).all()


# image processor


@pytest.fixture(scope='module')
def processor():
    return vt_hub.VTFPNImageProcessor(pretrained_cfg=CFG)


def test_images_equal_timms_transform(processor):
    cfg = {**CFG, 'crop_mode': 'squash', 'crop_pct': 1.0}
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=cfg), is_training=False)
    for size, mode in (((64, 64), 'RGB'), ((200, 50), 'L'), ((31, 77), 'P'), ((1, 9), 'RGBA'), ((90, 40), 'CMYK')):
        image = picture(*size, mode)
        assert torch.equal(processor(image)['pixel_values'][0], transform(image.convert('RGB'))), mode


def test_a_models_own_transform_is_the_processors(folder):
    processor = AutoImageProcessor.from_pretrained(folder)
    assert type(processor) is vt_hub.VTFPNImageProcessor
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(timm_model(folder)), is_training=False)
    image = picture(150, 40)
    pixels = processor(image)['pixel_values'][0]
    assert pixels.shape == (3, 96, 96)
    assert torch.equal(pixels, transform(image))


def test_the_whole_image_is_kept():
    """Whatever a model was described with, nothing is cropped: masks have to cover the image."""
    processor = vt_hub.VTFPNImageProcessor(pretrained_cfg={**CFG, 'crop_pct': 0.5, 'crop_mode': 'center'})
    image = picture(200, 50)
    assert torch.equal(
        processor(image)['pixel_values'], vt_hub.VTFPNImageProcessor(pretrained_cfg=CFG)(image)['pixel_values']
    )


def test_batch_of_mixed_sizes_and_modes(processor):
    images = [picture(40, 30), picture(9, 80, 'L'), np.asarray(picture(64, 64)), picture(5, 5, 'RGBA')]
    maps = [np.zeros((30, 40), np.uint8), Image.new('L', (9, 80), 1), torch.full((64, 64), 2), np.full((5, 5), 255)]
    batch = processor(images, segmentation_maps=maps)
    assert batch['pixel_values'].shape == (4, 3, 64, 64)
    assert (batch['labels'].shape, batch['labels'].dtype) == ((4, 64, 64), torch.int64)
    assert batch['labels'].flatten(1).unique(dim=1)[:, 0].tolist() == [0, 1, 2, 255]
    for i, image in enumerate(images):
        assert torch.equal(batch['pixel_values'][i : i + 1], processor(image)['pixel_values'])
    as_numpy = processor(images, segmentation_maps=maps, return_tensors='np')
    assert isinstance(as_numpy['labels'], np.ndarray)


def test_label_maps_are_resized_by_nearest_neighbour(processor):
    values = np.random.default_rng(0).choice([0, 3, 17, 200, 255], (37, 53)).astype(np.uint8)
    labels = processor(picture(53, 37), segmentation_maps=values)['labels'][0]
    assert set(labels.unique().tolist()) == {0, 3, 17, 200, 255}
    doubled = processor(picture(53, 37), segmentation_maps=values, size=(74, 106))['labels'][0]
    assert np.array_equal(doubled, values.repeat(2, 0).repeat(2, 1))


def test_labels_lie_where_the_image_has_them(processor):
    dark = np.zeros((32, 32), np.uint8)
    dark[5:20, 9:30] = 1
    batch = processor(Image.fromarray(dark * 255), segmentation_maps=dark)
    grey = batch['pixel_values'][0, 0] * 0.2 + 0.4
    assert torch.equal(grey > 0.5, batch['labels'][0] == 1)


def test_palette_maps_keep_their_indices(processor):
    values = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64) % 7
    image = Image.fromarray(values).convert('P')
    image.putpalette([0, 0, 0] * 3 + [255, 0, 0] * 4)
    assert np.array_equal(processor(picture(64, 64), segmentation_maps=image)['labels'][0], values)


def test_reduce_labels(tmp_path, processor):
    values = np.zeros((64, 64), np.uint8)
    values[1], values[2], values[3] = 1, 150, 255
    image = picture(64, 64)
    reduced = processor(image, segmentation_maps=values, do_reduce_labels=True)['labels'][0]
    assert [row.unique().tolist() for row in reduced[:4]] == [[255], [0], [149], [255]]
    assert processor(image, segmentation_maps=values)['labels'][0, 2, 0] == 150
    vt_hub.VTFPNImageProcessor(pretrained_cfg=CFG, do_reduce_labels=True).save_pretrained(tmp_path)
    loaded = vt_hub.VTFPNImageProcessor.from_pretrained(tmp_path)
    assert torch.equal(loaded(image, segmentation_maps=values)['labels'][0], reduced)
    assert torch.equal(loaded(image)['pixel_values'], processor(image)['pixel_values'])


@pytest.mark.parametrize(
    ('maps', 'message'),
    [
        ([np.zeros((8, 8), np.uint8)], '2 images came with 1 segmentation maps'),
        ([np.zeros((8, 8), np.uint8)] * 3, '2 images came with 3 segmentation maps'),
        ([picture(8, 8), picture(8, 8)], r'class indices, not \(8, 8, 3\)'),
        ([np.zeros((8, 8, 3), np.uint8)] * 2, r'class indices, not \(8, 8, 3\)'),
        ([np.full((8, 8), 256), np.zeros((8, 8), int)], 'values from 256 to 256, not from 0 to 255'),
        ([np.full((8, 8), -1), np.zeros((8, 8), int)], 'values from -1 to -1'),
    ],
)
def test_refused_label_maps(processor, maps, message):
    with pytest.raises(ValueError, match=message):
        processor([picture(8, 8), picture(8, 8)], segmentation_maps=maps)


@torch.no_grad()
def test_post_process(processor, segmenter, x):
    outputs = segmenter(x)
    maps = processor.post_process_semantic_segmentation(outputs)
    assert torch.equal(torch.stack(maps), outputs.logits.argmax(1))
    maps = processor.post_process_semantic_segmentation(outputs, [(65, 97), torch.tensor([30, 200])])
    assert [tuple(one.shape) for one in maps] == [(65, 97), (30, 200)]
    upsampled = F.interpolate(outputs.logits, size=(65, 97), mode='bilinear', align_corners=False)
    assert torch.equal(maps[0], upsampled[0].argmax(0))
    with pytest.raises(ValueError, match='2 images were segmented, but 1 target sizes were given'):
        processor.post_process_semantic_segmentation(outputs, [(65, 97)])


# losses and outputs


def test_loss(segmenter, x):
    labels = torch.randint(0, 5, (2, 65, 97), generator=torch.Generator().manual_seed(1))
    labels[0, :40] = 255
    output = segmenter(x, labels=labels)
    upsampled = F.interpolate(output.logits, size=(65, 97), mode='bilinear', align_corners=False)
    torch.testing.assert_close(output.loss, F.cross_entropy(upsampled, labels, ignore_index=255))
    output.loss.backward()
    assert all(p.grad is not None for p in segmenter.parameters())


def test_loss_without_labelled_pixels(segmenter, x):
    output = segmenter(x, labels=torch.full((2, 65, 97), 255))
    assert output.loss == 0
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in segmenter.parameters())


@torch.no_grad()
@pytest.mark.parametrize('decoder', ['vt', 'fpn'])
def test_hidden_states_and_attentions(folders, decoder):
    model = AutoModelForSemanticSegmentation.from_pretrained(folders[decoder][0]).eval()
    x = torch.randn(2, 3, 65, 97)
    sizes = [(17, 25), (9, 13), (5, 7), (3, 4)]
    output = model(x, output_hidden_states=True, output_attentions=True)
    assert [tuple(m.shape) for m in output.hidden_states] == [(2, 16, *size) for size in sizes]
    assert torch.equal(model.head(list(output.hidden_states)), output.logits)
    if decoder == 'fpn':
        assert output.attentions is None
    else:
        assert [tuple(a.shape) for a in output.attentions] == [(2, 4, *size) for size in sizes]
        for attention in output.attentions:
            torch.testing.assert_close(attention.sum((2, 3)), torch.ones(2, 4))
    plain = model(x)
    assert plain.hidden_states is plain.attentions is None
    assert torch.equal(plain.logits, output.logits)
    assert torch.equal(model(x, return_dict=False)[0], output.logits)


# loading


@torch.no_grad()
def test_a_new_head(tmp_path, folder, segmenter, x):
    new = AutoModelForSemanticSegmentation.from_pretrained(folder, num_labels=3, ignore_mismatched_sizes=True).eval()
    assert new(x).logits.shape == (2, 3, 17, 25)
    own = segmenter.state_dict()
    for name, value in new.state_dict().items():
        assert value.isfinite().all(), name
        assert name.startswith('head.predictor') or torch.equal(value, own[name]), name
    new.save_pretrained(tmp_path)
    assert torch.equal(timm_model(tmp_path)(x), new(x).logits)
    with pytest.raises(RuntimeError):
        AutoModelForSemanticSegmentation.from_pretrained(folder, num_labels=3)


def test_a_new_model_starts_as_timms():
    """The backbone's statistics are timm's; projected tokens grow from zero."""
    torch.manual_seed(0)
    ours = vt_hub.VTFPNForSemanticSegmentation(config()).state_dict()
    theirs = timm.create_model('test_vt_fpn').state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if value.numel() > 200 or name.endswith(('norm.weight', 'norm.bias', 'bn.weight', 'bn.bias')):
            torch.testing.assert_close(value.norm(), theirs[name].norm(), rtol=0.2, atol=1e-6, msg=name)
    assert ours['decoder.projectors.0.norm.weight'].count_nonzero() == 0


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (lambda weights: weights.pop('decoder.laterals.0.weight'), r'lacks decoder\.laterals\.0\.weight; '),
        (
            lambda weights: [weights.pop('head.predictor.bias'), weights.pop('backbone.bn1.weight')],
            'and 1 more weights',
        ),
        (lambda weights: weights['head.predictor.bias'].fill_(float('nan')), r'not finite in head\.predictor\.bias'),
    ],
)
def test_from_pretrained_refuses_what_would_load_as_noise(tmp_path, segmenter, spoil, message):
    segmenter.save_pretrained(tmp_path)
    weights = load_file(tmp_path / 'model.safetensors')
    spoil(weights)
    save_file(weights, tmp_path / 'model.safetensors', metadata={'format': 'pt'})
    with pytest.raises(ValueError, match=message):
        AutoModelForSemanticSegmentation.from_pretrained(tmp_path)


def test_gradient_checkpointing_keeps_gradients(folder, x):
    gradients = []
    labels = torch.randint(0, 5, (2, 65, 97), generator=torch.Generator().manual_seed(1))
    for enable in (False, True):
        model = AutoModelForSemanticSegmentation.from_pretrained(folder).train()
        if enable:
            newer = getattr(model, 'activation_checkpointing_enable', None)  # what it is called in newer releases
            (newer or model.gradient_checkpointing_enable)()
            assert model.backbone.grad_checkpointing
        model(x, labels=labels).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@torch.no_grad()
def test_half_precision(folder, segmenter, x):
    half = AutoModelForSemanticSegmentation.from_pretrained(folder, dtype=torch.bfloat16).eval()
    output = half(x, labels=torch.zeros(2, 65, 97, dtype=torch.long))  # fp32 pixels are cast
    assert (output.logits.dtype, output.loss.dtype) == (torch.bfloat16, torch.float32)
    expected = segmenter(x).logits
    assert (output.logits.float() - expected).norm() < 0.1 * expected.norm()


# timm


@torch.no_grad()
def test_timm_with_other_classes(folder, x):
    source, model = timm_model(folder), timm_model(folder, num_classes=3)
    assert model(x).shape == (2, 3, 17, 25)
    assert model.get_classifier().out_channels == model.num_classes == 3
    maps = source.forward_maps(source.forward_features(x))[0]
    assert all(torch.equal(a, b) for a, b in zip(model.forward_maps(model.forward_features(x))[0], maps, strict=True))
    model.reset_classifier(7)
    assert model(x).shape == (2, 7, 17, 25)
    assert model.num_classes == 7


@torch.no_grad()
def test_timm_with_other_channels(folder):
    """timm adds up the first convolution's weights, which needs its name in the description."""
    model = timm_model(folder, in_chans=1)
    expected = timm_model(folder).backbone.state_dict()['conv1.0.weight'].sum(1, keepdim=True)
    torch.testing.assert_close(model.backbone.state_dict()['conv1.0.weight'], expected)


@torch.no_grad()
@pytest.mark.parametrize(
    ('kwargs', 'channels'),
    [({'in_chans': 1, 'num_classes': 3}, 1), ({'backbone': 'test_efficientnet', 'num_tokens': 2}, 3)],
)
def test_arguments_survive_the_round_trip(tmp_path, kwargs, channels):
    source = timm.create_model('test_vt_fpn', **kwargs).eval()
    x = torch.randn(2, channels, 64, 96)
    folder = vt_hub.export(source, tmp_path / 'folder', code=False)
    assert torch.equal(timm_model(folder)(x), source(x))
    assert torch.equal(AutoModelForSemanticSegmentation.from_pretrained(folder).eval()(x).logits, source(x))
    pixels = AutoImageProcessor.from_pretrained(folder)(picture(20, 30))['pixel_values']
    assert pixels.shape == (1, channels, 96, 96)


@torch.no_grad()
@pytest.mark.parametrize('backbone', ['test_convnext', 'test_efficientnet', 'test_byobnet'])
def test_other_backbones(backbone, x):
    model = timm.create_model('test_vt_fpn', backbone=backbone).eval()
    assert model(x).shape == (2, 5, *model.forward_features(x)[0].shape[2:])
    assert [model.backbone.feature_info[level]['reduction'] for level in model.levels] == [4, 8, 16, 32]


def test_timm_as_a_backbone_is_refused():
    with pytest.raises(ValueError, match='test_vt_fpn is not a backbone; use its backbone alone'):
        timm.create_model('test_vt_fpn', features_only=True)


def test_group_matcher_covers_every_parameter():
    model = timm.create_model('test_vt_fpn')
    groups = timm.models.group_parameters(model, model.group_matcher())
    assert set(groups) == {0, 1, 2}
    assert sum(map(len, groups.values())) == len(list(model.parameters()))


# configuration


def test_config_round_trip(tmp_path):
    written = config(model_args={'decoder': 'fpn'})
    written.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / 'config.json').read_text())
    assert raw['label_names'] == LABELS
    assert raw['num_classes'] == raw['pretrained_cfg']['num_classes'] == 5
    assert raw['model_args'] == {'decoder': 'fpn', 'distinct_tokens': True}
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is vt_hub.VTFPNConfig
    assert again.id2label == dict(enumerate(LABELS))
    assert again.label_names == LABELS
    assert again.build_args['decoder'] == 'fpn'
    assert again.build_args['token_dim'] == 32  # the architecture's
    as_read = again.to_dict() | {'_name_or_path': ''}
    assert json.loads(json.dumps(as_read)) == json.loads(json.dumps(written.to_dict()))


def test_config_names_the_architectures_it_knows():
    with pytest.raises(ValueError, match=r"Unknown architecture 'vt_fpn_vgg'; use one of .*'vt_fpn_resnet50'"):
        vt_hub.VTFPNConfig(architecture='vt_fpn_vgg')


def test_backbones_with_buffers_that_are_not_saved(tmp_path):
    """Position biases are computed again: the checkpoint does not have them."""
    torch.manual_seed(0)
    kwargs = {'backbone': 'swinv2_cr_tiny_ns_224', 'pretrained_backbone': False}
    model = vt_hub.VTFPNForSemanticSegmentation(config(model_args=kwargs)).eval()
    model.save_pretrained(tmp_path)
    assert 'pretrained_backbone' not in json.loads((tmp_path / 'config.json').read_text())['model_args']
    loaded = vt_hub.VTFPNForSemanticSegmentation.from_pretrained(tmp_path).eval()
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(loaded(x).logits, model(x).logits)


def test_a_new_classifier_is_in_the_configuration(tmp_path, x):
    model = vt_hub.VTFPNForSemanticSegmentation(config()).eval()
    model.reset_classifier(7)
    model.save_pretrained(tmp_path)
    loaded = vt_hub.VTFPNForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(x).logits, model(x).logits)


def test_label_that_the_loss_leaves_out(segmenter, x):
    labels = torch.randint(0, 5, (len(x), 64, 64))
    labels[:, :32] = 255
    expected = segmenter(x, labels=labels).loss
    segmenter.config.semantic_loss_ignore_index = -100
    try:
        assert torch.equal(segmenter(x, labels=labels.where(labels < 255, -100)).loss, expected)
    finally:
        segmenter.config.semantic_loss_ignore_index = 255


def test_images_and_label_maps_of_other_sizes_are_refused(processor):
    turned = picture(64, 32)
    turned.getexif()[0x0112] = 6
    with pytest.raises(ValueError, match='of 32 x 64 pixels came with a segmentation map of 64 x 32'):
        processor(turned, segmentation_maps=np.zeros((32, 64), np.uint8))
