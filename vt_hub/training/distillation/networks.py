"""Load teacher and student, and the extra layers that help the student learn."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.models.resnet import ResNet

from ...loading.checkpoints import TimmModel, load_into, read_foreign
from ...loading.conversion import load_trained, load_trunk
from ...loading.source import Source, load_model
from ...network.trunk import last_level
from ...network.vt_net import VTNet
from ...network.vt_resnet import VTResNet
from .recipe import DistillationRecipe
from .ridge import Ridge

__all__ = [
    'Distiller',
    'Outputs',
    'frozen_parts',
    'load_networks',
    'load_start',
    'outputs',
    'shared_parts',
]

FOLDED = 0.01  # a classifier differs by less from the teacher's times a matrix if it was made of that
Outputs = tuple[torch.Tensor, list[torch.Tensor]]  # pooled features (B, F) and maps (B, C, h, w)


def first_parts(net: Any) -> Iterator[tuple[str, int | None]]:
    """Names of a network's parts before its last feature level, in order, and the level's number at the end of each."""
    levels = {info['module']: number for number, info in enumerate(net.feature_info)}
    for name, part in net.named_children():
        names = [name]
        if name not in levels and isinstance(part, (nn.Sequential, nn.ModuleList)):
            names = [f'{name}.{number}' for number, _ in part.named_children()]
        for one in names:
            if levels.get(one) == len(levels) - 1:
                return
            yield one, levels.get(one)


def shared_parts(student: TimmModel, teacher: TimmModel, size: int) -> tuple[list[str], int | None]:
    """First parts of the student that are frozen and equal to those of the teacher, so that they run once for both.

    Args:
        student: The network that learns.
        teacher: The network that it learns from.
        size: Height and width of the images in pixels.

    Returns:
        Names of the parts, and the number of the teacher's feature level after them; [] and None if there are none.
    """
    trunk, start = student, ''
    if isinstance(student, VTNet):
        trunk, start = student.trunk, 'trunk.'
        if frozen(trunk) and same(trunk, teacher):
            return ['trunk'], student.last_level
    of_teacher = dict(teacher.named_modules())
    names: list[str] = []
    shared: tuple[list[str], int | None] = [], None
    for name, level in first_parts(trunk):
        part, other = trunk.get_submodule(name), of_teacher.get(name)
        if not (other and frozen(part) and same(part, other)):
            break
        names.append(f'{start}{name}')
        if level is not None and gives_map(teacher, name, level, size):
            shared = list(names), level
    return shared


@torch.no_grad()
def gives_map(net: TimmModel, name: str, level: int, size: int) -> bool:
    """Whether the output of a part is the map (B, C, h, w) of a level. In a transformer it is often not."""
    found: list[Any] = []
    x = torch.linspace(0, 1, 3 * size * size).view(1, 3, size, size).to(next(net.parameters()))
    with net.get_submodule(name).register_forward_hook(lambda part, given, output: found.append(output)):
        _, _, wanted = outputs(net, x, level=level)
    return isinstance(found[0], torch.Tensor) and found[0].shape == wanted.shape and torch.equal(found[0], wanted)


def frozen_parts(student: TimmModel, shared: Sequence[str]) -> list[str]:
    """Names of a ResNet's further first parts that are frozen, after the shared ones. They run once for each view."""
    names: list[str] = []
    if not isinstance(student, (VTResNet, ResNet)):
        return names
    for name, _ in first_parts(student):
        part = student.get_submodule(name)
        if name in shared:
            continue
        if frozen(part):
            names.append(name)
            continue
        if isinstance(part, nn.Sequential):
            for number, block in part.named_children():
                if not frozen(block):
                    break
                names.append(f'{name}.{number}')
        break
    return names


def frozen(part: nn.Module) -> bool:
    return not any(value.requires_grad for value in part.parameters())


def same(part: nn.Module, of: nn.Module) -> bool:
    """Whether a network has all tensors of a part, by name and by value in float16, in which weights are published."""
    one, other = part.state_dict(), of.state_dict()
    return all(key in other and torch.equal(value.half(), other[key].half()) for key, value in one.items())


def load_networks(
    recipe: DistillationRecipe, teacher_checkpoint: Path | None, trunk_checkpoint: Path | None
) -> tuple[TimmModel, TimmModel, list[str]]:
    """The teacher and the student of a recipe, and names of the student's parts that are already trained.

    Raises:
        LookupError: timm has no such model.
        ValueError: Networks and checkpoints do not fit.
    """
    start: TimmModel | None = load_model(recipe.model) if Source.parse(recipe.model).is_folder else None
    source, args = recipe.teacher, recipe.teacher_args
    if source is None:
        source, own_args = own_backbone(recipe, start)
        args = own_args | args
    teacher = load_trained(source, teacher_checkpoint, **args)
    if not isinstance(teacher.get_classifier(), nn.Linear):
        raise ValueError(f'{source} has no linear classifier on pooled features; a teacher needs one.')
    student = fitting_student(start, recipe, teacher) if start else create_student(recipe, teacher)
    trunk = ['trunk'] if isinstance(student, VTNet) else []
    return teacher, student, load_start(student, trunk_checkpoint) if trunk_checkpoint else trunk


