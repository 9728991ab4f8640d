"""Train semantic segmentation with a recipe and transformers' Trainer."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from timm.layers import convert_sync_batchnorm
from torchvision import tv_tensors
from torchvision.transforms import v2
from transformers import Trainer, TrainingArguments, set_seed

from ...files import read_json
from ...loading.checkpoints import create_network, read_foreign
from ...loading.conversion import load_trunk
from ...loading.published import list_pretrained
from ...loading.source import Source
from ...network.checksums import file_sha256
from ...network.modeling_vt import VTFPNForSemanticSegmentation, segmentation_loss
from ...network.vt_fpn import ARCHITECTURES, is_segmenter
from ...publishing import export
from ...publishing.card import lineage
from ...publishing.model_folder import config_of
from ...reporting import Progress, machine, no_progress, write_result
from .data import IGNORE, SegmentationData, check_pairs
from .evaluate import evaluate_segmentation, fit_edges
from .recipe import SegmentationRecipe

__all__ = ['check_run', 'train_segmentation']

OPTIMIZERS = {'sgd': torch.optim.SGD, 'adamw': torch.optim.AdamW}


class RandomSize(v2.Transform):
    """Resize to `input_size` times a random scale, or to a random shorter edge with the aspect ratio kept.

    torchvision's ScaleJitter swaps height and width, and shifts masks by up to half a pixel.
    """

    def __init__(self, recipe: SegmentationRecipe):
        super().__init__()
        self.recipe = recipe

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        if edges := self.recipe.shortest_edge:
            shortest = edges[int(torch.randint(len(edges), ()))]
            height, width = v2.functional.get_size(flat_inputs[0])
            size = fit_edges(height, width, shortest, self.recipe.longest_edge)
        else:
            scale = torch.empty(()).uniform_(*self.recipe.scale).item()
            height, width = (max(int(edge * scale), 1) for edge in self.recipe.input_size)
            size = height, width
        return {'size': list(size)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        mask = isinstance(inpt, tv_tensors.Mask)
        mode = v2.InterpolationMode.NEAREST_EXACT if mask else v2.InterpolationMode.BILINEAR
        return v2.functional.resize(inpt, interpolation=mode, **params)


class TrainingPairs(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Augmented images (3, H, W), normalised, with their labels (H, W)."""

    def __init__(self, data: SegmentationData, recipe: SegmentationRecipe, mean: Sequence[float], std: Sequence[float]):
        self.data = data
        self.flip = recipe.flip
        self.swap = torch.arange(IGNORE + 1)
        for left, right in data.flip_pairs:
            self.swap[left], self.swap[right] = right, left
        steps: list[v2.Transform] = [RandomSize(recipe)]
        if not recipe.shortest_edge:
            fill = {tv_tensors.Image: [round(255 * value) for value in mean], tv_tensors.Mask: IGNORE}
            steps.append(v2.RandomCrop(list(recipe.input_size), pad_if_needed=True, fill=fill))
        self.resize = v2.Compose(steps)
        self.normalize = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        image, mask = self.data[i]
        pixels, labels = self.resize(tv_tensors.Image(v2.functional.pil_to_tensor(image)), tv_tensors.Mask(mask))
        if torch.rand(()) < self.flip:
            pixels, labels = pixels.flip(-1), self.swap[labels.flip(-1).long()]
        return {'pixel_values': self.normalize(pixels.as_subclass(torch.Tensor)), 'labels': labels.long()}


