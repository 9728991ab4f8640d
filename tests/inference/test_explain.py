"""`vt-hub explain`: the parts of a prediction, the picture of them, and the command."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from helpers.segmentation import image_of
from matplotlib import colormaps
from PIL import Image

import vt_hub
from vt_hub.inference.explanation_figure import draw_explanation, save_explanation

GREY = {'input_size': (1, 96, 96), 'mean': (0.5,), 'std': (0.5,)}


def network(num_classes=6, **kwargs):
    torch.manual_seed(0)
    model = timm.create_model('test_vt_resnet', num_classes=num_classes, **kwargs).eval()
    torch.nn.init.normal_(model.get_classifier().bias) if num_classes else None
    return model


@pytest.fixture(scope='module')
def explanation():
    return vt_hub.explain(network(), image_of(120, 100), topk=4)


@pytest.mark.parametrize(
    'kwargs', [{}, {'tokenizer': 'pooling', 'num_tokens': 6}, {'vt_depth': 3, 'token_mixer': 'none'}]
)
def test_contributions_sum_to_the_logits(kwargs):
    model, image = network(**kwargs), image_of(120, 100)
    found = vt_hub.explain(model, image, topk=6)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.inference_mode():
        logits = model(transform(image)[None])[0].sort(descending=True).values
    assert torch.allclose(found.contributions.sum(1) + found.biases, logits, atol=1e-5)
    assert [p['logit'] for p in found.predictions] == pytest.approx(logits.tolist(), abs=1e-5)
    assert [p['score'] for p in found.predictions] == pytest.approx(logits.softmax(0).tolist(), abs=1e-5)
    assert found.contributions.shape == (6, kwargs.get('num_tokens', 16))
    assert len(found.attention) == kwargs.get('vt_depth', 2)


def test_attention_is_the_models(explanation):
    model = network()
    pixels = (torch.from_numpy(explanation.image).permute(2, 0, 1) / 255).float()
    config = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ('mean', 'std'))
    with torch.inference_mode():
        expected = model.token_attention(((pixels - mean) / std)[None])
    for found, attention in zip(explanation.attention, expected, strict=True):
        assert torch.allclose(found, attention[0], atol=1e-3)  # the image is rounded to bytes
        assert torch.allclose(found.sum((1, 2)), torch.ones(16), atol=1e-5)


def test_image_is_what_the_network_saw(explanation):
    assert explanation.image.shape == (96, 96, 3)
    image = image_of(120, 100)
    seen = vt_hub.explain(network(pretrained_cfg_overlay={'crop_pct': 1.0}), image.resize((96, 96))).image
    assert np.abs(seen.astype(int) - np.asarray(image.resize((96, 96)))).max() <= 1


def test_grey_images():
    found = vt_hub.explain(network(in_chans=1, pretrained_cfg_overlay=GREY), image_of(96, 96, 'L'))
    assert found.image.shape == (96, 96, 3)
    assert (found.image == found.image[..., :1]).all()


def test_a_model_that_was_made_grey():
    model = timm.create_model('vt_resnet10', pretrained=True, in_chans=1).eval()  # timm leaves it three means
    assert vt_hub.explain(model, image_of(64, 64, 'L')).image.shape == (64, 64, 3)


def test_in_the_models_precision(explanation):
    found = vt_hub.explain(network().bfloat16(), image_of(120, 100), topk=4)
    assert torch.allclose(found.contributions, explanation.contributions, atol=0.02)
    assert found.attention[0].dtype == torch.float32


def test_fewer_classes_than_asked_for():
    assert len(vt_hub.explain(network(num_classes=2), image_of(96, 96)).predictions) == 2


@pytest.mark.parametrize(
    'model',
    [
        lambda: network(num_classes=0),
        lambda: timm.create_model('test_vt_fpn', decoder='fpn').eval(),
        lambda: timm.create_model('test_resnet').eval(),
        lambda: timm.create_model('test_vt_resnet', features_only=True).eval(),
    ],
)
def test_other_models_are_refused(model):
    with pytest.raises(ValueError, match='Only a VT-ResNet or VT-Net with a classifier, or a VT-FPN, can be explained'):
        vt_hub.explain(model(), image_of(96, 96))


def test_a_segmenter_shows_where_the_tokens_of_each_level_look():
    torch.manual_seed(0)
    model = timm.create_model('test_vt_fpn', num_classes=5).eval()
    found = vt_hub.explain(model, image_of(120, 100), topk=3)
    height, width = found.image.shape[:2]
    assert [tuple(part.shape[1:]) for part in found.attention] == [(height // s, width // s) for s in (4, 8, 16, 32)]
    assert found.places == [f'Level of stride {stride}' for stride in (4, 8, 16, 32)]
    assert all(torch.allclose(part.sum((1, 2)), torch.ones(len(part)), atol=1e-5) for part in found.attention)
    assert len(found.diversity) == 4
    mask = vt_hub.segment(model, Image.fromarray(found.image))
    assert found.predictions == mask['classes'][:3]
    assert found.contributions.shape[0] == len(found.biases) == 0
    assert found.overlay.shape[2] == 3
    pictures, _ = pictures_of(draw_explanation(found))
    assert any(np.array_equal(picture, found.overlay) for picture in pictures)
    assert json.loads(json.dumps(found.to_dict()))['contributions'] == []


def pictures_of(figure):
    """The photographs and the maps of a figure, as they are drawn, and the names above the maps."""
    found = [picture.get_array() for picture in figure.axes[0].images]
    return found, [text.get_text() for text in figure.axes[0].texts]


def test_picture_shows_every_token_at_one_scale(explanation):
    maps = [torch.randn(16, 36).mul(2).softmax(1).unflatten(1, (6, 6)) for _ in range(2)]  # no two tokens alike
    explanation = replace(explanation, attention=maps)
    found, names = pictures_of(draw_explanation(explanation, 'a title'))
    assert len(found) == 2 * (1 + 16)
    assert all(np.array_equal(found[i], explanation.image) for i in (0, 17))
    assert names[0] == 'a title'
    assert names[2:18] == [f'token {number}' for number in range(1, 17)]
    cells = torch.cat([attention.flatten() for attention in explanation.attention]).numpy()  # all maps have 36 cells
    for attention, drawn in zip(explanation.attention, (found[1:17], found[18:]), strict=True):
        for share, picture in zip(attention.numpy(), drawn, strict=True):
            expected = np.minimum(share / np.quantile(cells, 0.99), 1)
            heat = colormaps['viridis'](expected)[..., :3].repeat(16, 0).repeat(16, 1)  # a block of 16 pixels each
            grey = explanation.image.mean(2, keepdims=True)
            assert np.abs(picture - (0.65 * 255 * heat + 0.35 * grey)).max() < 1


def test_tokens_that_look_at_the_same_place_share_a_picture(explanation):
    same = [attention[:1].expand(16, -1, -1).clone() for attention in explanation.attention]
    same[1][3] = explanation.attention[1][3]
    found, names = pictures_of(draw_explanation(replace(explanation, attention=same)))
    assert len(found) == 2 + 1 + 2
    assert [names[2], *names[4:]] == ['tokens 1 to 16', '15 tokens', 'token 4']


def test_contributions_that_do_not_differ_are_one_sentence(explanation):
    def drawn(contributions):
        figure = draw_explanation(replace(explanation, contributions=contributions))
        axes = figure.axes[2]
        return [bar.get_height() for bar in axes.patches], [text.get_text() for text in axes.texts]

    bars, texts = drawn(explanation.contributions)
    assert bars == pytest.approx(explanation.contributions[0].tolist())
    assert texts == []
    bars, texts = drawn(torch.full((4, 16), 0.25))
    assert bars == []
    assert texts == ['All 16 tokens add nearly the same, about 0.25 each.']


def test_picture_of_labels_as_they_are(explanation):
    """Not as formulas, of which matplotlib knows few, and no longer than there is room."""
    named = [{**prediction, 'label': f'$\\nosuch$ {"x" * 90}'} for prediction in explanation.predictions]
    figure = draw_explanation(replace(explanation, predictions=named), '$\\nosuch$')
    figure.canvas.draw()
    classes, tokens = figure.axes[1:3]
    assert [text.get_text()[:9] for text in classes.get_yticklabels()] == ['$\\nosuch$'] * len(named)
    assert max(len(line) for line in tokens.get_title(loc='left').splitlines()) < 80
    assert len(classes.patches) == len(named)


def test_picture_leaves_out_what_would_be_0_percent(explanation):
    best, second, third, fourth = explanation.predictions
    shares = [best | {'score': 0.0004}, second | {'score': 0.0006}, third | {'score': 0.0004}, fourth | {'score': 0}]
    axes = draw_explanation(replace(explanation, predictions=shares)).axes[1]
    assert [text.get_text() for text in axes.get_yticklabels()] == [best['label'], second['label']]
    values = draw_explanation(replace(explanation, predictions=shares, meaning='value')).axes[1]
    assert len(values.patches) == 4


def test_picture_is_a_file(explanation, tmp_path):
    save_explanation(explanation, tmp_path / 'sheet.png')
    with Image.open(tmp_path / 'sheet.png') as sheet:
        assert sheet.width > 1000
        assert sheet.height > 1000


def test_without_matplotlib(explanation, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "vt_hub\[explain\]"'):
        draw_explanation(explanation)


# the command


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return vt_hub.export(network(), tmp_path_factory.mktemp('model') / 'model', labels=list('abcdef'), code=False)


def test_command(run, folder, tmp_path):
    image_of(120, 100).save(tmp_path / 'a.png')
    code, out, err = run('explain', tmp_path / 'a.png', '--model', folder, '--out', tmp_path / 'sheet.png')
    assert (code, err.count('\n')) == (0, 1)
    assert err.startswith(f'{folder} names an image as one of 6 classes, whatever it shows: a, b')
    path, text = out.strip().split(': ')
    assert path == str(tmp_path / 'a.png')
    assert text[0] in 'abcdef'
    assert text.endswith(f' %, {tmp_path / "sheet.png"}')
    assert (tmp_path / 'sheet.png').is_file()


def test_command_prints_json_without_a_picture(run, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image_of(120, 100).save('a.png')
    code, out, _ = run('explain', 'a.png', '--model', folder, '--topk', '2', '--json')
    assert code == 0
    found = json.loads(out)
    assert found['image'] == 'a.png'
    for i, prediction in enumerate(found['predictions']):
        assert sum(found['contributions'][i]) + found['biases'][i] == pytest.approx(prediction['logit'], abs=1e-5)
    assert np.allclose(np.sum(found['attention'], axis=(2, 3)), 1, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ['a.png']


def test_command_goes_on_after_a_bad_file(run, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('a.png', 'c.png'):
        image_of(120, 100).save(name)
    (tmp_path / 'b.png').write_bytes(b'no image')
    code, out, err = run('explain', 'a.png', 'b.png', 'c.png', '--model', folder)
    assert code == 1
    assert 'b.png' in err
    assert len(out.splitlines()) == 2
    assert sorted(path.name for path in (tmp_path / 'explanations').iterdir()) == ['a.png', 'c.png']