def own_backbone(recipe: DistillationRecipe, start: TimmModel | None) -> tuple[str, dict[str, Any]]:
    """The timm model whose last part the student's VT stage replaces, and its arguments.

    Args:
        recipe: It names the student.
        start: The student, if it comes from a folder.

    Raises:
        ValueError: The student is not a VT-Net.
    """
    net = start or timm.create_model(recipe.model, device='meta', **recipe.model_args)
    if not isinstance(net, VTNet):
        raise ValueError(f'{recipe.model} is not a VT-Net, so it needs a teacher: name a timm model.')
    return net.backbone, net.backbone_args


def load_start(student: TimmModel, checkpoint: Path) -> list[str]:
    """Load the parts of a student that a checkpoint has, and return their names.

    Raises:
        ValueError: The checkpoint has no part of the student, or a part does not fit.
    """
    state_dict, _ = read_foreign(checkpoint)
    if isinstance(student, VTNet):  # the file is the backbone's
        load_trunk(student.trunk, state_dict, checkpoint)
        return ['trunk']
    parts = {name.split('.')[0] for name in state_dict}
    taken = [name for name, part in student.named_children() if name in parts and part.state_dict()]
    if not taken:
        raise ValueError(f'{checkpoint} has no part of the student; its tensors begin with {next(iter(state_dict))}.')
    for name in taken:
        part, start = getattr(student, name), f'{name}.'
        values = {key.removeprefix(start): value for key, value in state_dict.items() if key.startswith(start)}
        load_into(part, values, f'{name} of {checkpoint}')
    return taken


def fitting_student(start: TimmModel, recipe: DistillationRecipe, teacher: TimmModel) -> TimmModel:
    """A student from a folder, if it has the teacher's classes."""
    if start.num_classes != teacher.num_classes:
        raise ValueError(
            f'{recipe.model} has {start.num_classes} classes and the teacher {teacher.num_classes}; '
            'name a teacher with the same ones.'
        )
    return start


def create_student(recipe: DistillationRecipe, teacher: TimmModel) -> TimmModel:
    """A new student of a recipe's architecture, with the teacher's classes."""
    if not timm.is_model(recipe.model):
        raise LookupError(f'There is no model {recipe.model!r} in timm; `vt-hub list` shows the models of vt_hub.')
    size = (3, recipe.input_size, recipe.input_size)
    student: TimmModel = timm.create_model(
        recipe.model,
        num_classes=teacher.num_classes,
        pretrained_cfg_overlay={'input_size': size},
        **recipe.model_args,
    )
    if recipe.teacher is None:
        load_trunk(student.trunk, teacher.state_dict(), student.backbone)
    return student


def outputs(
    net: TimmModel,
    x: torch.Tensor,
    skip: Sequence[str] = (),
    level: int | None = None,
    strides: Sequence[int] = (),
) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """What a student learns from.

    Args:
        net: A timm model.
        x: Images, or the output of the first parts `skip`.
        skip: Names of those parts.
        level: Number of another feature level to return.
        strides: Strides of further maps to return.

    Returns:
        Pooled features (B, F), the last map (B, C, h, w) with the maps at `strides`, and the map of `level`; without a
        level, `x`.
    """
    indices = [len(net.feature_info) - 1, *(level_at(net, stride) for stride in strides)]
    found = sorted({*indices, *([] if level is None else [level])})
    with skipped(net, skip):
        last, maps = net.forward_intermediates(x, indices=found)
        by_level = dict(zip(found, maps, strict=True))
        features = net.forward_head(last, pre_logits=True)
    return features, [by_level[index] for index in indices], x if level is None else by_level[level]


def level_at(net: TimmModel, stride: int) -> int:
    """The number of a network's last feature level at a stride, the very last level aside.

    Raises:
        ValueError: There is none.
    """
    found = [info['reduction'] for info in net.feature_info[:-1]]
    if stride not in found:
        raise ValueError(f'A {type(net).__name__} has maps at strides {found} and a last one; none at {stride}.')
    return last_level(found, stride)


class Given(nn.Identity):
    """In place of a part whose output is given."""

    def forward_intermediates(self, x: torch.Tensor, indices: Sequence[int], **kwargs: Any) -> list[torch.Tensor]:
        return [x] * len(indices)


@contextmanager
def skipped(net: TimmModel, names: Sequence[str]) -> Iterator[None]:
    """Replace parts of a network by their input inside the block."""
    kept = {name: net.get_submodule(name) for name in names}
    for name in names:
        net.set_submodule(name, Given())
    try:
        yield
    finally:
        for name, part in kept.items():
            net.set_submodule(name, part)


def deviations(found: torch.Tensor) -> torch.Tensor:
    """Standard deviations to divide by, with a lower limit, so that nearly constant features do not dominate."""
    return found.clamp(min=max(0.01 * found.mean().item(), 1e-6))


