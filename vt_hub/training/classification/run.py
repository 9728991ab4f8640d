"""Train classifiers with timm's train script: build its arguments, start it, and export a model folder."""

import os
import re
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch

from ...files import read_json, replaced_whole
from ...loading.checkpoints import create_network, load_folder, read_foreign
from ...loading.conversion import load_checkpoint
from ...loading.published import resolve_name
from ...loading.source import Source
from ...network.images import with_channels
from ...network.vt_fpn import is_segmenter
from ...publishing import export, verify
from ...publishing.card import lineage
from ...reporting import Progress, find_device, machine, no_progress, write_result
from ..launch import Launch, run
from ..recipe_files import RECIPES, list_recipe_files, read_mapping
from .data import ImageFolder, open_image_folder
from .evaluate import evaluate_classifier
from .timm_scripts import UNREADABLE, find_script, script_version

__all__ = ['TrainingRun', 'list_recipes']

PLUGIN = 'vt_hub.training.classification.timm_plugin'
# options that are set here; the user may still give the batch size, which is divided
OWN = (
    '--output',
    '--experiment',
    '--batch-size',
    '--grad-accum-steps',
    '--data-dir',
    '--device-modules',
    '--class-map',
)
NAMED = 'hfds/', 'tfds/'  # timm's readers of data sets without a folder
DEFAULTS = {'seed': '0', 'workers': '2'}  # unless the recipe or the user sets them
OPTIMIZER_STATES = {'sgd': 1, 'adamw': 2, 'rmsproptf': 2}  # tensors per weight; two if unknown


def list_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return list_recipe_files()


