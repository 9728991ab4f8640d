"""The page: Gradio's components around the answers."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'  # read when Gradio is imported
try:
    import gradio as gr
except ModuleNotFoundError as error:
    raise ModuleNotFoundError('The demo needs Gradio: pip install "vt_hub[demo]".') from error

from .answers import classify, is_segmenter, load_models, segment, summary, write_samples

__all__ = ['build', 'serve']

MAX_FILE_SIZE = 32 << 20  # bytes of an upload
MAX_WAITING = 64  # requests in the queue
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


def build(sources: Sequence[str] = ()) -> gr.Blocks:
    """The demo's page. Its clients can choose among these models and samples, and send images; nothing else.

    Args:
        sources: Models to offer, as `vt_hub.load_model` takes them; without, all weights that come with the package.
    """
    models = load_models(sources)
    folder = tempfile.TemporaryDirectory(prefix='vt_hub_samples_')
    samples = write_samples(Path(folder.name))
    everything = [path for paths in samples.values() for path in paths]
    names = {path.name for path in everything}

    def samples_of(model: str) -> list[Path]:
        return samples.get(model.split('.')[-1], everything)

    def answer(model: str, image: str | None):
        scores, figure, overlay = None, None, None
        if image:
            try:
                if is_segmenter(models[model]):
                    scores, overlay = segment(models[model], image)
                else:
                    scores, figure = classify(models[model], image)
            except ValueError as error:
                raise gr.Error(str(error), title='This image cannot be read', print_exception=False) from error
        return (
            gr.Label(scores, label='Share of the pixels' if is_segmenter(models[model]) else 'Probability'),
            gr.HTML(figure, visible=figure is not None),
            gr.Image(overlay, visible=overlay is not None),
        )

    def change_model(model: str, image: str | None):
        """The model's summary and samples; a sample that was shown gives way to one that the model can read."""
        own = samples_of(model)
        keep = image and Path(image).name not in names
        return summary(models[model]), gr.Dataset(samples=[[path] for path in own]), gr.skip() if keep else own[0]

    def pick(model: str, number: int):
        return samples_of(model)[number]

    first = next(iter(models))
    with gr.Blocks(title='Visual Transformers', analytics_enabled=False, delete_cache=(KEPT, KEPT)) as app:
        app.samples_folder = folder  # removed with the page
        gr.Markdown(TITLE)
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                model = gr.Dropdown(list(models), value=first, label='Model')
                image = gr.Image(
                    samples_of(first)[0],
                    label='Image',
                    type='filepath',
                    height=240,
                    sources=['upload', 'clipboard'],
                    buttons=[],
                    elem_id='image',
                )
                gallery = gr.Dataset(
                    components=[gr.Image(render=False)],
                    samples=[[path] for path in samples_of(first)],
                    type='index',
                    label='Samples',
                    elem_id='samples',
                )
                about = gr.Markdown(summary(models[first]), elem_id='about')
            with gr.Column(scale=5, min_width=320):
                label = gr.Label(label='Probability', num_top_classes=5, show_heading=False)
                figure = gr.HTML(label='Tokens', show_label=True, container=True, padding=True)
                overlay = gr.Image(
                    label='Classes', format='png', visible=False, interactive=False, buttons=['download']
                )
        only_uploads(image)
        answers = {'fn': answer, 'inputs': [model, image], 'outputs': [label, figure, overlay]}
        gr.on([app.load, image.change, model.change], **answers, trigger_mode='always_last', api_name='answer')
        model.change(change_model, [model, image], [about, gallery, image], api_visibility='private')
        gallery.click(pick, [model, gallery], image, api_visibility='private')
    return app.queue(max_size=MAX_WAITING, default_concurrency_limit=1)


def only_uploads(image: gr.Image):
    """Leave the decoding of what is sent to `read_image`, and fetch nothing from an address that a client names.

    The methods of this one component are replaced: a subclass would make Gradio write a file beside this module.
    """
    move = image.async_move_resource_to_block_cache

    async def move_file(path):
        if path and '://' in str(path):
            raise gr.Error('Send the image itself; addresses are not fetched.', print_exception=False)
        return await move(path)

    image.async_move_resource_to_block_cache = move_file
    image.preprocess = lambda sent: sent and sent.path


def serve(app: gr.Blocks, host: str | None = None, port: int | None = None, wait: bool = True, **options):
    """Serve the page until the process is stopped.

    Args:
        app: What `build` gives.
        host: Address to listen on; without, GRADIO_SERVER_NAME in the environment, or this machine alone.
        port: Without, GRADIO_SERVER_PORT, or the first free one from 7860.
        wait: Return only when the server is stopped.
        options: Further arguments of Gradio's `launch`.

    Returns:
        The address of the page, where it does not wait.

    Raises:
        OSError: The port is taken.
    """
    _, url, _ = app.launch(
        server_name=host,
        server_port=port,
        share=False,
        prevent_thread_lock=not wait,
        max_file_size=MAX_FILE_SIZE,
        theme=THEME,
        css_paths=Path(__file__).with_name('style.css'),
        footer_links=[],
        enable_monitoring=False,
        ssr_mode=False,
        **options,
    )
    return url
