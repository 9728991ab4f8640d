"""Train arithmetics of tokens on equal terms: seeds, data, order and steps are the same for all.

    python benchmarks/tokens.py --maps maps --photographs DIR --out docs/benchmarks/tokens.jsonl

Tasks: `mosaic`, two digits on a mosaic of grey tiles, vt_resnet10; `digits`, scikit-learn's with the augmentation of
vt_resnet10.digits; `cifar10`, vt_resnet10 at 96 pixels; `shapes`, VT-FPN on generated scenes; `trunk`, a VT stage on
the maps of a frozen ResNet-18, towards the ResNet's own last stage (see photograph_maps.py). A run that is in the file
already is not repeated. Each writes a line: arguments, result, and the diversity of its tokens.
"""

import argparse
import itertools
import json
import sys
import time
from functools import cache, partial
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from photograph_maps import nips
from PIL import Image
from sklearn.datasets import load_digits
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from token_variants import OF_THE_PAPER, VARIANTS, change

from vt_hub.inference.diversity import measure_module, token_diversity
from vt_hub.loading.conversion import load_trained
from vt_hub.network.vt_stage import VTStage
from vt_hub.reporting import machine
from vt_hub.synthesis.shapes import CLASSES, scene

sys.path.insert(0, str(Path(__file__).parents[1] / 'model_cards' / 'vt_resnet10.digits'))
import train as digits_training

TASKS = {  # steps, batch size, learning rate
    'mosaic': (160, 64, 2e-3),
    'digits': (440, 64, 2e-3),
    'cifar10': (300, 64, 1e-3),
    'trunk': (400, 128, 1e-3),
    'shapes': (300, 16, 3e-3),
}
ARGS: argparse.Namespace
Batch = tuple[torch.Tensor, torch.Tensor]


def create(name: str, num_tokens: int, variant: str, **kwargs) -> nn.Module:
    distinct = variant not in OF_THE_PAPER
    return change(timm.create_model(name, num_tokens=num_tokens, distinct_tokens=distinct, **kwargs), variant)


def diversity(tokens: list[torch.Tensor], attns: list[torch.Tensor]) -> list[dict[str, float]]:
    return [measure_module(T, A).to_dict() for T, A in zip(tokens, attns, strict=True)]


