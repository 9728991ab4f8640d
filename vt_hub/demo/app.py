"""The demo's page, built with Gradio."""

import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'  # read when Gradio is imported
try:
    import gradio as gr
    import matplotlib  # noqa: F401  for the colours
except ModuleNotFoundError as error:
    raise ModuleNotFoundError('The demo needs Gradio and matplotlib: pip install "vt_hub[demo]".') from error

from ..inference.scores import knowledge_of
from ..network.vt_fpn import VTFPN, is_segmenter
from .answers import Offer, classify, load_models, open_upload, segment, write_samples

__all__ = ['build', 'start']

MAX_FILE_SIZE = 32 << 20  # bytes of an upload
MAX_WAITING = 64  # requests in the queue
LOOPBACK = ('localhost', '127.0.0.1', '::1')
KEPT = 3600  # seconds that uploads and pictures stay on the disk

TITLE = """\
# Visual Transformers

What the network answers, where each of its visual tokens looks, and what each of them adds to the answer.
[Wu et al. 2020](https://arxiv.org/abs/2006.03677)
"""
THEME = gr.themes.Default(
    primary_hue='blue', neutral_hue='slate', font=['system-ui', 'sans-serif'], font_mono=['monospace']
).set(
    body_text_color_subdued='*neutral_500',
)


class Replies:
    """What the page's events call.

    Args:
        models: By shown name.
        samples: Sample images for each tag of published weights.
    """

    def __init__(self, models: dict[str, Offer], samples: dict[str, list[Path]]):
        self.models = models
        self.samples = samples
        self.all_samples = [path for paths in samples.values() for path in paths]
        self.sample_names = {path.name for path in self.all_samples}

    def samples_of(self, model: str) -> list[Path]:
        return self.samples.get(model.split('.')[-1], self.all_samples)

    def answer(
        self, model: str, image: str | None
    ) -> tuple[dict[str, float] | str | None, str | None, Image.Image | None]:
        """The scores; the figure of the tokens; or the legend of the classes, and the overlay."""
        if not image:
            return None, None, None
        with errors_shown():
            network = self.models[model].network
            return segment(network, image) if isinstance(network, VTFPN) else (*classify(network, image), None)

    def check(self, model: str, image: str | None) -> None:
        """Raise the error of `answer` for an unreadable file. It has no outputs, since each would show the error."""
        with errors_shown():
            if image:
                open_upload(image, self.models[model].network.in_chans)

    def change_model(self, model: str, image: str | None) -> tuple[Any, ...]:
        """Update the page for the chosen model. A shown sample is replaced by one that the model can read."""
        own, network = self.samples_of(model), self.models[model].network
        segments = is_segmenter(network)
        sample = not image or Path(image).name in self.sample_names
        return (
            f'This model {knowledge_of(network)}.',
            gr.Dataset(samples=[[path] for path in own]),
            own[0] if sample else image,  # not gr.skip(): see only_uploads
            gr.Label(label='Share of the pixels' if segments else 'Probability'),
            gr.HTML(label='Classes' if segments else 'Tokens'),
            gr.Image(visible=segments),
            self.models[model].card,
        )

    def pick(self, model: str, number: int) -> Path:
        return self.samples_of(model)[number]


