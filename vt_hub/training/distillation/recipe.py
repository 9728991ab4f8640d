"""How a student learns, as a file says it."""

from dataclasses import dataclass
from typing import Any

from ..recipe_files import list_recipe_files, read_recipe

__all__ = ['DistillationRecipe', 'Stage', 'list_distillation_recipes', 'load_distillation_recipe']


@dataclass(frozen=True)
class Stage:
    """A part of the run.

    Args:
        until: Where it ends, as a fraction of all steps.
        size: Height and width of the images in pixels.
        free: Parts of the student that learn, such as `layer3` and `vt`; none named, all of it.
    """

    until: float
    size: int
    free: tuple[str, ...]


@dataclass(frozen=True)
class DistillationRecipe:
    """How a student learns; see the files in recipes/distillation/.

    Args:
        model: The student, a timm architecture or a model folder.
        model_args: Further arguments of `timm.create_model` for it.
        teacher: A timm model or a model folder, with a linear classifier on pooled features.
        teacher_args: Further arguments for it.
        input_size: Height and width in pixels that the student is measured at, and made for.
        batch_size: Images of a step, of all processes together.
        lr: Learning rate of AdamW at its highest; after `warmup_steps` half a cosine leads down.
        trunk_lr: Factor on it for what comes from the trunk's checkpoint.
        weight_decay: For all weights but norms and biases.
        calibration_steps: Batches that, before the first step, give means and deviations of the teacher's features, and
            the ridge regression of them that the student's linear layer begins with.
        steps: Optimizer steps.
        evaluate_every: Steps after which held-out images are looked at.
        crop_scale: Smallest and largest part of an image that a view shows, as a share of its area.
        color_jitter: Strength of timm's.
        mixup: alpha of mixup; 0 for none.
        cutmix: alpha of CutMix; 0 for none.
        features: Weight of the squared error of the pooled features, each with unit variance.
        maps: Weight of the squared error of the last map, each channel with unit variance.
        logits: Weight of the Kullback-Leibler divergence of the logits.
        nested_tokens: In each step, use the first k of a student's tokens only, k drawn from 1 to all (nested dropout,
            Rippel et al. 2014, https://arxiv.org/abs/1402.0915). The weights then serve any number of tokens:
            `timm.create_model(..., num_tokens=4)`.
        stages: What learns when, and on images of which size.
    """

    model: str
    model_args: dict[str, Any]
    teacher: str
    teacher_args: dict[str, Any]
    input_size: int
    batch_size: int
    lr: float
    trunk_lr: float
    weight_decay: float
    warmup_steps: int
    calibration_steps: int
    steps: int
    evaluate_every: int
    crop_scale: tuple[float, float]
    color_jitter: float
    mixup: float
    cutmix: float
    features: float
    maps: float
    logits: float
    nested_tokens: bool
    stages: tuple[Stage, ...]

    def stage(self, step: int) -> Stage:
        """The stage of a step, counted from 0."""
        return next((stage for stage in self.stages if step < stage.until * self.steps), self.stages[-1])


def list_distillation_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return list_recipe_files('distillation')


def load_distillation_recipe(name: str, changes: dict[str, Any] | None = None) -> DistillationRecipe:
    """A recipe of the package by name, or of a YAML file, with changes to its values.

    Raises:
        LookupError: There is no such recipe.
        ValueError: A key or value is not one of a recipe's.
    """
    recipe = read_recipe(DistillationRecipe, 'distillation', name, changes)
    for key in ('batch_size', 'calibration_steps', 'steps', 'evaluate_every', 'input_size', 'stages'):
        value = getattr(recipe, key)
        if (len(value) if key == 'stages' else value) < 1:
            raise ValueError(f'{name}: {key} is {value!r}; it takes 1 or more.')
    if recipe.batch_size % 2:
        raise ValueError(f'{name}: a batch of {recipe.batch_size} cannot be mixed in pairs; use an even number.')
    if not 0 <= recipe.warmup_steps < recipe.steps:
        raise ValueError(f'{name}: {recipe.warmup_steps} steps of warm-up leave none of {recipe.steps}.')
    if not 0 < recipe.crop_scale[0] <= recipe.crop_scale[1] <= 1:
        raise ValueError(f'{name}: crop_scale is {recipe.crop_scale}; its ends rise, and lie above 0 and up to 1.')
    ends = [stage.until for stage in recipe.stages]
    if ends != sorted(ends) or ends[0] <= 0 or ends[-1] != 1:
        raise ValueError(f'{name}: the stages end at {ends}; they follow one another, and the last ends at 1.')
    return recipe
