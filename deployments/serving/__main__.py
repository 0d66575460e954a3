"""Run the model server.

    python -m deployments.serving --repository DIR --port 8080 --workers 2

Serves only versions signed by a key of the folder MODELMINT_KEYS names, to callers who show an API
key; the first one is written to a file, mode 0600. Answers within a second of
its start when its versions are small, and exits with code 0 on SIGTERM once the requests in flight
are answered.

Several workers share one port and one repository; one that dies is started again. They end with
the process that started them.
"""

import argparse
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

from deployments.serving.defaults import (
    ANSWER_SECONDS,
    BODY_SECONDS,
    CACHE_BYTES,
    DECODE_BYTES,
    DECODE_SECONDS,
    DECODERS,
    MAX_BODY,
    MOST_HELD,
)
from deployments.serving.logs import FORMATS, configure


def main() -> None:
    """Check what the workers need, then serve until told to stop."""
    parser = _parser()
    options = parser.parse_args()
    if bool(options.certificate) != bool(options.private_key):
        parser.error("--certificate and --private-key belong together")
    if options.https_port and not options.certificate:
        parser.error("--https-port needs --certificate and --private-key")
    # uvicorn raises a caught signal again once drained: here that is a clean exit, not a failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    configure(options.log_level, options.log_format)
    private = options.private or options.repository / ".server"
    # prometheus_client looks when it is imported; the workers of one server count together there.
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(private / "metrics")
    # Imported here: --help and a wrong option need none of it.
    import uvicorn
    from uvicorn.supervisors import Multiprocess

    from deployments.serving import metrics, tls
    from deployments.serving.folder import adopt, hold
    from deployments.serving.keys import Keys
    from deployments.serving.protocol import ProtocolError
    from deployments.serving.state import read_state
    from deployments.serving.worker import DRAIN_SECONDS, SETTING, Options

    try:
        held = hold(options.repository)
        adopt(options.repository, read_state(options.repository).lines)
    except OSError as error:
        sys.exit(f"the repository cannot be used ({error.strerror}): another server may hold it")
    except ValueError as error:
        sys.exit(f"state.json cannot be read: restore it, or delete it to start empty\n{error}")
    metrics.share(private / "metrics")
    _check_room(private, options.repository)
    try:
        Keys(private).first(options.first_key or private / "first-key")
    except (OSError, ValueError, ProtocolError) as error:
        sys.exit(f"the keys in {private} cannot be used: restore keys.json\n{error}")
    _check_free(options.host, gRPC=options.grpc_port, https=options.https_port)
    given: dict[str, Any] = {}
    if options.certificate:
        _check_pair(options.certificate, options.private_key)
        if not options.https_port:
            given = tls.settings(options.certificate, options.private_key)
    _check_exporter()
    _check_capture()
    told = {name: getattr(options, name) for name in Options.model_fields} | {"private": private}
    os.environ[SETTING] = Options(**told).model_dump_json()
    config = uvicorn.Config(
        "deployments.serving.worker:application",
        factory=True,
        workers=options.workers,
        host=options.host,
        port=options.port,
        loop="uvloop",
        http="deployments.serving.connection:Connection",
        ws="none",
        lifespan="on",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        log_config=None,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        headers=tls.HEADERS + (tls.TLS_HEADERS if given else []),
        **given,
    )
    with held:
        if options.workers == 1:
            uvicorn.Server(config).run()
            return

        class Workers(Multiprocess):
            def terminate_all(self) -> None:
                # Nobody is to wait at a door behind which nobody serves any more.
                for one in self.sockets:
                    one.close()
                super().terminate_all()

        Workers(config, [config.bind_socket()]).run()


def _check_pair(certificate: str, private_key: str) -> None:
    from deployments.serving import tls

    try:
        tls.check(certificate, private_key)
    except OSError as error:
        sys.exit(f"certificate and private key cannot be used, or are no pair: {error}")


def _check_free(host: str, **ports: int | None) -> None:
    # The workers share these ports, so none of them would notice that one is taken.
    for name, port in ports.items():
        try:
            if port is not None:
                socket.create_server((host, port)).close()
        except OSError as error:
            sys.exit(f"{name} cannot listen at {host}:{port}: {error.strerror}")


