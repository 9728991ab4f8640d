"""Commands that make, check and publish model folders: export, verify, card, push, pull, convert."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .common import Json, print_json, print_table, progress, steps_shown

GROWN_PROSE = """\
A {{ architecture }} with {{ num_labels }} classes. `vt-hub convert --grow` copied a smaller network into this deeper
one. It computes the same as the smaller one until you train it further."""
WIDER_PROSE = """\
A {{ architecture }} with {{ num_labels }} classes. `vt-hub convert --grow` put the trunk of a smaller network into its
bottlenecks: the first channels of each stage compute what that trunk does, and the others can learn. """
NEW_STAGE_PROSE = """\
**The VT stage and the classifier are untrained**: distil the model before you use it."""
TAUGHT_STAGE_PROSE = """\
The VT stage and the classifier do nearly what those of the smaller network do: on unlabelled images {left} % of the
variance of its pooled features is left over. Distil the model before you use it."""
TAUGHT_LAYER1_PROSE = """

`layer1` has one bottleneck too few. It learned the smaller network's output from unlabelled images; {left} % of the
output's variance is left over."""


def export(
    source: Annotated[str, typer.Argument(help='Training checkpoint, folder of vt_hub or transformers, or a name.')],
    target: Annotated[
        Path, typer.Argument(help='Model folder, .onnx file or .safetensors file (for timm); must not exist.')
    ],
    model: Annotated[str | None, typer.Option(help='Architecture, if a checkpoint does not name it.')] = None,
    weights: Annotated[Literal['ema', 'raw'], typer.Option(help='Averaged weights if there are any, or raw.')] = 'ema',
    dtype: Annotated[
        Literal['fp32', 'fp16', 'bf16'] | None,
        typer.Option(help="Type of the stored weights; default: the folder's own, or fp32."),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help='File with one class name per line, or a folder of class folders.')
    ] = None,
    result: Annotated[list[Path], typer.Option(help='Result file for the card; may be repeated.')] = [],  # noqa: B006
    prose: Annotated[Path | None, typer.Option(help='Text of the card, a Jinja template.')] = None,
    license_: Annotated[str | None, typer.Option('--license', help='Licence; default: that of the source.')] = None,
    onnx: Annotated[bool, typer.Option('--onnx', help='Put onnx/model.onnx into the folder too.')] = False,
    attention: Annotated[
        bool, typer.Option('--attention', help="With ONNX: give the maps of a VT-ResNet's token attention too.")
    ] = False,
    int8: Annotated[
        Path | None, typer.Option(help='Quantise the .onnx file, calibrated with the images of this folder.')
    ] = None,
    opset: Annotated[int | None, typer.Option(help='Opset of the .onnx file, 17 or higher; default: 18.')] = None,
) -> None:
    """Write a model folder, an ONNX file or a plain file of weights.

    timm, transformers and torch.hub load the folder, onnxruntime the .onnx file, timm the .safetensors file.

    Example: vt-hub export output/train/run/model_best.pth.tar flowers --labels data/train
    """
    from ..loading.conversion import load_source
    from ..publishing import export_onnx, export_weights

    if (model or weights == 'raw') and not Path(source).is_file():
        raise FileNotFoundError(f'There is no checkpoint {source}; --model and --weights go with one.')
    for_folder = {'labels': labels, 'result': result, 'prose': prose, 'license': license_, 'onnx': onnx}
    for_onnx = {'int8': int8, 'opset': opset}
    if target.suffix == '.onnx':
        refuse(target, dtype=dtype, **for_folder)
        options: dict[str, Any] = {'calibration': images_of(int8)} | ({'opset': opset} if opset is not None else {})
        print(export_onnx(load_source(source, model, weights)[0], target, attention, **options))
    elif target.suffix == '.safetensors':
        refuse(target, attention=attention, **for_folder, **for_onnx)
        print(export_weights(load_source(source, model, weights)[0], target, dtype or 'fp32'))
    else:
        refuse(target, attention=attention and not onnx, **for_onnx)
        card = {'labels': labels, 'result': result, 'prose': prose, 'license': license_}
        print(export_folder(source, target, load_source(source, model, weights), dtype, onnx, attention, card))


