"""The paper's parameter and FLOP tables, recomputed from the models themselves.

torch's FlopCounterMode (two FLOPs per MAC) counts the MACs on the meta device at 224 x 224: convolutions, linear layers
and matrix products, as in the paper. No formulas are used. `Row.args` are the arguments of `timm.create_model`.
"""

from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..loading.cost import cost
from ..network.vt_fpn import VTFPN
from ..network.vt_resnet import ARCHITECTURES, VTResNet

__all__ = ['markdown', 'rows', 'segmentation', 'stages']


@dataclass
class Row:
    """One row of one table: the paper's figures (millions, or ratios in Table 1) beside the computed ones."""

    table: str
    name: str
    model: str
    args: dict[str, Any] = field(default_factory=dict)
    params: float | None = None
    macs: float | None = None
    note: str = ''
    computed_params: float = 0.0
    computed_macs: float = 0.0

    def __post_init__(self) -> None:
        if not self.computed_macs:
            self.computed_params, self.computed_macs = cost(self.model, **self.args)

    @property
    def params_difference(self) -> float | None:
        """Percent."""
        return self.params and 100 * (self.computed_params / self.params - 1)

    @property
    def macs_difference(self) -> float | None:
        """Percent."""
        return self.macs and 100 * (self.computed_macs / self.macs - 1)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), 'params_difference': self.params_difference, 'macs_difference': self.macs_difference}


RATIOS = (
    'Except for R50 in total, Table 1 does not follow from Tables 2 and 8 (contradiction 4). Its stage-5 MACs are '
    'fewer than 16 tokens can cost (contradiction 5).'
)
MIXED = "The rows that repeat the figures of Table 3's clustering model are computed with that model (contradiction 2)."
FLOPS_RISE = 'In the paper, the FLOPs rise when the recurrent tokenizer is removed (contradiction 10).'
NO_MIXER = "Without the transformer, the paper's count has about 0.9 M parameters more than the layers that it names."
PROJECTORS = "In the paper's counts, two projectors cost less than twice one projector (contradiction 11)."
OTHER_R34 = 'The VT-R34 of Table 8 is not the VT-R34 of Tables 2 to 7 (contradiction 3).'


def _table1() -> list[Row]:
    printed = {  # total FLOPs, stage-5 FLOPs, total parameters, stage-5 parameters
        18: (1.14, 2.4, 0.91, 0.9),
        34: (1.16, 5.0, 1.21, 1.5),
        50: (1.20, 6.1, 1.19, 1.26),
        101: (1.09, 6.9, 1.19, 1.26),
    }
    table = []
    for depth, (total_macs, stage_macs, total_params, stage_params) in printed.items():
        for part, stages_, params, macs in (
            ('total', ('', ''), total_params, total_macs),
            ('stage 5', ('layer4', 'vt'), stage_params, stage_macs),
        ):
            base = cost(f'resnet{depth}', stages_[0])
            ours = cost(f'vt_resnet{depth}', stages_[1])
            table.append(
                Row(
                    '1',
                    f'R{depth} / VT-R{depth}, {part}',
                    f'vt_resnet{depth}',
                    {},
                    params,
                    macs,
                    RATIOS,
                    base[0] / ours[0],
                    base[1] / ours[1],
                )
            )
    return table


