"""Commands that make data, train and evaluate: synthesize, train, pretrain, distill, evaluate, plot, timm."""

import os
import shlex
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .common import Precision, print_json, print_table, progress, report_failed

if TYPE_CHECKING:
    from ..training.segmentation.data import SegmentationData
    from ..training.segmentation.recipe import SegmentationRecipe

SEVERAL = 'Several GPUs or machines'  # a panel of the help
LONGEST_EDGE = 1333  # pixels
Task = Literal['classification', 'segmentation']
Layout = Annotated[
    Literal['folders', 'coco-stuff', 'coco-panoptic', 'lip', 'datasets'] | None,
    typer.Option(help='Arrangement of segmentation data; default: that of the recipe, or folders.'),
]
Classes = Annotated[Path | None, typer.Option(help='File with one class name per line, if the data has none.')]
ReduceLabels = Annotated[bool, typer.Option('--reduce-labels', help='Mask value 0 is "not labelled", 1 class 0.')]
ShortestEdge = Annotated[
    int | None,
    typer.Option(metavar='N', min=1, help="Segment at this shorter edge instead of the model's input size."),
]
LongestEdge = Annotated[
    int | None, typer.Option(metavar='N', min=1, help='With --shortest-edge: limit of the longer edge; default: 1333.')
]
Workers = Annotated[int, typer.Option(metavar='N', min=0, help='Processes that read images, for each device.')]
Recipe = Annotated[str, typer.Option(help='Recipe of the package, or a YAML file.')]
Output = Annotated[Path, typer.Option(help='Folder of the run.')]
StartModel = Annotated[str | None, typer.Option(help="Start model: name, weights or folder; default: the recipe's.")]
DeviceBatchSize = Annotated[
    int | None,
    typer.Option(metavar='N', min=1, help="Images that fit on a device; gradients are summed to the recipe's batch."),
]
Resume = Annotated[bool, typer.Option('--resume', help='Resume from the last checkpoint in the folder.')]
DryRun = Annotated[bool, typer.Option('--dry-run', help='Only check, and print the command.')]
Processes = Annotated[
    int, typer.Option(metavar='N', min=1, rich_help_panel=SEVERAL, help='Processes on each machine, one per GPU.')
]
Machines = Annotated[int, typer.Option(metavar='N', min=1, rich_help_panel=SEVERAL, help='Machines.')]
MachineNumber = Annotated[
    int, typer.Option(metavar='N', min=0, rich_help_panel=SEVERAL, help='Number of this machine.')
]
Address = Annotated[str, typer.Option(rich_help_panel=SEVERAL, help='Address of machine 0.')]
Steps = Annotated[int | None, typer.Option(metavar='N', min=1, help="Steps; default: the recipe's.")]
Minutes = Annotated[float | None, typer.Option(metavar='X', min=0, help='Stop after this time; start again to resume.')]
Device = Annotated[
    Literal['cpu', 'cuda'] | None, typer.Option(help='Where to train; default: the GPU if there is one.')
]
Port = Annotated[int, typer.Option(rich_help_panel=SEVERAL, help='Free port of machine 0.')]


def shapes(
    out: Annotated[Path, typer.Option(help='Folder to write; must not exist.')],
    train: Annotated[int, typer.Option(metavar='N', min=0, help='Images to train on.')] = 4000,
    val: Annotated[int, typer.Option(metavar='N', min=0, help='Images to validate on.')] = 300,
    objects: Annotated[bool, typer.Option('--objects', help='One object per image, in class folders.')] = False,
    size: Annotated[int, typer.Option(metavar='N', min=16, help='Height and width in pixels.')] = 128,
    seed: Annotated[int, typer.Option(metavar='N', min=0, help='Random seed of the scenes.')] = 0,
    workers: Annotated[int | None, typer.Option(metavar='N', min=1, help='Processes; default: one per core.')] = None,
) -> None:
    """Scenes of shapes and textures with exact masks, for segmentation; or single objects, for classification.

    Example: vt-hub synthesize shapes --out shapes
    """
    from ..synthesis.shapes import write_shapes

    draw(write_shapes(out, train, val, seed, size, objects, workers), train + val, out)


