"""A network run for the first time, in a process that may die of it, and the memory that takes.

ONNX Runtime ends its process by a signal over some quantized networks. Such a form is reported like
any other that does not run, and the search goes on.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from models.data import Tensors
from models.forms import FormError
from models.padding import trimmed
from tasks.forkserver import ending
from tasks.inference import scarce, session

BATCHES = (1, 32)
_STATUS = "/proc/self/status"


class CrashError(FormError):
    """A network that does not run as the model server would run it, or that ends its process."""


class Trials(ExitStack):
    """Tries networks on the same rows, each in a fork of one process that has run none."""

    def begin(self, rows: Tensors) -> None:
        """Start the process; `rows` are repeated as often as a batch needs."""
        self._folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
        for batch in BATCHES:
            some = trimmed({name: np.resize(t, (batch, *t.shape[1:])) for name, t in rows.items()})
            np.savez(self._folder / f"{batch}.npz", allow_pickle=False, **some)
        command = [sys.executable, "-m", "tasks.trials", str(self._folder)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        # Ends it, and minds not if it has ended before.
        self.callback(self._process.communicate)

    def peak(self, name: str, model: bytes) -> int | None:
        """Most bytes a session and a request add to a process; None where the system tells none.

        Raises CrashError where it does not run, MemoryError where this machine has not enough.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        (self._folder / "model").write_bytes(model)
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise MemoryError(f"{name} was not tried: the process that tries networks was killed")
        answer: dict[str, Any] = json.loads(line)
        if answer.get("status") == -signal.SIGKILL or answer.get("lack"):
            raise MemoryError(f"{name} was not tried: {answer.get('refused', 'it was killed')}")
        if "status" in answer:
            raise CrashError(f"{name} ends the process that runs it ({ending(answer['status'])})")
        if "refused" in answer:
            raise CrashError(f"{name} does not run: {answer['refused']}")
        return answer["bytes"]  # type: ignore[no-any-return]


def main(folder: Path) -> None:
    """For each line read, try the file `model`; answer with one line of JSON."""
    rows = [dict(np.load(folder / f"{batch}.npz")) for batch in BATCHES]
    for _ in sys.stdin:
        child = os.fork()
        if not child:
            try:
                _answer(_tried((folder / "model").read_bytes(), rows))
                os._exit(0)
            finally:
                os._exit(os.EX_SOFTWARE)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != 0:
            _answer({"status": status})


def _tried(model: bytes, batches: list[Tensors]) -> Mapping[str, Any]:
    before = _peak()
    try:
        served = session(model, portable=False)
        for rows in batches:
            served.run(None, rows)
        after = _peak()
        session(model).run(None, batches[0])
    except Exception as error:  # ONNX Runtime's share no class, and not all are in REFUSALS
        return {"refused": f"{type(error).__name__}: {error}", "lack": scarce(error)}
    return {"bytes": None if before is None or after is None else after - before}


def _answer(answer: Mapping[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def _peak() -> int | None:
    """Most resident memory of this process so far, in bytes."""
    if not Path(_STATUS).exists():
        return None
    lines = Path(_STATUS).read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]))
