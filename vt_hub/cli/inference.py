"""Commands that describe and use models: list, info, predict, segment, explain, demo, tables."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import (
    Json,
    Precision,
    print_json,
    print_table,
    print_wrapped,
    progress,
    report_failed,
    say_what_it_knows,
    sigterm_as_interrupt,
)

DEFAULT_MODEL = 'vt_resnet18.dist_in1k'
DEFAULT_SEGMENTER = 'vt_fpn_resnet10t.shapes'
PICTURES = ('.png', '.jpg', '.jpeg', '.webp', '.svg', '.pdf')
LONGEST_RUN = timedelta(days=30)  # processes that have done their share wait for the others


def list_(
    pretrained: Annotated[bool, typer.Option('--pretrained', help='Published weights instead of models.')] = False,
    as_json: Json = False,
) -> None:
    """List the models or, with --pretrained, the published weights.

    Weights come with what they know, size, licence and a measured metric.

    Example: vt-hub list --pretrained
    """
    from ..loading.cost import cost
    from ..loading.facts import describe_pretrained
    from ..loading.published import list_pretrained
    from ..loading.source import Source, list_models
    from ..network.vt_fpn import is_segmenter, task_of

    if pretrained:
        entries = [describe_pretrained(name) for name in list_pretrained()]
    else:
        entries = []
        for name in list_models():
            if name.startswith('test_'):
                continue
            size = 512 if is_segmenter(name) else 224
            params, macs = cost(name, size=(size, size))
            entries.append(
                {
                    'model': name,
                    'task': task_of(name),
                    'params_m': round(params, 2),
                    'macs_m': round(macs),
                    'macs_at': size,
                    'pretrained': [tag for tag in list_pretrained() if Source.parse(tag).architecture == name],
                }
            )
    if as_json:
        print_json(entries)
    elif pretrained:
        for entry in entries:  # `info` and --json have all that was measured
            print(f'{entry["name"]}: {entry["size"] / 1e6:.1f} MB, {entry["license"]}')
            print_wrapped(f'{entry["knows"]}.', '  ')
            print_wrapped(f'{score(entry["metrics"][0])} on {entry["metrics"][0]["dataset"]}.', '  ')
    else:
        columns = ['model', 'params', 'MACs', 'at', 'weights', 'measured']
        print_table(columns, (model_row(entry) for entry in entries), columns[1:4])


def model_row(entry: dict[str, Any]) -> list[str]:
    """A line of `list`, with a line for each of the model's weights."""
    from ..loading.facts import describe_pretrained

    params, macs = f'{entry["params_m"]:.1f} M', f'{entry["macs_m"] / 1e3:.2f} G'
    tags = '\n'.join(name.partition('.')[2] for name in entry['pretrained'])
    measured = '\n'.join(score(describe_pretrained(name)['metrics'][0]) for name in entry['pretrained'])
    return [entry['model'], params, macs, str(entry['macs_at']), tags, measured]


def score(metric: dict[str, Any]) -> str:
    """A metric without its data: '99.7 % top-1 accuracy'."""
    name, percent, _ = metric['name'].partition(' (%)')
    return f'{metric["value"]:.1f}{" %" if percent else ""} {name}'


def info(
    model: Annotated[str, typer.Argument(help='Model, model.tag, folder or hf-hub:ID.')], as_json: Json = False
) -> None:
    """Describe a model: what it knows, size, input, classes, weights, licence.

    Example: vt-hub info vt_resnet10.digits
    """
    from ..loading.facts import describe

    entry = describe(model)
    if as_json:
        print_json(entry)
    else:
        print_table(['', ''], info_rows(entry))


