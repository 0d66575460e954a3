"""Commands that keep the whole stack up: up, status, logs, restart, down."""

import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.command.output import AsJson, Certificate, Https, PrivateKey, Workers, show

if TYPE_CHECKING:
    from rich.console import Console

    from deployments.local.supervisor import Status

app = typer.Typer()
ServiceName = Annotated[str, typer.Argument(help="Name of a service; see `modelmint status`.")]


@app.command()
def up(
    detach: Annotated[bool, typer.Option("--detach", help="Return once all of it serves.")] = False,
    workers: Workers = None,
    https: Https = False,
    certificate: Certificate = None,
    private_key: PrivateKey = None,
    as_json: AsJson = False,
) -> None:
    """Bring the whole stack up on this machine and keep it up, until Ctrl-C or `down`."""
    from rich.console import Console

    from deployments.local import supervisor
    from deployments.local.model_server import use_https, use_workers
    from deployments.local.stack import home

    supervisor.refuse_elsewhere()
    use_workers(workers)
    use_https(home(), https, certificate, private_key)
    ended = threading.Event()
    if not detach:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: ended.set())
    screen = Console(stderr=True)
    begins = not any(one.pid for one in supervisor.status())
    try:
        with screen.status("starting the stack"):
            found = supervisor.up(ended)
        if ended.is_set():
            raise typer.Abort
        _show(found, as_json)
        if not detach:
            sys.stdout.flush()
            _stay(ended, screen)
    except BaseException:
        if begins and not detach:
            # Nobody stays who would end what this command has started, which is all there is.
            ended.set()
        raise
    finally:
        if ended.is_set():
            supervisor.down()


def _stay(ended: threading.Event, screen: "Console") -> None:
    """Wait for the end of this command, or of the stack it has brought up."""
    from deployments.local import supervisor
    from deployments.local.stack import home

    mine = supervisor.supervisor(home())
    begun = mine.running()
    while not ended.wait(1.0):
        if mine.running() != begun:
            # Whoever ended it, what is up now is not this command's to end.
            screen.print("the stack was ended elsewhere (`modelmint down`), or Supervisor died")
            return


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show every service: address, health, version, process and memory.

    Exit code 0: all of it serves; 1: something does not.
    """
    from deployments.local import supervisor

    found = supervisor.status()
    _show(found, as_json)
    raise typer.Exit(0 if all(one.healthy for one in found) else 1)


@app.command()
def logs(
    service: Annotated[str | None, typer.Argument(help="Only this service.")] = None,
    lines: Annotated[int, typer.Option(min=1, help="Lines of each.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until Ctrl-C.")] = False,
) -> None:
    """Print the last lines that services have logged."""
    from deployments.local import supervisor
    from deployments.local.stack import home

    chosen = [supervisor.find(service)] if service else supervisor.services(home())
    files = [str(one.log) for one in chosen if one.log.exists()]
    if files:
        subprocess.run(["tail", f"-n{lines}", *(["-F"] if follow else []), *files], check=False)


@app.command()
def restart(service: ServiceName) -> None:
    """Start one service anew, for instance a Dask worker after its code was changed."""
    from deployments.local import supervisor

    supervisor.restart(service)


@app.command()
def down() -> None:
    """End every process of the stack; data, versions and records stay."""
    from deployments.local import supervisor

    supervisor.down()


def _show(found: "list[Status]", as_json: bool) -> None:
    rows: list[dict[str, Any]] = [one._asdict() for one in found]
    show(as_json, {"services": rows}, lambda: _table(found))


def _table(found: "list[Status]") -> None:
    from rich.console import Console
    from rich.table import Table

    drawn = Table("service", "address", "health", "version", "pid", "MB", box=None)
    drawn.columns[0].no_wrap = drawn.columns[1].no_wrap = True
    for one in found:
        health = "[green]healthy[/green]" if one.healthy else f"[red]{one.problem}[/red]"
        memory = f"{one.memory_mb:.0f}"
        urls = "\n".join((one.url, *one.others))
        drawn.add_row(one.name, urls, health, one.version, str(one.pid or ""), memory)
    Console().print(drawn)
