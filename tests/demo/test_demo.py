"""`vt-hub demo`: the functions behind the page, and the page over loopback as a client uses it."""

import base64
import os
import re
import shutil
import subprocess
import sys
from io import BytesIO

import gradio as gr
import gradio_client
import httpx
import numpy as np
import pytest
import timm
import torch
from conftest import CATS, ROOT
from gradio_client.exceptions import AppError
from helpers.segmentation import image_of
from PIL import Image

import vt_hub
from vt_hub.demo import answers, build, start
from vt_hub.demo.figure import PALETTE, legend, token_figure
from vt_hub.figures import colours

PHOTOGRAPHS, LITE = 'vt_resnet18.dist_in1k', 'vt_efficientnet_lite0.dist_in1k'
DIGITS, SHAPES = 'vt_resnet10.digits', 'vt_fpn_resnet10t.shapes'
LABELS = ['<b>a</b>', 'b & c', '{{d}}', 'e', 'f', 'g']


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
    """A folder of a classifier whose labels would do harm in a page."""
    torch.manual_seed(0)
    model = timm.create_model('test_vt_resnet', num_classes=6).eval()
    return vt_hub.export(model, tmp_path_factory.mktemp('model') / 'classifier', labels=LABELS, code=False)


@pytest.fixture
def bad_files(samples, tmp_path):
    """Files that are no image to answer for, each with a part of the sentence that says so."""
    Image.new('1', (10_000, 10_000)).save(tmp_path / 'huge.png')
    Image.new('L', (2000, 50)).save(tmp_path / 'strip.png')
    (tmp_path / 'text.png').write_text('no image')
    (tmp_path / 'truncated.png').write_bytes((samples / 'scene.png').read_bytes()[:50_000])
    reasons = {
        'huge': '10000 x 10000 pixels, more than',
        'strip': 'a strip of 2000 x 50 pixels',
        'text': 'not an image',
        'truncated': '',
    }
    return {tmp_path / f'{name}.png': reason for name, reason in reasons.items()}


# behind the page


def maps_of(html):
    """The picture of every token's map, as indices into the palette, by module and token."""
    found = {}
    rule = r'\.map(\d+)-(\d+) \{ background-image: url\(data:image/png;base64,([^)]*)\) \}'
    for module, token, data in re.findall(rule, html):
        with Image.open(BytesIO(base64.b64decode(data))) as picture:
            assert np.array_equal(np.array(picture.getpalette()).reshape(-1, 3), PALETTE)
            found[int(module), int(token)] = np.array(picture)
    return found


def test_figure_says_what_each_token_adds(classifier):
    explanation = vt_hub.explain(vt_hub.load_model(str(classifier)), image_of(120, 100))
    html = token_figure(explanation)
    adds = explanation.contributions[0].tolist()
    said = re.findall(r'<span class="of(\d+)">Token \1 adds <b>([+-][\d.]+)</b>', html)
    assert said == [(str(token), f'{value:+.2f}') for token, value in enumerate(adds, 1)]
    checked = re.findall(r'aria-label="token (\d+)" checked', html)
    assert checked == [str(1 + int(np.argmax(adds)))]
    heights = [float(height) for height in re.findall(r'class="bar \w+" style="top:[\d.]+%;height:([\d.]+)%"', html)]
    assert np.allclose(np.divide(heights, max(heights)), np.abs(adds) / np.abs(adds).max(), atol=0.01)


def test_maps_share_one_scale(classifier):
    explanation = vt_hub.explain(vt_hub.load_model(str(classifier)), image_of(120, 100))
    found = maps_of(token_figure(explanation))
    assert len(found) == 2 * 16
    highest = torch.cat([part.flatten() for part in explanation.attention]).quantile(0.99)  # all maps have 36 cells
    for (module, token), picture in found.items():
        share = explanation.attention[module - 1][token - 1]
        assert np.array_equal(picture, (255 * (share / highest).clamp(max=1)).round().numpy())


def test_a_legend_has_the_colours_of_the_classes_found():
    html = legend(LABELS, ['e', '<b>a</b>'])
    first, second = re.findall(r'rgb\((\d+), (\d+), (\d+)\)"></i>', html)
    assert [*map(int, first)] == colours(6)[3].tolist()
    assert [*map(int, second)] == colours(6)[0].tolist()
    assert '&lt;b&gt;a&lt;/b&gt;</span>' in html