def collate(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Make a batch. Smaller images are padded right and below, with the mean colour and unlabelled pixels."""
    height, width = (max(sample['labels'].shape[axis] for sample in samples) for axis in (0, 1))
    batch: dict[str, list[torch.Tensor]] = {'pixel_values': [], 'labels': []}
    for sample in samples:
        border = 0, width - sample['labels'].shape[1], 0, height - sample['labels'].shape[0]
        batch['pixel_values'].append(F.pad(sample['pixel_values'], border))
        batch['labels'].append(F.pad(sample['labels'].as_subclass(torch.Tensor), border, value=IGNORE))
    return {key: torch.stack(values) for key, values in batch.items()}


class SegmentationTrainer(Trainer):
    """transformers' Trainer with a recipe's learning rates, and mIoU over the whole validation set."""

    model: VTFPNForSemanticSegmentation
    eval_dataset: SegmentationData

    def __init__(self, recipe: SegmentationRecipe, **kwargs: Any):
        super().__init__(**kwargs)
        self.recipe = recipe

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LambdaLR:
        optimizer = optimizer or self.create_optimizer()
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.recipe.lr_factor)
        return self.lr_scheduler

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        return [name for name, value in model.named_parameters() if value.ndim > 1]  # neither norms nor biases

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        weights = self.recipe.class_weights
        if not weights:
            return super().compute_loss(model, inputs, *args, **kwargs)
        logits = model(pixel_values=inputs['pixel_values']).logits
        return segmentation_loss(logits, inputs['labels'], IGNORE, torch.tensor(weights, device=logits.device))

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        result = evaluate_segmentation(
            self.model, self.eval_dataset, self.recipe.eval_edges, self.args.dataloader_num_workers
        )
        metrics = {f'eval_{key}': value for key, value in result['metrics'].items()}
        for number, level in enumerate(result['tokens'], 1):
            metrics |= {f'eval_{key}_{number}': level[key] for key in ('cosine', 'spread')}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def world_size() -> int:
    """Processes that torchrun or accelerate launch started; they may not have joined yet."""
    return int(os.environ.get('WORLD_SIZE', 1))


def check_data(data: SegmentationData, absent_classes: bool, workers: int, progress: Progress) -> None:
    """Decode this process's share of the pairs, and print which pixels and classes their masks leave out.

    Raises:
        ValueError: Some pairs are bad (the message names the first), or the training masks lack a class.
    """
    world = world_size()
    share = range(int(os.environ.get('RANK', 0)), len(data), world)
    found = check_pairs(data, len(data.classes), share, workers)
    faults, counts = [], np.zeros(IGNORE + 1, dtype=np.int64)
    for fault, pixels in progress(found, len(share), f'Checking {data.split}'):
        counts += pixels
        faults += [fault] if fault else []
    if faults:
        more = f' And {len(faults) - 3} more.' if len(faults) > 3 else ''
        raise ValueError(f'{len(faults)} of {len(share)} pairs of {data.name} are bad. {" ".join(faults[:3])}{more}')
    ignored = 100 * counts[IGNORE] / max(counts.sum(), 1)
    if ignored > 0:
        print(
            f'{data.name}, {data.split}: {ignored:.1f} % of the pixels are {IGNORE} and are ignored.',
            file=sys.stderr,
        )
    absent = [name for name, pixels in zip(data.classes, counts, strict=False) if not pixels]
    if absent and world == 1:
        named = f'{", ".join(absent[:5])}{" and more" if len(absent) > 5 else ""}'
        sentence = f'{data.name}, {data.split}: no pixel of any mask is {named}'
        if data.split == 'train' and not absent_classes:
            raise ValueError(
                f'{sentence}; masks hold class numbers from 0, and {IGNORE} for pixels that do not count. '
                'Use --absent-classes true to train anyway.'
            )
        print(f'{sentence}.', file=sys.stderr)


def source_of(recipe: SegmentationRecipe) -> Source:
    """The source of the model to train.

    Raises:
        ValueError: It is not a segmentation model.
    """
    source = Source.parse(recipe.model)
    if not is_segmenter(source.architecture):
        raise ValueError(f'{recipe.model} is not a segmentation model; use one of {", ".join(ARCHITECTURES)}.')
    return source


def start_model(recipe: SegmentationRecipe, classes: list[str]) -> VTFPNForSemanticSegmentation:
    """The model before training: an architecture, or other weights with a new last convolution."""
    source, args = source_of(recipe), dict(recipe.model_args)
    overlay: dict[str, Any] = {'input_size': (3, *recipe.input_size)}
    pretrained = source.is_folder or source.text in list_pretrained()
    if (args.get('pretrained_backbone') or recipe.backbone_checkpoint) and not pretrained:
        backbone = {**ARCHITECTURES[source.architecture], **args}['backbone']
        overlay |= {key: timm.get_pretrained_cfg_value(backbone, key) for key in ('mean', 'std')}
    if pretrained or recipe.backbone_checkpoint:
        args.pop('pretrained_backbone', None)  # these weights include it
    args |= {'num_classes': len(classes), 'pretrained_cfg_overlay': overlay}
    model: Any = create_network(source.timm_name, pretrained=pretrained, **args)
    if recipe.backbone_checkpoint:
        load_trunk(model.backbone, read_foreign(recipe.backbone_checkpoint)[0], recipe.backbone_checkpoint)
    config: Any = config_of(model, classes)  # a VTFPNConfig, since `source_of` has checked the architecture
    trained = VTFPNForSemanticSegmentation(config)
    trained.load_state_dict(model.state_dict())
    return trained


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint: the Trainer writes trainer_state.json last."""
    whole = [path.parent for path in folder.glob('checkpoint-*/trainer_state.json') if is_json(path)]
    return max(whole, key=lambda path: int(path.name.split('-')[1]), default=None)


def is_json(path: Path) -> bool:
    try:
        return bool(read_json(path))
    except ValueError:
        return False


def check_run(
    recipe: SegmentationRecipe,
    train_data: SegmentationData,
    output: Path,
    seed: int = 0,
    resume: bool = False,
) -> dict[str, Any]:
    """Check a run before it reads the data; see `train_segmentation` for arguments and errors.

    Returns:
        The contents of `recipe.json`.
    """
    settings = json.loads(json.dumps({**asdict(recipe), 'seed': seed, 'classes': train_data.classes}))
    if recipe.backbone_checkpoint:  # what it was, wherever it lies
        settings['backbone_checkpoint'] = f'sha256 {file_sha256(Path(recipe.backbone_checkpoint))}'
    if recipe.class_weights and len(recipe.class_weights) != len(train_data.classes):
        raise ValueError(
            f'The recipe has {len(recipe.class_weights)} class weights, but {train_data.name} has '
            f'{len(train_data.classes)} classes.'
        )
    begun = (output / 'recipe.json').exists()
    if begun and not resume:
        raise FileExistsError(f'{output} holds a run already; resume it with --resume or name another folder.')
    earlier = read_json(output / 'recipe.json') if begun else settings
    for key, value in settings.items():
        if earlier.get(key) != value:
            raise ValueError(f'{output} was started with {key} = {earlier.get(key)}, not {value}.')
    if (output / 'model').exists() and not begun:
        raise FileExistsError(f'{output / "model"} exists already; move it, or name another folder.')
    if len(train_data) < recipe.batch_size:
        raise ValueError(f'{train_data.name} has {len(train_data)} training pairs; a batch needs {recipe.batch_size}.')
    source_of(recipe)
    device_batch_size(recipe)
    return settings


def device_batch_size(recipe: SegmentationRecipe) -> int:
    """Images in a batch of each device: the recipe's number, or this process's share of the whole batch.

    Raises:
        ValueError: The recipe's batch is not a multiple of the batches of all devices.
    """
    world = world_size()
    own = max(recipe.batch_size // world, 1)
    per_device = min(recipe.device_batch_size or own, own)
    if recipe.batch_size % (per_device * world):
        raise ValueError(f'A batch of {recipe.batch_size} images cannot be split over {world} x {per_device}.')
    return per_device


def training_arguments(recipe: SegmentationRecipe, output: Path, seed: int, workers: int) -> TrainingArguments:
    """The recipe in the terms of transformers' Trainer; see `device_batch_size` for the error."""
    per_device, cuda = device_batch_size(recipe), torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(output),
        seed=seed,
        max_steps=recipe.steps,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=recipe.batch_size // (per_device * world_size()),
        learning_rate=recipe.lr,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        use_cpu=not cuda,  # for bf16 on a CPU, this must be set
        bf16=cuda and torch.cuda.is_bf16_supported() if recipe.bf16 is None else recipe.bf16,
        dataloader_num_workers=workers,
        dataloader_drop_last=True,
        remove_unused_columns=False,
        eval_strategy='steps',
        eval_steps=recipe.eval_every,
        save_steps=recipe.eval_every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model='miou',
        greater_is_better=True,
        logging_steps=min(50, recipe.eval_every),
        report_to='none',
        disable_tqdm=not sys.stderr.isatty(),
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # otherwise Trainer would use all GPUs in this process
    return arguments


def make_trainer(
    recipe: SegmentationRecipe,
    model: VTFPNForSemanticSegmentation,
    arguments: TrainingArguments,
    train_data: SegmentationData,
    val_data: SegmentationData,
) -> SegmentationTrainer:
    """The Trainer with the recipe's augmentation and optimizer."""
    mean, std = (model.config.pretrained_cfg[key] for key in ('mean', 'std'))
    momentum = {'momentum': recipe.momentum} if recipe.optimizer == 'sgd' else {}
    return SegmentationTrainer(
        recipe,
        model=model.to(memory_format=torch.channels_last),
        args=arguments,
        train_dataset=TrainingPairs(train_data, recipe, mean, std),
        eval_dataset=val_data,
        data_collator=collate,
        optimizer_cls_and_kwargs=(OPTIMIZERS[recipe.optimizer], {'lr': recipe.lr, **momentum}),
    )


def train_segmentation(
    recipe: SegmentationRecipe,
    train_data: SegmentationData,
    val_data: SegmentationData,
    output: str | Path,
    seed: int = 0,
    workers: int = 0,
    resume: bool = False,
    progress: Progress = no_progress,
) -> Path:
    """Train with a recipe, on all devices of torchrun or accelerate launch, and export the best checkpoint.

    Args:
        recipe: See `load_segmentation_recipe`.
        train_data: Images and masks for training.
        val_data: Images and masks to choose the best checkpoint.
        output: Folder of the run: checkpoints, `recipe.json`, `result.json` and at the end the model folder `model`.
        seed: Random seed of weights, order and augmentation.
        workers: Processes per device that read images.
        resume: Resume from the last complete checkpoint in `output`, if there is one.
        progress: Wraps the check of the data to show progress; it gets the loop's length and a title.

    Returns:
        The model folder.

    Raises:
        FileExistsError: `output` holds a run already, and `resume` is False.
        ValueError: Pairs are bad, or the run in `output` has another recipe.
    """
    output = Path(output)
    settings = check_run(recipe, train_data, output, seed, resume)
    if (output / 'model').is_dir():
        return output / 'model'  # the run is complete
    for data in (train_data, val_data):
        check_data(data, recipe.absent_classes, workers, progress)

    set_seed(seed)
    model = start_model(recipe, train_data.classes)
    if recipe.sync_bn and world_size() > 1 and torch.cuda.is_available():  # SyncBatchNorm needs GPUs
        model = convert_sync_batchnorm(model)  # timm's: torch's drops the activation of BatchNormAct2d
    arguments = training_arguments(recipe, output, seed, workers)
    trainer = make_trainer(recipe, model, arguments, train_data, val_data)
    if arguments.should_save:
        output.mkdir(parents=True, exist_ok=True)
        (output / 'recipe.json').write_text(json.dumps(settings, indent=2) + '\n')
    checkpoint = last_checkpoint(output) if resume else None
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)  # evaluated in fp32
    result = evaluate_segmentation(model, val_data, recipe.eval_edges, workers, progress)
    if arguments.should_save:
        result['training'] = {**settings, 'num_images': len(train_data), **machine(model.device)}
        write_result(output / 'result.json', result)
        start = Source.parse(recipe.model)
        trained = start.is_folder or recipe.model in list_pretrained()
        origin, metadata = lineage(start) if trained else ('', {})
        export(model, output / 'model', metrics=[result], origin=origin, metadata=metadata)
    return output / 'model'
