"""Commands that make data, train and evaluate: synthesize, train, evaluate."""

import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .common import app, print_json, print_table, progress, report_failed

DATA_HELP = 'Folder of the data, or the name of a data set on the Hub.'
Layout = Annotated[
    Literal['folders', 'coco-stuff', 'coco-panoptic', 'lip', 'datasets'] | None,
    typer.Option(help='Arrangement of segmentation data; without, what the recipe says, else folders.'),
]
Classes = Annotated[Path | None, typer.Option(help='File with a class name a line, if the data has none.')]
ReduceLabels = Annotated[bool, typer.Option('--reduce-labels', help='Mask value 0 is "not labelled", 1 class 0.')]
Workers = Annotated[int, typer.Option(min=0, help='Processes that read images, for each device.')]

synthesize = typer.Typer(help='Draw data by formula.', no_args_is_help=True)
app.add_typer(synthesize, name='synthesize')


@synthesize.command()
def shapes(
    out: Annotated[Path, typer.Option(help='Folder to write; must not exist.')],
    train: Annotated[int, typer.Option(min=0, help='Scenes to train on.')] = 4000,
    val: Annotated[int, typer.Option(min=0, help='Scenes to validate on.')] = 300,
    size: Annotated[int, typer.Option(min=16, help='Height and width in pixels.')] = 128,
    seed: Annotated[int, typer.Option(min=0, help='Of the scenes.')] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help='Processes; without, one for each core.')] = None,
):
    """Scenes of shapes and textures with exact masks, for semantic segmentation.

    Example: vt-hub synthesize shapes --out shapes
    """
    from ..synthesis.shapes import write_shapes

    started = time.perf_counter()
    written = write_shapes(out, train, val, seed, size, workers)
    count = sum(1 for _ in progress(written, train + val, 'Drawing'))
    seconds = time.perf_counter() - started
    print(f'{out}: {count} scenes in {seconds:.1f} s, {count / seconds:.0f} images/s')


@app.command(context_settings={'allow_extra_args': True, 'ignore_unknown_options': True})
def train(
    context: typer.Context,
    recipe: Annotated[str, typer.Option(help='Recipe, or a YAML file.')],
    data_dir: Annotated[str, typer.Option(help=DATA_HELP)],
    output: Annotated[Path, typer.Option(help='Folder of the run.')],
    task: Annotated[Literal['segmentation'], typer.Option(help='What is trained.')] = 'segmentation',
    layout: Layout = None,
    classes: Classes = None,
    reduce_labels: ReduceLabels = False,
    seed: Annotated[int, typer.Option(help='Of weights, order and augmentation.')] = 0,
    workers: Workers = 2,
    resume: Annotated[bool, typer.Option('--resume', help='Go on from the last checkpoint in the folder.')] = False,
):
    """Train, and export the best checkpoint as a model folder, OUTPUT/model.

    Further arguments change the recipe: --steps 2000 --lr 0.01.

    Example: vt-hub train --task segmentation --recipe shapes --data-dir shapes --output run
    """
    from ..training.segmentation import train_segmentation
    from ..training.segmentation_data import open_data
    from ..training.segmentation_recipe import load_segmentation_recipe

    changes = read_changes(context.args)
    settings = load_segmentation_recipe(recipe, changes | ({'layout': layout} if layout else {}))
    data = [open_data(data_dir, split, settings.layout, classes, reduce_labels) for split in ('train', 'val')]
    print(train_segmentation(settings, *data, output, seed, workers, resume, progress))


def read_changes(arguments: list[str]) -> dict[str, Any]:
    """`--key value` pairs as a mapping, values read as YAML."""
    import yaml

    keys, values = arguments[::2], arguments[1::2]
    for key in keys:
        if not key.startswith('--') or len(keys) != len(values):
            raise typer.BadParameter(f'{" ".join(arguments)} is not --key value ...')
    try:
        return {key[2:].replace('-', '_'): yaml.safe_load(value) for key, value in zip(keys, values, strict=True)}
    except yaml.YAMLError as error:
        raise typer.BadParameter(f'{" ".join(arguments)} has a value that is not YAML') from error


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help='Model, model.tag, folder or hf-hub:ID.')],
    data_dir: Annotated[str, typer.Option(help=DATA_HELP)],
    task: Annotated[Literal['segmentation'], typer.Option(help='What the model does.')] = 'segmentation',
    split: Annotated[Literal['train', 'val'], typer.Option(help='Part of the data.')] = 'val',
    layout: Layout = 'folders',
    classes: Classes = None,
    reduce_labels: ReduceLabels = False,
    shortest_edge: Annotated[
        int | None, typer.Option(help="Resize to this shorter edge instead of the model's input size.")
    ] = None,
    longest_edge: Annotated[int, typer.Option(help='With --shortest-edge, no longer than this.')] = 1333,
    workers: Workers = 2,
    result: Annotated[Path | None, typer.Option(help='Result file to write.')] = None,
    as_json: Annotated[bool, typer.Option('--json', help='Print the result.')] = False,
):
    """Measure a model on labelled data, and write what a model card reads.

    Under torchrun every process takes a share: torchrun --nproc-per-node 8 -m vt_hub.cli evaluate ...

    Example: vt-hub evaluate vt_fpn_resnet10t.shapes --task segmentation --data-dir shapes --result result.json
    """
    from ..models import find_folder
    from ..publishing.card import METRICS
    from ..training.distributed import processes
    from ..training.results import machine, write_result
    from ..training.segmentation_data import open_data
    from ..training.segmentation_eval import evaluate_segmentation, load_segmenter

    network = load_segmenter(find_folder(model))
    data = open_data(data_dir, split, layout, classes, reduce_labels)
    edges = (shortest_edge, longest_edge) if shortest_edge else None
    with processes() as (rank, device):
        found = evaluate_segmentation(network.to(device), data, edges, workers, progress)
    if rank > 0:
        return
    found |= {'model': model, **machine()}
    if result:
        write_result(result, found)
    if as_json:
        print_json(found)
    else:
        print_table(['class', 'IoU (%)'], found['per_class_iou'].items(), ['IoU (%)'])
        values = [f'{METRICS[key][1]} {value}' for key, value in found['metrics'].items()]
        print(', '.join([*values, f'{found["dataset"]["num_images"]} images']))
    report_failed(found['errors'], len(data))
