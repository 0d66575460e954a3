"""The server of released models in a laptop run: `deployments.serving` on loopback."""

import os
import sys
from pathlib import Path

from deployments.local.ports import HOST, Ports, unanswered
from deployments.local.service import Running, Service, ServiceError

FIRST_KEY = "api-key"
WORKERS_SETTING = "MODELMINT_WORKERS"
CERTIFICATE_SETTING, PRIVATE_KEY_SETTING = "MODELMINT_CERTIFICATE", "MODELMINT_PRIVATE_KEY"


def use_workers(count: int | None) -> None:
    """Have a model server that is started from here on serve with so many processes."""
    if count is not None:
        os.environ[WORKERS_SETTING] = str(count)


def use_https(
    home: Path, wanted: bool, certificate: Path | None = None, private_key: Path | None = None
) -> None:
    """Have a model server that is started from here on answer on an https port too.

    With a pair of PEM files, or with a certificate of this machine's own. Raises ServiceError for
    half a pair, and when one runs already that does not.
    """
    if (certificate is None) != (private_key is None):
        raise ServiceError("a certificate and its private key belong together: name both")
    if certificate is not None and private_key is not None:
        pair = certificate.resolve(), private_key.resolve()
    elif wanted:
        from deployments.local.certificate import local_certificate

        pair = local_certificate(home / "tls")
    else:
        return
    os.environ[CERTIFICATE_SETTING], os.environ[PRIVATE_KEY_SETTING] = map(str, pair)
    running = model_server(home).running()
    if running is not None and "https" not in running.ports:
        raise ServiceError(
            "the model server runs already, without https: end what uses it, then start it again"
        )


def addresses(home: Path) -> dict[str, str]:
    """Where else the home's running server listens: `grpc`, and `https` where it has TLS."""
    running = model_server(home).running()
    if running is None or "grpc" not in running.ports:
        return {}
    ports = running.ports
    if "https" not in ports:
        return {"grpc": f"grpc://{HOST}:{ports['grpc']}"}
    return {"grpc": f"grpcs://{HOST}:{ports['grpc']}", "https": f"https://{HOST}:{ports['https']}"}


def model_server(home: Path) -> Service:
    """The model server that answers for the versions in `home/serving`."""
    home = home.resolve()
    secure = ("https",) if CERTIFICATE_SETTING in os.environ else ()
    return Service(
        name="model-server",
        # Not the repository itself: its folders are models.
        state=home / "model-server",
        command=lambda ports: _command(home / "serving", ports),
        missing=lambda ports: unanswered(ports["http"], "/v2/health/live", {200}),
        ports=("http", "grpc", *secure),
    )


def environment(home: Path, running: Running) -> dict[str, str]:
    """The variables with which clients find the server and are let in.

    A key that MODELMINT_API_KEY names already is used rather than the first one.
    """
    key = os.environ.get("MODELMINT_API_KEY") or (home.resolve() / FIRST_KEY).read_text().strip()
    return {"MODELMINT_ENDPOINT": running.url, "MODELMINT_API_KEY": key}


def _command(repository: Path, ports: Ports) -> list[str]:
    server = [sys.executable, "-m", "deployments.serving"]
    address = ["--host", HOST, "--port", str(ports["http"])]
    first_key = ["--first-key", str(repository.parent / FIRST_KEY)]
    workers = ["--workers", os.environ.get(WORKERS_SETTING, "1")]
    options = [*address, *workers, "--repository", str(repository), *first_key]
    options += ["--grpc-port", str(ports["grpc"])]
    if "https" in ports:
        files = os.environ[CERTIFICATE_SETTING], os.environ[PRIVATE_KEY_SETTING]
        options += ["--https-port", str(ports["https"])]
        options += ["--certificate", files[0], "--private-key", files[1]]
    return [*server, *options]