def export_folder(
    source: str,
    target: Path,
    loaded: tuple[Any, dict[str, Any]],
    dtype: str | None,
    onnx: bool,
    attention: bool,
    card: dict[str, Any],
) -> str:
    """Write a model folder, and say what was written. Without options for the card, a copied folder keeps its own."""
    from ..loading.checkpoints import stored_dtype
    from ..loading.source import Source
    from ..publishing import export as run
    from ..publishing.model_folder import DEFAULT_PROSE, copy_card

    model, facts = loaded
    folder = None if facts else Source.parse(source).folder()
    dtype = dtype or (stored_dtype(folder) if folder else 'fp32')
    origin = origin_of(source, facts)
    run(
        model,
        target,
        labels=read_labels(card['labels']) if card['labels'] else None,
        metrics=read_results(card['result']),
        prose=read_text(card['prose']) if card['prose'] else DEFAULT_PROSE,
        origin=origin,
        license=card['license'],
        dtype=dtype,
        onnx=onnx,
        attention=attention,
    )
    if folder and not any(card.values()):
        copy_card(folder, target, origin)
    return f'{target}: {model.num_classes} classes, {dtype}, {facts.get("weights", "given")} weights'


def origin_of(source: str, facts: dict[str, Any]) -> str:
    """A sentence for the card that says which weights these are."""
    from ..loading.source import Source

    if facts:
        epoch = f' of epoch {facts["epoch"]}' if 'epoch' in facts else ''
        return f'These are the {facts["weights"]} weights{epoch} of the checkpoint {Path(source).name}.'
    published = Source.parse(source).published
    return f'These are the weights of {published}.' if published else ''


def refuse(target: Path, **options: Any) -> None:
    """Refuse options that mean nothing for a target."""
    given = [f'--{name}' for name, value in options.items() if value not in (None, [], False)]
    if given:
        kind = f'a {target.suffix} file' if target.suffix in ('.onnx', '.safetensors') else 'a model folder'
        hint = ' without --onnx' if given == ['--attention'] and kind == 'a model folder' else ''
        raise typer.BadParameter(f'{target} would be {kind}{hint}, which takes no {", ".join(given)}.')


def images_of(folder: Path | None) -> list[Path]:
    from ..image_files import find_images

    return find_images([str(folder)]) if folder else []


def read_text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f'There is no file {path}.')
    try:
        return path.read_text('utf-8-sig')  # without the mark that some editors begin a file with
    except UnicodeDecodeError as error:
        raise ValueError(f'{path} is not a text in UTF-8.') from error


def read_labels(path: Path) -> list[str]:
    """Class names from a file, one a line, or from a folder of class folders in the order that timm numbers them."""
    from ..training.classification.data import class_names

    if path.is_dir():
        return class_names(path)
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def read_results(paths: list[Path]) -> list[dict[str, Any]]:
    """Result files, with what a card needs of them."""
    from ..files import read_json

    results = [read_json(path) for path in paths]
    for path, result in zip(paths, results, strict=True):
        dataset = result.get('dataset')
        if not isinstance(dataset, dict) or not {'name', 'type', 'split', 'num_images'} <= dataset.keys():
            raise ValueError(f'{path} is not a result file: its dataset needs name, type, split and num_images.')
        if 'task' not in result or not isinstance(result.get('metrics'), dict):
            raise ValueError(f'{path} is not a result file: it needs task and metrics.')
    return results


