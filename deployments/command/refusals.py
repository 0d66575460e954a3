"""What a command says when it is refused, and when it fails: a refusal is no bug."""

import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer

# How libraries say that a service does not answer or refuses; sockets and files raise OSError.
OUTAGES = (
    ("mlflow.exceptions", "MlflowException"),
    ("httpx", "HTTPError"),
    ("distributed", "KilledWorker"),
)


@contextmanager
def refusing(what: str, as_json: bool) -> Iterator[None]:
    """A refusal inside is one line, its reason, and exit code 2.

    Anything else is a bug: its traceback, and exit code 70 (EX_SOFTWARE), which no verdict has.
    """
    try:
        yield
    except Exception as error:
        refused = is_refusal(error)
        said = what if refused else "this is a bug of Modelmint"
        reason = f"{type(error).__name__}: {error}"
        if not refused or os.environ.get("MODELMINT_TRACEBACK"):
            traceback.print_exc()
        if as_json:
            print(json.dumps({"error": said, "reason": reason}), flush=True)
        else:
            typer.echo(f"modelmint: {said}: {reason}", err=True)
        raise typer.Exit(2 if refused else os.EX_SOFTWARE) from None


def is_refusal(error: Exception) -> bool:
    """Whether an error is no bug: something is not as it must be, or a service is down."""
    # Prefect says in a RuntimeError that its server does not answer; the cause tells.
    return any(isinstance(one, _refusals()) for one in (error, error.__cause__))


def _refusals() -> tuple[type[Exception], ...]:
    """What says that a version, or this place, is not as it must be, and services that are down."""
    from deployments.local.service import ServiceError
    from models.catalog import LineError
    from models.digests import IntegrityError
    from models.trust import TrustError
    from tasks.export import ExportError
    from tasks.identity import OtherCodeError
    from tasks.isolated import ResourceError
    from tasks.lease import LeaseError
    from tasks.openssf import MissingLibraryError
    from tasks.promotion import PromotionError
    from tasks.recorded import CannotReplayError
    from tasks.register import UnknownVersionError
    from tasks.server import DeploymentError
    from tasks.store import MissingError, StoreError

    ours = (
        CannotReplayError, DeploymentError, ExportError, IntegrityError, LeaseError, LineError,
        MissingError, MissingLibraryError, OtherCodeError, PromotionError, ResourceError,
        ServiceError, StoreError, TrustError, UnknownVersionError,
    )  # fmt: skip
    # What was never imported has raised nothing, and takes seconds to import.
    imported = (getattr(sys.modules.get(module), name, None) for module, name in OUTAGES)
    return (*ours, OSError, *filter(None, imported))