def _check_room(*folders: Path) -> None:
    from deployments.serving.disk import full

    for folder in full(*folders):
        sys.exit(f"the disk of {folder} is full: make room")


def _check_capture() -> None:
    from deployments.serving import capture

    try:
        capture.rates(os.environ.get(capture.SETTING, ""))
    except ValueError as error:
        sys.exit(str(error))


def _check_exporter() -> None:
    from deployments.serving.worker import COLLECTORS

    named = [name for name in COLLECTORS if os.environ.get(name)]
    try:
        if named:
            import opentelemetry.exporter.otlp.proto.http.trace_exporter  # noqa: F401
    except ImportError:
        sys.exit(f"{named[0]} is set, and nothing here can send traces: install modelmint[tracing]")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="deployments.serving", description="The model server.")
    parser.add_argument("--repository", type=Path, required=True, help="folder of versions, state")
    parser.add_argument(
        "--private", type=Path, help="folder of API keys, usage and audit log (in the repository)"
    )
    parser.add_argument(
        "--first-key", type=Path,
        help="file of the key that may do everything; written when there are no keys yet",
    )  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on")
    parser.add_argument("--grpc-port", type=int, help="port of gRPC; without one there is none")
    parser.add_argument(
        "--https-port", type=int,
        help="port of TLS beside a plain --port; without one --port itself has TLS",
    )  # fmt: skip
    parser.add_argument("--workers", type=_count, default=1, help="processes that serve it")
    parser.add_argument(
        "--certificate",
        help="PEM file of the certificate chain for TLS, gRPC's too; watched for changes",
    )
    parser.add_argument("--private-key", help="PEM file of its private key")
    parser.add_argument(
        "--allow-origin", action="append", default=[], metavar="ORIGIN",
        help="origin whose pages may ask from a browser (CORS); may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--memory-mb", type=float,
        help="budget of each worker for versions; those it cannot hold are opened when asked for",
    )  # fmt: skip
    parser.add_argument("--max-body", type=int, default=MAX_BODY, help="bytes of a request body")
    parser.add_argument(
        "--body-seconds", type=float, default=BODY_SECONDS, help="seconds a body may take to arrive"
    )
    parser.add_argument(
        "--bodies-mb", type=_positive, default=MOST_HELD / 1e6,
        help="memory of each worker for bodies, at least two of the largest; a tenant has half",
    )  # fmt: skip
    parser.add_argument(
        "--timeout-seconds",
        type=float,
        default=ANSWER_SECONDS,
        help="seconds until an answer must be there",
    )
    parser.add_argument(
        "--decoders", type=_count, default=DECODERS,
        help="processes of each worker that decode images, sounds, tables, texts",
    )  # fmt: skip
    parser.add_argument(
        "--decode-mb",
        type=_positive,
        default=DECODE_BYTES / 1e6,
        help="memory one request may take to decode",
    )
    parser.add_argument(
        "--decode-seconds",
        type=_count,
        default=DECODE_SECONDS,
        help="CPU seconds it may take to decode",
    )
    parser.add_argument(
        "--cache-bytes", type=int, default=CACHE_BYTES, help="response cache of a worker; 0 is none"
    )
    parser.add_argument(
        "--no-cache", action="append", default=[], metavar="LINE", help="never keep its answers"
    )
    levels = ("debug", "info", "warning", "error")
    parser.add_argument("--log-level", choices=levels, default="warning", help="least level logged")
    parser.add_argument(
        "--log-format", choices=FORMATS, default="text", help="json: one object a line"
    )
    return parser


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 256:
        raise argparse.ArgumentTypeError("must be a whole number from 1 to 256")
    return int(text)


def _positive(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 1 <= found <= 1e6:
        raise argparse.ArgumentTypeError("must be a number from 1 to 1,000,000")
    return found


def _stop(signal_number: int, frame: object) -> NoReturn:
    del signal_number, frame
    sys.exit(0)


if __name__ == "__main__":
    main()