def rows() -> list[Row]:
    """Every row of Tables 1 to 8 that states parameters or FLOPs."""
    r18, r34 = 'vt_resnet18', 'vt_resnet34'
    pooling, cluster = {'tokenizer': 'pooling'}, {'tokenizer': 'cluster'}
    table = _table1()
    for number, printed in (
        ('2', {18: (11.7, 1814, 11.7, 1570), 34: (21.8, 3664, 21.9, 3280)}),
        (
            '8',
            {
                18: (11.7, 1814, 11.7, 1569),
                34: (21.8, 3664, 19.2, 3236),
                50: (25.5, 4089, 21.4, 3412),
                101: (44.4, 7802, 41.5, 7129),
            },
        ),
    ):
        for depth, (base_params, base_macs, params, macs) in printed.items():
            note = OTHER_R34 if (number, depth) == ('8', 34) else ''
            table.append(Row(number, f'R{depth}', f'resnet{depth}', {}, base_params, base_macs))
            table.append(Row(number, f'VT-R{depth}', f'vt_resnet{depth}', {}, params, macs, note))
    table += [
        Row('3', 'R18 pooling-based', r18, pooling, 11.0, 1549),
        Row('3', 'R18 clustering-based', r18, cluster, 11.6, 1579),
        Row('3', 'R18 filter-based', r18, {}, 11.7, 1580),
        Row('3', 'R34 pooling-based', r34, pooling, 20.6, 3246),
        Row('3', 'R34 clustering-based', r34, cluster, 21.8, 3299),
        Row('3', 'R34 filter-based', r34, {}, 21.9, 3280),
        Row('4', 'R18 w/ RT', r18, {}, 11.7, 1569),
        Row('4', 'R18 w/o RT', r18, {'recurrent': False}, 11.1, 1586, FLOPS_RISE),
        Row('4', 'R34 w/ RT', r34, {}, 21.9, 3246),
        Row('4', 'R34 w/o RT', r34, {'recurrent': False}, 20.9, 3335, FLOPS_RISE),
        Row('5', 'R18 None', r18, {'token_mixer': 'none'}, 8.5, 1528, NO_MIXER),
        Row('5', 'R18 GraphConv', r18, {'token_mixer': 'graph'}, 8.5, 1528, NO_MIXER),
        Row('5', 'R18 Transformer', r18, {}, 11.7, 1580),
        Row('5', 'R34 None', r34, {'token_mixer': 'none'}, 17.1, 3222, NO_MIXER),
        Row('5', 'R34 GraphConv', r34, {'token_mixer': 'graph'}, 17.1, 3223, NO_MIXER),
        Row('5', 'R34 Transformer', r34, cluster, 21.8, 3299, MIXED),
    ]
    for depth, model, costs in ((18, r18, (1579, 1711, 1979)), (34, r34, (3299, 3514, 3952))):
        for num_tokens, macs in zip((16, 32, 64), costs, strict=True):
            table.append(
                Row(
                    '6',
                    f'R{depth}, {num_tokens} tokens',
                    model,
                    {**cluster, 'num_tokens': num_tokens},
                    11.6 if depth == 18 else 21.8,
                    macs,
                    MIXED,
                )
            )
    table += [
        Row('7', 'R18 w/ projector', r18, {}, 11.7, 1569),
        Row('7', 'R18 w/o projector', r18, {'projector': False}, 9.4, 1498),
        Row('7', 'R34 w/ projector', r34, {}, 21.9, 3280),
        Row('7', 'R34 w/o projector', r34, {'projector': False}, 17.4, 3159, PROJECTORS),
    ]
    return sorted(table, key=lambda row: int(row.table))


TABLE_11 = {
    18: ('56x56 BB-C64 x2', '28x28 BB-C128 x2', '14x14 BB-C256 x2', 'VT-C512-L16-CT1024 x2'),
    34: ('56x56 BB-C64 x3', '28x28 BB-C128 x4', '14x14 BB-C256 x6', 'VT-C512-L16-CT1024 x3'),
    50: ('56x56 BN-C256 x3', '28x28 BN-C512 x4', '14x14 BN-C1024 x6', 'VT-C1024-L16-CT1024 x3'),
    101: ('56x56 BN-C256 x3', '28x28 BN-C512 x4', '14x14 BN-C1024 x23', 'VT-C1024-L16-CT1024 x3'),
}


def stages() -> list[dict[str, str]]:
    """Table 11, stages 2 to 5: the paper's entries and those of the model."""
    table = []
    for depth, printed in TABLE_11.items():
        with torch.device('meta'):
            model = VTResNet(**ARCHITECTURES[f'vt_resnet{depth}'], device='meta').eval()
            tokens, maps = model.forward_intermediates(torch.empty(1, 3, 224, 224))
        computed = []
        for layer, feature_map in zip((model.layer1, model.layer2, model.layer3), maps[1:4], strict=True):
            blocks = list(layer.children())
            kind = {'BasicBlock': 'BB', 'Bottleneck': 'BN'}[type(blocks[0]).__name__]
            _, channels, height, width = feature_map.shape
            computed.append(f'{height}x{width} {kind}-C{channels} x{len(blocks)}')
        computed.append(f'VT-C{maps[4].shape[1]}-L{tokens.shape[1]}-CT{tokens.shape[2]} x{len(model.vt.blocks)}')
        for number, (paper, ours) in enumerate(zip(printed, computed, strict=True), start=2):
            table.append({'model': f'VT-R{depth}', 'stage': str(number), 'paper': paper, 'computed': ours})
    return table


