"""Foreign bytes are parsed by processes of their own, with bounds on memory and time.

Images, sounds, tables and texts go through decoders written in C and Rust, which a crafted file may
crash, fill with gigabytes or keep busy. Here that costs its sender an answer with status 400, and
this place a process, which is forked anew; the worker and all other requests go on. So does much
JSON sent to `infer`: while it is read, for a second where it is all brackets, no other thread runs.

A decoder is trusted no more than a caller: it answers in JSON and raw tensors, which are checked as
those of a request are, and nothing that comes from it is unpickled. Raw tensors sent to `infer` and
little JSON need no decoder and come nowhere near one.
"""

import logging
import multiprocessing
import pkgutil
import signal
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from deployments.serving.decoder import Limits, decode, message, parts
from deployments.serving.elements import check_shape, from_binary
from deployments.serving.protocol import InferRequest, ProtocolError, Tensors, Wanted
from deployments.serving.session import Served
from deployments.serving.turns import Turn, Turns, Who, overdue
from models import lines
from models.tensors import TensorSpec

_log = logging.getLogger("modelmint.serving")
START_SECONDS = 60.0
"""Until a decoder that does not say that it is ready counts as one that cannot start."""
T = TypeVar("T")


class Decoders:
    """The decoders of one worker process; started when they are needed."""

    def __init__(self, limits: Limits) -> None:
        # One thread a decoder: who waits, waits for it, and who is late takes no decoder's time.
        self._threads = ThreadPoolExecutor(limits.decoders, "modelmint-decoding")
        self._limits = limits
        self._context = multiprocessing.get_context("forkserver")
        # What a decoder needs is imported once; each is then forked in milliseconds.
        known = [f"{lines.__name__}.{one.name}" for one in pkgutil.iter_modules(lines.__path__)]
        self._context.set_forkserver_preload(["deployments.serving.decoder", *known])
        self._idle: list[_Decoder] = []
        self._busy: set[_Decoder] = set()
        self._turns: Turns[_Payload] = Turns("to be decoded")
        self._running = 0  # threads that take turns
        self._pace = 0.0  # seconds one read takes, of late
        self._lock = threading.Lock()

    def read(
        self,
        served: Served,
        payload: bytes,
        media_type: str,
        seconds: float,
        who: Who = ("", ""),
    ) -> Future[tuple[Tensors, int]]:
        """What a person sent as tensors, and its number of rows, once it is this request's turn.

        Who asks much keeps only itself waiting (`turns`).
        The future raises ProtocolError: 400 for bytes that cannot be read, or not within the
        limits, 429 when too many wait, 503 where no decoder can be started, 504 when it takes over
        `seconds` from now. Cancelled while it waits, it lets go of the payload.
        """
        head = {"media_type": media_type}
        return self._put(served, payload, head, seconds, who, _told)

    def parse(
        self,
        served: Served,
        body: bytes,
        header_length: str | None,
        seconds: float,
        who: Who = ("", ""),
    ) -> Future[InferRequest]:
        """What `protocol.parse` finds in a body; the future raises what that or `read` does."""
        return self._put(served, body, {"infer": header_length}, seconds, who, _parsed)

    def _put(
        self, served: Served, payload: bytes, head: dict[str, Any], seconds: float, who: Who,
        understand: Callable[[Served, dict[str, Any], bytes], T],
    ) -> Future[T]:  # fmt: skip
        now = time.monotonic()
        until = now + seconds
        work = partial(self._read, served, payload, head, until, understand)
        asked = _Payload(who, len(payload), until, Future(), work)
        with self._lock:
            refused = self._turns.put(asked, now, self._pace / self._limits.decoders)
        for one, error in refused:
            if one.answer.set_running_or_notify_cancel():
                one.answer.set_exception(error)
        # Weak, for the caller keeps the answer, which is to hold no payload.
        asked.answer.add_done_callback(partial(self._drop, weakref.ref(asked)))
        self._start()
        return asked.answer

    def _drop(self, asked: "weakref.ref[_Payload]", _: Future[Any]) -> None:
        with self._lock:
            one = asked()
            if one is not None:
                self._turns.drop(one)

    def _start(self) -> None:
        with self._lock:
            if not self._turns.length or self._running >= self._limits.decoders:
                return
            self._running += 1
        self._threads.submit(self._take_turns)

    def _take_turns(self) -> None:
        while self._take_turn():
            pass
        with self._lock:
            self._running -= 1
        self._start()  # for who came in between

    def _take_turn(self) -> bool:
        with self._lock:
            asked = next(self._turns.take(), None)
        if asked is None:
            return False
        if not asked.answer.set_running_or_notify_cancel():
            return True
        start = time.monotonic()
        try:
            asked.answer.set_result(asked.work())
        except BaseException as error:  # the caller's, not the thread's
            asked.answer.set_exception(error)
        self._pace += (time.monotonic() - start - self._pace) / 8
        return True

    def _read(
        self, served: Served, payload: bytes, head: dict[str, Any], until: float,
        understand: Callable[[Served, dict[str, Any], bytes], T],
    ) -> T:  # fmt: skip
        if time.monotonic() >= until:
            raise overdue()
        decoder = self._take() or _Decoder(self._context, self._limits)
        self._busy.add(decoder)
        try:
            said, raw = decoder.ask(served, head, payload, until)
            found = understand(served, said, raw) if "tensors" in said else None
        except BaseException:
            decoder.end()
            raise
        finally:
            self._busy.discard(decoder)
        self._keep(decoder)
        if found is not None:
            return found
        if "invalid" in said:
            raise ProtocolError(400, said["invalid"])
        if "refused" in said:
            raise ProtocolError(400, said["refused"], "refused_request")
        _log.error("%s/%s cannot decode: %s", served.line, served.number, said["failed"])
        raise ProtocolError(400, "these bytes cannot be decoded", "undecodable")

    def warm(self) -> None:
        """Have a decoder ready, so that the first request need not wait for it."""
        with self._lock:
            if self._idle:
                return
        self._keep(_Decoder(self._context, self._limits))

    def close(self) -> None:
        """End all decoders, and with them what they are at."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            idle, self._idle = self._idle, []
            left = self._turns.clear()
        for asked in left:
            asked.answer.cancel()
        for decoder in (*idle, *self._busy):
            decoder.kill()

    def _take(self) -> "_Decoder | None":
        """One that lives; the kernel may have ended an idle one for its memory."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                decoder = self._idle.pop()
            if decoder.lives():
                return decoder
            decoder.end()

    def _keep(self, decoder: "_Decoder") -> None:
        with self._lock:
            self._idle.append(decoder)


