"""Recipes of distillation."""

from dataclasses import dataclass
from typing import Any

from timm.optim import list_optimizers

from ..recipe_files import check_stages, check_values, list_recipe_files, read_recipe

__all__ = ['DistillationRecipe', 'Stage', 'list_distillation_recipes', 'load_distillation_recipe']


@dataclass(frozen=True)
class Stage:
    """A part of the run.

    Args:
        until: End of the stage, as a fraction of all steps.
        size: Height and width of the images in pixels.
        free: Parts of the student that learn, such as `layer3`, `trunk.blocks.4` and `vt`; if empty, all parts.
    """

    until: float
    size: int
    free: tuple[str, ...]


@dataclass(frozen=True)
class DistillationRecipe:
    """How a student learns; see the files in recipes/distillation/.

    Args:
        model: The student, a timm architecture or a model folder.
        model_args: Further arguments of `timm.create_model` for the student.
        teacher: A timm model or a model folder, with a linear classifier on pooled features; None for the backbone of
            a VT-Net, whose last part the VT stage replaces.
        teacher_args: Further arguments of `timm.create_model` for the teacher.
        input_size: Height and width in pixels of the student's input in evaluation and afterwards.
        batch_size: Images per step, over all processes.
        opt: timm's name of the optimizer, such as adamw or muon. Muon learns more in a step, and AdamW updates its
            vectors (https://kellerjordan.github.io/posts/muon/).
        lr: Highest learning rate; after `warmup_steps` it falls along half a cosine.
        trunk_lr: Factor on `lr` for the parts from the trunk's checkpoint.
        weight_decay: For all weights except norms and biases.
        calibration_steps: Batches before the first step. They give mean and deviation of the teacher's features and
            maps, and the ridge regressions at which the layers that predict them begin.
        steps: Optimizer steps.
        block: Batches of new views that are made at once. The next `block * reuse` steps draw from them, all in the
            stage of the first step.
        reuse: How often each view is used. With more than 1, steps are faster, since the teacher runs less often. The
            logits are learned only when a view is new.
        evaluate_every: Steps between evaluations on held-out images.
        crop_scale: Smallest and largest area of a view, as a share of the image.
        color_jitter: Strength of timm's colour jitter.
        mixup: alpha of mixup; 0 for none.
        cutmix: alpha of CutMix; 0 for none.
        features: Weight of the squared error of the pooled features, each with unit variance.
        maps: Weight of the squared error of the last map, each channel with unit variance.
        strides: Strides of further maps to learn, each with the weight `maps`.
        logits: Weight of the Kullback-Leibler divergence of the logits.
        nested_tokens: In each step, use only the first k of the student's tokens, with k random from 1 to all (nested
            dropout, Rippel et al. 2014, https://arxiv.org/abs/1402.0915). The weights then work with any number of
            tokens: `timm.create_model(..., num_tokens=4)`.
        stages: Which parts learn when, and at which image size.
    """

    model: str
    model_args: dict[str, Any]
    teacher: str | None
    teacher_args: dict[str, Any]
    input_size: int
    batch_size: int
    opt: str
    lr: float
    trunk_lr: float
    weight_decay: float
    warmup_steps: int
    calibration_steps: int
    steps: int
    block: int
    reuse: int
    evaluate_every: int
    crop_scale: tuple[float, float]
    color_jitter: float
    mixup: float
    cutmix: float
    features: float
    maps: float
    strides: tuple[int, ...]
    logits: float
    nested_tokens: bool
    stages: tuple[Stage, ...]

    def stage(self, step: int) -> Stage:
        """The stage of a step, counted from 0."""
        step -= step % (self.block * self.reuse)
        return next((stage for stage in self.stages if step < stage.until * self.steps), self.stages[-1])

    @property
    def num_views(self) -> int:
        """Number of new views in all steps."""
        return -(-self.steps // (self.block * self.reuse)) * self.block * self.batch_size

    def view_size(self, item: int) -> int:
        """Height and width of a view in pixels."""
        return self.stage(item // self.batch_size // self.block * self.block * self.reuse).size


def list_distillation_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return list_recipe_files('distillation')


def load_distillation_recipe(name: str, changes: dict[str, Any] | None = None) -> DistillationRecipe:
    """Read a recipe of the package by name, or from a YAML file, and apply changes to its values.

    Raises:
        LookupError: There is no such recipe.
        ValueError: A key or value is not allowed in a recipe.
    """
    recipe = read_recipe(DistillationRecipe, 'distillation', name, changes)
    check_values(
        name,
        recipe,
        ('batch_size', 'calibration_steps', 'steps', 'block', 'reuse', 'evaluate_every', 'input_size'),
        ('batch_size', recipe.batch_size % 2 == 0, 'even, since images are mixed in pairs'),
        ('opt', recipe.opt in list_optimizers(), "the name of one of timm's optimizers"),
        ('crop_scale', 0 < recipe.crop_scale[0] <= recipe.crop_scale[1] <= 1, 'an increasing range within 0 to 1'),
    )
    check_stages(name, recipe)
    return recipe
