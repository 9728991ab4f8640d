"""Pretraining on scenes of fractals, drawn on the training device.

Source: the multi-instance task of "Improving Fractal Pre-training" (Anderson and Farrell 2022,
https://arxiv.org/abs/2110.03091): predict the visible classes, here with one softmax. Two dense heads also predict the
class at each cell of the maps at strides 8 and 16; they are dropped at the end.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch.optim.swa_utils import update_bn

from ..files import written_whole
from ..inference.diversity import TokenDiversity, token_diversity, token_figures
from ..loading.checkpoints import TimmModel
from ..loading.source import Source
from ..publishing import export
from ..reporting import Progress, find_device, no_progress, write_result
from ..synthesis.fractals import fractal_bank
from ..synthesis.scenes import HELD_OUT_FIRST, compose_scenes
from .recipe_files import check_stages, check_values, list_recipe_files, read_recipe
from .resumable import ResumableRun, autocast, check_settings, cosine, start_or_resume, train, training_entry

__all__ = ['PretrainingRecipe', 'Stage', 'list_pretraining_recipes', 'load_pretraining_recipe', 'pretrain']

STRIDES = (8, 16)  # strides of the maps for the dense heads
DENSE_WEIGHT = 0.5  # weight of each dense loss; the scene's loss has 1
BACKGROUND_WEIGHT = 0.1  # most cells show no object
LABEL_SMOOTHING = 0.1
MEAN = STD = (0.5, 0.5, 0.5)  # not those of natural images
EMA_DECAY = 0.999
RECALIBRATION = 50  # batches for the BatchNorm statistics of the averaged weights
HELD_OUT_BATCHES = 16  # for the final result
HELD_OUT = {'name': 'scenes of fractals', 'type': 'vt_hub.synthesis.scenes', 'split': 'scenes that were not trained on'}
LOG_EVERY = 50  # steps
PROSE = """\
A {{ architecture }} pretrained on scenes of {{ num_labels }} fractals, by `vt-hub pretrain`. Fine-tune it for
your own classes: its classes are numbered fractals and mean nothing for other images."""


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum.

    Args:
        until: End of the stage, as a fraction of all steps.
        size: Height and width of the scenes in pixels.
        objects: Smallest and largest number of objects per scene.
        scale: Smallest and largest size of an object, as a share of the scene.
        spread: Largest distance of an object from the middle, as a share of the distance to the edge.
    """

    until: float
    size: int
    objects: tuple[int, int]
    scale: tuple[float, float]
    spread: float


@dataclass(frozen=True)
class PretrainingRecipe:
    """How weights are pretrained; see the files in recipes/pretraining/.

    Args:
        model: A timm architecture whose `forward_intermediates` returns maps at strides 8 and 16.
        classes: Number of fractal classes.
        instances: Pictures per class.
        bank_size: Height and width of the pictures in pixels.
        batch_size: Scenes per step.
        lr: Highest learning rate of LAMB; after `warmup_steps` it falls along half a cosine. With AdamW, the attention
            of recurrent tokenizers collapses to single pixels, and the loss rises again.
        weight_decay: For all weights except norms and biases.
        steps: Optimizer steps.
        soften_every: Steps between calls of `soften_attention`.
        stages: The curriculum.
    """

    model: str
    classes: int
    instances: int
    bank_size: int
    batch_size: int
    lr: float
    weight_decay: float
    warmup_steps: int
    steps: int
    soften_every: int
    stages: tuple[Stage, ...]

    def stage(self, step: int) -> Stage:
        """The stage of a step, counted from 0."""
        return next((stage for stage in self.stages if step < stage.until * self.steps), self.stages[-1])


def list_pretraining_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return list_recipe_files('pretraining')


def load_pretraining_recipe(name: str, changes: dict[str, Any] | None = None) -> PretrainingRecipe:
    """Read a recipe of the package by name, or from a YAML file, and apply changes to its values.

    Raises:
        LookupError: There is no such recipe.
        ValueError: A key or value is not allowed in a recipe.
    """
    recipe = read_recipe(PretrainingRecipe, 'pretraining', name, changes)
    check_values(name, recipe, ('classes', 'instances', 'batch_size', 'steps', 'soften_every'))
    check_stages(name, recipe)
    for stage in recipe.stages:
        if stage.size < 1 or stage.size % STRIDES[-1]:
            raise ValueError(f'{name}: scenes of {stage.size} pixels do not divide into cells; use a multiple of 16.')
        if not 1 <= stage.objects[0] <= stage.objects[1] or not 0 < stage.scale[0] <= stage.scale[1]:
            raise ValueError(f'{name}: objects {stage.objects} and scale {stage.scale} are not ranges above 0.')
    return recipe