class MapHelper(nn.Module):
    """Predicts a teacher's map, each channel with unit variance, from a student's map through a 1x1 convolution."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, own: torch.Tensor, wanted: torch.Tensor):
        """Of maps (B, C, h, w) of both."""
        super().__init__()
        self.conv = nn.Conv2d(own.shape[1], wanted.shape[1], 1)
        self.register_buffer('mean', torch.zeros(wanted.shape[1], 1, 1))
        self.register_buffer('std', torch.ones(wanted.shape[1], 1, 1))

    def forward(self, own: torch.Tensor) -> torch.Tensor:
        return self.conv(own).float()

    def error(self, found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Mean squared error of a prediction, on the coarser of the two grids."""
        return F.mse_loss(*on_one_grid(found, (wanted.float() - self.mean) / self.std))

    def calibrate(self, fit: Ridge) -> None:
        """Begin at a regression of the wanted channels from the student's."""
        std = deviations(fit.deviations())
        self.mean.copy_(fit.means()[1].view(-1, 1, 1))
        self.std.copy_(std.view(-1, 1, 1))
        begin(self.conv, fit, fit.solve(), std)


def on_one_grid(one: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two maps (B, C, h, w), averaged to the coarser of their grids."""
    size = min(one.shape[-2], other.shape[-2]), min(one.shape[-1], other.shape[-1])
    return F.adaptive_avg_pool2d(one.float(), size), F.adaptive_avg_pool2d(other.float(), size)


def begin(layer: Any, fit: Ridge, weight: torch.Tensor, std: torch.Tensor) -> None:
    """Let a linear layer or a 1x1 convolution predict `weight` x, centred and divided by `std` (out,)."""
    layer.weight.copy_((weight / std[:, None]).view_as(layer.weight))
    layer.bias.copy_(-(weight @ fit.means()[0]) / std)


class Distiller(nn.Module):
    """A student with layers that predict the teacher's features, maps and logits from its own.

    The classifier is the teacher's and stays fixed. At the end, `fold` merges it with the linear layer before it into
    the student's classifier.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, student: TimmModel, teacher: TimmModel, size: int, strides: Sequence[int] = ()):
        super().__init__()
        with torch.no_grad():
            images = torch.zeros(2, 3, size, size)
            own, own_maps, _ = outputs(student.eval(), images, strides=strides)
            features, wanted_maps, _ = outputs(teacher, images, strides=strides)
        self.student, self.strides = student, tuple(strides)
        self.features = nn.Linear(own.shape[1], features.shape[1])
        self.maps: Any = nn.ModuleList(map(MapHelper, own_maps, wanted_maps))
        self.classifier = nn.Linear(features.shape[1], teacher.num_classes)
        self.classifier.load_state_dict(teacher.get_classifier().state_dict())
        self.register_buffer('mean', torch.zeros(features.shape[1]))
        self.register_buffer('std', torch.ones(features.shape[1]))

    def forward(
        self, x: torch.Tensor, skip: Sequence[str] = ()
    ) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
        """Inputs of `outputs` to standardised features (B, F), standardised maps (B, C, h, w), logits (B, classes)."""
        own, own_maps, _ = outputs(self.student, x, skip, strides=self.strides)
        features = self.features(own).float()
        maps = [helper(one) for helper, one in zip(self.maps, own_maps, strict=True)]
        return features, maps, self.classifier(features * self.std + self.mean).float()

    @torch.no_grad()
    def calibrate(self, batches: Iterable[tuple[Outputs, Outputs]]) -> None:
        """Take means and deviations from the teacher, and begin at what predicts its features and maps.

        A student that this teacher taught before goes on with the linear layer in its classifier. Otherwise the layer
        begins at a ridge regression, as those for the maps do.

        Args:
            batches: What `outputs` gives for the student and for the teacher.
        """
        of_features, of_maps = Ridge(), [Ridge() for _ in self.maps]
        for (own, own_maps), (features, maps) in batches:
            of_features.add(own, features)
            for fit, *pair in zip(of_maps, own_maps, maps, strict=True):
                fit.add(*(values.movedim(1, -1).flatten(0, 2) for values in on_one_grid(*pair)))
        for helper, fit in zip(self.maps, of_maps, strict=True):
            helper.calibrate(fit)
        self.mean.copy_(of_features.means()[1])
        self.std.copy_(deviations(of_features.deviations()))
        known = self.folded_layer()
        weight = of_features.solve() if known is None else known * of_features.best_scale(known)
        begin(self.features, of_features, weight, self.std)

    def folded_layer(self) -> torch.Tensor | None:
        """The matrix (F, own) in the student's classifier, up to a factor, if `fold` made it with this teacher's."""
        made, own = self.classifier.weight.double(), self.student.get_classifier().weight.double()
        if made.shape[0] <= made.shape[1]:  # any classifier is a product then
            return None
        found = torch.linalg.lstsq(made, own).solution
        return found if (made @ found - own).norm() < FOLDED * own.norm() else None

    @torch.no_grad()
    def fold(self) -> TimmModel:
        """The student, with a classifier that produces the logits of `forward`."""
        into, made = self.student.get_classifier(), self.classifier
        into.weight.copy_(made.weight @ (self.std[:, None] * self.features.weight))
        into.bias.copy_(made.weight @ (self.std * self.features.bias + self.mean) + made.bias)
        return self.student
