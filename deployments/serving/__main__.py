"""Run the model server.

    python -m deployments.serving --repository DIR --port 8080

Serves only versions signed by a key of the folder MODELMINT_KEYS names, to callers who show an API
key; the first one is written to a file, mode 0600. Answers within a second of
its start when its versions are small, and exits with code 0 on SIGTERM once the requests in flight
are answered.
"""

import argparse
import logging
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

DRAIN_SECONDS = 8
"""Under the 10 s after which `deployments.local` and Docker kill."""


def main() -> None:
    """Restore the repository, then serve until told to stop."""
    options = _parser().parse_args()
    # uvicorn raises a caught signal again once drained: here that is a clean exit, not a failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # Imported here: --help and a wrong option need none of it.
    import uvicorn

    from deployments.serving.access import Access
    from deployments.serving.app import create
    from deployments.serving.capture import SETTING, Capture, rates
    from deployments.serving.protocol import ProtocolError
    from deployments.serving.repository import Repository
    from models.trust import trust

    try:
        repository = Repository(options.repository, trust())
        repository.restore()
    except OSError as error:
        sys.exit(f"the repository cannot be used ({error.strerror}): another server may hold it")
    except ValueError as error:
        sys.exit(f"state.json cannot be read: restore it, or delete it to start empty\n{error}")
    private = options.private or options.repository / ".server"
    try:
        access = Access(private)
        access.keys.first(options.first_key or private / "first-key")
    except (OSError, ValueError, ProtocolError) as error:
        sys.exit(f"the keys in {private} cannot be used: restore keys.json\n{error}")
    try:
        shares = rates(os.environ.get(SETTING, ""))
    except ValueError as error:
        sys.exit(str(error))
    with Capture(private / "captured", shares) as capture:
        app = create(
            repository, access, max_body=options.max_body, body_seconds=options.body_seconds,
            capture=capture if shares else None,
        )  # fmt: skip
        uvicorn.run(
            app,
            host=options.host,
            port=options.port,
            loop="uvloop",
            http="httptools",
            ws="none",
            lifespan="off",
            access_log=False,
            server_header=False,
            log_config=None,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )


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
    parser.add_argument("--max-body", type=int, default=16_000_000, help="bytes of a request body")
    parser.add_argument(
        "--body-seconds", type=float, default=30.0, help="seconds a body may take to arrive"
    )
    levels = ("debug", "info", "warning", "error")
    parser.add_argument("--log-level", choices=levels, default="warning", help="least level logged")
    return parser


def _stop(signal_number: int, frame: object) -> NoReturn:
    del signal_number, frame
    sys.exit(0)


if __name__ == "__main__":
    main()