class Pretrainer(nn.Module):
    """A classifier with dense heads that help it learn."""

    def __init__(self, recipe: PretrainingRecipe):
        super().__init__()
        size = recipe.stages[-1].size
        model: TimmModel = timm.create_model(
            recipe.model,
            num_classes=recipe.classes,
            pretrained_cfg_overlay={'input_size': (3, size, size), 'mean': MEAN, 'std': STD, 'crop_pct': 1.0},
        )
        reductions = [level['reduction'] for level in model.feature_info]
        if not set(STRIDES) <= set(reductions):
            raise ValueError(f'{recipe.model} has maps at strides {reductions}; pretraining needs 8 and 16.')
        self.model = model
        self.levels = [reductions.index(stride) for stride in STRIDES]
        self.heads = nn.ModuleList(
            nn.Conv2d(model.feature_info[level]['num_chs'], recipe.classes + 1, 1) for level in self.levels
        )

    def forward(self, images: torch.Tensor, labels: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See `compose_scenes` for the arguments. Returns the loss and the logits (B, classes)."""
        features, maps = self.model.forward_intermediates(normalized(images), indices=self.levels)
        logits = self.model.forward_head(features).float()
        target = labels / labels.sum(1, keepdim=True).clamp(min=1)
        loss = F.cross_entropy(logits, target, label_smoothing=LABEL_SMOOTHING)
        for head, x, stride in zip(self.heads, maps, STRIDES, strict=True):
            cells = head(x).float()
            weight = torch.ones(cells.shape[1], device=cells.device)
            weight[0] = BACKGROUND_WEIGHT
            centres = masks[:, stride // 2 :: stride, stride // 2 :: stride]
            loss = loss + DENSE_WEIGHT * F.cross_entropy(cells, centres, weight)
        return loss, logits


def normalized(images: torch.Tensor) -> torch.Tensor:
    """Normalise images from 0 to 1 for the network."""
    return ((images - MEAN[0]) / STD[0]).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def soften_attention(model: nn.Module) -> None:
    """Scale the layers that a module names in `token_logits` down to their initial spectral norm, in place.

    Otherwise they grow until each token and pixel attends to a single token. Then a long pretraining forgets what it
    has learned (attention entropy collapse, Zhai et al. 2023, https://arxiv.org/abs/2303.06296), and fine-tuning learns
    less, because the gradients of such softmaxes are far larger.
    """
    for module in model.modules():
        for name in getattr(module, 'token_logits', ()):
            weight = getattr(module, name).weight
            rows, columns = weight.shape
            new = (rows**0.5 + columns**0.5) / (3 * columns) ** 0.5  # for values from U(-1, 1) / sqrt(columns)
            weight *= (new / torch.linalg.matrix_norm(weight, 2)).clamp(max=1)


def hit_rate(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Percentage of scenes in which the most likely class is visible."""
    return 100 * labels.gather(1, logits.argmax(1, keepdim=True)).mean().item()


class PretrainingRun(ResumableRun):
    """The state of a pretraining."""

    net: Pretrainer
    log_every = LOG_EVERY

    def __init__(self, recipe: PretrainingRecipe, seed: int, device: torch.device):
        torch.manual_seed(seed)
        self.recipe, self.seed, self.device = recipe, seed, device
        self.steps, self.batch_size = recipe.steps, recipe.batch_size
        self.net = Pretrainer(recipe).to(device).to(memory_format=torch.channels_last)
        self.optimizer = create_optimizer_v2(self.net, 'lamb', recipe.lr, recipe.weight_decay)
        self.schedule = cosine(self.optimizer, recipe.steps, recipe.warmup_steps)
        self.ema = ModelEmaV3(self.net, EMA_DECAY, use_warmup=True)
        self.bank = fractal_bank(seed, recipe.classes, recipe.instances, recipe.bank_size, device)

    def scenes(self, batch: int, stage: Stage, first: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw a batch; batch 0 starts at the item `first`."""
        count = self.recipe.batch_size
        items = first + torch.arange(batch * count, (batch + 1) * count, device=self.device)
        return compose_scenes(self.bank, self.seed, items, stage.size, stage.objects, stage.scale, stage.spread)

    def train_step(self) -> None:
        self.net.train()
        self.schedule.step_update(self.step)
        images, labels, masks = self.scenes(self.step, self.recipe.stage(self.step))
        with autocast(self.device):
            loss, logits = self.net(images, labels, masks)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if (self.step + 1) % self.recipe.soften_every == 0:
            self.check_finite()
            soften_attention(self.net)
        self.ema.update(self.net, step=self.step)
        self.step += 1
        self.last = loss, logits, labels

    def figures(self) -> dict[str, float]:
        loss, logits, labels = self.last
        return {
            'size': self.recipe.stage(self.step - 1).size,
            'loss': round(loss.item(), 4),
            'hit_rate': round(hit_rate(logits, labels), 2),
            'lr': self.optimizer.param_groups[0]['lr'],
            **token_figures(self.tokens()),
        }

    def tokens(self) -> list[TokenDiversity]:
        """Token diversity in each module of the averaged model, on held-out scenes."""
        images, _, _ = self.scenes(0, self.recipe.stages[-1], HELD_OUT_FIRST)
        return token_diversity(self.ema.module.model.eval(), normalized(images))

    @torch.no_grad()
    def finish(self) -> tuple[TimmModel, float]:
        """The averaged model with new BatchNorm statistics, and its hit rate on held-out scenes."""
        model, stage = self.ema.module.model, self.recipe.stages[-1]
        batches = (normalized(self.scenes(i, stage, HELD_OUT_FIRST)[0]) for i in range(RECALIBRATION))
        update_bn(batches, model)
        model.eval()
        rates = []
        for i in range(RECALIBRATION, RECALIBRATION + HELD_OUT_BATCHES):
            images, labels, _ = self.scenes(i, stage, HELD_OUT_FIRST)
            rates.append(hit_rate(model(normalized(images)), labels))
        return model, sum(rates) / len(rates)


def pretrain(
    recipe: PretrainingRecipe,
    output: str | Path,
    seed: int = 0,
    minutes: float | None = None,
    device: str | None = None,
    progress: Progress = no_progress,
) -> Path | None:
    """Pretrain with a recipe, on one device. An interrupted run resumes from its last checkpoint.

    Args:
        recipe: See `load_pretraining_recipe`.
        output: Folder of the run: `recipe.json`, `state.pt`, `summary.csv`, and at the end `result.json` and `model`.
        seed: Random seed of weights, fractals and scenes.
        minutes: Stop after this time. Start again to resume, also on another machine with a copy of the folder.
        device: 'cuda' or 'cpu'; default: the GPU if there is one.
        progress: Wraps the steps to show progress.

    Returns:
        `output / 'model'`: a model folder, or for an architecture of another package a folder with only
        `model.safetensors`. None if the run stopped before its end.

    Raises:
        FloatingPointError: The weights are not finite; the last finite checkpoint is kept.
        LookupError: timm has no such model.
        ValueError: The run in `output` has another recipe, the model cannot be pretrained, or there is no such device.
    """
    output = Path(output)
    settings = check_settings(output, {**asdict(recipe), 'seed': seed})
    if (output / 'model').is_dir():
        return output / 'model'  # the run is complete
    if not timm.is_model(recipe.model):
        raise LookupError(f'There is no model {recipe.model!r} in timm; `vt-hub list` shows the models of vt_hub.')
    torch.backends.cudnn.benchmark = True
    run = PretrainingRun(recipe, seed, find_device(device))
    start_or_resume(run, output, settings)
    train(run, output, minutes, progress, 'Pretraining')
    if run.step < recipe.steps:
        return None
    model, rate = run.finish()
    result = {
        'task': 'image-classification',
        'dataset': {**HELD_OUT, 'num_images': HELD_OUT_BATCHES * recipe.batch_size},
        'metrics': {'hit_rate': round(rate, 2)},
        'tokens': [module.to_dict() for module in run.tokens()],
        'training': training_entry(run, settings),
    }
    write_result(output / 'result.json', result)
    if Source.parse(recipe.model).is_ours:
        labels = [f'fractal {number}' for number in range(recipe.classes)]
        return export(model, output / 'model', labels=labels, metrics=[result], prose=PROSE)
    with written_whole(output / 'model') as folder:
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / 'model.safetensors')
    return output / 'model'
