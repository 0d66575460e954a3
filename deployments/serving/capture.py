"""A sample of what callers send, kept for monitoring; off unless MODELMINT_CAPTURE names a line.

    MODELMINT_CAPTURE=digits=0.05,flights=1      a share of the rows, for each line

Rows are kept as the network takes them, with no trace of who sent them. They are gathered in
memory, written to files below the server's private folder, and put into the bucket by a thread:

    captured/<line>/<version digest>/<milliseconds since 1970>-<rows>-<random>.safetensors

No request waits for that. While the store is away files stay, up to `LARGEST_SPOOL`; then the
oldest go. A kill loses at most the rows of the last `SECONDS`.
"""

import logging
import os
import secrets
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from deployments.serving.folder import LINE, matches
from deployments.serving.protocol import Tensors
from deployments.serving.session import Served
from models import samples
from models.files import write
from models.padding import joined

SETTING = "MODELMINT_CAPTURE"
ROWS = 1000
"""Rows that are written at once; after `SECONDS` fewer are."""
SECONDS = 30.0
MOST = 50
"""Times `ROWS` that are in memory at most; beyond that nothing is kept until they are written."""
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
        self._waiting = 0
        self._ended = threading.Event()
        self._due = threading.Event()
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        if rates:
            folder.mkdir(parents=True, exist_ok=True)
            self._thread.start()

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
        with self._lock:
            if self._waiting >= MOST * ROWS:
                return
            self._gathered.setdefault((served.line, served.digest), []).append(part)
            self._waiting += _rows(part)
            if self._waiting >= ROWS:
                self._due.set()

    def close(self) -> None:
        """Write what was gathered to the folder; what is there is sent by the next start."""
        if self._rates:
            self._ended.set()
            self._due.set()
            self._thread.join(timeout=5)
            self._write()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self._write()
                self._send()
            except Exception as error:  # whatever it is, predictions go on
                _log.warning("captured inputs wait in %s: %s", self._folder, error)
            self._due.wait(self._seconds)
            self._due.clear()

    def _write(self) -> None:
        with self._lock:
            gathered, self._gathered, self._waiting = self._gathered, {}, 0
        for (line, digest), parts in gathered.items():
            whole = {n: joined([part[n] for part in parts]) for n in parts[0]}
            name = f"{time.time_ns() // 1_000_000}-{_rows(whole)}-{secrets.token_hex(8)}"
            folder = self._folder / line / digest
            folder.mkdir(parents=True, exist_ok=True)
            write(folder / f"{name}.safetensors", samples.save(whole))

    def _send(self) -> None:
        import boto3
        from botocore.config import Config

        files: dict[Path, int] = {}
        for path in sorted(self._folder.glob("*/*/*.safetensors"), key=lambda path: path.name):
            with suppress(FileNotFoundError):  # another worker has sent it
                files[path] = path.stat().st_size
        while sum(files.values()) > LARGEST_SPOOL:
            oldest = next(iter(files))
            del files[oldest]
            oldest.unlink(missing_ok=True)
            _log.warning("%s was dropped: the store is away for too long", oldest.name)
        if files:
            patience = Config(connect_timeout=5, read_timeout=30, retries={"total_max_attempts": 2})
            client = boto3.session.Session().client("s3", config=patience)
            bucket = os.environ.get("MODELMINT_BUCKET", "modelmint")
            for path in files:
                key = f"captured/{path.relative_to(self._folder)}"
                # Sent twice it is the same object: its name is its own.
                with suppress(FileNotFoundError):
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


def _rows(tensors: Tensors) -> int:
    return len(next(iter(tensors.values())))
