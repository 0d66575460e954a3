"""The watcher of `modelmint up`: `deployments.watcher` on loopback, told by the store's webhook."""

import secrets
import sys
from pathlib import Path

from deployments.local import store
from deployments.local.ports import HOST, Ports, unanswered
from deployments.local.service import Service
from models.files import write


def watcher(home: Path) -> Service:
    """The process that starts runs for new data and for runs that died."""
    state = home.resolve() / "watcher"
    return Service(
        name="watcher",
        state=state,
        command=lambda _: [sys.executable, "-m", "deployments.watcher"],
        missing=lambda ports: unanswered(ports["http"], "/health", {200}),
        environment=lambda ports: {
            "MODELMINT_WATCH_HOST": HOST,
            "MODELMINT_WATCH_PORT": str(ports["http"]),
            "MODELMINT_WATCH_TOKEN": _token(state),
        },
    )


def tell_store(home: Path, ports: Ports) -> None:
    """Have the store, when it starts, tell a watcher on these ports what happens below `raw/`."""
    url = f"http://{HOST}:{ports['http']}/hints"
    store.notify(home, url, _token(home.resolve() / "watcher"))


def _token(state: Path) -> str:
    path = state / "token"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, secrets.token_hex(20).encode())
    return path.read_text()
