"""Recipes of segmentation training."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from ..recipe_files import list_recipe_files, read_recipe

__all__ = ['SegmentationRecipe', 'list_segmentation_recipes', 'load_segmentation_recipe']


@dataclass(frozen=True)
class SegmentationRecipe:
    """How a model is trained; the files in recipes/segmentation/ say where each value comes from.

    Args:
        model: Architecture, published weights or a model folder to start from.
        model_args: What differs from that architecture: `decoder`, `backbone` and the others of `VTFPNBody.build`.
        layout: Arrangement of the data; see `data.LAYOUTS`.
        batch_size: Images of one step, over all processes.
        device_batch_size: Images that fit on one device; gradients are accumulated to `batch_size`.
        lr: Learning rate at its highest.
        optimizer: SGD with momentum, or AdamW.
        weight_decay: For all weights but norms and biases.
        max_grad_norm: Clip the gradient to this norm; 0 for not at all.
        steps: Optimizer steps.
        schedule: 'step' multiplies the rate by `gamma` at each of `milestones` (fractions of `steps`), 'polynomial'
            takes it to 0 with the exponent `power`, 'cosine' along half a wave.
        warmup_steps: Steps over which the rate rises linearly from `warmup_factor` of its height.
        bf16: Mixed precision; without a word on it, on GPUs that compute in it.
        sync_bn: BatchNorm over all processes.
        input_size: Height and width that the model sees; those of training unless `shortest_edge` is given.
        scale: Range of random scaling before a random crop or padding to `input_size`.
        shortest_edge: Resize to one of these, drawn at random, and no further than `longest_edge`; no crop.
        eval_shortest_edge: Evaluate at this edge, and `longest_edge`, instead of at `input_size`.
        flip: Share of images mirrored.
        absent_classes: Train although a class occurs in no mask.
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
    absent_classes: bool = False

    @property
    def eval_edges(self) -> tuple[int, int] | None:
        """Shorter and longest edge of evaluation, if it is not at `input_size`."""
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
    """A recipe of the package by name, or of a YAML file, with changes to its values.

    Raises:
        LookupError: There is no such recipe.
        ValueError: A key or value is none of a recipe's.
    """
    recipe = read_recipe(SegmentationRecipe, 'segmentation', name, changes)
    if min(recipe.batch_size, recipe.steps, recipe.eval_every) < 1:
        raise ValueError(f'{name}: batch_size, steps and eval_every are 1 or more.')
    if min(recipe.input_size) < 1 or min(recipe.scale) <= 0 or (recipe.device_batch_size or 1) < 1:
        raise ValueError(f'{name}: input_size and device_batch_size are 1 or more, and scale is above 0.')
    if not 0 <= recipe.flip <= 1 or recipe.warmup_steps < 0:
        raise ValueError(f'{name}: flip is a share from 0 to 1 and warmup_steps is 0 or more.')
    return recipe