@dataclass
class TrainingRun:
    """One run of timm's train script.

    Args:
        recipe: Name of a recipe of this package, or a YAML file of the script's arguments.
        output: Folder of the run.
        data_dir: Folder with class folders in train/ and val/; or a folder for another reader of timm, named in `extra`
            (`--dataset wds/`); or the name of a data set, `hfds/NAME` or `tfds/NAME`.
        extra: Further arguments of the script; they take precedence over the recipe's.
        launch: Processes and machines.
        device_batch_size: Images that fit on one device; gradients are accumulated to the recipe's batch.
        script: Path of the script; default: see `find_script`.
        resume: Resume from the last checkpoint in `output`, if there is one.
    """

    recipe: str
    output: Path
    data_dir: str
    extra: Sequence[str] = ()
    launch: Launch = field(default_factory=Launch)
    device_batch_size: int | None = None
    script: Path | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        path = Path(self.recipe)
        self.recipe_path = path if path.suffix in ('.yaml', '.yml') else RECIPES / f'{self.recipe}.yaml'
        if not self.recipe_path.is_file():
            raise LookupError(f'There is no recipe {self.recipe!r}; use {", ".join(list_recipes())} or a YAML file.')
        self.settings = read_mapping(self.recipe_path)
        self.output = Path(self.output)
        self.extra = [re.sub(r'^-b(?=\d)', '--batch-size=', {'-b': '--batch-size'}.get(x, x)) for x in self.extra]
        self.classes: list[str] = []
        self.needs_map = False  # timm numbers the classes of each split separately

    def value(self, name: str, default: Any = None) -> Any:
        """An argument of the script, from `extra` or else the recipe; True if it has no value."""
        option = f'--{name.replace("_", "-")}'
        for i, argument in reversed(list(enumerate(self.extra))):  # the last one counts
            if argument == option:
                given = ''.join(self.extra[i + 1 : i + 2])
                return given if given and not given.startswith('--') else True
            if argument.startswith(f'{option}='):
                return argument.partition('=')[2]
        return self.settings.get(name, default)

    @property
    def batch_size(self) -> int:
        """Images per step, over all processes."""
        return int(self.value('batch_size', 128))

    @property
    def named(self) -> bool:
        """Whether the data is a named data set, not a folder."""
        return self.data_dir.startswith(NAMED) and not Path(self.data_dir).is_dir()

    def check(self) -> None:
        """Check the run before it uses a device.

        Raises:
            FileExistsError: `output` holds a run already, and `resume` is False.
            OSError: The disk is too full for the checkpoints.
            ValueError: The data, the teacher or the devices do not fit.
        """
        if (self.output / 'summary.csv').exists() and not self.resume:
            raise FileExistsError(f'{self.output} holds a run already; resume it with --resume or name another folder.')
        if (self.output / 'model').exists():
            raise FileExistsError(f'{self.output / "model"} exists already; move it, or name another folder.')
        self.check_model()
        if Source.parse(self.value('model')).is_ours:
            self.check_export()
        self.check_data()
        self.check_teacher()
        cuda = torch.cuda.device_count()
        if self.launch.nproc_per_node > max(cuda, 1):
            raise ValueError(
                f"{self.launch.nproc_per_node} processes need as many GPUs, but there are {cuda}; timm's train script "
                f'runs on the CPU in one process only.'
            )
        self.check_disk()

    @property
    def channels(self) -> int:
        """Image channels of the model."""
        return int(self.value('in_chans') or self.value('input_size') or 3)

    def check_export(self) -> None:
        """Refuse trainings whose result cannot be exported as a model folder."""
        wanted = 'L' if self.channels == 1 else 'RGB'
        if self.channels not in (1, 3):
            raise ValueError(f'A model folder reads images as RGB or grey, in 3 channels or 1, not in {self.channels}.')
        if (mode := self.value('input_img_mode', wanted)) != wanted:
            raise ValueError(f'A model of {self.channels} channel(s) reads images as {wanted}, not as {mode}.')
        if self.value('split_bn'):
            raise ValueError('--split-bn trains a network with other norms, which cannot become a model folder.')

    def check_model(self) -> None:
        if not (model := self.value('model')):
            raise ValueError(f'The recipe {self.recipe} does not name a model; name one with --model.')
        source = Source.parse(model)
        if source.kind == 'folder':
            load_folder(source.path)
        elif source.kind == 'model':
            if is_segmenter(source.architecture):
                raise ValueError(f'{model} does not classify; a recipe for segmentation trains it.')
            if self.value('pretrained'):
                resolve_name(model)
        elif not timm.is_model(model):
            raise LookupError(f'There is no model {model!r}; use a model of `vt-hub list` or of timm.')

    def check_data(self) -> None:
        if self.named or self.value('dataset'):
            if not self.value('num_classes'):
                raise ValueError(f'The number of classes of {self.data_dir} is unknown; set it with --num-classes.')
            return
        train = open_image_folder(self.data_dir, self.value('train_split', 'train'))
        val = self.open_val(train.classes)
        if len(train.files) < self.batch_size:  # the script drops incomplete batches
            raise ValueError(
                f'{train.root} has {len(train.files)} images, but a batch has {self.batch_size}; use a smaller '
                f'--batch-size.'
            )
        for part in (train, val):
            if skipped := part.skipped:
                print(
                    f'{len(skipped)} files of {part.root} are not images and are left out, such as {skipped[0]}.',
                    file=sys.stderr,
                )
        self.classes = train.classes
        self.needs_map = len(set(val.targets)) < len(self.classes)
        wanted = self.value('num_classes')
        if wanted and int(wanted) != len(self.classes):
            raise ValueError(f'{train.root} has {len(self.classes)} classes, not {wanted}.')

    def open_val(self, classes: list[str]) -> ImageFolder:
        """The images that timm uses for validation."""
        return open_image_folder(self.data_dir, self.value('val_split', 'validation'), classes)

    def check_teacher(self) -> None:
        """Check the teacher's classes: if they differ from the data's, timm silently resets its classifier."""
        if not (teacher := self.value('kd_model_name')):
            return
        if (source := Source.parse(teacher)).kind == 'folder':
            known = read_json(source.path / 'config.json').get('num_classes')
        elif cfg := timm.get_pretrained_cfg(teacher):
            known = cfg.num_classes
        else:
            raise LookupError(f'There is no teacher {teacher!r} in timm.')
        classes = len(self.classes) or int(self.value('num_classes'))
        if known != classes:
            raise ValueError(
                f'The teacher {teacher} has {known} classes, but the data has {classes}; name your own teacher with '
                f'--kd-model-name local-dir:FOLDER, or train with a copy of the recipe without kd_model_name.'
            )

    def check_disk(self) -> None:
        model = timm.create_model(self.value('model'), device='meta')
        tensors = 1 + bool(self.value('model_ema')) + OPTIMIZER_STATES.get(self.value('opt'), 2)
        kept = int(self.value('checkpoint_hist', 10)) + 2
        needed = kept * tensors * sum(4 * p.numel() for p in model.parameters())
        folder = next(parent for parent in self.output.absolute().parents if parent.is_dir())
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise OSError(f'{folder} has {free / 1e9:.1f} GB left, but the checkpoints need {needed / 1e9:.1f} GB.')

    def command(self) -> list[str]:
        """The complete command.

        Raises:
            ValueError: The batch cannot be divided, or the script does not know a setting of the recipe.
        """
        script = find_script('train.py', self.script)
        code = script.read_text(encoding='utf-8')
        for name in self.settings:
            if f"'--{name.replace('_', '-')}'" not in code:
                raise ValueError(f'{script} does not know {name}, set by the recipe {self.recipe}; use a newer one.')
        for argument in self.extra:
            name = argument.partition('=')[0]
            theirs = name[:2] != '--' or name in ('--batch-size', '--device')
            if not theirs and any(option.startswith(name) for option in OWN):  # the script takes abbreviations
                raise ValueError(f'{name}, or its full name, is set by vt-hub train; use an option of vt-hub train.')
        if (version := script_version(script)) not in (None, timm.__version__):
            print(f'warning: {script} runs with timm {version} beside it, not {timm.__version__}.', file=sys.stderr)
        own, rest = divmod(self.batch_size, self.launch.processes)
        device_batch = min(self.device_batch_size or own, own)
        if rest or own % device_batch:
            raise ValueError(
                f'A batch of {self.batch_size} images cannot be divided among {self.launch.processes} processes'
                f'{f" in steps of {device_batch}" if self.device_batch_size else ""}.'
            )
        arguments = ['-c', str(self.recipe_path), '--device-modules', PLUGIN]
        if self.classes:
            arguments += ['--data-dir', self.data_dir, '--num-classes', str(len(self.classes))]
            if self.needs_map or self.value('class_map'):  # a class map of the recipe may differ
                arguments += ['--class-map', str(self.output / 'classes.txt') if self.needs_map else '']
        else:
            arguments += ['--dataset' if self.named else '--data-dir', self.data_dir]
        output = self.output.resolve()  # `.` has no name
        arguments += ['--output', str(output.parent), '--experiment', output.name]
        for name, default in DEFAULTS.items():
            arguments += [f'--{name}', default] if self.value(name) is None else []
        source = Source.parse(self.value('model'))
        if self.channels == 1 and source.is_ours:
            arguments += self.grey_arguments()
        arguments += [*self.extra, '--batch-size', str(device_batch)]
        if own > device_batch or self.value('grad_accum_steps'):
            arguments += ['--grad-accum-steps', str(own // device_batch)]
        if self.value('pretrained') and source.kind == 'model':
            # with the tag, the checkpoint records the preprocessing of its weights
            arguments += ['--model', resolve_name(source.text)]
        if not torch.cuda.is_available() and not self.value('device'):
            arguments += ['--device', 'cpu']
        last = self.output / 'last.pth.tar'
        if self.resume and last.is_file():
            arguments += ['--resume', str(last)]
        return self.launch.command(str(script), *arguments)

    def grey_arguments(self) -> list[str]:
        """Arguments for images with one channel. The user's arguments come later and take precedence."""
        cfg = with_channels(create_network(self.value('model'), device='meta').pretrained_cfg, 1)
        return ['--input-img-mode', 'L', '--mean', str(cfg['mean'][0]), '--std', str(cfg['std'][0])]

    def start(self, command: Sequence[str]) -> int:
        """Run the command and return its exit code."""
        self.output.mkdir(parents=True, exist_ok=True)
        if self.needs_map:
            with replaced_whole(self.output / 'classes.txt') as unfinished:
                unfinished.write_text(''.join(f'{name}\n' for name in self.classes))
        if self.launch.node_rank == 0:
            (self.output / 'unreadable.txt').unlink(missing_ok=True)  # from an earlier run
        os.environ[UNREADABLE] = str(self.output / 'unreadable.txt')
        return run(command)

    def unreadable(self) -> list[str]:
        """The images that could not be read, without repetition."""
        path = self.output / 'unreadable.txt'
        names = path.read_bytes().splitlines() if path.is_file() else []
        return sorted(set(map(os.fsdecode, names)))

    def best_checkpoint(self) -> Path:
        """The checkpoint with the best validation metric; the script does not remember it when resumed.

        Raises:
            FileNotFoundError: There is no such checkpoint.
        """
        metrics = {}
        for path in [*sorted(self.output.glob('checkpoint-*.pth.tar')), *self.output.glob('model_best.pth.tar')]:
            with suppress(ValueError):  # not finite: training diverged
                metrics[path] = read_foreign(path)[1].get('metric') or 0
        if not metrics:
            raise FileNotFoundError(f'{self.output} has no checkpoint with finite weights.')
        return (min if self.value('eval_metric') == 'loss' else max)(metrics, key=metrics.__getitem__)

    def compare(self, result: dict[str, Any], facts: dict[str, Any], checkpoint: Path) -> None:
        """Warn if the exported model's accuracy differs from that in training."""
        measured, reported = result['metrics']['top1'], facts.get('metric')
        images = result['dataset']['num_images']
        if self.value('eval_metric', 'top1') != 'top1' or reported is None:
            return
        if abs(measured - reported) > max(1, 200 / images):  # percentage points; rounding can change some images
            print(
                f'warning: {checkpoint} had {reported:.2f} % validation accuracy in training, but has '
                f"{measured:.2f} % as exported; compare the training's preprocessing with the folder's config.json.",
                file=sys.stderr,
            )

    def export(self, workers: int = 0, progress: Progress = no_progress) -> Path:
        """Export the best checkpoint as a model folder, OUTPUT/model; evaluate it on validation images and verify it.

        Raises:
            ValueError: The folder fails `verify`.
        """
        checkpoint = self.best_checkpoint()
        model, facts = load_checkpoint(checkpoint)
        results = []
        if self.classes:
            device = find_device()
            result = evaluate_classifier(model, self.open_val(self.classes), device, workers=workers, progress=progress)
            result |= {'training': {'recipe': self.recipe, 'epoch': facts['epoch']}, **machine(device)}
            write_result(self.output / 'result.json', result)
            results = [result]
            self.compare(result, facts, checkpoint)
        origin = f'These are the {facts["weights"]} weights of epoch {facts["epoch"]} of the recipe `{self.recipe}`.'
        start = Source.parse(self.value('model'))
        metadata: dict[str, Any] = {}
        if start.is_folder or self.value('pretrained'):
            sentence, metadata = lineage(start)
            origin = f'{origin} {sentence}'
        if self.named and self.data_dir.startswith('hfds/'):
            metadata['datasets'] = [self.data_dir.partition('/')[2]]
        folder = export(
            model.cpu(),
            self.output / 'model',
            labels=self.classes or None,
            metrics=results,
            origin=origin,
            metadata=metadata,
        )
        for check in verify(folder):
            if not check.passed:
                raise ValueError(f'{folder} does not verify: {check.name}: {check.detail}')
        return folder
