"""A sample of what callers send, kept for monitoring; off unless MODELMINT_CAPTURE names a line.

    MODELMINT_CAPTURE=digits=0.05,flights=1      a share of the rows, for each line

Rows are kept as the network takes them, with no trace of who sent them. They are gathered in
memory, written to files below the server's private folder, and from there put into the bucket:

    captured/<line>/<version digest>/<milliseconds since 1970>-<rows>-<random>.safetensors

No request waits for that, and no writing for the store. While that is slow or away files stay, up
to `LARGEST_SPOOL`; then the oldest go. A kill loses at most the rows of the last `SECONDS`.
"""

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from deployments.serving import metrics
from deployments.serving.folder import LINE, matches
from deployments.serving.protocol import Tensors
from deployments.serving.session import Served
from models import samples
from models.files import write
from models.padding import joined

SETTING = "MODELMINT_CAPTURE"
ROWS = 1000
"""Rows that are written at once; after `SECONDS` fewer are."""
BYTES = 16 << 20
"""Bytes that are, were it fewer rows."""
SECONDS = 30.0
MOST = 50
"""Times `ROWS` that wait to be written at most; what comes then is dropped, and counted."""
MOST_BYTES = 64 << 20
"""Bytes that do, and that a file has at most; there all rows are as long as the longest."""
LARGEST_SPOOL = 256 << 20
"""Bytes of files that wait for the store."""
_log = logging.getLogger("modelmint.serving")


class Capture:
    """Keeps the asked share of each line's rows in `folder` until they are in the bucket."""

    def __init__(self, folder: Path, rates: Mapping[str, float], seconds: float = SECONDS) -> None:
        self._folder, self._rates, self._seconds = folder, rates, seconds
        self._random = np.random.default_rng()
        self._lock = threading.Lock()
        self._gathered: dict[tuple[str, str], list[Tensors]] = {}
        self._rows = self._bytes = 0
        self._ended = threading.Event()
        self._due, self._written = threading.Event(), threading.Event()
        self._writer = self._thread("capture", self._write, self._due)
        sender = self._thread("capture-sending", self._send, self._written)
        if rates:
            folder.mkdir(parents=True, exist_ok=True)
            self._writer.start()
            sender.start()

    def take(self, served: Served, tensors: Tensors) -> None:
        """Keep a share of the rows of a request that was answered."""
        rate = self._rates.get(served.line)
        if not rate:
            return
        chosen = self._random.random(len(next(iter(tensors.values())))) < rate
        if not chosen.any():
            return
        # A copy: the request's own memory is not kept for one row of it.
        part = {spec.name: tensors[spec.name][chosen] for spec in served.inputs}
        rows, size = _rows(part), _size(part)
        with self._lock:
            if self._rows >= MOST * ROWS or self._bytes + size > MOST_BYTES:
                metrics.not_captured(served.line).inc(rows)
                return
            self._gathered.setdefault((served.line, served.digest), []).append(part)
            self._rows += rows
            self._bytes += size
            if self._rows >= ROWS or self._bytes >= BYTES:
                self._due.set()

    def close(self) -> None:
        """Write what was gathered to the folder; what is there is sent by the next start."""
        if self._rates:
            self._ended.set()
            self._due.set()
            self._written.set()
            self._writer.join(timeout=5)
            self._write()

    def _thread(
        self, name: str, work: Callable[[], None], due: threading.Event
    ) -> threading.Thread:
        def run() -> None:
            while not self._ended.is_set():
                try:
                    work()
                except Exception as error:  # whatever it is, predictions go on
                    _log.warning("captured inputs wait in %s: %s", self._folder, error)
                due.wait(self._seconds)
                due.clear()

        return threading.Thread(target=run, name=name, daemon=True)

    def _write(self) -> None:
        with self._lock:
            gathered, self._gathered = self._gathered, {}
            self._rows = self._bytes = 0
        self._bound()
        while gathered:  # what is written is let go of
            (line, digest), parts = gathered.popitem()
            try:
                self._write_parts(self._folder / line / digest, parts)
            except Exception as error:  # of one line: what others sent is written all the same
                metrics.not_captured(line).inc(sum(map(_rows, parts)))
                _log.warning("captured inputs of %s cannot be written: %s", line, error)
        self._written.set()

    def _write_parts(self, folder: Path, parts: list[Tensors]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for some in _together(parts):
            whole = {n: joined([part[n] for part in some]) for n in some[0]}
            name = f"{time.time_ns() // 1_000_000}-{_rows(whole)}-{secrets.token_hex(8)}"
            write(folder / f"{name}.safetensors", samples.save(whole))

    def _bound(self) -> None:
        files = self._files()
        while sum(files.values()) > LARGEST_SPOOL:
            oldest = next(iter(files))
            del files[oldest]
            oldest.unlink(missing_ok=True)
            _log.warning("%s was dropped: the store is away for too long", oldest.name)

    def _files(self) -> dict[Path, int]:
        """What waits for the store, oldest first, and its bytes."""
        files: dict[Path, int] = {}
        for path in sorted(self._folder.glob("*/*/*.safetensors"), key=lambda path: path.name):
            with suppress(FileNotFoundError):  # another worker has sent it
                files[path] = path.stat().st_size
        return files

    def _send(self) -> None:
        import boto3
        from botocore.config import Config

        files = self._files()
        if files:
            patience = Config(connect_timeout=5, read_timeout=30, retries={"total_max_attempts": 2})
            client = boto3.session.Session().client("s3", config=patience)
            bucket = os.environ.get("MODELMINT_BUCKET", "modelmint")
            for path in files:
                if self._ended.is_set():
                    return
                key = f"captured/{path.relative_to(self._folder)}"
                # Sent twice it is the same object: its name is its own.
                with suppress(FileNotFoundError):  # sent by another worker, or dropped
                    client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())
                    path.unlink()


def rates(text: str) -> dict[str, float]:
    """Line -> share of its rows, from `digits=0.05,flights=1`; raises ValueError."""
    found: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        line, _, share = part.partition("=")
        try:
            found[line.strip()] = float(share)
        except ValueError:
            found[line.strip()] = -1.0
        if not (matches(LINE, line.strip()) and 0 <= found[line.strip()] <= 1):
            raise ValueError(f"{SETTING}: {part!r} is not LINE=SHARE with a share from 0 to 1")
    return found


def _together(parts: list[Tensors]) -> Iterator[list[Tensors]]:
    """What goes into one file: a long row among many short ones would make it far too large."""
    some: list[Tensors] = []
    rows, longest = 0, 0.0
    for part in parts:
        longest = max(longest, _size(part) / _rows(part))
        rows += _rows(part)
        if some and rows * longest > MOST_BYTES:
            yield some
            some, rows, longest = [], _rows(part), _size(part) / _rows(part)
        some.append(part)
    yield some


def _size(tensors: Tensors) -> int:
    """Bytes in a file, where texts are as long as the longest of them."""
    found = 0
    for array in tensors.values():
        width = array.itemsize
        if array.dtype == object:
            width = max(len(samples.packed(text)) for text in array.flat)
        found += array.size * width
    return found


def _rows(tensors: Tensors) -> int:
    return len(next(iter(tensors.values())))
