"""A decoder's own side: a process that turns what a person sent into tensors, within bounds.

It imports neither ONNX Runtime nor anything of the server. `decoding` starts it and asks it.
"""

import gc
import os
import resource
import signal
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from numpy.typing import NDArray

from deployments.serving.defaults import DECODE_BYTES, DECODE_SECONDS, DECODERS
from deployments.serving.elements import pack
from deployments.serving.protocol import ProtocolError, parse

# Imported before processes are forked, so that none of them has to.
from models import audio, catalog, images, passages, tables, texts  # noqa: F401
from models.data import RefusedRequest
from models.signature import Signature

KNOWN = 64
"""Versions whose signature a decoder keeps."""
_HEAD = 4
"""Bytes that hold the length of a message's JSON."""


class Limits(NamedTuple):
    """What one request may cost a decoder."""

    decoders: int = DECODERS
    """Processes of one worker that decode at once."""
    memory: int = DECODE_BYTES
    """Bytes of address space beyond what a decoder has when it begins."""
    seconds: int = DECODE_SECONDS
    """CPU seconds; by the clock it is the request's deadline."""
    nice: int = 0
    """How much lower than the server's its priority is, up to 19."""


def message(head: dict[str, Any], *content: bytes) -> bytes:
    """JSON and bytes as one message; see `parts`."""
    text = orjson.dumps(head)
    return b"".join((len(text).to_bytes(_HEAD, "little"), text, *content))


def parts(found: bytes) -> tuple[dict[str, Any], bytes]:
    """A message's JSON and what follows it; raises ValueError when it is none."""
    end = _HEAD + int.from_bytes(found[:_HEAD], "little")
    head = orjson.loads(found[_HEAD:end])
    if not isinstance(head, dict):
        raise ValueError("no JSON object")
    return head, found[end:]


def decode(connection: Connection, limits: Limits) -> None:
    """The life of a decoder: it ends with whoever asks it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(limits.nice)
    _bound(limits.memory)
    known: dict[str, Signature] = {}
    with suppress(EOFError, ConnectionError):  # whoever asks is gone
        connection.send_bytes(message({"ready": True}))
        while True:
            head, payload = parts(connection.recv_bytes())
            spent = resource.getrusage(resource.RUSAGE_SELF)
            most = int(spent.ru_utime + spent.ru_stime) + 1 + limits.seconds
            resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))
            connection.send_bytes(_answered(head, payload, known))


def _answered(head: dict[str, str], payload: bytes, known: dict[str, Signature]) -> bytes:
    try:
        return _answer(head, payload, known)
    except RefusedRequest as error:
        return message({"refused": str(error)})
    except MemoryError:
        return message({"refused": "to decode it takes more memory than a request may"})
    except Exception as error:
        # Whatever a library raises, the bytes caused it; its words may quote them.
        return message({"failed": f"{type(error).__name__} at {_place(error)}"})


def _answer(head: dict[str, Any], payload: bytes, known: dict[str, Signature]) -> bytes:
    signature = known.get(head["digest"])
    if signature is None:
        if "signature" not in head:
            return message({"unknown": True})
        if len(known) >= KNOWN:
            known.clear()
        signature = known[head["digest"]] = _signature(head["signature"])
    features = signature.features
    if "infer" in head:
        return _parsed(signature, payload, head["infer"])
    encoded, rows = features.request(payload, head["media_type"])
    tensors = [encoded[spec.name] for spec in (*features.inputs, *features.asked)]
    return _sent({"rows": rows}, tensors)


def _parsed(signature: Signature, payload: bytes, header_length: str | None) -> bytes:
    gc.disable()  # it would look through lists that grow again and again, for most of the time
    try:
        asked = parse(payload, header_length, signature.features.inputs, signature.outputs)
    except ProtocolError as error:
        return message({"invalid": error.message})
    finally:
        gc.enable()
    outputs = [(spec.name, binary) for spec, binary in asked.outputs]
    head = {"id": asked.id, "outputs": outputs, "seconds": asked.seconds}
    return _sent(head, asked.tensors.values())


def _sent(head: dict[str, Any], tensors: Iterable[NDArray[Any]]) -> bytes:
    packed = [(tensor.shape, pack(tensor)) for tensor in tensors]
    shapes = [(shape, len(raw)) for shape, raw in packed]
    return message(head | {"tensors": shapes}, *(raw for _, raw in packed))


def _signature(text: str) -> Signature:
    try:
        return Signature.model_validate_json(text)
    except ValueError:
        # A line's own features; to find all lines takes a tenth of a second.
        catalog.modules()
        return Signature.model_validate_json(text)


def _bound(memory: int) -> None:
    """Bound this process's address space, and have it go first when the machine has no memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    Path("/proc/self/oom_score_adj").write_text("1000")


def _place(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "an unknown place"
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
