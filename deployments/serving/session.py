"""A version that can answer: its session, proven to fit the signature and the sample."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import (
    Fail,
    InvalidArgument,
)
from safetensors import SafetensorError

from deployments.serving.paces import BATCHED_ROWS, paces_of
from deployments.serving.protocol import ProtocolError, Tensors
from models import catalog, samples
from models.program import Program, ProgramError
from models.signature import (
    MODEL_FILE,
    PROGRAM_FILE,
    SAMPLE_FILE,
    SIGNATURE_FILE,
    Signature,
    network_file,
)
from models.tensors import TensorSpec

INLINE_SECONDS = 0.002
"""Longest that a session may hold the event loop; a thread costs about 0.1 ms more."""
MOST_ROWS, MOST_SECONDS = 64, 0.1
"""Bounds of a batch: what comes next waits for it."""
MOST_PAUSE = 0.01
TURN_SECONDS = 0.02
"""About how long a turn of a large request is. What a row takes in memory while it is computed goes
with its time: a small CNN some 150 kB in 75 microseconds, a turn then 40 MB."""
GAIN_SECONDS = 0.0001
"""What batching must save a row: about what a queue and a thread cost a request."""
GATHERED = 1.1
"""Of the time alone: what a row may take among others for them to be worth joining. More than 1: a
network drives the server's own code out of the caches, and then does it once for all of them."""
FARTHEST = 0.25
"""Largest `Signature.closeness` to the recorded output: a compressed version differs a little."""
ONNX_TYPES = {
    "BOOL": "bool", "BYTES": "string", "FP16": "float16", "FP32": "float", "FP64": "double",
    **{f"{u}INT{bits}": f"{u.lower()}int{bits}" for u in ("", "U") for bits in (8, 16, 32, 64)},
}  # fmt: skip
_log = logging.getLogger("modelmint.serving")


@dataclass(frozen=True)
class Served:
    """One loaded version; never changes, so a request keeps the one it started with."""

    line: str
    number: str
    digest: str
    signature: Signature
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    session: Any
    inline_rows: int
    """Requests of up to this many rows are quick enough to run on the event loop."""
    row_seconds: float
    """About what a row takes, among others where rows are batched."""
    batch_rows: int
    """Most rows of several requests to be computed together; 1 where that is wrong or no gain."""
    pause_seconds: float = 0.0
    """How long a batch may wait for those who were answered a moment ago."""
    gathered_rows: int = 1
    """The same of requests that came at once and are quick enough for the event loop."""
    turn_rows: int | None = None
    """Rows of a larger request that are computed in one turn, others' between them; None where that
    would change its answer."""

    @cached_property
    def header_lines(self) -> bytes:
        """The same as lines of a response."""
        return "".join(f"{name}: {value}\r\n" for name, value in self.headers.items()).encode()

    @property
    def platform(self) -> str:
        """What computes it and what its file is, in the words of the protocol."""
        return "pytorch_pt2" if isinstance(self.session, Program) else "onnxruntime_onnx"

    @cached_property
    def names(self) -> list[str]:
        """The outputs' names."""
        return [spec.name for spec in self.outputs]

    @cached_property
    def headers(self) -> dict[str, str]:
        """What tells the caller which version answered."""
        return {
            "modelmint-model": self.line,
            "modelmint-version": self.number,
            "modelmint-digest": self.digest,
        }

    def run(self, tensors: Tensors, options: onnxruntime.RunOptions | None = None) -> Tensors:
        """Every output by name; raises ProtocolError 400 when the network refuses the values.

        So it does when `options` end it before its time; what torch computes takes none.
        """
        most, rows = self.turn_rows, len(next(iter(tensors.values())))
        if most is not None and rows > most:
            starts = range(0, rows, most)
            parts = ({n: t[at : at + most] for n, t in tensors.items()} for at in starts)
            return stacked([self.run(part, options) for part in parts])
        names = self.names
        more = () if options is None or isinstance(self.session, Program) else (options,)
        try:
            return dict(zip(names, self.session.run(names, tensors, *more), strict=True))
        except (Fail, InvalidArgument, ProgramError) as error:
            # Without the error's words, which quote values.
            _log.info("%s/%s refused an input: %s", self.line, self.number, type(error).__name__)
            raise ProtocolError(400, "the model cannot compute these values") from None

    def answers(self, outputs: Tensors) -> list[dict[str, Any]]:
        """What a person reads, one answer a row; raises ProtocolError 422 for none to give."""
        output = outputs[self.outputs[0].name]
        if not finite(output):
            raise ProtocolError(
                422, "the model gives no finite answer for these values", "not_finite"
            )
        return self.signature.objective.answer(output)


def stacked(found: Sequence[Tensors]) -> Tensors:
    """Outputs of several parts of a request, one after the other."""
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


