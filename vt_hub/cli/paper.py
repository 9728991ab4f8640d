"""The command that measures speed: benchmark."""

import itertools
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .common import Json, print_json, print_table, print_wrapped, progress

WIDE = 0.1  # of the median
BatchSizes = Annotated[
    list[int] | None, typer.Option(metavar='N', min=1, help='Images in a batch; may be repeated; default: 1.')
]
Sizes = Annotated[
    list[int] | None,
    typer.Option(metavar='N', min=32, help='Height and width; may be repeated; default: 224, VT-FPN 512.'),
]


def benchmark(
    models: Annotated[list[str], typer.Argument(help='Models of vt_hub.', metavar='MODEL...')],
    backbone: Annotated[str, typer.Option(help='timm model, for vt_net or a VT-FPN.')] = '',
    batch_size: BatchSizes = None,
    size: Sizes = None,
    dtype: Annotated[
        Literal['fp32', 'bf16', 'fp16'], typer.Option(help='Type of weights and images; in training, of autocast.')
    ] = 'fp32',
    device: Annotated[Literal['cpu', 'cuda'], typer.Option(help='Where to run.')] = 'cpu',
    threads: Annotated[int | None, typer.Option(metavar='N', min=1, help='CPU threads.')] = None,
    channels_last: Annotated[
        bool, typer.Option('--channels-last', help='Memory format of weights and images.')
    ] = False,
    compile_: Annotated[bool, typer.Option('--compile', help='Compile the networks.')] = False,
    fuse: Annotated[bool, typer.Option('--fuse', help='Fold norms and merge projections first.')] = False,
    train: Annotated[bool, typer.Option('--train', help='A training step instead of inference.')] = False,
    rounds: Annotated[int, typer.Option(metavar='N', min=1, help='How often each network runs.')] = 15,
    result: Annotated[Path | None, typer.Option(help='Result file to write.')] = None,
    csv: Annotated[Path | None, typer.Option(help='CSV file to write.')] = None,
    plot: Annotated[Path | None, typer.Option(help='Picture to write.')] = None,
    as_json: Json = False,
) -> None:
    """Measure speed and memory beside the ResNet or the FPN.

    VT-ResNets run beside timm's ResNet and the trunk alone, a VT-Net beside its whole backbone, VT-FPNs beside the
    panoptic FPN.

    The networks run in turn, so that the machine's drift cancels: trust the ratios.

    Example: vt-hub benchmark vt_resnet18 --batch-size 1 --batch-size 16 --result result.json
    """
    import torch

    from ..paper import benchmark as run
    from ..reporting import machine, write_result

    check_outputs(result, csv, plot)
    if threads:
        torch.set_num_threads(threads)
    settings = [
        run.Setting(name, batch, pixels, dtype, device, channels_last, compile_, fuse, train, backbone)
        for name in models
        for batch, pixels in itertools.product(batch_size or [1], size or [default_size(name)])
    ]
    rows = run.benchmark(settings, rounds, progress)
    found = {'command': shlex.join(['vt-hub', *sys.argv[1:]]), 'rows': rows, **machine(torch.device(device))}
    if result:
        write_result(result, found)
    if csv:
        run.write_csv(rows, csv)
    if plot:
        run.plot(rows, plot)
    if as_json:
        print_json(found)
    else:
        print_speeds(rows)


def check_outputs(result: Path | None, csv: Path | None, plot: Path | None) -> None:
    """Raise an error for a file that cannot be written, before anything is measured."""
    from ..figures import check_figure
    from ..files import check_place

    if plot:
        check_figure(plot)
    for path in filter(None, (result, csv, plot)):
        check_place(path)


def default_size(model: str) -> int:
    """Height and width in pixels at which the paper measures a model."""
    from ..network.vt_fpn import is_segmenter

    return 512 if is_segmenter(model) else 224


def print_speeds(rows: list[dict[str, Any]]) -> None:
    """A table for each setting, with a line for each network."""
    from ..paper.benchmark import NAMES

    for row in rows:
        on = f' on {row["backbone"]}' if row['backbone'] else ''
        print(f'{row["model"]}{on}, batch {row["batch_size"]}, {row["size"]} pixels')
        cells = []
        for name, speed in row['images_per_second'].items():
            ratio = row['ratios'].get(name)
            low, high = ratio['quartiles'] if ratio else ('', '')
            shown = f'{ratio["median"]:.3f} ({low:.3f} to {high:.3f})' if ratio else ''
            cost = (f'{row["params_m"][name]:.2f}', f'{row["macs_m"][name]:.0f}') if name in row['macs_m'] else ('', '')
            cells.append([NAMES[name], *cost, f'{speed:g}', row['peak_mb'].get(name, ''), shown])
        header = ['network', 'M params', 'M MACs', 'images/s', 'MB', 'speed of VT (quartiles)']
        print_table(header, cells, header[1:5])
    ratios = [ratio for row in rows for ratio in row['ratios'].values()]
    if any(ratio['quartiles'][1] - ratio['quartiles'][0] > WIDE * ratio['median'] for ratio in ratios):
        print_wrapped(
            f'Some quartiles are more than {WIDE:.0%} apart: those ratios are unreliable. Stop what else runs.'
        )


def tables(
    as_json: Json = False,
    markdown: Annotated[bool, typer.Option('--markdown', help='Print the page docs/paper_fidelity.md.')] = False,
) -> None:
    """Recompute the paper's tables beside its figures.

    Parameters and FLOPs of Tables 1 to 11.

    Example: vt-hub tables --markdown > docs/paper_fidelity.md
    """
    from ..paper import tables as paper

    if markdown:
        print(paper.markdown(), end='')
    elif as_json:
        rows = [row.to_dict() for row in paper.rows()]
        print_json({'rows': rows, 'segmentation': paper.segmentation(), 'stages': paper.stages()})
    else:
        header = ['table', *paper.HEADER]
        print_table(header, ([row.table, *paper.cells(row)] for row in paper.rows()), header[2:])
        print()
        header = ['table', *paper.SEGMENTATION_HEADER]
        cells = ([row['table'], *paper.segmentation_cells(row)] for row in paper.segmentation())
        print_table(header, cells, header[2:])
        print()
        print_table(['table', 'model', 'stage', 'paper', 'computed'], (['11', *s.values()] for s in paper.stages()))
