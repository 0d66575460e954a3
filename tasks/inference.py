"""A served network in process: what it answers, and what an answer costs."""

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import (
    Fail,
    InvalidArgument,
    InvalidGraph,
    NotImplemented,  # noqa: A004
    RuntimeException,
)

from models.data import Tensors
from models.padding import computed, trimmed
from models.program import Program, ProgramError, is_program

BATCH = 1024
Session: TypeAlias = onnxruntime.InferenceSession | Program
# What is raised for a network that cannot be loaded or run; ONNX Runtime's share no class.
REFUSALS = (Fail, InvalidArgument, InvalidGraph, NotImplemented, ProgramError, RuntimeException)
_SCARCE = re.compile(r"alloc|out of memory|no space left|disk quota|too many open files", re.I)
# So much CPU time, in microseconds, that another round would tell little.
ENOUGH = 1e6


def scarce(error: Exception) -> bool:
    """Whether what was raised is about this machine, its memory or disk, and not about a network.

    Libraries raise the same classes for both.
    """
    return isinstance(error, MemoryError) or _SCARCE.search(str(error)) is not None


def session(model: bytes, threads: int = 1, *, portable: bool = True) -> Session:
    """A CPU session with that many threads; raises one of REFUSALS for a broken model.

    A program has the threads of this process.

    A portable one gives the same bits whatever the width of the processor's vectors: ONNX Runtime
    otherwise lays convolutions out by it, as the model server has it do, for speed.
    """
    if is_program(model):
        return Program(model)
    options = onnxruntime.SessionOptions()
    if portable:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def predict(found: Session, inputs: Tensors) -> NDArray[Any]:
    """The first output for all rows, computed in batches."""
    return computed(lambda rows: found.run(None, rows)[0], inputs, BATCH)


def cpu_microseconds(
    sessions: Mapping[str, Session],
    inputs: Tensors,
    batches: Sequence[int] = (1, 32),
    rounds: int = 60,
) -> dict[str, dict[str, float]]:
    """Least CPU time of one request, by session and batch size, measured in turns.

    The minimum of CPU time, not of wall-clock time: other work on the machine hardly moves it.
    """
    best: dict[str, dict[str, float]] = {name: {} for name in sessions}
    for batch in batches:
        rows = trimmed({n: np.resize(t, (batch, *t.shape[1:])) for n, t in inputs.items()})
        total = 0.0
        for done in range(rounds):
            if done and total > ENOUGH * len(sessions):
                break
            for name, found in sessions.items():
                start = time.thread_time_ns()
                found.run(None, rows)
                spent = (time.thread_time_ns() - start) / 1000
                key, total = str(batch), total + spent
                best[name][key] = min(spent, best[name].get(key, spent))
    return best
