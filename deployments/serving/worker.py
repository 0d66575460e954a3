"""One worker process of the model server: the application over the repository it follows."""

import logging
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel
from starlette.types import ASGIApp

from deployments.serving.logs import configure

if TYPE_CHECKING:
    from deployments.serving.tracing import Tracing

DRAIN_SECONDS = 8
"""Under the 10 s after which `deployments.local` and Docker kill."""
SETTING = "MODELMINT_SERVER"
"""The variable that hands the options to the workers."""
WAIT_SECONDS = 1.0
COLLECTORS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Either names who is sent traces; without one there are none."""
_log = logging.getLogger("modelmint.serving")


class Options(BaseModel):
    """What `python -m deployments.serving` was told."""

    repository: Path
    private: Path
    max_body: int
    body_seconds: float
    bodies_mb: float
    log_level: str
    log_format: str
    allow_origin: list[str]
    memory_mb: float | None
    workers: int
    timeout_seconds: float
    decoders: int
    decode_mb: float
    decode_seconds: int
    cache_bytes: int
    no_cache: list[str]
    host: str
    grpc_port: int | None
    https_port: int | None
    certificate: str | None
    private_key: str | None


def application() -> ASGIApp:
    """The application of this process, restored and following; what uvicorn calls in each worker.

    Raises OSError and ValueError when the repository cannot be used.
    """
    options = Options.model_validate_json(os.environ[SETTING])
    _end_with_parent()
    configure(options.log_level, options.log_format)
    from deployments.serving import metric_files

    _wait(options)
    metric_files.begin(options.private / "metrics")
    from deployments.serving.access import Access
    from deployments.serving.app import create
    from deployments.serving.capture import SETTING as CAPTURE
    from deployments.serving.capture import Capture, rates
    from deployments.serving.decoder import Limits
    from deployments.serving.http import Address
    from deployments.serving.inference import Settings
    from deployments.serving.recorder import Recorder
    from deployments.serving.repository import Repository
    from deployments.serving.tls import also_secure
    from deployments.serving.traffic import Traffic
    from models.trust import trust

    memory = None if options.memory_mb is None else int(options.memory_mb * 1e6)
    repository = Repository(options.repository, trust(), memory)
    access = Access(options.private)
    recorder = Recorder(repository)
    repository.restore()
    repository.follow()
    recorder.start()
    settings = Settings(
        slots=max(1, len(os.sched_getaffinity(0)) // options.workers),
        seconds=options.timeout_seconds,
        cache_bytes=options.cache_bytes,
        uncached=frozenset(options.no_cache),
        limits=Limits(options.decoders, int(options.decode_mb * 1e6), options.decode_seconds),
    )
    shares = rates(os.environ.get(CAPTURE, ""))
    capture = Capture(options.private / "captured", shares) if shares else None
    tls = options.certificate, options.private_key
    address = Address(options.host, options.grpc_port, *tls) if options.grpc_port else None
    secure = Address(options.host, options.https_port, *tls) if options.https_port else None
    made = create(
        repository,
        access,
        recorder,
        Traffic(repository, access.journal, options.private / "trials"),
        max_body=options.max_body,
        body_seconds=options.body_seconds,
        most_held=int(options.bodies_mb * 1e6),
        settings=settings,
        capture=capture,
        grpc=address,
        tracing=_tracing(),
        allow_origin=options.allow_origin,
    )
    return made if secure is None else also_secure(made, secure, DRAIN_SECONDS)


def _wait(options: Options) -> None:
    """Wait for what this worker needs: without it, it would end, to be started again and again."""
    told = ""
    # uvicorn's own handlers wait for the application, which would be for ever.
    numbers = signal.SIGTERM, signal.SIGINT
    before = [signal.signal(number, lambda *_: os._exit(0)) for number in numbers]
    while why := _missing(options):
        if why != told:
            _log.error("%s; this worker starts after that", why)
            told = why
        time.sleep(WAIT_SECONDS)
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def _missing(options: Options) -> str:
    from deployments.serving.disk import Damaged, full
    from deployments.serving.keys import read_keys
    from deployments.serving.state import read_state

    for folder in full(options.private, options.repository):
        return f"the disk of {folder} is full: make room"
    try:
        read_keys(options.private)
        read_state(options.repository)
    except Damaged as error:
        return str(error)
    return ""


def _tracing() -> "Tracing | None":
    if not any(os.environ.get(name) for name in COLLECTORS):
        return None
    from deployments.serving.tracing import Tracing

    return Tracing()


def _end_with_parent() -> None:
    """Drain and end when the process that started this worker is gone, even killed."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(DRAIN_SECONDS + 2)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