TABLES_9_10 = (  # table, height and width, classes, backbone, printed G MACs: total and decoder with FPN, with VT-FPN
    ('9', (800, 1216), 54, 'resnet50', (159, 55.1), (113, 8.5)),
    ('9', (800, 1216), 54, 'resnet101', (231, 55.1), (185, 8.5)),
    ('10', (473, 473), 20, 'resnet50', (37.1, 12.8), (26.4, 2.0)),
    ('10', (473, 473), 20, 'resnet101', (54.4, 12.8), (43.6, 2.0)),
)


@cache
def _segmentation_cost(backbone: str, decoder: str, num_classes: int, size: tuple[int, int]) -> list[float]:
    """G MACs of the decoder, of the network with timm's ResNet, and of it with the stride in the first 1x1 convs."""
    with torch.device('meta'):
        model = VTFPN(backbone=backbone, decoder=decoder, num_classes=num_classes, device='meta').eval()
        image = torch.empty(1, 3, *size)
    costs = []
    for stage in ('decoder', '', 'stride moved'):
        if stage == 'stride moved':  # as in the ResNet of the paper's totals
            for name in ('layer2', 'layer3', 'layer4'):
                block = getattr(model.backbone, name)[0]
                block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            model(image)
        name = 'VTFPN.decoder' if stage == 'decoder' else 'Global'
        costs.append(sum(counter.get_flop_counts()[name].values()) / 2e9)
    return costs


def segmentation() -> list[dict[str, Any]]:
    """Tables 9 and 10: G MACs of the pyramid decoder and of the whole network, printed and computed."""
    table = []
    for number, size, num_classes, backbone, *printed in TABLES_9_10:
        for decoder, (total, own) in zip(('fpn', 'vt'), printed, strict=True):
            computed = _segmentation_cost(backbone, decoder, num_classes, size)
            row: dict[str, Any] = {'table': number, 'row': f'{backbone} {"VT-FPN" if decoder == "vt" else "FPN"}'}
            for name, paper, value in (
                ('decoder', own, computed[0]),
                ('total', total, computed[1]),
                ('total, stride in the 1x1', total, computed[2]),
            ):
                row[name] = {'paper': paper, 'computed': value, 'difference': 100 * (value / paper - 1)}
            table.append(row)
    return table


def segmentation_cells(row: dict[str, Any]) -> list[str]:
    """The printed columns of a row of Tables 9 and 10."""
    columns = [row['row'], f'{row["decoder"]["paper"]}', f'{row["decoder"]["computed"]:.2f}']
    columns += [_percent(row['decoder']['difference']), f'{row["total"]["paper"]}']
    for name in ('total', 'total, stride in the 1x1'):
        columns += [f'{row[name]["computed"]:.1f}', _percent(row[name]['difference'])]
    return columns


SEGMENTATION_HEADER = ['row', 'decoder', 'computed', 'diff', 'total', 'timm', 'diff', 'stride in 1x1', 'diff']
CONTRADICTIONS = """\
1. Section 4 gives the map of VT-R18 and VT-R34 256 channels, and Table 11 gives it 512. The counts fit 512.
2. VT-R34 has four different costs: 3236 M / 19.2 M (Table 8), 3246 M / 21.9 M (Table 4), 3280 M / 21.9 M (Tables 2, 3
   and 7) and 3299 M / 21.8 M (Tables 3, 5 and 6). VT-R18 has 1569, 1570, 1579 and 1580 M. The 16-token rows of Table 6
   and the R34 Transformer row of Table 5 repeat the figures of the clustering model in Table 3.
3. The VT-R34 of Table 8 has 2.7 M parameters fewer than that of Table 2. The paper does not say which network it is.
4. The ratios of Table 1 do not follow from Tables 2 and 8, except for R50. The ratio of R18's parameters is 0.91 in
   Table 1 and 1.00 in Table 2. Stage 5 of R101 saves 6.9x FLOPs in Table 1 and 5.9x in Table 8.
5. In Table 8, stage 5 of VT-R50 and VT-R101 costs 133 and 138 M MACs with 11.8 and 12.9 M parameters. Every weight is
   applied to at least 16 tokens, so the stage costs at least 189 and 207 M. In Table 11 the two stages are identical.
6. The caption of Table 2 says 224 M fewer FLOPs for R18; its rows and the text say 244 M. The caption and section 5.2
   swap the gains of R18 and R34.
7. Section 3 uses one width C for maps and tokens. Section 4 and Table 11 use two widths, C and CT. The paper does not
   mention the layers between these widths, but Tables 4, 5 and 7 include their cost.
8. With C x C weights at CT = 1024, equations 3 and 4 cost 4.19 M parameters per module. Table 5 leaves 1.57 M for them.
9. The pooling rows of Table 3 need pooling in every module. In the text, the later modules have recurrent tokenizers.
10. In Table 4 the FLOPs rise by 17 and 89 M when the recurrent tokenizer is removed. They must fall, because a product
    is removed.
11. In Table 7 one projector costs 71 M MACs and 2.3 M parameters (R18), but two cost 121 M and 4.5 M (R34).
12. Section 4 places stage 5 "before stage-5 max pooling", but ResNet does not have max pooling there.
13. Stage 5 needs 6.9x fewer FLOPs according to the abstract and Table 1, but 5.9x according to Table 8. For the FPN the
    factor is 6.4x, 6.48x or 6.5x.
14. Listing 1 (appendix C) takes a minimum without keeping its dimension, divides by the size of empty clusters and
    builds an N x C x P x L tensor.
"""


