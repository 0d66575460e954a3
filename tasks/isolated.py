"""Numeric work in a process of its own, whose environment is set before torch is imported.

Threads, instruction sets and library modes decide the last bits of a result, and most of them can
only be set before the first import. The child reads its job as JSON and answers in JSON; whatever
libraries print goes to its error stream. It dies with its parent.
"""

import errno
import json
import os
import signal
import sys
import tempfile
import typing
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

from models import catalog
from models.digests import IntegrityError
from models.open import resolve
from tasks import cluster, forked, forkserver
from tasks.forkserver import Child, ServerError, ending

T = TypeVar("T", bound=BaseModel)
Profile = Literal["fast", "portable"]
Emit = Callable[[dict[str, Any]], None]

# Sources: oneMKL "Conditional Numerical Reproducibility", oneDNN "CPU Dispatcher Control", torch
# ATen's ATEN_CPU_CAPABILITY, NumPy "CPU build options", cuBLAS "Results reproducibility"; that
# `portable` keeps its word on other processors is what benchmarks/platforms.py tries.
PROFILES: dict[Profile, dict[str, str]] = {
    "fast": {"MKL_CBWR": "AVX2,STRICT"},
    "portable": {
        "MKL_CBWR": "COMPATIBLE",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
        "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    },
}
COMMON = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "OMP_DYNAMIC": "FALSE",
    "MKL_DYNAMIC": "FALSE",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "PYTHONHASHSEED": "0",
    # Each step frees and takes the same large blocks; glibc would give them back to the kernel and
    # have every page of them zeroed again; benchmarks/training.py shows what that is worth.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
}


# Variables that could change the last bits of a result; only a profile may set them.
NUMERIC = (
    "ATEN_", "BLIS_", "CUBLAS_", "DNNL_", "GLIBC_", "GOTO_", "KMP_", "MALLOC_", "MKL_", "NPY_",
    "NVIDIA_", "OMP_", "ONEDNN_", "OPENBLAS_", "ORT_", "PYTORCH_", "TORCH",
)  # fmt: skip


class IsolatedError(RuntimeError):
    """The child failed; the message is what it said, or how it died."""

    died = False
    """Whether it ended without a word of why."""


class ResourceError(IsolatedError):
    """The child was killed, or the store had not what it needs: nothing is wrong with the code."""


def inherited() -> dict[str, str]:
    """This process's environment without the variables that are a profile's to set."""
    return {name: value for name, value in os.environ.items() if not name.startswith(NUMERIC)}


def environment(profile: Profile, threads: int) -> dict[str, str]:
    """The variables of a numeric profile with this many compute threads."""
    counted = ("OMP", "MKL", "OPENBLAS")
    return {
        **COMMON,
        **PROFILES[profile],
        **{f"{name}_NUM_THREADS": str(threads) for name in counted},
        "POLARS_MAX_THREADS": str(threads),
    }


def isolated(
    target: str, job: BaseModel, result: type[T], *, stage: str, profile: Profile, threads: int,
    gpu: bool = False,
) -> T:  # fmt: skip
    """Run `module:function` on a Dask worker in a fresh process; raises IsolatedError.

    The function takes the job and `emit`, and gives a `result`. What it emits reaches the
    progress listeners of this process.
    """
    text = cluster.run(
        _on_worker,
        target,
        job.model_dump_json(),
        environment(profile, threads),
        (cluster.TOPIC, stage),
        gpu=gpu,
    )
    return result.model_validate_json(text)


def _on_worker(target: str, job: str, variables: dict[str, str], address: tuple[str, str]) -> str:
    return run(target, job, variables, cluster.reporter(*address))


def run(
    target: str, job: str, variables: dict[str, str], emit: Emit,
    started: Callable[[Child], None] = lambda _: None,
) -> str:  # fmt: skip
    """Run the target in a process of its own and give its JSON answer.

    `started` is told the child. Raises IsolatedError.
    """
    with tempfile.TemporaryFile() as errors:
        settings = {**inherited(), **variables}
        try:
            child = forkserver.start(
                __name__, [target], job, settings, (*NUMERIC, "POLARS_"), errors
            )
        except ServerError as error:
            raise _died(error.killed, f"{target}: {error}") from None
        except OSError as error:
            raise ResourceError(f"{target}: {_said(error)}") from None
        started(child)
        answer = None
        for line in child.lines():
            said = _parsed(line)
            if said and said[0] == "progress":
                emit(said[1])
            elif said:
                answer = said
        if answer is None:
            # By whoever ran short of memory or patience; other signals are the child's own doing.
            killed = -child.code in (signal.SIGKILL, signal.SIGTERM)
            errors.seek(max(0, errors.seek(0, os.SEEK_END) - 800))
            last = errors.read().decode(errors="replace")
            how = f"{target} ended without an answer ({ending(child.code)})"
            raise _died(killed, f"{how}; it last said: {last}")
    if answer[0] != "result":
        raise (ResourceError if answer[0] == "lack" else IsolatedError)(f"{target}: {answer[1]}")
    return str(answer[1])


def _died(killed: bool, message: str) -> IsolatedError:
    error = (ResourceError if killed else IsolatedError)(message)
    error.died = True
    return error


def _parsed(line: str) -> tuple[str, Any] | None:
    """Kind and content; None for what a process that is killed had only begun to say."""
    if not line.endswith("\n"):
        return None
    kind, content = json.loads(line)
    return kind, content


def name_of(target: str, rank: str = "") -> str:
    """What the kernel calls a process that runs the target: `trainer:fit`, a rank `trainer:fit 1`.

    It keeps 15 characters.
    """
    end = f" {rank}" if rank else ""
    return target.rpartition(".")[2][: 15 - len(end)] + end


def main(target: str) -> None:
    """The child: job from standard input, one JSON line for every event, the last is the answer."""
    forked.call_itself(name_of(target, os.environ.get("RANK", "")))
    # Libraries print; the answer must be the only thing on the pipe.
    pipe = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)

    def send(kind: str, content: Any) -> None:
        pipe.write(json.dumps([kind, content]) + "\n")

    try:
        catalog.modules()
        function = resolve(target)
        hints = typing.get_type_hints(function)
        job = hints["job"].model_validate_json(sys.stdin.read())
        result = function(job, lambda detail: send("progress", detail))
        send("result", result.model_dump_json())
    except Exception as error:
        import traceback

        from tasks.store import MissingError, StoreError

        traceback.print_exc()
        lacking = _full(error) or isinstance(error, IntegrityError | MissingError | StoreError)
        send("lack" if lacking else "error", _said(error))


def _full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _said(error: Exception) -> str:
    said = f"{type(error).__name__}: {error}"
    if _full(error):
        where = tempfile.gettempdir()
        said += f": make room in {where}, or name another folder by TMPDIR, and run again"
    return said