def verify(
    source: Annotated[str, typer.Argument(help='Model folder, model.tag or hf-hub:ID.')],
    trust_remote_code: Annotated[bool, typer.Option(help="Run the folder's code even if it is not vt_hub's.")] = False,
    as_json: Json = False,
) -> None:
    """Check that every loader gives the same answers.

    The exit code is 1 on any difference.

    Example: vt-hub verify flowers
    """
    from ..publishing import verify as run

    with steps_shown('Checking') as started:
        checks = run(source, trust_remote_code, started)
    if as_json:
        print_json([check.to_dict() for check in checks])
    else:
        print_table(['check', '', 'found'], ([check.name, check.verdict, check.detail] for check in checks))
    if not all(check.passed for check in checks):
        raise typer.Exit(1)


def card(
    folder: Annotated[Path, typer.Argument(help='Model folder.')],
    result: Annotated[list[Path], typer.Option(help='Result file; may be repeated.')] = [],  # noqa: B006
    prose: Annotated[Path | None, typer.Option(help='Text of the card, a Jinja template.')] = None,
    repo: Annotated[str | None, typer.Option(help='Hub repository that the snippets load.')] = None,
) -> None:
    """Write a folder's model card again.

    The text comes from your file and result files; with --repo alone, only what the card loads changes.

    Example: vt-hub card flowers --result results.json --prose about.md
    """
    from ..publishing.card import retarget
    from ..publishing.model_folder import save_card, write_card

    readme = folder / 'README.md'
    if prose and result:
        print(write_card(folder, read_results(result), read_text(prose), repo=repo))
    elif repo and not prose and not result:
        print(save_card(folder, retarget(read_text(readme), repo)))
    else:
        raise typer.BadParameter(
            f'{readme} would lose its text or its figures; name --prose and --result, or only --repo.'
        )


def push(
    folder: Annotated[Path, typer.Argument(help='Model folder.')],
    repo: Annotated[
        str | None, typer.Option(help="Repository; default: the folder's name in VT_HUB_NAMESPACE.")
    ] = None,
    tag: Annotated[str, typer.Option(help='Version of the weights.')] = 'v1.0.0',
    private: Annotated[bool, typer.Option('--private', help='Make a new repository private.')] = False,
    create_pr: Annotated[bool, typer.Option('--create-pr', help='Open a pull request instead.')] = False,
    dry_run: Annotated[bool, typer.Option('--dry-run', help='Only verify, and say what would be published.')] = False,
    trust_remote_code: Annotated[bool, typer.Option(help="Run the folder's code even if it is not vt_hub's.")] = False,
) -> None:
    """Verify a model folder and publish it on the Hub.

    It makes one commit and a tag, and prints the address.

    The repository then holds the folder's files and nothing else: other files in it are deleted.

    Example: vt-hub push flowers --repo your-name/flowers
    """
    from ..publishing import push as run

    with steps_shown('Checking and publishing') as started:
        address = run(folder, tag, repo, private, create_pr, dry_run, trust_remote_code, started)
    print(address)


def pull(
    source: Annotated[str, typer.Argument(help='Published weights, or a repository on the Hub.')],
    folder: Annotated[Path, typer.Argument(help='Folder to write; must not exist.')],
    revision: Annotated[str | None, typer.Option(help='Branch, tag or commit.')] = None,
) -> None:
    """Bring a model folder from the Hub to disk.

    Every file is checked; offline it comes from the cache.

    Example: vt-hub pull your-name/flowers flowers
    """
    from ..publishing import pull as run

    print(run(source, folder, revision))