def test_figure_takes_labels_as_text(classifier):
    model = vt_hub.load_model(str(classifier))
    for label in range(3):
        with torch.no_grad():
            model.fc.bias.zero_()[label] = 100
        html = token_figure(vt_hub.explain(model, image_of(120, 100)))
        assert not re.search(r'<b>a</b>|b & c|\{\{|<script|https?:', html)
        assert ['&lt;b&gt;a&lt;/b&gt;', 'b &amp; c', '{ {d}}'][label] in html


def test_a_figure_of_other_shapes():
    config = {'input_size': (1, 64, 96), 'mean': (0.5,), 'std': (0.5,), 'crop_mode': 'squash'}
    model = timm.create_model(
        'test_vt_resnet', num_classes=2, in_chans=1, num_tokens=3, vt_depth=3, pretrained_cfg_overlay=config
    )
    html = token_figure(vt_hub.explain(model.eval(), image_of(96, 64, 'L')))
    found = maps_of(html)
    assert len(found) == 3 * 3
    assert found[1, 1].shape == (4, 6)
    assert '--ratio: 96 / 64' in html


def test_samples_are_read(tmp_path):
    models, found = answers.load_models(), answers.write_samples(tmp_path)
    assert list(models) == [PHOTOGRAPHS, LITE, DIGITS, SHAPES]
    assert [path.name for path in found['dist_in1k']] == ['cat.png', 'coffee.png']
    for path in found['dist_in1k']:
        assert path.read_bytes() == (ROOT / 'samples' / path.name).read_bytes()
    scores, _ = answers.classify(models[PHOTOGRAPHS].network, found['dist_in1k'][0])
    assert max(scores, key=scores.get) in CATS
    for path in found['digits']:
        assert path.read_bytes() == (ROOT / 'samples' / path.name).read_bytes()
        scores, html = answers.classify(models[DIGITS].network, path)
        assert max(scores, key=scores.get) == path.stem[-1]
        assert len(maps_of(html)) == 2 * 16
    for path in found['shapes']:
        shares, html, overlay = answers.segment(models[SHAPES].network, path)
        assert html.count('<i ') == sum(share >= 0.0005 for share in shares.values())
        assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
        assert len(shares) > 2
        assert overlay.height == 512


def test_overlays_of_large_images_are_small(tmp_path):
    model = answers.load_models([SHAPES])[SHAPES].network
    image_of(150, 100).resize((3000, 2000)).save(tmp_path / 'large.jpg')
    assert answers.segment(model, tmp_path / 'large.jpg')[2].height < 600


def test_bad_files_are_named_without_their_folder(bad_files):
    for path, reason in bad_files.items():
        with pytest.raises(ValueError, match=path.name) as error:
            answers.open_upload(path, 3)
        assert reason in str(error.value)
        assert str(path.parent) not in str(error.value)
        assert str(error.value).endswith('.')


def test_models_have_the_names_of_their_folders(classifier, tmp_path):
    models = answers.load_models([SHAPES, str(classifier)])
    assert list(models) == [SHAPES, 'classifier']  # in the given order
    assert models[SHAPES].card.startswith('# vt_fpn_resnet10t.shapes\n')
    other = shutil.copytree(classifier, tmp_path / 'classifier')
    with pytest.raises(ValueError, match='Two models are called classifier'):
        answers.load_models([str(classifier), str(other)])
    with pytest.raises(LookupError, match='no model'):
        answers.load_models(['nonsense'])


# the page


@pytest.fixture(scope='module')
def url(classifier):
    app = build([DIGITS, SHAPES, str(classifier)])
    yield start(app, '127.0.0.1')
    app.close()


@pytest.fixture(scope='module')
def client(url):
    return gradio_client.Client(url, verbose=False, httpx_kwargs={'timeout': 120})


def ask(client, model, image, **kwargs):
    return client.submit(model, gradio_client.handle_file(image), api_name='/answer', **kwargs)


def label_of(answer):
    return answer[0]['label']


def test_answers(client, samples):
    scores, figure, overlay = ask(client, DIGITS, samples / 'digit_7.png').result(60)
    assert scores['label'] == '7'
    assert len(scores['confidences']) == 5
    assert 'Token 16 adds' in figure
    assert overlay is None
    shares, figure, overlay = ask(client, SHAPES, samples / 'scene.png').result(60)
    assert shares['label'] == 'background'
    assert 'background</span>' in figure
    with Image.open(overlay) as picture:
        assert (picture.format, picture.height) == ('PNG', 512)


def test_bad_files_get_a_sentence_and_the_next_an_answer(client, samples, bad_files):
    for path, reason in bad_files.items():
        for model in (DIGITS, SHAPES):
            with pytest.raises(AppError, match=path.name) as error:
                ask(client, model, path).result(60)
            assert reason in str(error.value)
        assert label_of(ask(client, DIGITS, samples / 'digit_3.png').result(60)) == '3'