class Mosaic:
    """Two digits, each 24 pixels high, anywhere on 64 x 64 tiles; the first half of the digits trains."""

    def __init__(self, seed: int, num_tokens: int, variant: str):
        data = load_digits()
        self.images = torch.from_numpy(data.images).float()[:, None] / 16
        self.images = F.interpolate(self.images, size=24, mode='bilinear')
        self.labels = torch.from_numpy(data.target)
        self.model = create('vt_resnet10', num_tokens, variant, num_classes=10)

    def compose(self, count: int, first: int, last: int) -> Batch:
        tiles = F.interpolate(torch.rand(count, 1, 16, 16), scale_factor=4) * 0.5
        targets = torch.zeros(count, 10)
        for i in range(count):
            for _ in range(2):
                k = torch.randint(first, last, ()).item()
                y, x = torch.randint(0, 41, (2,)).tolist()
                tiles[i, :, y : y + 24, x : x + 24] += self.images[k]
                targets[i, self.labels[k]] = 1
        return tiles.clamp(0, 1).expand(-1, 3, -1, -1) * 2 - 1, targets

    def batch(self, step: int, size: int) -> Batch:
        return self.compose(size, 0, len(self.images) // 2)

    def loss(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.model(x).float(), target / target.sum(1, keepdim=True))

    def evaluate(self, model: nn.Module) -> dict:
        torch.manual_seed(1)
        x, target = self.compose(512, len(self.images) // 2, len(self.images))
        logits = torch.cat([model(part).float() for part in x.split(128)])
        hits = target.gather(1, logits.argmax(1, keepdim=True)).mean().item()
        both = (target.gather(1, logits.topk(2).indices).sum(1) == target.sum(1)).float().mean().item()
        return {'hits': round(100 * hits, 2), 'both': round(100 * both, 2), **self.tokens(model, x[:128])}

    def tokens(self, model: nn.Module, x: torch.Tensor) -> dict:
        return {'diversity': [module.to_dict() for module in token_diversity(model, x)]}


class Digits(Mosaic):
    """The training of vt_resnet10.digits, shorter."""

    def __init__(self, seed: int, num_tokens: int, variant: str):
        self.model = create('vt_resnet10', num_tokens, variant, num_classes=10, drop_rate=0.2)
        (images, labels), (self.test_images, test_labels) = digits_training.split(False)
        self.images = self.pixels(images)
        self.labels, self.test_labels = torch.from_numpy(labels), torch.from_numpy(test_labels)

    def pixels(self, images: np.ndarray) -> torch.Tensor:
        return torch.stack(
            [torch.from_numpy(np.array(digits_training.to_pil(i), np.float32) / 255)[None] for i in images]
        )

    def batch(self, step: int, size: int) -> Batch:
        index = torch.randint(len(self.images), (size,))
        return digits_training.augment(self.images[index]), self.labels[index]

    def loss(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.model(x).float(), target, label_smoothing=0.1)

    def evaluate(self, model: nn.Module) -> dict:
        x = self.pixels(self.test_images).expand(-1, 3, -1, -1) * 2 - 1
        logits = torch.cat([model(part).float() for part in x.split(128)])
        top1 = (logits.argmax(1) == self.test_labels).float().mean().item()
        torch.manual_seed(1)  # augmented, the test is harder
        hard = torch.cat([digits_training.augment(self.pixels(self.test_images)) for _ in range(5)])
        logits = torch.cat([model(part).float() for part in hard.split(128)])
        hard_top1 = (logits.argmax(1) == self.test_labels.repeat(5)).float().mean().item()
        return {'top1': round(100 * top1, 2), 'augmented': round(100 * hard_top1, 2), **self.tokens(model, x[:128])}


@cache
def cifar10(split: str, count: int) -> Batch:
    """Images a class, 32 x 32 bytes, and their classes."""
    paths = [
        (path, label)
        for label, folder in enumerate(sorted((ARGS.photographs / 'cifar' / split).iterdir()))
        for path in sorted(folder.glob('*.jpg'))[:count]
    ]
    images = np.stack([np.array(Image.open(path).convert('RGB')) for path, _ in paths])
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.tensor([label for _, label in paths])


class Cifar10(Mosaic):
    def __init__(self, seed: int, num_tokens: int, variant: str):
        self.model = create('vt_resnet10', num_tokens, variant, num_classes=10)
        self.images, self.labels = cifar10('train', 5000)

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
        return (F.interpolate(images.float(), size=96, mode='bilinear') / 255 - mean) / std

    def batch(self, step: int, size: int) -> Batch:
        index = torch.randint(len(self.images), (size,))
        images = self.images[index]
        flip = torch.rand(size, 1, 1, 1) < 0.5
        dy, dx = torch.randint(-4, 5, (2,)).tolist()
        return self.prepare(torch.where(flip, images.flip(3), images).roll((dy, dx), (2, 3))), self.labels[index]

    def loss(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.model(x).float(), target, label_smoothing=0.1)

    def evaluate(self, model: nn.Module) -> dict:
        images, labels = cifar10('test', 200)
        logits = torch.cat([model(self.prepare(part)).float() for part in images.split(128)])
        loss = F.cross_entropy(logits, labels).item()
        top1 = (logits.argmax(1) == labels).float().mean().item()
        found = self.tokens(model, self.prepare(images[::16][:128]))
        return {'top1': round(100 * top1, 2), 'loss': round(loss, 4), **found}


@cache
def shapes_data() -> tuple[Batch, Batch]:
    parts = []
    with Pool(1) as pool:
        for split, count in (('train', 1600), ('val', 200)):
            made = pool.map(partial(make_scene, split), range(count))
            parts.append(tuple(torch.from_numpy(np.stack(arrays)) for arrays in zip(*made, strict=True)))
    return tuple(parts)


def make_scene(split: str, index: int):
    return scene(0, index, 128, split)[:2]


class Shapes(Mosaic):
    def __init__(self, seed: int, num_tokens: int, variant: str):
        self.model = create('vt_fpn_resnet10t', num_tokens, variant, num_classes=len(CLASSES))
        self.train_data, self.val_data = shapes_data()

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        return (images.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)

    def batch(self, step: int, size: int) -> Batch:
        index = torch.randint(len(self.train_data[0]), (size,))
        return self.prepare(self.train_data[0][index]), self.train_data[1][index].long()

    def logits(self, model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(model(x).float(), size=x.shape[-2:], mode='bilinear')

    def loss(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.logits(self.model, x), target)

    def evaluate(self, model: nn.Module) -> dict:
        confusion = torch.zeros(len(CLASSES), len(CLASSES))
        for images, masks in zip(*(part.split(20) for part in self.val_data), strict=True):
            found = self.logits(model, self.prepare(images)).argmax(1)
            confusion += torch.bincount(
                (masks.long() * len(CLASSES) + found).flatten(), minlength=len(CLASSES) ** 2
            ).view_as(confusion)
        hits = confusion.diag()
        iou = hits / (confusion.sum(0) + confusion.sum(1) - hits).clamp(min=1)
        found = self.tokens(model, self.prepare(self.val_data[0][:64]))
        return {'miou': round(100 * iou.mean().item(), 2), **found}


@cache
def maps(part: str) -> dict[str, np.ndarray]:
    return {name: np.load(ARGS.maps / part / f'{name}.npy', mmap_mode='r') for name in ('maps', 'stage', 'teacher')}


class Reference(nn.Module):
    """What the student is taught: the ResNet's pooled features, standardised, its map, and a distilled classifier."""

    def __init__(self):
        super().__init__()
        data = maps('train')
        pooled = torch.from_numpy(data['stage'].mean((2, 3), dtype=np.float32))
        self.mean, self.std = pooled.mean(0), pooled.std(0)
        every = torch.from_numpy(data['stage'][::16].astype(np.float32))
        self.map_std = every.std((0, 2, 3)).view(-1, 1, 1)
        teacher = load_trained('tf_efficientnet_lite2', ARGS.teacher)
        features = torch.from_numpy(data['teacher'].astype(np.float32))
        target = teacher.classifier(features).detach().softmax(1)
        # first the teacher's features, by ridge regression, then its logits: from zero the logits alone take far longer
        X = (pooled - self.mean) / self.std
        W = torch.linalg.solve(X.T @ X + 300 * torch.eye(512), X.T @ (features - features.mean(0)))
        self.head = nn.Linear(512, 1000)
        with torch.no_grad():
            self.head.weight.copy_((W @ teacher.classifier.weight.T).T)
            self.head.bias.copy_(teacher.classifier(features.mean(0)))
        torch.manual_seed(0)
        optimizer = torch.optim.AdamW(self.head.parameters(), 1e-3, weight_decay=0.05)
        epochs, size = 4, 256
        steps = epochs * (len(X) // size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(epochs):
            for index in torch.randperm(len(X)).split(size)[: len(X) // size]:
                loss = F.cross_entropy(self.head(X[index]), target[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()

    def forward(self, stage: torch.Tensor) -> torch.Tensor:
        """Standardised pooled features of maps of layer4."""
        return (stage.mean((2, 3)) - self.mean) / self.std


@cache
def reference() -> Reference:
    path = ARGS.maps / 'reference.pt'
    if not path.exists():
        with torch.autocast('cpu', enabled=False):
            torch.save(Reference(), path)
    return torch.load(path, weights_only=False).requires_grad_(False)


class Student(nn.Module):
    def __init__(self, num_tokens: int, variant: str):
        super().__init__()
        distinct = variant not in OF_THE_PAPER
        self.vt = VTStage(256, 256, 512, num_tokens, 'filter', True, 'transformer', True, distinct, [0.0, 0.0])
        change(self.vt, variant)
        self.features = nn.Linear(512, 512)
        self.map = nn.Conv2d(256, 512, 1)

    def forward(self, x: torch.Tensor):
        x, tokens, attns = self.vt.forward_tokens(x)
        return self.features(tokens[-1].mean(1)), self.map(F.avg_pool2d(x, 2)), tokens, attns


class Trunk:
    """Each crop once an epoch; the loss is that of features, of maps and of the logits of the frozen classifier."""

    def __init__(self, seed: int, num_tokens: int, variant: str):
        self.model = Student(num_tokens, variant)
        self.order = torch.randperm(len(maps('train')['maps']) // 128)

    def batch(self, step: int, size: int) -> Batch:
        data, first = maps('train'), int(self.order[step % len(self.order)]) * size
        return tuple(
            torch.from_numpy(data[name][first : first + size].astype(np.float32)) for name in ('maps', 'stage')
        )

    def loss(self, x: torch.Tensor, stage: torch.Tensor) -> torch.Tensor:
        ref = reference()
        features, made, _, _ = self.model(x)
        target = ref(stage)
        loss = F.mse_loss(features.float(), target) + 0.5 * F.mse_loss(made.float(), stage / ref.map_std)
        known, found = ref.head(target).log_softmax(1), ref.head(features.float()).log_softmax(1)
        return loss + 0.5 * F.kl_div(found, known, log_target=True, reduction='batchmean')

    def evaluate(self, model: nn.Module) -> dict:
        ref, result = reference(), {}
        for part in ('nips', 'held_out'):
            data = maps(part)
            found, known, open_ = [], [], []
            for first in range(0, len(data['maps']), 256):
                chosen = slice(first, first + 256)
                x, stage = (torch.from_numpy(data[name][chosen].astype(np.float32)) for name in ('maps', 'stage'))
                features, _, tokens, attns = model(x)
                found.append(ref.head(features.float()))
                known.append(ref.head(ref(stage)))
                open_.append((features.float() - ref(stage)).square().mean(1))
            found, known = torch.cat(found), torch.cat(known)
            result[f'{part}_open'] = round(torch.cat(open_).mean().item(), 4)  # share of the variance not explained
            result[f'{part}_agree'] = round(100 * (found.argmax(1) == known.argmax(1)).float().mean().item(), 2)
            if part == 'nips':
                labels = torch.tensor([label for _, label in nips(ARGS.photographs)])
                for name, logits in (('top1', found), ('reference_top1', known)):
                    result[name] = round(100 * (logits.argmax(1) == labels).float().mean().item(), 2)
                hits = (found.topk(5).indices == labels[:, None]).any(1)
                result['top5'] = round(100 * hits.float().mean().item(), 2)
        return {**result, 'diversity': diversity(tokens, attns)}


MAKERS = {'mosaic': Mosaic, 'digits': Digits, 'cifar10': Cifar10, 'trunk': Trunk, 'shapes': Shapes}


def run(task: str, variant: str, num_tokens: int, seed: int, steps: int | None = None) -> dict:
    """Train one network, with averaged weights, and measure it."""
    default_steps, size, lr = TASKS[task]
    steps = steps or default_steps
    torch.manual_seed(seed)
    made = MAKERS[task](seed, num_tokens, variant)
    model = made.model.to(memory_format=torch.channels_last)
    parameters = param_groups_weight_decay(model, 0.05)
    optimizer = torch.optim.AdamW(parameters, lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    ema = ModelEmaV3(model, 0.99, use_warmup=True)
    started, losses = time.time(), []
    for step in range(steps):
        torch.manual_seed(1000 * seed + step + 1)  # the same data for every variant
        batch = made.batch(step, size)
        model.train()
        with torch.autocast('cpu', torch.bfloat16):
            loss = made.loss(*batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        ema.update(model, step=step)
        losses.append(loss.item())
    seconds = time.time() - started
    with torch.no_grad():
        result = made.evaluate(ema.module.eval())
    return {
        'task': task,
        'variant': variant,
        'num_tokens': num_tokens,
        'seed': seed,
        'steps': steps,
        'batch_size': size,
        'lr': lr,
        'train_loss': round(sum(losses[-20:]) / 20, 4),
        'seconds': round(seconds),
        **result,
    }


def main():
    global ARGS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--tasks', nargs='+', choices=TASKS, default=list(TASKS))
    parser.add_argument('--variants', nargs='+', choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument('--num-tokens', nargs='+', type=int, default=[16])
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--steps', type=int)
    parser.add_argument('--maps', type=Path, help='folder of photograph_maps.py')
    parser.add_argument('--teacher', type=Path, help='weights of EfficientNet-Lite2')
    parser.add_argument('--photographs', type=Path, help='folder of the photographs')
    parser.add_argument('--out', type=Path, required=True)
    ARGS = parser.parse_args()
    torch.set_num_threads(1)
    keys = ('task', 'variant', 'num_tokens', 'seed', 'steps')
    for seed, num_tokens, task, variant in itertools.product(ARGS.seeds, ARGS.num_tokens, ARGS.tasks, ARGS.variants):
        wanted = task, variant, num_tokens, seed, ARGS.steps or TASKS[task][0]
        lines = ARGS.out.read_text().splitlines() if ARGS.out.exists() else []
        if wanted in {tuple(json.loads(line)[key] for key in keys) for line in lines}:
            continue
        result = run(*wanted) | {'machine': machine(torch.device('cpu'))}
        with open(ARGS.out, 'a') as file:
            file.write(json.dumps(result) + '\n')
        print(*wanted, {k: v for k, v in result.items() if k not in ('machine', *keys)}, flush=True)


if __name__ == '__main__':
    main()