@dataclass(slots=True, eq=False, weakref_slot=True)
class _Payload(Turn):
    """Bytes that wait to be read."""

    answer: Future[Any]
    work: Callable[[], Any]


class _Decoder:
    """One process, asked by one thread at a time."""

    def __init__(self, context: Any, limits: Limits) -> None:
        self._connection, theirs = context.Pipe()
        self._most = limits.memory
        self._process = context.Process(target=decode, args=(theirs, limits), daemon=True)
        self._process.start()
        theirs.close()
        try:
            # Its first message is that it is ready: what fails later is a payload's doing.
            if not self._connection.poll(START_SECONDS):
                raise EOFError
            self._connection.recv_bytes(self._most)
        except (OSError, EOFError):
            code = self._process.exitcode
            self.end()
            _log.error("a decoder does not start (exit code %s): is --decode-mb too small?", code)
            raise ProtocolError(503, "nothing can be decoded here now", "unavailable") from None

    def lives(self) -> bool:
        """Whether the process has not ended."""
        return bool(self._process.is_alive())

    def ask(
        self, served: Served, head: dict[str, Any], payload: bytes, deadline: float
    ) -> tuple[dict[str, Any], bytes]:
        """The JSON and the raw tensors it answers; raises ProtocolError 400 when it dies, 504."""
        head = head | {"digest": served.digest}
        said, raw = self._exchange(head, payload, deadline)
        if "unknown" in said:
            head["signature"] = served.signature.model_dump_json()
            said, raw = self._exchange(head, payload, deadline)
        return said, raw

    def kill(self) -> None:
        """Kill it; whoever asks it hears of that."""
        self._process.kill()

    def end(self) -> None:
        """Kill it, if it lives, and let go of it."""
        self._process.kill()
        self._process.join()
        self._connection.close()

    def _exchange(
        self, head: dict[str, Any], payload: bytes, deadline: float
    ) -> tuple[dict[str, Any], bytes]:
        try:
            self._connection.send_bytes(message(head, payload))
            if not self._connection.poll(max(0.0, deadline - time.monotonic())):
                raise overdue()
            return parts(self._connection.recv_bytes(self._most))
        except (OSError, EOFError, ValueError):
            self._process.join(1)
            code = self._process.exitcode
            _log.warning("a decoder ended with %s on %s bytes", code, f"{len(payload):,}")
            why = "takes too long" if code == -signal.SIGXCPU else "cannot be done"
            said = f"decoding these bytes {why}"
            raise ProtocolError(400, said, "undecodable") from None


def _told(served: Served, said: dict[str, Any], raw: bytes) -> tuple[Tensors, int]:
    specs = (*served.inputs, *served.signature.features.asked)
    return _tensors(specs, said, raw), said["rows"]


def _parsed(served: Served, said: dict[str, Any], raw: bytes) -> InferRequest:
    offered = {spec.name: spec for spec in served.outputs}
    outputs = [Wanted(offered[name], binary) for name, binary in said["outputs"]]
    return InferRequest(said["id"], _tensors(served.inputs, said, raw), outputs, said["seconds"])


def _tensors(specs: Sequence[TensorSpec], said: dict[str, Any], raw: bytes) -> Tensors:
    """What a decoder sent, checked as if a caller had; raises RuntimeError when it does not fit."""
    found: Tensors = {}
    at = 0
    try:
        for spec, (shape, size) in zip(specs, said["tensors"], strict=True):
            found[spec.name] = from_binary(raw, at, size, check_shape(shape, spec), spec)
            at += size
    except (LookupError, TypeError, ValueError) as error:
        raise RuntimeError(f"a decoder's tensors do not fit: {type(error).__name__}") from None
    return found