def test_fifty_requests_at_once(client, samples):
    digits = [i % 10 for i in range(50)]
    jobs = [ask(client, DIGITS, samples / f'digit_{digit}.png') for digit in digits]
    assert [label_of(job.result(120)) for job in jobs] == [str(digit) for digit in digits]


def call(url, *data):
    """What the server says to a request that no client of ours would send."""
    event = httpx.post(f'{url}gradio_api/call/answer', json={'data': data}).json()['event_id']
    return httpx.get(f'{url}gradio_api/call/answer/{event}', timeout=60).text


def upload(url, content):
    return httpx.post(f'{url}gradio_api/upload', files={'files': ('image.png', content)}, timeout=60)


def sent(path):
    return {'path': str(path), 'meta': {'_type': 'gradio.FileData'}}


def test_no_other_model_can_be_loaded(url, samples, tmp_path):
    image = sent(upload(url, (samples / 'digit_1.png').read_bytes()).json()[0])
    assert 'event: complete' in call(url, DIGITS, image)
    for model in (str(vt_hub.pretrained_folder('vt_resnet10')), 'vt_resnet10', 'hf-hub:some/model', None, [DIGITS]):
        assert 'event: error' in call(url, model, image)


def test_no_other_file_can_be_read(url, samples):
    for path in (samples / 'digit_1.png', ROOT / 'README.md', '/etc/hostname', '../../etc/hostname'):
        answer = call(url, DIGITS, sent(path))
        assert 'event: error' in answer
        assert 'confidences' not in answer
        assert httpx.get(f'{url}gradio_api/file={path}').status_code in (403, 404)


def test_no_address_is_fetched(url):
    for address in ('https://example.com/a.png', f'{url}favicon.ico'):
        assert 'addresses are not fetched' in call(url, DIGITS, sent(address))
    answer = call(url, DIGITS, {**sent('a.png'), 'path': None, 'url': 'data:image/png;base64,AAAA'})
    assert 'confidences' not in answer


def test_uploads_are_bounded(url, samples):
    assert upload(url, bytes(33 << 20)).status_code == 413
    assert upload(url, (samples / 'digit_1.png').read_bytes()).status_code == 200


def test_nothing_is_told_to_others(url):
    assert httpx.get(f'{url}config').json()['analytics_enabled'] is False
    page = httpx.get(url).text
    assert not re.search(r'<(script|link)[^>]+(src|href)="(https?:)?//', page)
    assert 'fonts.googleapis' not in page + httpx.get(f'{url}theme.css').text


# the command


@pytest.mark.parametrize('package', ['gradio', 'matplotlib'])
def test_without_its_extra(run, monkeypatch, package):
    for name in [name for name in sys.modules if name.startswith('vt_hub.demo')]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert run('demo') == (1, '', 'error: The demo needs Gradio and matplotlib: pip install "vt_hub[demo]".\n')


def test_a_taken_port(run, url):
    port = url.strip('/').rsplit(':', 1)[1]
    code, out, err = run('demo', '--model', DIGITS, '--port', port)
    assert (code, out, err) == (1, '', f'error: Cannot listen on 127.0.0.1, port {port}; name another.\n')


def test_sigterm_leaves_no_files(tmp_path):
    command = [sys.executable, '-m', 'vt_hub', 'demo', '--model', DIGITS]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, 'TMPDIR': str(tmp_path)})
    assert process.stdout.readline().startswith('http://')
    assert list(tmp_path.glob('vt_hub_samples_*'))
    process.terminate()
    assert process.wait(timeout=60) == 0
    assert not list(tmp_path.glob('vt_hub_samples_*'))


def test_an_address_of_another_machine(run):
    code, out, err = run('demo', '--model', DIGITS, '--host', '192.0.2.1')
    assert (code, out) == (1, '')
    assert err == 'error: Cannot listen on 192.0.2.1: it is not an IPv4 address of this machine.\n'


def test_the_page_starts_behind_a_proxy(monkeypatch):
    """Nothing listens at the proxy: whoever asks it for this machine's own address fails."""
    for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.setenv(name, 'http://127.0.0.1:9')
    monkeypatch.setenv('no_proxy', 'example.com')
    monkeypatch.setenv('NO_PROXY', 'example.com')
    with gr.Blocks() as page:
        gr.Markdown('here')
    try:
        url = start(page, '127.0.0.1')
        assert httpx.get(url, timeout=10).status_code == 200
        assert os.environ['no_proxy'] == os.environ['NO_PROXY'] == 'example.com,localhost,127.0.0.1,::1'
    finally:
        page.close()
