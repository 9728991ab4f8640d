"""Classify any number of image files into one table, in many processes. A killed run can be resumed.

An unfinished run of OUTPUT keeps its state in the folder OUTPUT.parts. `images.jsonl` has the paths in order.
`run.json` has the settings, and where the paths of each part start in that file. `000000.jsonl`, ... have the results
of finished parts; each is written completely or not at all. A part always has the same images in the same batches, and
on a CPU one thread computes each batch, so the results do not depend on which process computes a part, or when.
"""

import glob
import hashlib
import heapq
import json
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist

from ..files import read_json, replaced_whole, written_whole
from ..image_files import find_images, walk_images
from ..interrupts import iterate
from ..network.vt_fpn import Network
from ..processes import rank_and_world
from ..reporting import Progress, no_progress, write_result
from .batch_output import Results, check_table, read_jsonl, table_writer
from .classify import Classifier
from .scores import meaning_of

__all__ = ['check_run', 'default_workers', 'predict_files']

PART_SIZE = 1024  # images; the most that each process loses when killed
SORTED_AT_ONCE = 1 << 16  # paths in memory


def default_workers() -> int:
    """CPU cores per torchrun process on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get('LOCAL_WORLD_SIZE', 1)))


def parts_folder(output: Path) -> Path:
    return Path(f'{output}.parts')


def check_run(inputs: Iterable[str], output: Path) -> None:
    """Check the inputs and the output before a model is loaded.

    Raises:
        FileExistsError: The output exists already.
        FileNotFoundError: An input does not exist.
        ModuleNotFoundError: The output needs a package that is not installed.
        ValueError: The output does not end in a supported table extension.
    """
    check_table(output)
    if output.exists() and not (parts_folder(output) / 'run.json').exists():
        raise FileExistsError(f'{output} exists; remove it, or name another output.')
    for name in inputs:
        if not os.path.exists(name) and next(glob.iglob(name, recursive=True), None) is None:
            raise FileNotFoundError(f'There is no image file or folder {name}.')


def sorted_on_disk(paths: Iterable[str], folder: Path) -> Iterator[str]:
    """Sort paths as `find_images` does. Only some are in memory; the others are in temporary files in `folder`."""

    def names(path: str) -> list[str]:
        return path.split(os.sep)

    paths = iter(paths)
    with ExitStack() as files:
        runs = []
        while run := sorted(islice(paths, SORTED_AT_ONCE), key=names):
            file = files.enter_context(tempfile.TemporaryFile('w+', dir=folder))
            file.writelines(json.dumps(path) + '\n' for path in run)
            file.seek(0)
            runs.append(map(json.loads, file))
        yield from heapq.merge(*runs, key=names)


def list_images(inputs: Iterable[str], folder: Path) -> Iterator[str]:
    """Yield the paths of `find_images` one by one; see `sorted_on_disk` for the folder.

    Raises:
        FileNotFoundError: A folder has no images.
    """
    for name in inputs:
        if not os.path.isdir(name):
            yield from map(str, find_images([name]))
            continue
        paths = sorted_on_disk(map(str, walk_images(name)), folder)
        if (first := next(paths, None)) is None:
            raise FileNotFoundError(f'There are no images in {name}.')
        yield first
        yield from paths


def fingerprint(model: Network) -> str:
    """sha256 of everything that a model's predictions depend on: weights, preprocessing, labels."""
    config = timm.data.resolve_model_data_config(model)
    config |= {'labels': model.pretrained_cfg.get('label_names'), 'scores': meaning_of(model)}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def start(folder: Path, inputs: list[str], settings: dict[str, Any]) -> None:
    """List the images of a new run, or check that an interrupted run had the same settings."""
    if (folder / 'run.json').exists():
        for key, value in read_json(folder / 'run.json')['settings'].items():
            if settings[key] != value:
                raise ValueError(
                    f'{folder} belongs to a run with {key} {value}, not {settings[key]}; use the same, or remove the '
                    f'folder to start over.'
                )
        return
    shutil.rmtree(folder, ignore_errors=True)
    with written_whole(folder) as unfinished:
        count, offsets = 0, []
        with open(unfinished / 'images.jsonl', 'wb') as file:
            for path in list_images(inputs, unfinished):
                if count % settings['part_size'] == 0:
                    offsets.append(file.tell())
                file.write(json.dumps(path).encode() + b'\n')
                count += 1
        write_result(unfinished / 'run.json', {'settings': settings, 'images': count, 'offsets': offsets})


