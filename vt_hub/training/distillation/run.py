"""The training loop of distillation."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from timm.data import Mixup, create_transform
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ...inference.diversity import TokenDiversity, token_diversity, token_figures
from ...inference.preprocessing import data_config
from ...loading.checkpoints import TimmModel
from ...network.images import read_image
from ...network.vt_stage import VTStage, first_filters
from ...processes import rank_and_world
from ..resumable import ResumableRun, autocast, cosine
from .data import Folders, Views, start_worker
from .networks import Distiller, MapHelper, Outputs, frozen_parts, outputs, shared_parts
from .recipe import DistillationRecipe, Stage

__all__ = ['DistillationRun']

EMA_DECAY = 0.999
CLIP_NORM = 1.0
EVALUATION_BATCH = 64


class DistillationRun(ResumableRun):
    """The state of a distillation."""

    net: Distiller
    sums: torch.Tensor

    def __init__(
        self,
        recipe: DistillationRecipe,
        data: Folders,
        student: TimmModel,
        trunk: Sequence[str],
        teacher: TimmModel,
        seed: int,
        device: torch.device,
        workers: int,
        unreadable: Path,
        compile_networks: bool = False,
    ):
        torch.manual_seed(seed)
        self.recipe, self.seed, self.device = recipe, seed, device
        self.steps, self.batch_size, self.log_every = recipe.steps, recipe.batch_size, recipe.evaluate_every
        self.rank, self.world = rank_and_world()
        self.views, self.held_out, self.workers = Views(recipe, data, seed, unreadable), data.held_out, workers
        self.normalization = [constants(net, device) for net in (student, teacher)]
        self.teacher = teacher.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
        net = Distiller(student, teacher, recipe.stages[0].size, recipe.strides)
        self.net = net.to(device).to(memory_format=torch.channels_last)
        of_trunk = [nn.ModuleDict({name: getattr(student, name) for name in trunk})]
        rest = {name: part for name, part in student.named_children() if name not in trunk}
        of_rest = nn.ModuleDict({**rest, 'helper': net.features, 'map_helpers': net.maps})
        groups = [
            {**group, 'lr': recipe.lr * factor}
            for part, factor in ((of_trunk[0], recipe.trunk_lr), (of_rest, 1.0))
            for group in param_groups_weight_decay(part, recipe.weight_decay)
        ]
        faster: dict[str, Any] = {'fused': True} if recipe.opt == 'adamw' else {}  # six times as fast on a CPU
        self.optimizer = create_optimizer_v2(groups, recipe.opt, recipe.lr, recipe.weight_decay, **faster)
        self.schedule = cosine(self.optimizer, recipe.steps, recipe.warmup_steps)
        self.ema = ModelEmaV3(net, EMA_DECAY, use_warmup=True)
        self.mix = None
        if recipe.mixup or recipe.cutmix:
            self.mix = Mixup(recipe.mixup, recipe.cutmix, mode='elem', num_classes=1)
        self.sums = torch.zeros(3, device=device)  # losses since the last evaluation
        self.batches: Iterator[torch.Tensor] | None = None
        self.block: list[torch.Tensor] | None = None  # views and targets that the steps draw from
        self.stage: Stage | None = None
        self.compile_networks, self.teach = compile_networks, outputs
        if compile_networks:
            self.teach = torch.compile(outputs, dynamic=False)

    def loader(self, first: int, last: int) -> Iterator[torch.Tensor]:
        """This process's share of some batches of new views."""
        size = self.batch_size // self.world
        starts = (number * self.batch_size + self.rank * size for number in range(first, last))
        indices: list[Any] = [range(start, start + size) for start in starts]
        return iter(
            DataLoader(
                self.views,
                batch_sampler=indices,
                num_workers=self.workers,
                worker_init_fn=start_worker,
                pin_memory=self.device.type == 'cuda',
            )
        )

    def enter(self, stage: Stage) -> None:
        """Start a stage: choose the parts that learn, and find the first parts that run once for each view."""
        self.stage, student = stage, self.net.student
        modules = dict(student.named_modules())
        if unknown := sorted(set(stage.free) - modules.keys()):
            parts = ', '.join(name for name, _ in student.named_children())
            raise ValueError(f'{self.recipe.model} has no part {unknown[0]}; its parts are {parts}.')

        def is_free(name: str) -> bool:
            return not stage.free or any(f'{name}.'.startswith(f'{part}.') for part in stage.free)

        self.net.requires_grad_(True)
        self.frozen = [module for name, module in modules.items() if name and not is_free(name)]
        for name, value in student.named_parameters():
            value.requires_grad_(is_free(name))
        student.get_classifier().requires_grad_(False)  # set at the end
        self.net.classifier.requires_grad_(False)
        alike = self.same_images() and not self.recipe.strides
        shared, self.level = shared_parts(student, self.teacher, stage.size) if alike else ([], None)
        self.own = [] if self.recipe.strides else frozen_parts(student, shared)
        self.skip = shared + self.own
        self.parallel = DistributedDataParallel(self.net) if self.world > 1 else self.net

    def compile_student(self) -> None:
        """Compile the parts that learn in any stage."""
        student = self.net.student
        parts = {name for stage in self.recipe.stages for name in stage.free or dict(student.named_children())}
        for part in map(student.get_submodule, sorted(parts)):
            for module in part.blocks if isinstance(part, VTStage) else [part]:  # a network calls these one by one
                module.compile(dynamic=False)

    def same_images(self) -> bool:
        return all(map(torch.equal, *self.normalization))

    def targets(
        self, images: torch.Tensor, student: TimmModel, teach: Callable[..., Any] = outputs
    ) -> list[torch.Tensor]:
        """Images from 0 to 1 to what a student reads after its first parts, and the teacher's features and maps."""
        with torch.no_grad(), autocast(self.device):
            x, of_teacher = (
                ((images - mean) / std).contiguous(memory_format=torch.channels_last)
                for mean, std in self.normalization
            )
            features, maps, shared = teach(self.teacher, of_teacher, level=self.level, strides=self.recipe.strides)
            if self.level is not None:
                x = shared
            for name in self.own:
                x = student.get_submodule(name)(x)
            return [x, features, *maps]

    def new_batches(self, number: int) -> Iterator[list[torch.Tensor]]:
        """Targets of the views of a block."""
        first = number * self.recipe.block
        if self.batches is None:
            self.batches = self.loader(first, len(self.views) // self.batch_size)
        for batch in range(first, first + self.recipe.block):
            images = self.to_device(next(self.batches))
            if self.mix:
                np.random.seed([self.seed, batch, self.rank])  # timm's Mixup uses numpy's generator
                images, _ = self.mix(images, torch.zeros(len(images), dtype=torch.int64, device=self.device))
            yield self.targets(images, self.net.student, self.teach)

    def draw(self) -> list[torch.Tensor]:
        """The student's input and the targets of this step, drawn from its block."""
        block, size = self.recipe.block, self.batch_size // self.world
        number, position = divmod(self.step, block * self.recipe.reuse)
        if self.block is None or position == 0:
            self.block = None  # frees its memory first
            self.block = [torch.cat(parts) for parts in zip(*self.new_batches(number), strict=True)]
        position %= block
        order = torch.randperm(block * size, generator=torch.Generator().manual_seed(self.step - position))
        chosen = order[position * size :][:size].to(self.device)
        drawn = (part[chosen] for part in self.block)
        return [part.contiguous(memory_format=torch.channels_last) if part.ndim == 4 else part for part in drawn]

    def losses(
        self, net: nn.Module, x: torch.Tensor, features: torch.Tensor, *maps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The losses (3) of features, maps and logits, and the logits of student and teacher; see `targets`."""
        with autocast(self.device):
            found, found_maps, logits = functional_call(net, self.fewer_tokens(net), (x, self.skip))
        own = self.net
        wanted = own.classifier(features.float())
        losses = torch.stack(
            [
                F.mse_loss(found, (features.float() - own.mean) / own.std),
                torch.stack([*map(MapHelper.error, own.maps, found_maps, maps)]).sum(),
                F.kl_div(logits.log_softmax(1), wanted.log_softmax(1), log_target=True, reduction='batchmean'),
            ]
        )
        return losses, logits, wanted

    def fewer_tokens(self, net: nn.Module) -> dict[str, torch.Tensor]:
        """Filters of only the tokens that this step uses."""
        if not (self.recipe.nested_tokens and net.training):
            return {}
        count = np.random.randint(self.net.student.num_tokens) + 1
        filters = {name: value for name, value in net.named_parameters() if '.tokenizer.filters' in name}
        return first_filters(filters, count)

    def train_mode(self) -> None:
        self.net.train()
        for module in self.frozen:
            module.training = False

    @torch.no_grad()
    def calibrate(self) -> None:
        """Run `Distiller.calibrate` before the first step."""
        self.train_mode()

        def of_views(views: torch.Tensor) -> tuple[Outputs, Outputs]:
            x, features, *maps = self.targets(self.to_device(views), self.net.student)
            with autocast(self.device):
                own, own_maps, _ = outputs(self.net.student, x, self.skip, strides=self.net.strides)
            return (own, own_maps), (features, maps)

        self.net.calibrate(map(of_views, self.loader(0, self.recipe.calibration_steps)))
        if self.world > 1:  # the views of the first process are enough
            for value in self.net.state_dict().values():
                dist.broadcast(value, 0)
        self.ema.module.load_state_dict(self.net.state_dict())

    def train_step(self) -> None:
        stage = self.recipe.stage(self.step)
        if stage != self.stage:
            self.enter(stage)
        if self.step == 0:
            self.calibrate()
        if self.block is None and self.compile_networks:  # the first step since the start
            self.compile_student()
        self.train_mode()
        drawn = self.draw()
        torch.manual_seed(self.seed * 1_000_003 + self.step)
        np.random.seed([self.seed, self.step, self.rank])
        self.schedule.step_update(self.step)
        losses, _, _ = self.losses(self.parallel, *drawn)
        recipe = self.recipe
        is_new = (self.step // recipe.block) % recipe.reuse == 0
        # a network soon knows the logits of views by heart, but not their features and maps
        loss = (losses * losses.new_tensor([recipe.features, recipe.maps, recipe.logits * is_new])).sum()
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.net, step=self.step)
        self.sums += losses.detach()
        self.step += 1

    def to_device(self, images: torch.Tensor) -> torch.Tensor:
        return images.to(self.device, non_blocking=True).float() / 255

    def figures(self) -> dict[str, float]:
        steps = (self.step - 1) % self.log_every + 1
        features, maps, logits = (self.sums / steps).tolist()
        self.sums.zero_()
        found = self.evaluate()
        return {
            'size': self.recipe.stage(self.step - 1).size,
            'features_loss': round(features, 4),
            'maps_loss': round(maps, 4),
            'logits_loss': round(logits, 4),
            'lr': self.optimizer.param_groups[-1]['lr'],
            **found,
            **token_figures(self.tokens()),
        }

    def held_out_batches(self) -> Iterator[torch.Tensor]:
        size = self.recipe.input_size
        transform = create_transform(size, interpolation='bicubic', normalize=False)
        for first in range(0, len(self.held_out), EVALUATION_BATCH):
            paths = self.held_out[first : first + EVALUATION_BATCH]
            yield self.to_device(torch.stack([transform(read_image(path)) for path in paths]))

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Compare the averaged student with the teacher on held-out images."""
        net, sums, hits, count = self.ema.module.eval(), torch.zeros(3, device=self.device), 0.0, 0
        for images in self.held_out_batches():
            losses, logits, wanted = self.losses(net, *self.targets(images, net.student))
            sums += losses * len(images)
            hits += (logits.argmax(1) == wanted.argmax(1)).sum().item()
            count += len(images)
        if not count:
            return {}
        features, _, kl = (sums / count).tolist()
        return {
            'held_out_features': round(features, 4),
            'held_out_kl': round(kl, 4),
            'held_out_agreement': round(100 * hits / count, 2),
        }

    @torch.no_grad()
    def tokens(self) -> list[TokenDiversity]:
        """Token diversity in each module of the averaged student, on held-out images."""
        images = next(self.held_out_batches(), None)
        if images is None:
            return []
        mean, std = self.normalization[0]
        return token_diversity(self.ema.module.student.eval(), (images - mean) / std)


def constants(net: TimmModel, device: torch.device) -> torch.Tensor:
    """Mean and standard deviation of a network's normalisation, (2, 3, 1, 1)."""
    config = data_config(net)
    return torch.tensor([config['mean'], config['std']], device=device).view(2, 3, 1, 1)
