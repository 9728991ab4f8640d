"""What the benchmarks of inference share: functions that run in turn, and ONNX files on one thread."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime

WARM_UP = 2  # rounds that are not counted


def in_turn(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median of the processor's seconds for each function. They run in turn, so that drifts of the machine cancel."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + WARM_UP):
        for name, run in runs.items():
            started = time.process_time()
            run()
            if turn >= WARM_UP:
                seconds[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