class Parts:
    """The state of a run on disk."""

    def __init__(self, folder: Path):
        run = read_json(folder / 'run.json')
        self.folder, self.images, self.offsets = folder, run['images'], run['offsets']
        self.part_size, self.batch_size = run['settings']['part_size'], run['settings']['batch_size']

    def path(self, part: int) -> Path:
        return self.folder / f'{part:06d}.jsonl'

    def size(self, part: int) -> int:
        """Images in a part; the last may have fewer than the others."""
        return min(self.part_size, self.images - part * self.part_size)

    def missing(self) -> list[int]:
        done = {entry.name for entry in os.scandir(self.folder)}
        return [part for part in range(len(self.offsets)) if self.path(part).name not in done]

    def batches(self, parts: Iterable[int]) -> Iterator[list[str]]:
        """Yield the paths of some parts, batch by batch. A batch never extends past the end of a part."""
        with open(self.folder / 'images.jsonl', 'rb') as file:
            for part in parts:
                file.seek(self.offsets[part])
                lines = islice(file, self.size(part))
                while batch := [json.loads(line) for line in islice(lines, self.batch_size)]:
                    yield batch

    def count_batches(self, parts: Iterable[int]) -> int:
        return sum(-(-self.size(part) // self.batch_size) for part in parts)

    def write(self, part: int, results: Results) -> None:
        with replaced_whole(self.path(part)) as unfinished, table_writer(unfinished) as write:
            write(results)

    def read(self, part: int) -> Results:
        try:
            results = read_jsonl(self.path(part))
        except ValueError:
            results = []
        if len(results) != self.size(part):  # for example, the machine lost power while writing it
            raise OSError(f'{self.path(part)} is damaged; remove it and start again.')
        return results

    def merge(self, output: Path) -> int:
        """Write the output. Returns the number of images that failed."""
        failed = 0
        with replaced_whole(output) as unfinished, table_writer(unfinished) as write:
            for part in range(len(self.offsets)):
                results = self.read(part)
                failed += sum('error' in result for result in results)
                write(results)
        return failed

    def remove(self) -> None:
        (self.folder / 'run.json').unlink()  # if killed after this, no run is left to resume
        shutil.rmtree(self.folder, ignore_errors=True)


class Workers:
    """Processes that read images and, without a GPU, also classify them."""

    def __init__(self, classifier: Classifier, count: int):
        self.classifier, self.count = classifier, count
        self.on_gpu = classifier.device.type != 'cpu'

    def results(self, batches: Iterable[list[str]], count: int) -> Iterator[Results]:
        """Results of batches, in order."""
        loader = torch.utils.data.DataLoader(
            self.classifier.reader if self.on_gpu else self.classifier,
            sampler=batches,
            batch_size=None,
            num_workers=count,
            pin_memory=self.on_gpu,
        )
        for batch in iterate(loader):
            yield self.classifier.classify(*batch) if self.on_gpu else batch

    def run(self, parts: Parts, todo: Iterable[int], progress: Progress) -> None:
        """Classify and write parts. Files that crash the process that reads them are reported as unreadable."""
        todo = deque(todo)
        while todo:
            try:
                for _ in progress(self.write(parts, todo), parts.count_batches(todo), 'Classifying'):
                    pass
            except RuntimeError as error:
                if not is_death(error):
                    raise
            if todo:  # the crashing file is in this part, or in a later one that was being read already
                results = [result for paths in parts.batches([todo[0]]) for result in self.rescue(paths)]
                parts.write(todo.popleft(), results)

    def write(self, parts: Parts, todo: deque[int]) -> Iterator[None]:
        """Write parts and remove each from the queue; yields once per batch."""
        batches = self.results(parts.batches(list(todo)), self.count)
        while todo:
            results: Results = []
            while len(results) < parts.size(todo[0]):
                results += next(batches)
                yield
            parts.write(todo[0], results)
            todo.popleft()

    def alone(self, paths: list[str]) -> Results | None:
        """Results of a batch from a separate process; None if the process died."""
        try:
            return next(self.results([paths], 1))
        except RuntimeError as error:
            if not is_death(error):
                raise
            return None

    def rescue(self, paths: list[str]) -> Results:
        """Results of a batch that may have files that crash the process that reads them."""
        if (results := self.alone(paths)) is not None:
            return results
        deadly = {path for path in paths if self.alone([path]) is None}
        others = [path for path in paths if path not in deadly]
        if (results := self.alone(others) if others else []) is None:
            raise ChildProcessError(
                f'The process that reads {others[0]} and the images after it dies; it may lack memory.'
            )
        rest = iter(results)
        reason = 'the process that read it died'
        return [
            {'image': path, 'error': f'Cannot read {path} as an image: {reason}.'} if path in deadly else next(rest)
            for path in paths
        ]


def is_death(error: RuntimeError) -> bool:
    """Whether a DataLoader reports the death of its worker. It can raise this anywhere in the main thread."""
    return str(error).startswith('DataLoader worker')


def prepare(model: Network, inputs: list[str], output: Path, **settings: Any) -> list[int]:
    """Start the run of an output, or go back to the one that was interrupted. Returns the parts that are missing.

    Errors are those of `predict_files`.
    """
    check_run(inputs, output)
    folder = parts_folder(output)
    start(folder, inputs, {'inputs': inputs, **settings, 'model': fingerprint(model)})  # the first difference is named
    missing = Parts(folder).missing()
    if missing and output.exists():
        raise FileExistsError(f'{output} exists, but the run in {folder} is not finished; remove one of them.')
    return missing


def predict_files(
    model: Network,
    inputs: Iterable[str],
    output: str | Path,
    topk: int = 5,
    batch_size: int = 16,
    precision: str = 'fp32',
    workers: int | None = None,
    part_size: int = PART_SIZE,
    progress: Progress = no_progress,
) -> tuple[int, int] | None:
    """Classify image files into a table. An interrupted run resumes where it stopped.

    Under torchrun each process takes a share of the parts; all machines must see the same files. The number of
    processes and interruptions do not change the table, as long as all hardware is of the same kind.

    Args:
        model: A timm classifier in evaluation mode; it computes on the device of its parameters.
        inputs: Image files, folders and glob patterns. They are listed once, when the run starts.
        output: File to write, `.jsonl` with what `predict` yields or `.parquet`; see `batch_output.to_table`.
        topk: Number of classes to report, best first.
        batch_size: Images that go through the model together.
        precision: 'fp32'; 'bf16' or 'fp16' for mixed precision; or 'auto', see `chosen_precision`.
        workers: Processes that read images and, without a GPU, also classify them; default: one for each core.
        part_size: Images whose results are written together.
        progress: Wraps the loop to show progress; it gets the loop's length and a title.

    Returns:
        The number of images and the number that failed; None in all torchrun processes except the first.

    Raises:
        FileExistsError: The output exists already.
        FileNotFoundError: An input does not exist, or is a folder without images.
        ModuleNotFoundError: The output needs a package that is not installed.
        ValueError: The model does not classify, the output does not end in a supported table extension, or the
            interrupted run had other settings.
    """
    inputs, output = list(inputs), Path(output)
    classifier = Classifier(model, topk, precision)
    rank, world = rank_and_world()
    todo: list[Any] = [None]
    if rank == 0:
        settings = {'topk': topk, 'precision': classifier.precision, 'batch_size': batch_size, 'part_size': part_size}
        todo = [prepare(model, inputs, output, **settings)]
    if world > 1:
        dist.broadcast_object_list(todo)  # all processes use the same list
    parts = Parts(parts_folder(output))
    share = todo[0][rank::world]
    Workers(classifier, workers or default_workers()).run(parts, share, progress if rank == 0 else no_progress)
    if world > 1:
        dist.barrier()
    if rank > 0:
        return None
    failed = parts.merge(output)
    parts.remove()
    return parts.images, failed
