"""Distillation: a student network learns a teacher's outputs on unlabelled images.

Both see the same view, cropped and mixed with others (Beyer et al. 2022, https://arxiv.org/abs/2106.05237; CutMix, Yun
et al. 2019, https://arxiv.org/abs/1905.04899). The student learns the teacher's pooled features, its last map at every
position (FitNets, Romero et al. 2015, https://arxiv.org/abs/1412.6550) and its logits. The student's logits come from
its predicted features through the teacher's classifier. At the end, the extra layers are folded into the student's
classifier or dropped.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from timm.models import save_for_hf

from ...files import written_whole
from ...inference.scores import class_names
from ...loading.source import Source
from ...publishing import export
from ...reporting import Progress, find_device, no_progress, write_result
from ..resumable import check_settings, start_or_resume, train, training_entry
from .data import HELD_OUT_PART, Folders
from .networks import load_networks
from .norms import settle_norms
from .recipe import DistillationRecipe, Stage, list_distillation_recipes, load_distillation_recipe
from .regression import Regression, teach_layer1
from .run import DistillationRun
from .takeover import stage_fits, teach_stage

__all__ = [
    'DistillationRecipe',
    'Folders',
    'Regression',
    'Stage',
    'distill',
    'list_distillation_recipes',
    'load_distillation_recipe',
    'settle_norms',
    'stage_fits',
    'teach_layer1',
    'teach_stage',
]

PROSE = """\
A {{ architecture }} with {{ num_labels }} classes. `vt-hub distill` taught it, on images without labels, what another
network predicts."""


def distill(
    recipe: DistillationRecipe,
    data: Folders,
    output: str | Path,
    teacher_checkpoint: Path | None = None,
    trunk_checkpoint: Path | None = None,
    seed: int = 0,
    minutes: float | None = None,
    device: torch.device | None = None,
    workers: int = 2,
    compile_networks: bool = False,
    progress: Progress = no_progress,
) -> Path | None:
    """Train a student with a recipe. A stopped run resumes bit-identically from its last checkpoint.

    Args:
        recipe: See `load_distillation_recipe`.
        data: The images.
        output: Folder of the run: `recipe.json`, `state.pt`, `summary.csv`, and at the end `result.json` and `model`.
        teacher_checkpoint: File with the teacher's weights; default: timm's weights.
        trunk_checkpoint: File with start weights for some parts of the student.
        seed: Random seed of new weights, views and mixing.
        minutes: Stop after this time. Start again to resume.
        device: Default: the GPU if there is one.
        workers: Processes per device that read images.
        compile_networks: Run teacher and student through `torch.compile`. A stopped run resumes bit-identically only
            if this stays as it was.
        progress: Wraps the steps to show progress.

    Returns:
        `output / 'model'`: a model folder, or for an architecture of another package a folder that timm loads. None if
        the run stopped before its end, and in all processes except the first.

    Raises:
        FloatingPointError: The weights are not finite; the last finite checkpoint is kept.
        LookupError: timm has no such model.
        ValueError: The run in `output` has another recipe, or networks and checkpoints do not fit.
    """
    output, device = Path(output), device or find_device()
    settings = check_settings(output, {**asdict(recipe), 'data': data.describe(), 'seed': seed})
    if (output / 'model').is_dir():
        return output / 'model'  # the run is complete
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(seed)
    teacher, student, trunk = load_networks(recipe, teacher_checkpoint, trunk_checkpoint)
    unreadable = output / 'unreadable.txt'
    run = DistillationRun(recipe, data, student, trunk, teacher, seed, device, workers, unreadable, compile_networks)
    for stage in reversed(recipe.stages):  # checks the names of parts before hours of training
        run.enter(stage)
    start_or_resume(run, output, settings)
    train(run, output, minutes, progress, 'Distilling')
    if run.step < recipe.steps or run.rank > 0:
        return None
    result = result_of(run, settings)
    write_result(output / 'result.json', result)
    return save_student(run, output / 'model', result)


def result_of(run: DistillationRun, settings: dict[str, Any]) -> dict[str, Any]:
    """The contents of the result file of a finished run."""
    return {
        'task': 'image-classification',
        'dataset': {
            'name': 'images that were not trained on',
            'type': 'imagefolder',
            'split': f'one image in {HELD_OUT_PART}, against the teacher',
            'num_images': len(run.held_out),
        },
        'metrics': run.evaluate(),
        'tokens': [module.to_dict() for module in run.tokens()],
        'training': training_entry(run, settings) | {'num_images': len(run.views)},
    }


def save_student(run: DistillationRun, folder: Path, result: dict[str, Any]) -> Path:
    """Write the averaged student: a model folder, or for an architecture of another package a folder of timm."""
    model = run.ema.module.eval().fold()
    if Source.parse(run.recipe.model).is_ours:
        return export(model, folder, labels=class_names(run.teacher), metrics=[result], prose=PROSE)
    with written_whole(folder) as unfinished:
        save_for_hf(model.to(memory_format=torch.contiguous_format), str(unfinished), safe_serialization=True)
    return folder