def _format(value: float | None, digits: int) -> str:
    return '' if value is None else f'{value:.{digits}f}'


def cells(row: Row) -> list[str]:
    """The seven printed columns of a row: name, parameters (paper, computed, difference), MACs (likewise)."""
    digits = (2, 2) if row.table == '1' else (1, 0)
    return [
        row.name,
        _format(row.params, digits[0]),
        _format(row.computed_params, 2),
        _percent(row.params_difference),
        _format(row.macs, digits[1]),
        _format(row.computed_macs, digits[1]),
        _percent(row.macs_difference),
    ]


def _percent(value: float | None) -> str:
    return '' if value is None else f'{value:+.1f} %'


HEADER = ['row', 'params', 'computed', 'diff', 'MACs', 'computed', 'diff']


def markdown() -> str:
    """docs/paper_fidelity.md: all tables, with a reason for each row that differs by more than 4 % or 3.5 %."""
    table = rows()
    missed = [row for row in table if abs(row.params_difference or 0) > 4 or abs(row.macs_difference or 0) > 3.5]
    lines = [
        '# Fidelity to the paper',
        '',
        '`vt-hub tables --markdown` writes this page; do not edit it. It compares the models of this package with the',
        "paper's figures: parameters and multiply-accumulates (MACs) in millions, at 224 x 224. What the paper calls",
        'FLOPs are MACs. Table 1 has ratios.',
        f'{len(table) - len(missed)} of {len(table)} rows agree within 4 % in parameters and 3.5 % in MACs.',
        'The others are marked as missed, and a note gives the reason.',
    ]
    for number in dict.fromkeys(row.table for row in table):
        lines += ['', f'## Table {number}', '', '| ' + ' | '.join(HEADER) + ' |', '|---|' + '---:|' * (len(HEADER) - 1)]
        notes = []
        for row in (row for row in table if row.table == number):
            columns = cells(row)
            if row in missed:
                columns[0] += ' (missed)'
            lines.append('| ' + ' | '.join(columns) + ' |')
            if row.note and row.note not in notes:
                notes.append(row.note)
        lines += ['', *notes] if notes else []
    lines += [
        '',
        '## Tables 9 and 10',
        '',
        'G MACs of the pyramid decoder (with laterals, without semantic head) and of the whole network: Table 9 at',
        "800 x 1216 with 54 classes, Table 10 at 473 x 473 with 20. The paper's totals are those of a ResNet with the",
        "stride in the first 1x1 convolution of a block. timm's ResNet has it in the 3x3 convolution. The table shows",
        "both; the package uses timm's.",
        '',
        '| table | ' + ' | '.join(SEGMENTATION_HEADER) + ' |',
        '|---|---|' + '---:|' * (len(SEGMENTATION_HEADER) - 1),
    ]
    lines += [f'| {row["table"]} | ' + ' | '.join(segmentation_cells(row)) + ' |' for row in segmentation()]
    lines += ['', '## Table 11', '', '| model | stage | paper | computed |', '|---|---|---|---|']
    lines += ['| ' + ' | '.join(stage.values()) + ' |' for stage in stages()]
    lines += ['', '## Where the paper contradicts itself', '', CONTRADICTIONS]
    return '\n'.join(lines)