def scenes(
    out: Annotated[Path, typer.Option(help='Folder to write; must not exist.')],
    train: Annotated[int, typer.Option(metavar='N', min=1, help='Images to train on.')] = 4000,
    val: Annotated[int, typer.Option(metavar='N', min=0, help='Images to validate on.')] = 300,
    classes: Annotated[int, typer.Option(metavar='N', min=1, help='Fractals to tell apart.')] = 100,
    objects: Annotated[bool, typer.Option('--objects', help='One fractal per image, in class folders.')] = False,
    size: Annotated[int, typer.Option(metavar='N', min=16, help='Height and width in pixels.')] = 128,
    seed: Annotated[int, typer.Option(metavar='N', min=0, help='Random seed of fractals and scenes.')] = 0,
) -> None:
    """Scenes of coloured fractals with exact masks, for segmentation; or single fractals, for classification.

    Example: vt-hub synthesize scenes --out scenes
    """
    from ..synthesis.scene_files import write_scenes

    draw(write_scenes(out, train, val, seed, size, classes, objects), train + val, out)


def draw(written: Iterable[Path], total: int, out: Path) -> None:
    """Run a writer to its end, and say how fast it was."""
    started = time.perf_counter()
    count = sum(1 for _ in progress(written, total, 'Drawing'))
    seconds = time.perf_counter() - started
    print(f'{out}: {count} images in {seconds:.1f} s, {count / seconds:.0f} images/s')


