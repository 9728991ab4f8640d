"""The command `vt-hub`."""

import json
import os
import sys
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

app = typer.Typer(
    name='vt-hub',
    help='Visual Transformers: classify images, list and describe models, check them against the paper.',
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Json = Annotated[bool, typer.Option('--json', help='Print JSON.')]
DEFAULT_MODEL = 'vt_resnet10.digits'


def print_table(columns: list[str], rows: Iterable[Iterable[Any]], numbers: Iterable[str] = ()):
    """An aligned table; cut to the width of a terminal only, never in a pipe or file."""
    console = Console(width=None if sys.stdout.isatty() else 1000, highlight=False, markup=False)
    table = Table(box=None, pad_edge=False, header_style='bold', show_header=any(columns))
    for column in columns:
        table.add_column(column, justify='right' if column in numbers else 'left', overflow='fold')
    for row in rows:
        table.add_row(*map(str, row))
    console.print(table)


def print_json(value: Any):
    print(json.dumps(value, indent=2))


def progress(items: Iterable[Any], total: int, description: str) -> Iterable[Any]:
    """A progress bar on stderr, where that is a terminal."""
    console = Console(stderr=True)
    return track(items, description, total=total, console=console, transient=True, disable=not console.is_terminal)


@app.command('list')
def list_(
    pretrained: Annotated[bool, typer.Option('--pretrained', help='Published weights instead of models.')] = False,
    as_json: Json = False,
):
    """List the models, or the published weights with size, licence, sha256 and measured metrics.

    Example: vt-hub list --pretrained
    """
    from .models import describe_pretrained, list_models
    from .tables import cost
    from .weights import list_pretrained

    if pretrained:
        entries = [describe_pretrained(name) for name in list_pretrained()]
    else:
        entries = []
        for name in list_models():
            params, macs = cost(name)
            weights = [tag for tag in list_pretrained() if tag.split('.')[0] == name]
            entries.append({'model': name, 'params_m': round(params, 2), 'macs_m': round(macs), 'pretrained': weights})
    if as_json:
        print_json(entries)
    elif pretrained:
        print_table(
            ['weights', 'MB', 'licence', 'metrics', 'sha256'],
            (
                [e['name'], f'{e["size"] / 1e6:.1f}', e['license'], format_metrics(e['metrics']), e['sha256']]
                for e in entries
            ),
            ['MB'],
        )
    else:
        print_table(
            ['model', 'params (M)', 'MACs (M)', 'pretrained'],
            ([e['model'], e['params_m'], e['macs_m'], ', '.join(e['pretrained'])] for e in entries),
            ['params (M)', 'MACs (M)'],
        )


def format_metrics(metrics: list[dict[str, Any]]) -> str:
    return ', '.join(f'{m["name"]} {m["value"]:g} on {m["dataset"]}' for m in metrics)


@app.command()
def info(model: Annotated[str, typer.Argument(help='Model, model.tag, folder or hf-hub:ID.')], as_json: Json = False):
    """Describe a model: size, input, classes, weights, licence.

    Example: vt-hub info vt_resnet10.digits
    """
    from .models import describe

    entry = describe(model)
    if as_json:
        print_json(entry)
        return
    weights = entry.pop('weights', None)
    if weights:
        entry |= weights | {'metrics': format_metrics(weights['metrics'])}
    print_table(['', ''], ([key, ', '.join(map(str, v)) if isinstance(v, list) else v] for key, v in entry.items()))


@app.command()
def predict(
    images: Annotated[list[str], typer.Argument(help='Image files, folders or glob patterns.', metavar='IMAGE...')],
    model: Annotated[str, typer.Option(help='Model, model.tag, folder or hf-hub:ID.')] = DEFAULT_MODEL,
    topk: Annotated[int, typer.Option(min=1, help='Classes to print for each image.')] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help='Images in one batch.')] = 16,
    as_json: Annotated[bool, typer.Option('--json', help='Print one JSON object a line.')] = False,
):
    """Classify images. Unreadable ones are named at the end, and the exit code is then 1.

    Example: vt-hub predict samples --topk 1
    """
    from .images import find_images
    from .models import load_model
    from .predict import predict as run

    paths = find_images(images)
    results = run(load_model(model), paths, topk=topk, batch_size=batch_size)
    failed = []
    for result in progress(results, len(paths), 'Classifying'):
        if 'error' in result:
            failed.append(result['error'])
        if as_json:
            print(json.dumps(result))
        elif 'predictions' in result:
            classes = '  '.join(f'{p["label"]} {100 * p["score"]:.1f} %' for p in result['predictions'])
            print(f'{result["image"]}: {classes}')
    if failed:
        print(f'{len(failed)} of {len(paths)} images failed:', *failed, sep='\n  ', file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def tables(
    as_json: Json = False,
    markdown: Annotated[bool, typer.Option('--markdown', help='Print the page docs/paper_fidelity.md.')] = False,
):
    """Recompute the paper's parameters and FLOPs (Tables 1 to 8 and 11) beside its figures.

    Example: vt-hub tables --markdown > docs/paper_fidelity.md
    """
    from . import tables as paper

    if markdown:
        print(paper.markdown(), end='')
    elif as_json:
        print_json({'rows': [row.to_dict() for row in paper.rows()], 'stages': paper.stages()})
    else:
        header = ['table', *paper.HEADER]
        print_table(header, ([row.table, *paper.cells(row)] for row in paper.rows()), header[2:])
        print()
        print_table(['table', 'model', 'stage', 'paper', 'computed'], (['11', *s.values()] for s in paper.stages()))


def main():
    """Run the command: errors are one sentence on stderr and exit code 1, with a traceback if VT_HUB_DEBUG=1."""
    try:
        app()
    except BrokenPipeError:  # the reader of a pipe has gone; leave nothing for the interpreter to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get('VT_HUB_DEBUG') == '1':
            raise
        print(f'error: {error}', file=sys.stderr)
        sys.exit(1)


if __name__ == '__main__':
    main()