def build(sources: Sequence[str] = ()) -> gr.Blocks:
    """The demo's page. Clients can only choose among these models and samples, and send images.

    Args:
        sources: Models to offer, as sources for `vt_hub.load_model`; default: the published weights that need no
            fine-tuning.
    """
    models = load_models(sources)
    folder = tempfile.TemporaryDirectory(prefix='vt_hub_samples_')
    replies = Replies(models, write_samples(Path(folder.name)))
    with gr.Blocks(title='Visual Transformers', analytics_enabled=False, delete_cache=(KEPT, KEPT)) as app:
        app.samples_folder = folder  # deleted with the page
        gr.Markdown(TITLE)
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                model = gr.Dropdown(list(models), label='Model', elem_id='model')
                sent: dict[str, Any] = {'type': 'filepath', 'sources': ['upload', 'clipboard']}
                image = only_uploads(gr.Image(label='Image', height=240, buttons=[], elem_id='image', **sent))
                columns = [gr.Image(render=False)]
                gallery = gr.Dataset(components=columns, samples=[], type='index', label='Samples', elem_id='samples')
                about = gr.Markdown(elem_id='about')
            with gr.Column(scale=5, min_width=320):
                scores = gr.Label(num_top_classes=5, show_heading=False, elem_id='scores')
                figure = gr.HTML(label='Tokens', show_label=True, container=True, padding=True, elem_id='tokens')
                overlay = gr.Image(label='Overlay', format='png', interactive=False, buttons=[], elem_id='overlay')
                with gr.Accordion('Model card', open=False):
                    card = gr.Markdown(elem_id='card')
        parts = [about, gallery, image, scores, figure, overlay, card]
        answered: dict[str, Any] = {
            'fn': replies.answer,
            'inputs': [model, image],
            'outputs': [scores, figure, overlay],
        }
        answered['concurrency_id'] = 'answer'  # one after the other, including clearing
        waits: dict[str, Any] = {'trigger_mode': 'always_last'}  # answer actions that arrive during an earlier one
        private: dict[str, Any] = {'api_visibility': 'private', **waits}
        uploaded = image.upload(replies.check, [model, image], None, **private)
        uploaded.success(**answered, **waits, api_name='answer')
        uploaded.failure(lambda: 4 * [None], None, [image, scores, figure, overlay], **private)
        # the browser still sends the cleared image
        image.clear(lambda: 3 * [None], None, [scores, figure, overlay], concurrency_id='answer', **private)
        changed = gr.on([app.load, model.change], replies.change_model, [model, image], parts, **private)
        changed.then(**answered, **private)
        gallery.click(replies.pick, [model, gallery], image, **private).then(**answered, **private)
    return app.queue(max_size=MAX_WAITING, default_concurrency_limit=1)


@contextmanager
def errors_shown() -> Iterator[None]:
    """Show the page's visitor the sentence of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error


def only_uploads(image: gr.Image) -> gr.Image:
    """Leave the decoding of images to `read_image`, and do not fetch URLs that a client sends.

    The methods of this one component are replaced, since Gradio writes a file beside the module of a subclass. Events
    must not return an update of it, such as `gr.Image(...)` or `gr.skip()`: Gradio would restore its own methods.
    """
    component: Any = image
    move = component.async_move_resource_to_block_cache

    async def move_file(path: Any) -> Any:
        if path and '://' in str(path):
            raise gr.Error('Send the image itself; addresses are not fetched.', print_exception=False)
        return await move(path)

    component.async_move_resource_to_block_cache = move_file
    component.preprocess = lambda sent: sent and sent.path
    return image


def start(app: gr.Blocks, host: str | None = None, port: int | None = None, open_browser: bool = False) -> str:
    """Serve the page from a thread of this process. `app.block_thread()` waits until it is stopped.

    Args:
        app: The page from `build`.
        host: Address to listen on; default: the environment variable GRADIO_SERVER_NAME, or only this machine.
        port: Default: the environment variable GRADIO_SERVER_PORT, or the first free port from 7860.
        open_browser: Open the page in a browser.

    Returns:
        The page's address.

    Raises:
        OSError: The port is taken, or the address does not belong to this machine.
    """
    try:
        socket.create_server((host or '127.0.0.1', 0)).close()  # Gradio would slowly try a hundred ports
    except OSError as error:
        raise OSError(f'Cannot listen on {host}: it is not an IPv4 address of this machine.') from error
    reach_loopback_directly()
    try:
        _, url, _ = app.launch(
            server_name=host,
            server_port=port,
            inbrowser=open_browser,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            max_file_size=MAX_FILE_SIZE,
            theme=THEME,
            css_paths=Path(__file__).with_name('style.css'),
            footer_links=[],
            enable_monitoring=False,
            ssr_mode=False,
        )
    except OSError as error:
        raise OSError(
            f'Cannot listen on {host or "this machine"}, port {port or "7860 to 7959"}; name another.'
        ) from error
    return url


def reach_loopback_directly() -> None:
    """Do not use a proxy for this machine: Gradio checks that its own address answers."""
    for name in ('no_proxy', 'NO_PROXY'):
        hosts = [host for host in os.environ.get(name, '').split(',') if host]
        os.environ[name] = ','.join([*hosts, *(host for host in LOOPBACK if host not in hosts)])