def classifier(
    context: typer.Context,
    recipe: Recipe,
    data_dir: Annotated[str, typer.Option(help='Folder of the data, or hfds/NAME of a data set on the Hub.')],
    output: Output,
    model: StartModel = None,
    device_batch_size: DeviceBatchSize = None,
    seed: Annotated[int | None, typer.Option(help="Random seed of the run; default: the recipe's, or 0.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(metavar='N', min=0, help="Processes that read, for each device; default: the recipe's, or 2."),
    ] = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    nproc_per_node: Processes = 1,
    nnodes: Machines = 1,
    node_rank: MachineNumber = 0,
    master_addr: Address = 'localhost',
    master_port: Port = 29500,
    train_script: Annotated[Path | None, typer.Option(help="timm's train.py; default: found or downloaded.")] = None,
) -> None:
    """Train a classifier by timm's train.py, and export the best checkpoint.

    The model folder is OUTPUT/model. Any further argument goes to timm's script, and overrides the recipe.

    Example: vt-hub train classifier --recipe finetune --data-dir flowers --output run
    """
    from ..loading.published import list_pretrained
    from ..loading.source import Source
    from ..training.classification.run import TrainingRun
    from ..training.launch import Launch
    from ..training.segmentation.recipe import list_segmentation_recipes

    if recipe in list_segmentation_recipes():
        raise typer.BadParameter(f'{recipe} is a recipe of `vt-hub train segmenter`.')
    options = [] if seed is None else ['--seed', str(seed)]
    options += [] if workers is None else ['--workers', str(workers)]
    if model:
        start = Source.parse(model)
        trained = start.is_folder or model in list_pretrained()
        options += ['--model', start.timm_name, *['--pretrained'] * trained]
    launch = Launch(nproc_per_node, nnodes, node_rank, master_addr, master_port)
    options += context.args
    job = TrainingRun(recipe, output, data_dir, options, launch, device_batch_size, train_script, resume)
    job.check()
    command = job.command()
    print(shlex.join(command), flush=True)
    if not dry_run:
        run_script(job, command)


def run_script(job: Any, command: list[str]) -> None:
    """Run timm's script to its end, and export; exits with the script's own code if that is not 0."""
    from ..loading.source import Source

    code = job.start(command)
    if unreadable := job.unreadable():
        images = 'image' if len(unreadable) == 1 else 'images'
        print(f'{len(unreadable)} {images} could not be read:', *unreadable, sep='\n  ', file=sys.stderr)
    if code:
        if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            print(f'{job.output} is not finished; the same command with --resume resumes it.', file=sys.stderr)
        raise typer.Exit(code)
    if job.launch.node_rank > 0:
        return
    if Source.parse(job.value('model')).is_ours:
        print_end(job.export(progress=progress))
    else:
        print(f'{job.best_checkpoint()}: {job.value("model")} is not one of our models and is not exported')


def segmenter(
    context: typer.Context,
    recipe: Recipe,
    data_dir: Annotated[str, typer.Option(help='Folder of the data, or NAME of a data set on the Hub.')],
    output: Output,
    model: StartModel = None,
    device_batch_size: DeviceBatchSize = None,
    seed: Annotated[int, typer.Option(help='Random seed of the run.')] = 0,
    workers: Workers = 2,
    resume: Resume = False,
    dry_run: DryRun = False,
    nproc_per_node: Processes = 1,
    nnodes: Machines = 1,
    node_rank: MachineNumber = 0,
    master_addr: Address = 'localhost',
    master_port: Port = 29500,
    layout: Layout = None,
    classes: Classes = None,
    reduce_labels: ReduceLabels = False,
) -> None:
    """Train VT-FPN or the panoptic FPN by transformers' Trainer, and export it.

    The model folder is OUTPUT/model. Further arguments change the recipe: --steps 2000 --lr 0.01.

    Example: vt-hub train segmenter --recipe shapes --data-dir shapes --output run
    """
    from ..training.launch import Launch, run
    from ..training.segmentation.run import check_run, train_segmentation

    launch = Launch(nproc_per_node, nnodes, node_rank, master_addr, master_port)
    relaunched = launch.processes == 1 or 'WORLD_SIZE' in os.environ  # which torchrun sets
    if dry_run or relaunched:  # else every process opens the data itself
        changes = [*context.args, *(['--model', model] if model else [])]
        changes += ['--device_batch_size', str(device_batch_size)] if device_batch_size else []
        opened = open_segmentation(recipe, data_dir, changes, layout, classes, reduce_labels)
        if not dry_run:
            print(train_segmentation(*opened, output, seed, workers, resume, progress))
            return
        check_run(*opened[:2], output, seed, resume)
    command = launch.command('-m', 'vt_hub', *sys.argv[1:])
    print(shlex.join(command), flush=True)
    if not dry_run and (code := run(command)):
        raise typer.Exit(code)


def print_end(folder: Path) -> None:
    """Print the folder of a finished run on stdout, and its metrics and a next command on stderr."""
    from ..files import read_json

    path = folder.parent / 'result.json'
    if path.is_file():
        print(shown_metrics(read_json(path)), file=sys.stderr, flush=True)
    print(folder, flush=True)
    if (folder / 'config.json').is_file():
        print(f'next: vt-hub predict IMAGE --model {shlex.quote(str(folder))}', file=sys.stderr)


def print_end_or_stop(folder: Path | None, output: Path, minutes: float | None) -> None:
    """`print_end`, or how to resume a stopped run; exits with 1 if a signal stopped it."""
    if folder:
        print_end(folder)
        return
    print(f'{output} is not finished; the same command resumes it.')
    if minutes is None:
        raise typer.Exit(1)


def shown_metrics(result: dict[str, Any]) -> str:
    """The metrics of a result file in words, and the number of images that they are of."""
    from ..publishing.card import METRICS

    metrics = [
        f'{METRICS[key][1] if key in METRICS else key.replace("_", " ")} {value}'
        for key, value in result['metrics'].items()
    ]
    return ', '.join([*metrics, f'{result["dataset"]["num_images"]} images'])


def open_segmentation(
    recipe: str, data_dir: str, extra: list[str], layout: str | None, classes: Path | None, reduce_labels: bool
) -> 'tuple[SegmentationRecipe, SegmentationData, SegmentationData]':
    """The recipe, the data to train on and those to validate on."""
    from ..training.segmentation.data import open_data
    from ..training.segmentation.recipe import load_segmentation_recipe

    settings = load_segmentation_recipe(recipe, read_changes(extra) | ({'layout': layout} if layout else {}))
    train, val = (open_data(data_dir, split, settings.layout, classes, reduce_labels) for split in ('train', 'val'))
    return settings, train, val


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


def pretrain(
    output: Annotated[Path, typer.Option(help='Folder of the run; an interrupted run resumes.')],
    recipe: Recipe = 'scenes',
    model: Annotated[str | None, typer.Option(help="timm architecture; default: the recipe's.")] = None,
    steps: Steps = None,
    minutes: Minutes = None,
    device: Device = None,
    seed: Annotated[int, typer.Option(metavar='N', min=0, help='Random seed of weights, fractals and scenes.')] = 0,
) -> None:
    """Pretrain a model on generated scenes of fractals.

    Scenes are composed as they are needed: no data is read or written.

    Example: vt-hub pretrain --recipe scenes --output run --minutes 8
    """
    from ..training.pretraining import load_pretraining_recipe
    from ..training.pretraining import pretrain as run

    changes = {key: value for key, value in (('model', model), ('steps', steps)) if value is not None}
    folder = run(load_pretraining_recipe(recipe, changes), output, seed, minutes, device, progress)
    print_end_or_stop(folder, output, minutes)


def distill(
    data_dir: Annotated[list[Path], typer.Option(help='Folder of images, without labels; may be repeated.')],
    output: Annotated[Path, typer.Option(help='Folder of the run; an interrupted run resumes.')],
    recipe: Recipe = 'photographs',
    share: Annotated[
        list[float] | None,
        typer.Option(metavar='X', min=0, help="A folder's share of the views; default: its number of images."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="timm architecture or model folder; default: the recipe's.")] = None,
    teacher: Annotated[str | None, typer.Option(help="timm model or model folder; default: the recipe's.")] = None,
    teacher_checkpoint: Annotated[
        Path | None, typer.Option(help="File with the teacher's weights; default: timm's own.")
    ] = None,
    trunk_checkpoint: Annotated[Path | None, typer.Option(help='File with weights that the model starts from.')] = None,
    steps: Steps = None,
    minutes: Minutes = None,
    device: Device = None,
    seed: Annotated[int, typer.Option(metavar='N', min=0, help='Random seed of new weights and views.')] = 0,
    workers: Workers = 2,
    compile_networks: Annotated[
        bool, typer.Option('--compile', help='Compile both networks; takes minutes, then steps are faster.')
    ] = False,
) -> None:
    """Teach a model to predict what another one predicts, on unlabelled images.

    Under torchrun every process takes a share: torchrun --nproc-per-node 8 -m vt_hub distill ...

    Example: vt-hub distill --data-dir photographs --teacher tf_efficientnet_lite2 --output run
    """
    from ..processes import processes
    from ..reporting import find_device
    from ..training.distillation import Folders, load_distillation_recipe
    from ..training.distillation import distill as run

    changes = {'model': model, 'teacher': teacher, 'steps': steps}
    settings = load_distillation_recipe(recipe, {key: value for key, value in changes.items() if value is not None})
    data = Folders(data_dir, share or ())
    with processes() as (rank, own_device):
        where = find_device(device) if device else own_device
        files = teacher_checkpoint, trunk_checkpoint
        folder = run(settings, data, output, *files, seed, minutes, where, workers, compile_networks, progress)
    if rank == 0:
        print_end_or_stop(folder, output, minutes)


def evaluate(
    model: Annotated[str, typer.Argument(help='Model, model.tag, folder or hf-hub:ID.')],
    data_dir: Annotated[str, typer.Option(help='Folder of the data; for segmentation also a data set on the Hub.')],
    task: Annotated[Task | None, typer.Option(help='What the model must do; default: what it does.')] = None,
    split: Annotated[Literal['train', 'val', 'test'], typer.Option(help='Part of the data.')] = 'val',
    batch_size: Annotated[int, typer.Option(metavar='N', min=1, help='Images in one batch of a classifier.')] = 64,
    layout: Layout = None,
    classes: Classes = None,
    reduce_labels: ReduceLabels = False,
    shortest_edge: ShortestEdge = None,
    longest_edge: LongestEdge = None,
    precision: Precision = 'fp32',
    workers: Workers = 2,
    result: Annotated[Path | None, typer.Option(help='Result file to write.')] = None,
    as_json: Annotated[bool, typer.Option('--json', help='Print the result.')] = False,
) -> None:
    """Measure a model on labelled images.

    With --result it writes the file that a model card reads.

    A classifier is measured on DIR/val, or on DIR itself, of class folders. Under torchrun every process takes a share:
    torchrun --nproc-per-node 8 -m vt_hub evaluate ...

    Example: vt-hub evaluate run/model --data-dir flowers --result result.json
    """
    from ..files import check_place
    from ..inference.precision import chosen_precision, computing_in, laid_out
    from ..loading.checkpoints import load_folder
    from ..loading.source import Source
    from ..network.vt_fpn import task_of
    from ..processes import processes
    from ..reporting import machine
    from ..training.classification.evaluate import evaluate_classifier, open_for_model
    from ..training.segmentation.data import open_data
    from ..training.segmentation.evaluate import evaluate_segmentation, load_segmenter

    folder = Source.parse(model).folder()
    network = load_folder(folder)
    does = task_of(network).removeprefix('image-')
    if task and task != does:
        raise ValueError(f'{model} does {does}, not {task}.')
    edges = edges_of(shortest_edge, longest_edge)
    if does == 'classification' and (layout or classes or reduce_labels or edges):
        raise typer.BadParameter('--layout, --classes, --reduce-labels and edges are for segmentation.')
    if result:
        check_place(result)
    with processes() as (rank, device), computing_in(precision, device):
        if does == 'classification':
            images = open_for_model(network, data_dir, split)
            found = evaluate_classifier(
                laid_out(network.to(device), precision), images, device, batch_size, workers, progress
            )
        else:
            pairs = open_data(data_dir, split, layout or 'folders', classes, reduce_labels)
            found = evaluate_segmentation(
                laid_out(load_segmenter(folder).to(device), precision), pairs, edges, workers, progress
            )
    if rank == 0:
        found |= {'model': model, 'precision': chosen_precision(precision, device), **machine(device)}
        report(found, result, as_json)


def edges_of(shortest: int | None, longest: int | None) -> tuple[int, int] | None:
    """The edges to segment at, or None for the model's own size."""
    if longest and not shortest:
        raise typer.BadParameter('--longest-edge goes with --shortest-edge.')
    return (shortest, longest or LONGEST_EDGE) if shortest else None


def report(found: dict[str, Any], path: Path | None, as_json: bool) -> None:
    """Write and print the result of an evaluation; exits with 1 where images failed."""
    from ..reporting import write_result

    if path:
        write_result(path, found)
    if as_json:
        print_json(found)
    else:
        print_scores(found)
    report_failed(found['errors'], found['dataset']['num_images'] + len(found['errors']))


def print_scores(result: dict[str, Any]) -> None:
    """The IoU of each class, the metrics, and the token diversity of each module, where a result has them."""
    if 'per_class_iou' in result:
        shown = {name: '-' if iou is None else iou for name, iou in result['per_class_iou'].items()}
        print_table(['class', 'IoU (%)'], shown.items(), ['IoU (%)'])
    print(shown_metrics(result))
    if modules := result['tokens']:
        print_table(['tokens of module', *modules[0]], ([i, *m.values()] for i, m in enumerate(modules, 1)))


def plot(
    run: Annotated[Path, typer.Argument(help="Folder of a run of `vt-hub train` or of timm's train script.")],
    out: Annotated[Path | None, typer.Option(help='Picture to write; default: RUN/plot.png.')] = None,
) -> None:
    """Draw a run's loss, accuracy and learning rate.

    Example: vt-hub plot run
    """
    from ..training.plot import plot_run

    out = out or run / 'plot.png'
    plot_run(run, out)
    print(out)


def timm_(
    context: typer.Context,
    script: Annotated[
        Literal['validate', 'inference', 'benchmark', 'onnx_export'], typer.Argument(help='Name of the script.')
    ],
) -> None:
    """Run one of timm's other scripts with our models.

    Its own help: vt-hub timm validate -- --help

    Example: vt-hub timm validate --model vt_resnet10 --pretrained --data-dir digits
    """
    from ..loading.source import Source
    from ..network.vt_fpn import is_segmenter
    from ..training.classification.timm_scripts import find_script, runner
    from ..training.launch import run

    sources = [Source.parse(argument.rpartition('=')[2]) for argument in context.args]
    if others := sorted(s.architecture for s in sources if s.kind == 'model' and is_segmenter(s.architecture)):
        raise ValueError(f"{others[0]} does not classify, as timm's scripts expect; `vt-hub evaluate` measures it.")
    command = runner(find_script(f'{script}.py'), context.args)
    print(shlex.join(command), flush=True)
    if code := run(command):
        raise typer.Exit(code)
