"""Commands that make, check and publish model folders: export, verify, card, push, pull, convert."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .common import Json, print_json, print_table

GROWN_PROSE = """\
A {{ architecture }} with {{ num_labels }} classes. `vt-hub convert --grow` copied a smaller network into this deeper
one. It computes the same as the smaller one until you train it further."""


def export(
    source: Annotated[str, typer.Argument(help='Training checkpoint, folder of vt_hub or transformers, or a name.')],
    target: Annotated[Path, typer.Argument(help='Model folder to write, or a .onnx file; must not exist.')],
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
):
    """Write a model folder, or an ONNX file.

    timm, transformers and torch.hub load the folder, and onnxruntime the file.

    Example: vt-hub export output/train/run/model_best.pth.tar flowers --labels data/train
    """
    from ..image_files import find_images
    from ..loading.checkpoints import stored_dtype
    from ..loading.conversion import load_source
    from ..loading.source import Source
    from ..publishing import export as run
    from ..publishing import export_onnx
    from ..publishing.card import retarget
    from ..publishing.model_folder import DEFAULT_PROSE, save_card

    if (model or weights == 'raw') and not Path(source).is_file():
        raise FileNotFoundError(f'There is no checkpoint {source}; --model and --weights go with one.')
    if target.suffix == '.onnx':
        if labels or result or prose or license_ or dtype:
            raise typer.BadParameter(
                '--labels, --result, --prose, --license and --dtype go with a model folder, not with a .onnx file.'
            )
        calibration = find_images([str(int8)]) if int8 else []
        opsets = {'opset': opset} if opset is not None else {}
        print(export_onnx(load_source(source, model, weights)[0], target, attention, calibration, **opsets))
        return
    if opset is not None:
        raise typer.BadParameter(f'--opset goes with a .onnx file; {target} would be a model folder.')
    if int8:
        raise typer.BadParameter(f'--int8 goes with a .onnx file; {target} would be a model folder.')
    if attention and not onnx:
        raise typer.BadParameter('--attention goes with --onnx, or with a .onnx file.')
    loaded, facts = load_source(source, model, weights)
    given = Source.parse(source)
    folder = None if facts else given.folder()
    dtype = dtype or (stored_dtype(folder) if folder else 'fp32')
    origin = ''
    if facts:
        epoch = f' of epoch {facts["epoch"]}' if 'epoch' in facts else ''
        origin = f'These are the {facts["weights"]} weights{epoch} of the checkpoint {Path(source).name}.'
    elif not given.is_folder:
        origin = f'These are the weights of {given.published}.'
    written = run(
        loaded,
        target,
        labels=read_labels(labels) if labels else None,
        metrics=read_results(result),
        prose=read_text(prose) if prose else DEFAULT_PROSE,
        origin=origin,
        license=license_,
        dtype=dtype,
        onnx=onnx,
        attention=attention,
    )
    if folder and not (labels or result or prose or license_) and (card := folder / 'README.md').is_file():
        text = retarget(read_text(card), written.name, f'local-dir:{written.name}')
        if origin:
            text = text.replace('\n## Results\n', f'\n{origin}\n\n## Results\n', 1)
        save_card(written, text)
    print(f'{written}: {loaded.num_classes} classes, {dtype}, {facts.get("weights", "given")} weights')


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
):
    """Check that every loader gives the same answers.

    The exit code is 1 on any difference.

    Example: vt-hub verify flowers
    """
    from ..publishing import verify as run

    checks = run(source, trust_remote_code)
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
):
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
):
    """Verify a model folder and publish it on the Hub.

    It makes one commit and a tag, and prints the address.

    The repository then holds the folder's files and nothing else: other files in it are deleted.

    Example: vt-hub push flowers --repo your-name/flowers
    """
    from ..publishing import push as run

    print(run(folder, tag, repo, private, create_pr, dry_run, trust_remote_code))


def pull(
    source: Annotated[str, typer.Argument(help='Published weights, or a repository on the Hub.')],
    folder: Annotated[Path, typer.Argument(help='Folder to write; must not exist.')],
    revision: Annotated[str | None, typer.Option(help='Branch, tag or commit.')] = None,
):
    """Bring a model folder from the Hub to disk.

    Every file is checked; offline it comes from the cache.

    Example: vt-hub pull your-name/flowers flowers
    """
    from ..publishing import pull as run

    print(run(source, folder, revision))


def convert(
    source: Annotated[str, typer.Argument(help='timm ResNet or its checkpoint; or a model folder.')],
    target: Annotated[Path, typer.Argument(help='Model folder to write; or a .safetensors file.')],
    grow: Annotated[
        str | None, typer.Option(help='Deeper architecture to copy the source into; it computes the same.')
    ] = None,
    num_classes: Annotated[int | None, typer.Option(min=1, help='Classes of the new classifier.')] = None,
    labels: Annotated[
        Path | None, typer.Option(help='File with one class name per line, or a folder of class folders.')
    ] = None,
):
    """Start from a ResNet, grow a model, or convert a checkpoint.

    A VT-ResNet starts from a ResNet's stem..layer3; a folder becomes a plain timm file.

    A VT-ResNet's checkpoint of timm's train script or a folder of transformers becomes a model folder as by
    `vt-hub export`, which has more options.

    Example: vt-hub convert resnet50.a1_in1k vt_resnet50_start --num-classes 37
    """
    from ..loading.conversion import is_vt_checkpoint, load_source, save_timm_weights, warm_start
    from ..loading.growing import grow as grown
    from ..loading.published import list_pretrained
    from ..loading.source import Source
    from ..publishing import export as run

    if target.suffix == '.safetensors':
        if num_classes or labels or grow:
            raise typer.BadParameter(
                '--num-classes, --labels and --grow go with a model folder, not with a plain timm file.'
            )
        print(save_timm_weights(source, target))
        return
    if Source.parse(source).is_folder or source in list_pretrained() or is_vt_checkpoint(source):
        if num_classes:
            raise typer.BadParameter('--num-classes is for a start from a ResNet; a model folder has its classes.')
        if not grow:
            export(source, target, labels=labels)
            return
        names = read_labels(labels) if labels else None
        model = grown(load_source(source)[0], grow)
        print(run(model, target, labels=names, prose=GROWN_PROSE, origin=f'It computes what {Path(source).name} does.'))
        return
    names = read_labels(labels) if labels else None
    classes = num_classes or (len(names) if names else None)
    start = warm_start(source, **({'num_classes': classes} if classes else {}))
    model = grown(start.model, grow) if grow else start.model
    run(model, target, labels=names, prose=start.prose(Path(source).name), license=start.license)
    print(f'{target}: {start}')