def info_rows(entry: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The lines of `info` for people."""
    weights = entry.get('weights')
    yield 'model', entry['model'] if not weights else weights['name']
    yield 'task', entry['task']
    yield 'knows', entry['knows'] or 'nothing yet: these weights are random'
    tokens = '{} tokens of width {}'.format(*entry['tokens']) if entry['tokens'] else 'no tokens'
    yield 'size', f'{entry["params_m"]:.2f} M parameters, {tokens}'
    channels, height, width = entry['input_size']
    yield 'input', f'{height} x {width} pixels, {channels} channels; {entry["interpolation"]}, crop {entry["crop_pct"]}'
    for key in ('mean', 'std'):
        yield key, ', '.join(f'{value:.4g}' for value in entry[key])
    yield 'classes', entry['num_classes']
    if entry['license']:
        yield 'licence', entry['license']
    if weights:
        for number, metric in enumerate(weights['metrics']):
            yield '' if number else 'measured', f'{score(metric)} on {metric["dataset"]}, {metric["split"]}'
        yield 'file', f'{weights["size"] / 1e6:.1f} MB in {weights["folder"]}'
        yield 'sha256', weights['sha256']


def predict(
    images: Annotated[list[str], typer.Argument(help='Image files, folders or glob patterns.', metavar='IMAGE...')],
    model: Annotated[str, typer.Option(help='Model, model.tag, folder or hf-hub:ID.')] = DEFAULT_MODEL,
    topk: Annotated[int, typer.Option(metavar='N', min=1, help='Classes to print for each image.')] = 3,
    batch_size: Annotated[int, typer.Option(metavar='N', min=1, help='Images in one batch.')] = 16,
    precision: Precision = 'fp32',
    output: Annotated[
        Path | None, typer.Option(help='Write a table, .jsonl or .parquet, for any number of images.')
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(metavar='N', min=1, help='With --output: processes that read images; default: one per core.'),
    ] = None,
    as_json: Annotated[bool, typer.Option('--json', help='Print one JSON object per line.')] = False,
) -> None:
    """Classify images.

    Images that cannot be read are named at the end, and the exit code is then 1.

    With --output, worker processes read the images, and a GPU computes if there is one. The same command resumes an
    interrupted run. Under torchrun every process takes a share: torchrun --nproc-per-node 8 -m vt_hub predict ...

    Example: vt-hub predict 'samples/digit_*.png' --topk 1

    Example: vt-hub predict photos --output results.parquet
    """
    from ..image_files import find_images
    from ..inference.classify import predict_each
    from ..inference.precision import laid_out
    from ..inference.scores import shown
    from ..loading.source import load_model

    if output:
        options = {'topk': topk, 'batch_size': batch_size, 'precision': precision, 'workers': workers}
        predict_table(images, model, output, as_json, **options)
        return
    if workers:
        raise typer.BadParameter('--workers needs --output')
    paths = find_images(images)
    network = laid_out(load_model(model).fuse(), precision)
    results = predict_each(network, paths, topk=topk, batch_size=batch_size, precision=precision)
    failed = []
    for result in progress(results, len(paths), 'Classifying'):
        if 'error' in result:
            failed.append(result['error'])
        if as_json:
            print(json.dumps(result))
        elif 'predictions' in result:
            classes = '  '.join(f'{p["label"]} {shown(network, p["score"])}' for p in result['predictions'])
            print(f'{result["image"]}: {classes}')
    say_what_it_knows(model, network, as_json)
    report_failed(failed, len(paths))


def predict_table(images: list[str], model: str, output: Path, as_json: bool, **options: Any) -> None:
    """`vt-hub predict --output`; Ctrl-C and SIGTERM keep what is done, to resume later, and exit with 130."""
    from ..inference.batch_run import check_run, predict_files
    from ..inference.precision import laid_out
    from ..loading.source import load_model
    from ..processes import processes

    try:
        with sigterm_as_interrupt(), processes(timeout=LONGEST_RUN) as (rank, device):
            if rank == 0:
                check_run(images, output)
            network = laid_out(load_model(model).fuse().to(device), options['precision'])
            counts = predict_files(network, images, output, **options, progress=progress)
    except KeyboardInterrupt:
        print(f'{output} is not finished; the same command resumes it.', file=sys.stderr)
        raise typer.Exit(130) from None
    if not counts:
        return
    say_what_it_knows(model, network, as_json)
    total, failed = counts
    if as_json:
        print(json.dumps({'output': str(output), 'images': total, 'failed': failed}))
    else:
        print(f'{output}: {total} images')
    if failed:
        print(f'{failed} of {total} images failed; the field error of each says why.', file=sys.stderr)
        raise typer.Exit(1)


def segment(
    images: Annotated[list[str], typer.Argument(help='Image files, folders or glob patterns.', metavar='IMAGE...')],
    model: Annotated[str, typer.Option(help='Model.tag, folder or hf-hub:ID.')] = DEFAULT_SEGMENTER,
    overlay: Annotated[
        Path | None, typer.Option(help='Picture with colours and a legend to write; a folder for several images.')
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help='PNG of class numbers to write; a folder for several images.')
    ] = None,
    precision: Precision = 'fp32',
    as_json: Annotated[bool, typer.Option('--json', help='Print one JSON object per line.')] = False,
) -> None:
    """Name the class of every pixel of images.

    Images that cannot be read are named at the end, and the exit code is then 1.

    Example: vt-hub segment samples/scene.png --overlay overlay.png
    """
    from ..image_files import find_images
    from ..inference.precision import laid_out
    from ..inference.scores import SHOWN, label_names, percent
    from ..inference.segment import draw_overlay, save_mask, save_picture, segment_each
    from ..loading.source import load_model
    from ..network.images import read_image

    paths = find_images(images)
    targets = segment_outputs(overlay, mask, paths)
    network = laid_out(load_model(model).fuse(), precision)
    labels = label_names(network)
    results = segment_each(network, paths, precision)
    failed = []
    for path, result in zip(paths, progress(results, len(paths), 'Segmenting'), strict=True):
        classes = result.pop('mask', None)
        if 'error' in result:
            failed.append(result['error'])
        else:
            if overlay:
                save_picture(draw_overlay(read_image(path), classes, labels), targets[overlay][path])
            if mask:
                save_mask(classes, len(labels), targets[mask][path])
        if as_json:
            print(json.dumps(result))
        elif 'classes' in result:
            shares = '  '.join(f'{c["label"]} {percent(c["share"])}' for c in result['classes'] if c['share'] >= SHOWN)
            print(f'{path}: {shares}')
    say_what_it_knows(model, network, as_json)
    report_failed(failed, len(paths))


def segment_outputs(overlay: Path | None, mask: Path | None, paths: list[Path]) -> dict[Path, dict[Path, Path]]:
    """Where the picture and the mask of each image are written, checked before the first image is segmented."""
    from ..inference.segment import check_mask, check_picture

    targets = {option: output_paths(option, paths) for option in (overlay, mask) if option}
    if overlay and mask:
        written = [{path.resolve() for path in targets[option].values()} for option in (overlay, mask)]
        for path in written[0] & written[1]:
            raise ValueError(f'Overlay and mask would overwrite each other in {path.name}; name two places.')
    for option, check in ((overlay, check_picture), (mask, check_mask)):
        for target in targets[option].values() if option else ():
            check(target)
    return targets


def explain(
    images: Annotated[list[str], typer.Argument(help='Image files, folders or glob patterns.', metavar='IMAGE...')],
    model: Annotated[str, typer.Option(help='Model, model.tag, folder or hf-hub:ID.')] = DEFAULT_MODEL,
    out: Annotated[
        Path | None,
        typer.Option(help='Picture to write; a folder for several images; default: explanation.png, none with --json.'),
    ] = None,
    topk: Annotated[int, typer.Option(metavar='N', min=1, help='Classes to show for each image.')] = 5,
    as_json: Annotated[bool, typer.Option('--json', help='Print one JSON object per line.')] = False,
) -> None:
    """Show where each token looks, and what it adds to the answer.

    Example: vt-hub explain samples/digit_7.png --out explanation.png
    """
    from ..figures import check_figure
    from ..image_files import find_images
    from ..inference.explain import explain as run
    from ..inference.explanation_figure import save_explanation
    from ..inference.scores import percent, shown
    from ..loading.source import load_model
    from ..network.images import read_image

    paths = find_images(images)
    if not out and not as_json:
        out = Path('explanation.png' if len(paths) == 1 else 'explanations')
    targets = output_paths(out, paths) if out else {}
    for target in targets.values():
        check_figure(target)
    network = load_model(model)
    failed = []
    for path in progress(paths, len(paths), 'Explaining'):
        try:
            image = read_image(path, network.in_chans)
        except ValueError as error:
            failed.append(str(error))
            if as_json:
                print(json.dumps({'image': str(path), 'error': str(error)}))
            continue
        explanation = run(network, image, topk)
        best = explanation.predictions[0]
        answer = f'{best["label"]} {shown(network, best["score"]) if "score" in best else percent(best["share"])}'
        if out:
            save_explanation(explanation, targets[path], f'{path.name}: {answer} ({model})')
        if as_json:
            print(json.dumps({'image': str(path), **explanation.to_dict()}))
        else:
            print(f'{path}: {answer}, {targets[path]}')
    say_what_it_knows(model, network, as_json)
    report_failed(failed, len(paths))


def output_paths(target: Path, paths: list[Path]) -> dict[Path, Path]:
    """Where to write the picture of each image: `target`, or for several images a PNG of the same name in it.

    If images of several folders have the same name, the PNGs are in folders of these names, too.
    """
    single = len(paths) == 1 and not target.is_dir()
    if not single and target.suffix.lower() in PICTURES and not target.is_dir():
        raise ValueError(f'{target} is one picture, and there are {len(paths)} images; name a folder.')
    outputs = {path: target if single else target / f'{path.stem}.png' for path in paths}
    if len(set(outputs.values())) < len(outputs):
        places = {path: Path(os.path.abspath(path)) for path in outputs}
        common = os.path.commonpath([place.parent for place in places.values()])
        outputs = {path: target / place.relative_to(common).with_suffix('.png') for path, place in places.items()}
    if len(set(outputs.values())) < len(outputs):
        raise ValueError(f'Images of the same name would overwrite each other in {target}; process them one by one.')
    for path in {path.resolve() for path in paths} & {output.resolve() for output in outputs.values()}:
        raise ValueError(f'The image {path} would be overwritten; name another place than {target}.')
    return outputs


def demo(
    model: Annotated[
        list[str],
        typer.Option(help='Model.tag, folder or hf-hub:ID to offer; may be repeated.'),
    ] = [],  # noqa: B006
    host: Annotated[str, typer.Option(help='Address to listen on; 0.0.0.0 lets other machines in.')] = '127.0.0.1',
    port: Annotated[
        int | None, typer.Option(metavar='N', min=1, max=65535, help='Port; default: the first free one from 7860.')
    ] = None,
    browser: Annotated[bool, typer.Option('--browser', help='Open the page.')] = False,
) -> None:
    """Serve a page that answers for images.

    It shows classes, where the tokens look, and overlays. Stop it with Ctrl-C.

    Example: vt-hub demo --browser
    """
    from ..demo import build, start

    with sigterm_as_interrupt():  # else sample images stay
        app = build(model)
        url = start(app, host, port, browser)
        with suppress(KeyboardInterrupt):  # Gradio takes it only once it waits
            print(url, flush=True)
            app.block_thread()