def open_version(line: str, number: str, digest: str, files: Mapping[str, bytes]) -> Served:
    """The version held by verified files, warmed up and proven on its recorded sample.

    Raises ProtocolError 422 when the network, the signature and the sample do not fit together.
    """
    # A line may bring features or an objective of its own.
    catalog.modules()
    try:
        signature = Signature.model_validate_json(files[SIGNATURE_FILE])
        inputs, outputs = signature.features.inputs, signature.outputs
        sample = samples.load(files[SAMPLE_FILE], (*inputs, outputs[0]))
    except (ValueError, SafetensorError) as error:
        _log.warning("%s/%s: %s", line, number, error)
        raise _unfit("its signature or sample cannot be read by this server's code") from None
    network = network_file(files)
    opened = _program if network == PROGRAM_FILE else _session
    session = opened(files[network], f"{line}/{number}")
    _check("input", session.get_inputs(), inputs)
    _check("output", session.get_outputs(), outputs)
    for spec in (*inputs, outputs[0]):
        if spec.name not in sample:
            raise _unfit(f"the sample has no tensor {spec.name!r}")
        try:
            spec.check(sample[spec.name])
        except ValueError as error:
            raise _unfit(f"the sample's {error}") from None
    feeds = {spec.name: sample[spec.name] for spec in inputs}
    seconds = _compare(session, feeds, outputs[0].name, sample[outputs[0].name], signature)
    seconds /= len(sample[outputs[0].name])
    inline_rows, batch_rows, pause, gathered_rows = int(INLINE_SECONDS / seconds), 1, 0.0, 1
    paces = paces_of(session, feeds, [spec.name for spec in outputs], signature)
    if paces and paces.alone - paces.together > GAIN_SECONDS:
        # To wait longer than a row saves can only lose (ski rental, Karlin et al. 1988).
        pause = min(MOST_PAUSE, paces.alone - paces.together)
        seconds, inline_rows = paces.together, 0
        batch_rows = max(1, min(MOST_ROWS, int(MOST_SECONDS / seconds)))
    elif paces and paces.together < GATHERED * paces.alone:
        gathered_rows = max(1, min(MOST_ROWS, int(INLINE_SECONDS / paces.together)))
    turn_rows = None
    if paces and all(spec.shape[0] == -1 for spec in (*inputs, *outputs)):
        turn_rows = max(BATCHED_ROWS, int(TURN_SECONDS / paces.together))
    return Served(
        line, number, digest, signature, inputs, outputs, session, inline_rows, seconds,
        batch_rows, pause, gathered_rows, turn_rows,
    )  # fmt: skip


def _session(model: bytes, version: str) -> Any:
    options = onnxruntime.SessionOptions()
    # Small networks: one core a request, so that requests and versions do not wait for each other.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base class
        _log.warning("%s: %s", version, error)
        raise _unfit(f"{MODEL_FILE} is not a network ONNX Runtime can run") from None


def _program(content: bytes, version: str) -> Any:
    try:
        return Program(content, threads=1)
    except ImportError:
        raise _unfit(
            f"{PROGRAM_FILE} is a program of torch, which is not installed where this server runs"
        ) from None
    except ProgramError as error:
        _log.warning("%s: %s", version, error)
        raise _unfit(f"{PROGRAM_FILE} is not a program torch can run") from None


def _check(kind: str, found: Sequence[Any], specs: Sequence[TensorSpec]) -> None:
    offered = {value.name: value for value in found}
    if set(offered) != {spec.name for spec in specs}:
        raise _unfit(
            f"the network's {kind}s are {', '.join(sorted(offered))}, the signature says"
            f" {', '.join(spec.name for spec in specs)}"
        )
    for spec in specs:
        value = offered[spec.name]
        fits = (
            value.type == f"tensor({ONNX_TYPES[spec.datatype]})"
            and len(value.shape) == len(spec.shape)
            # A symbolic length takes any; a fixed one must be the one the signature promises.
            and all(
                not isinstance(length, int) or length == wanted
                for length, wanted in zip(value.shape, spec.shape, strict=True)
            )
        )
        if not fits:
            raise _unfit(
                f"{kind} {spec.name!r} is {value.type} {value.shape} in the network,"
                f" {spec.datatype} {list(spec.shape)} in the signature"
            )


def _compare(
    session: Any, feeds: Tensors, name: str, expected: NDArray[Any], signature: Signature
) -> float:
    """CPU seconds of the quickest of three runs, once the answer is close to the recorded one."""
    seconds = []
    try:
        for _ in range(3):
            # This thread alone computes: a busy machine must not look like a slow network.
            start = time.thread_time()
            found = session.run([name], feeds)[0]
            seconds.append(time.thread_time() - start)
    except Exception as error:  # ONNX Runtime's errors share no base class
        _log.warning("warm-up: %s", error)
        raise _unfit("the network cannot compute the recorded sample") from None
    if found.shape != expected.shape or not finite(found):
        raise _unfit(f"output {name!r} of the sample has another shape or is not finite")
    distance = signature.closeness(found, expected)
    if not distance <= FARTHEST:  # written so that NaN is refused too
        raise _unfit(
            f"output {name!r} of the sample is {distance:.3g} from the recorded one, relative to"
            f" its spread; at most {FARTHEST} is served: mint the version again"
        )
    return min(seconds)


def finite(output: NDArray[Any]) -> bool:
    """Whether every element is a number; texts and whole numbers are what they are."""
    return output.dtype.kind != "f" or bool(np.isfinite(output).all())


def _unfit(message: str) -> ProtocolError:
    return ProtocolError(422, message, "unfit_version")
