"""Recipes of segmentation training."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from ..recipe_files import check_values, list_recipe_files, read_recipe

__all__ = ['SegmentationRecipe', 'list_segmentation_recipes', 'load_segmentation_recipe']


@dataclass(frozen=True)
class SegmentationRecipe:
    """How a model is trained; the files in recipes/segmentation/ say where each value comes from.

    Args:
        model: Architecture, published weights or a model folder to start from.
        model_args: Changes to the architecture: `decoder`, `backbone` and other arguments of `VTFPNBody.build`.
        backbone_checkpoint: File with the backbone's weights, by the backbone's own names. If empty, the backbone is
            random, or has timm's weights (`pretrained_backbone` in `model_args`).
        layout: Arrangement of the data; see `data.LAYOUTS`.
        batch_size: Images per step, over all processes.
        device_batch_size: Images that fit on one device; gradients are accumulated to `batch_size`.
        lr: Highest learning rate.
        optimizer: SGD with momentum, or AdamW.
        weight_decay: For all weights except norms and biases.
        max_grad_norm: Clip the gradient to this norm; 0 for no clipping.
        steps: Optimizer steps.
        schedule: 'step' multiplies the rate by `gamma` at each of `milestones` (fractions of `steps`). 'polynomial'
            lowers it to 0 with the exponent `power`, 'cosine' along half a cosine.
        warmup_steps: Steps in which the rate rises linearly from `warmup_factor` times its full value.
        bf16: Use mixed precision; default: on GPUs that support it.
        sync_bn: BatchNorm over all processes.
        input_size: Height and width of the model's input; in training only if `shortest_edge` is empty.
        scale: Range of random scaling before a random crop or padding to `input_size`.
        shortest_edge: Resize the shorter edge to one of these at random, with the longer edge at most `longest_edge`;
            no crop.
        eval_shortest_edge: Evaluate with this shorter edge, and `longest_edge`, instead of `input_size`.
        flip: Share of mirrored images.
        class_weights: Weight of each class in the loss; if empty, all have the same.
        absent_classes: Train even if the masks lack a class.
        eval_every: Steps between evaluations, each with a checkpoint.
    """

    model: str
    layout: str
    batch_size: int
    lr: float
    steps: int
    input_size: tuple[int, int]
    eval_every: int
    model_args: dict[str, Any] = field(default_factory=dict)
    backbone_checkpoint: str = ''
    device_batch_size: int | None = None
    optimizer: Literal['sgd', 'adamw'] = 'sgd'
    momentum: float = 0.9
    weight_decay: float = 0.0
    max_grad_norm: float = 0.0
    schedule: Literal['step', 'polynomial', 'cosine'] = 'cosine'
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    power: float = 0.9
    warmup_steps: int = 0
    warmup_factor: float = 0.0
    bf16: bool | None = None
    sync_bn: bool = False
    scale: tuple[float, float] = (1.0, 1.0)
    shortest_edge: tuple[int, ...] = ()
    longest_edge: int = 1333
    eval_shortest_edge: int | None = None
    flip: float = 0.5
    class_weights: tuple[float, ...] = ()
    absent_classes: bool = False

    @property
    def eval_edges(self) -> tuple[int, int] | None:
        """Shorter edge and longest edge in evaluation; None for `input_size`."""
        return (self.eval_shortest_edge, self.longest_edge) if self.eval_shortest_edge else None

    def lr_factor(self, step: int) -> float:
        """Learning rate of a step, counted from 0, as a fraction of `lr`."""
        done = step / self.steps
        if self.schedule == 'step':
            factor = self.gamma ** sum(done >= milestone for milestone in self.milestones)
        elif self.schedule == 'polynomial':
            factor = max(1 - done, 0) ** self.power
        else:
            factor = (1 + math.cos(math.pi * done)) / 2
        if step < self.warmup_steps:
            factor *= self.warmup_factor + (1 - self.warmup_factor) * step / self.warmup_steps
        return factor


def list_segmentation_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return list_recipe_files('segmentation')


def load_segmentation_recipe(name: str, changes: dict[str, Any] | None = None) -> SegmentationRecipe:
    """Read a recipe of the package by name, or from a YAML file, and apply changes to its values.

    Raises:
        LookupError: There is no such recipe.
        ValueError: A key or value is not allowed in a recipe.
    """
    recipe = read_recipe(SegmentationRecipe, 'segmentation', name, changes)
    check_values(
        name,
        recipe,
        ('batch_size', 'steps', 'eval_every'),
        ('input_size', min(recipe.input_size) >= 1, '1 or more'),
        ('device_batch_size', (recipe.device_batch_size or 1) >= 1, '1 or more'),
        ('scale', min(recipe.scale) > 0, 'above 0'),
        ('flip', 0 <= recipe.flip <= 1, 'from 0 to 1'),
        ('warmup_steps', recipe.warmup_steps >= 0, '0 or more'),
    )
    return recipe
