"""How well weights fine-tune on a few images: pretrained, scratch and shuffled, beside a ResNet.

    python model_cards/scenes/transfer.py --results runs.jsonl --report report.json --work DIR
        --arm vt=vt_resnet18:vt.safetensors --arm vt_scratch=vt_resnet18
        --arm resnet=resnet18:resnet.safetensors --arm resnet_scratch=resnet18
        --arm vt_shuffled=shuffled:vt_resnet18:vt.safetensors

The command appends each run as a line to the results. If you start it again, it resumes. Two processes may share a
file; give them different --tasks or --shots, or they may do a run twice. The report is computed only from the results;
without --arm the command does nothing else. report.py prints its tables.

Tasks: see tasks.py. There are ten training sets of 1, 5 and 20 images of each class, the same for all arms. Runs of one
length also share the batches and their augmentation and, within an architecture, the new classifier. AdamW trains all
weights, with a cosine schedule, in bfloat16 if the hardware has it. BatchNorm's statistics are then measured again on
eight batches, since running averages lag behind in few steps. The accuracy is that on up to 500 other images, drawn
with the training set.

Each arm, task and number of shots gets the settings with the best mean accuracy on two draws of the dev part. The
learning rate is chosen first, out of four, with the shorter of two lengths (19 to 97 steps, by the number of images).
The length is chosen next, with that rate: the shorter one or three times as long. The test part is used only with the
chosen setting.

Shuffled weights have the values of each tensor of two or more dimensions in a random order; norms and biases stay. They
have the scale of every layer but none of its features. An arm vt_sharp has the averaged weights of a run's state.pt,
before its attention is softened.

With --photographs the tasks are those of photographs, at 96 x 96 pixels, from the folder --work; see tasks.py.

Logistic regression reads frozen features, pooled as for the classifier, and those of random weights. For comparison it
also reads raw pixels averaged to 16 x 16, as do 1-NN and an RBF SVM. All have scikit-learn's settings.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
import torch.nn.functional as F
from report import best_setting, markdown, summarise
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from tasks import PHOTOGRAPHS as PHOTOGRAPH_TASKS
from tasks import TASKS, Part, load_task
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch.optim.swa_utils import update_bn

import vt_hub  # noqa: F401  registers the models
from vt_hub.files import read_json
from vt_hub.loading.checkpoints import load_into, read_safetensors
from vt_hub.loading.conversion import has_distinct_tokens
from vt_hub.loading.source import Source
from vt_hub.network.checksums import file_sha256
from vt_hub.reporting import write_result
from vt_hub.training.pretraining import autocast

RECALIBRATION = 8  # batches
DEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
READERS = {
    'logistic': lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
    'nearest': lambda: KNeighborsClassifier(1),
    'svm': lambda: make_pipeline(StandardScaler(), SVC()),
}


@dataclass(frozen=True)
class Protocol:
    """The size of an evaluation.

    Args:
        cells: Tasks and shots, the most important first.
        draws: Training sets from the test part.
        dev_draws: Those from the dev part.
        size: Height and width of the images.
        per_class: Images of each class that a task generates, to train on and to score.
        batch_size: Images of a step, or all of a smaller training set.
        lrs: Learning rates to choose from.
        pace: Steps of the shorter length, over the cube root of the number of training images.
        scored: Images that accuracy is measured on, at most.
    """

    cells: tuple[tuple[str, int], ...]
    draws: int
    dev_draws: int
    size: int
    per_class: int
    batch_size: int
    lrs: tuple[float, ...]
    pace: float
    scored: int


FULL = Protocol(
    cells=(
        *((task, shots) for shots in (5, 20, 1) for task in ('characters', 'shapes', 'digits')),
        ('fractals', 5),
        ('contours', 5),
    ),
    draws=10,
    dev_draws=2,
    size=64,
    per_class=60,
    batch_size=32,
    lrs=(5e-4, 1e-3, 2e-3, 4e-3),
    pace=9,
    scored=500,
)
PHOTOGRAPHS = replace(
    FULL,
    cells=tuple((task, shots) for shots in (5, 20, 1) for task in ('cifar10', 'flowers', 'imagenette')),
    size=96,
    per_class=100,
    lrs=(2.5e-4, 5e-4, 1e-3, 2e-3),
)
SMOKE = Protocol(
    cells=(('shapes', 1), ('digits', 1)),
    draws=2,
    dev_draws=1,
    size=32,
    per_class=3,
    batch_size=8,
    lrs=(1e-3, 4e-3),
    pace=1,
    scored=20,
)


@dataclass(frozen=True)
class Arm:
    """A model and its weights at the start: random, pretrained, or pretrained and shuffled.

    Args:
        name: In results and tables.
        model: Architecture of timm.
        weights: A file; if None, the weights are random.
        shuffled: Whether they are shuffled.
        config: `config.json` of a folder, as timm writes it.
    """

    name: str
    model: str
    weights: Path | None = None
    shuffled: bool = False
    config: dict[str, Any] = field(default_factory=dict, hash=False)

    @cached_property
    def init(self) -> str:
        """Which weights these are, for the results."""
        return f'{"shuffled " * self.shuffled}{file_sha256(self.weights)[:16]}' if self.weights else 'random'

    def create(self, num_classes: int, seed: int) -> torch.nn.Module:
        """The model with a new classifier; the seed is that of everything random in it.

        Raises:
            ValueError: The weights are damaged, or do not fit the model apart from the classifier.
        """
        torch.manual_seed(seed)
        weights = read_safetensors(self.weights) if self.weights else {}
        options = dict(self.config.get('model_args', {}))
        if weights and Source.parse(self.model).is_ours:
            options['distinct_tokens'] = has_distinct_tokens(weights)
        model = timm.create_model(self.model, **options | {'num_classes': num_classes})
        if weights:
            if self.shuffled:
                weights = {key: shuffle(value) if value.ndim > 1 else value for key, value in weights.items()}
            head = model.pretrained_cfg['classifier']
            new = {key: value for key, value in model.state_dict().items() if key.startswith(head)}
            load_into(model, weights | new, self.weights)
        return model.to(DEVICE, memory_format=torch.channels_last)

    def as_input(self, images: np.ndarray) -> torch.Tensor:
        """Images (B, H, W, 3) uint8 as the network reads them, (B, 3, H, W), channels last; from -1 to 1 by default."""
        known = self.config.get('pretrained_cfg', {})
        mean, std = (torch.tensor(known.get(key, 3 * [0.5]), device=DEVICE).view(3, 1, 1) for key in ('mean', 'std'))
        return (torch.from_numpy(images).to(DEVICE).permute(0, 3, 1, 2) / 255 - mean) / std


def parse_arm(text: str) -> Arm:
    """An arm from NAME=MODEL, NAME=MODEL:WEIGHTS or NAME=FOLDER, the last two also with `shuffled:` after the `=`."""
    name, _, source = text.partition('=')
    unshuffled = source.removeprefix('shuffled:')
    model, _, path = unshuffled.partition(':')
    config = {}
    if (file := Path(unshuffled, 'config.json')).is_file():
        config = read_json(file)
        model, path = config.get('architecture', ''), file.with_name('model.safetensors')
    arm = Arm(name, model, Path(path) if path else None, source != unshuffled, config)
    if not name or not timm.is_model(model) or (arm.shuffled and not path):
        raise argparse.ArgumentTypeError(f'{text} is not an arm; use NAME=MODEL, NAME=MODEL:WEIGHTS or NAME=FOLDER.')
    if arm.weights and not arm.weights.is_file():
        raise argparse.ArgumentTypeError(f'There are no weights at {arm.weights}.')
    return arm


PIXELS = Arm('pixels', '')


def shuffle(values: torch.Tensor) -> torch.Tensor:
    return values.flatten()[torch.randperm(values.numel())].view_as(values)


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Scale each image by up to 15 % and shift it by up to 6 %."""
    affine = torch.zeros(len(images), 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = torch.empty(len(images)).uniform_(0.85, 1.15, generator=generator)
    affine[:, :, 2] = torch.empty(len(images), 2).uniform_(-0.12, 0.12, generator=generator)
    grid = F.affine_grid(affine.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode='border', align_corners=False)


def finetune(
    model: torch.nn.Module, x: torch.Tensor, labels: np.ndarray, lr: float, steps: int, batch_size: int, seed: int
):
    """Train all weights of a model on its inputs (N, 3, H, W) and labels (N,)."""
    optimizer = create_optimizer_v2(model, 'adamw', lr=lr, weight_decay=0.05, fused=True)
    schedule = CosineLRScheduler(optimizer, steps, warmup_t=steps // 10, t_in_epochs=False)
    y = torch.from_numpy(labels).to(DEVICE)
    generator = torch.Generator().manual_seed(seed)
    batch_size = min(batch_size, len(y))
    epochs = math.ceil(steps * batch_size / len(y))
    order = torch.cat([torch.randperm(len(y), generator=generator) for _ in range(epochs)])
    batches = order[: steps * batch_size].view(steps, batch_size)
    model.train()
    for step, batch in enumerate(batches):
        schedule.step_update(step)
        with autocast(DEVICE):
            loss = F.cross_entropy(model(augment(x[batch], generator)), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with autocast(DEVICE):
        update_bn((augment(x[batch], generator) for batch in batches[-RECALIBRATION:]), model)


@torch.inference_mode()
def outputs(model: torch.nn.Module, x: torch.Tensor, pre_logits: bool = False) -> np.ndarray:
    """Logits of inputs (N, 3, H, W), or the features that the classifier reads."""
    model.eval()
    parts = []
    for some in x.split(250):
        with autocast(DEVICE):
            features = model.forward_features(some)
            parts.append(model.forward_head(features, pre_logits=pre_logits).float().cpu())
    return torch.cat(parts).numpy()


def pixels(images: np.ndarray) -> np.ndarray:
    return F.adaptive_avg_pool2d(PIXELS.as_input(images), 16).flatten(1).cpu().numpy()


class Results:
    """Runs, one JSON object a line, in a file that is only appended to."""

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        runs = []
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            with suppress(ValueError):  # cut by a kill, so that run is done again
                runs.append(json.loads(line))
        return runs

    def of(self, key: dict[str, Any], measure: Callable[[], float]) -> dict[str, Any]:
        """The run of a key: that of the file, or a new one with the accuracy that `measure` returns."""
        for run in self.read():
            if key.items() <= run.items():
                return run
        started = time.process_time()
        run = {**key, 'accuracy': round(measure(), 2), 'core_seconds': round(time.process_time() - started, 1)}
        with open(self.path, 'a') as file:
            file.write(f'\n{json.dumps(run)}')  # on a line of its own, even after one that was cut
        print(*run.values(), flush=True)
        return run


class Evaluation:
    """All runs of a protocol that the results do not have yet."""

    def __init__(self, protocol: Protocol, results: Results, folder: Path):
        self.protocol, self.results, self.folder = protocol, results, folder

    def load(self, task: str, part: str) -> Part:
        return load_task(task, part, self.protocol.size, self.protocol.per_class, self.folder)

    def key(self, arm: Arm | None, task: str, shots: int, part: str, draw: int, method: str) -> dict[str, Any]:
        """What a run depends on; pixels are of no arm."""
        return {
            'arm': arm.name if arm else 'pixels',
            'model': arm.model if arm else '',
            'init': arm.init if arm else '',
            'task': task,
            'data': self.load(task, part).sha256[:16],
            'scored': self.protocol.scored,
            'shots': shots,
            'part': part,
            'draw': draw,
            'method': method,
        }

    def tuned(self, arm: Arm, task: str, shots: int, part: str, draw: int, steps: int, lr: float) -> dict[str, Any]:
        """The run of one fine-tuning."""
        images, batch_size = self.load(task, part), self.protocol.batch_size

        def measure() -> float:
            train, test = images.draw(shots, draw, self.protocol.scored)
            model = arm.create(images.num_classes, draw)
            finetune(model, arm.as_input(images.images[train]), images.labels[train], lr, steps, batch_size, draw)
            found = outputs(model, arm.as_input(images.images[test])).argmax(1)
            return 100 * (found == images.labels[test]).mean()

        key = self.key(arm, task, shots, part, draw, 'finetune')
        return self.results.of({**key, 'batch_size': batch_size, 'steps': steps, 'lr': lr}, measure)

    def choose(self, arm: Arm, task: str, shots: int) -> tuple[int, float]:
        """Steps and learning rate, on the dev part."""
        draws = range(self.protocol.dev_draws)
        steps = round(self.protocol.pace * (shots * self.load(task, 'dev').num_classes) ** (1 / 3))
        runs = [self.tuned(arm, task, shots, 'dev', draw, steps, lr) for lr in self.protocol.lrs for draw in draws]
        _, lr = best_setting(pd.DataFrame(runs))
        runs += [self.tuned(arm, task, shots, 'dev', draw, 3 * steps, lr) for draw in draws]
        return best_setting(pd.DataFrame(runs))

    def read_frozen(self, arm: Arm | None, task: str, shots: list[int]):
        """The runs that read the features of an arm, or the pixels."""
        images = self.load(task, 'test')

        @cache
        def features() -> np.ndarray:
            if arm is None:
                return pixels(images.images)
            return outputs(arm.create(images.num_classes, 0), arm.as_input(images.images), pre_logits=True)

        def measure() -> float:
            train, test = images.draw(n, draw, self.protocol.scored)
            reader = READERS[method]().fit(features()[train], images.labels[train])
            return 100 * reader.score(features()[test], images.labels[test])

        for n in shots:
            for draw in range(self.protocol.draws):
                for method in READERS if arm is None else ['logistic']:
                    self.results.of(self.key(arm, task, n, 'test', draw, method), measure)

    def run(self, arms: list[Arm]):
        for task, shots in self.protocol.cells:
            for arm in arms:
                steps, lr = self.choose(arm, task, shots)
                for draw in range(self.protocol.draws):
                    self.tuned(arm, task, shots, 'test', draw, steps, lr)
        for task in dict(self.protocol.cells):
            for arm in [None, *arms]:
                self.read_frozen(arm, task, [n for other, n in self.protocol.cells if other == task])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arm', type=parse_arm, action='append', default=[], help='what to fine-tune')
    parser.add_argument('--results', type=Path, required=True, help='file of runs, which is gone on with')
    parser.add_argument('--report', type=Path, required=True, help='file for the report')
    parser.add_argument('--work', type=Path, default=Path('build', 'transfer'), help='folder where images are kept')
    parser.add_argument('--tasks', nargs='+', choices=[*TASKS, *PHOTOGRAPH_TASKS], help='only these')
    parser.add_argument('--shots', nargs='+', type=int, help='only these')
    parser.add_argument('--draws', type=int, help='fewer training sets from the test part')
    parser.add_argument('--photographs', action='store_true', help='photographs that lie in the --work folder')
    parser.add_argument('--smoke', action='store_true', help='a rehearsal of seconds')
    args = parser.parse_args()
    protocol = SMOKE if args.smoke else PHOTOGRAPHS if args.photographs else FULL
    cells = [(task, n) for task, n in protocol.cells if not args.tasks or task in args.tasks]
    cells = [(task, n) for task, n in cells if not args.shots or n in args.shots]
    protocol = replace(protocol, cells=cells, draws=args.draws or protocol.draws)
    results = Results(args.results)
    try:
        if args.arm:
            Evaluation(protocol, results, args.work).run(args.arm)
        report = summarise(results.read())
    except (OSError, ValueError) as error:
        parser.exit(1, f'error: {error}\n')
    write_result(args.report, report)
    print(markdown(report), end='')


if __name__ == '__main__':
    main()