def convert(
    source: Annotated[
        str, typer.Argument(help='timm model, or a checkpoint of a ResNet; with --grow also a VT-ResNet.')
    ],
    target: Annotated[Path, typer.Argument(help='Model folder to write; must not exist.')],
    vt: Annotated[bool, typer.Option('--vt', help='Put a VT stage on any timm model with a map of stride 16.')] = False,
    checkpoint: Annotated[Path | None, typer.Option(help="With --vt: file with its weights; default: timm's.")] = None,
    grow: Annotated[
        str | None, typer.Option(help='Deeper architecture to copy the source into; it computes the same.')
    ] = None,
    data_dir: Annotated[
        list[Path] | None,
        typer.Option(help='With --grow from basic blocks to bottlenecks: unlabelled images to learn from.'),
    ] = None,
    num_classes: Annotated[int | None, typer.Option(metavar='N', min=1, help='Classes of the new classifier.')] = None,
    labels: Annotated[
        Path | None, typer.Option(help='File with one class name per line, or a folder of class folders.')
    ] = None,
) -> None:
    """Start a network with a VT stage from another one.

    A VT-ResNet starts from a ResNet's stem..layer3. With --vt, a VT-Net starts from the trunk of any timm model. With
    --grow, a deeper network computes what a smaller one does.

    Example: vt-hub convert resnet50.a1_in1k vt_resnet50_start --num-classes 37
    """
    from ..inference.scores import class_names
    from ..loading.conversion import is_vt_resnet, load_source, put_vt_stage, warm_start
    from ..loading.growing import goes_into_bottlenecks
    from ..publishing import export as run

    if vt and grow:
        raise typer.BadParameter('--grow is for VT-ResNets, and --vt for other networks; leave one out.')
    if checkpoint and not vt:
        raise typer.BadParameter('--checkpoint goes with --vt; a checkpoint of a ResNet is the source itself.')
    if data_dir and not grow:
        raise typer.BadParameter('--data-dir goes with --grow.')
    names, name = read_labels(labels) if labels else None, Path(source).name
    if grow and is_vt_resnet(source):
        if num_classes:
            raise typer.BadParameter('--num-classes is for a start from a ResNet; a VT-ResNet keeps its classes.')
        small = load_source(source)[0]
        large, layer1, stage = grow_into(small, grow, data_dir or [], target)
        wider = goes_into_bottlenecks(small, large)
        prose = WIDER_PROSE + (stage or NEW_STAGE_PROSE) + layer1 if wider else GROWN_PROSE
        origin = f'The smaller network is {name}.' if wider else f'It computes what {name} does.'
        print(run(large, target, labels=names or class_names(small), prose=prose, origin=origin))
        return
    classes = num_classes or (len(names) if names else None)
    kwargs = {'num_classes': classes} if classes else {}
    if vt:
        start, trained = put_vt_stage(source, checkpoint, **kwargs)
        names = names or (None if classes else class_names(trained))
    else:
        start = warm_start(source, **kwargs)
    model, layer1 = start.model, ''
    if grow:
        model, layer1, _ = grow_into(start.model, grow, data_dir or [], target, trained_stage=False)
    run(model, target, labels=names, prose=start.prose(name) + layer1, license=start.license)
    print(f'{target}: {start}')


def grow_into(
    small: Any, architecture: str, folders: list[Path], target: Path, trained_stage: bool = True
) -> tuple[Any, str, str]:
    """A larger network, and what its card says of images that taught its `layer1` and its VT stage."""
    from ..loading.growing import grow, layer1_falls_short

    large = grow(small, architecture)
    if not folders:
        return large, '', ''
    from ..files import check_new
    from ..training.distillation import Folders, Regression, settle_norms, stage_fits, teach_layer1, teach_stage

    check_new(target)
    if not layer1_falls_short(small, large):
        raise typer.BadParameter(f'--data-dir teaches a layer1 that is only near; that of {architecture} is exact.')
    data, unreadable = Folders(folders), target.with_name(f'{target.name}_unreadable.txt')
    left = teach_layer1(small, large, data, unreadable, Regression(), progress=progress)
    layer1 = TAUGHT_LAYER1_PROSE.format(left=round(100 * left, 1))
    stage = ''
    if trained_stage and stage_fits(small, large):
        left = teach_stage(small, large, data, unreadable, progress=progress)
        stage = TAUGHT_STAGE_PROSE.format(left=round(100 * left, 1))
    settle_norms(large, data, unreadable, progress=progress)
    return large, layer1, stage
