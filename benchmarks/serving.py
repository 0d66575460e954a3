"""Requests a second and latency of the model server, against other servers and against its limit.

    python -m benchmarks.serving [--peers litserve,bentoml,...] [--connections 1,8,64,512]

One row a request. In binary every one is another row, in JSON all are alike and `no-store`, so that
no cache answers; a peer gets one row again and again in JSON. Keys, usage, audit and metrics
are on. The load comes from wrk (Debian: wrk), which shares the cores with the server.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks.measuring import ROOT, cpu_seconds, options, publish
from benchmarks.served import MODELS, Model, Served, model, modelmint
from benchmarks.serving_peers import BINARY, PACKAGES, request, serving

SCRIPT = Path(__file__).with_name("wrk.lua")


class Load(NamedTuple):
    """A request to repeat, to one path."""

    path: str
    body: bytes
    headers: Mapping[str, str]
    vary: bool = True
    """Whether the last four bytes are a number that counts up."""


class Figures(NamedTuple):
    """What a load found: requests a second, milliseconds, CPU microseconds a request."""

    rate: float
    p50: float
    p99: float
    failed: int
    cpu: float
    """Of the server's processes; a busy machine changes it least."""


def measure(server: Served, load: Load, connections: int, seconds: float, folder: Path) -> Figures:
    """Keep so many connections busy for a while, after a short warm-up."""
    body = folder / "body"
    body.write_bytes(load.body)
    headers = [part for name, value in load.headers.items() for part in ("-H", f"{name}: {value}")]
    command = ["wrk", "-t1", f"-c{connections}", "--timeout", "30s", "-s", str(SCRIPT), *headers]
    for duration in (1, seconds):
        before = tree_cpu_seconds(server.process.pid)
        said = subprocess.run(
            [*command, f"-d{duration:g}s", server.url + load.path, "--", str(body),
             "vary" if load.vary else "same"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    found = json.loads(said.stdout.splitlines()[-1])
    rate = found["requests"] / found["seconds"]
    cpu = (tree_cpu_seconds(server.process.pid) - before) / max(1, found["requests"])
    return Figures(rate, found["p50"], found["p99"], found["failed"], cpu * 1e6)


def tree_cpu_seconds(pid: int) -> float:
    """CPU seconds of a process and its living descendants."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(cpu_seconds(process.pid) for process in processes)


def limit(found: Model, rows: int, seconds: float) -> float:
    """Rows a second of ONNX Runtime in this process on one core."""
    session, batch = found.session(), {found.input: found.rows[:rows]}
    session.run(None, batch)
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        session.run(None, batch)
        count += rows
    return count / spent


def ours(found: Model, form: str, headers: Mapping[str, str]) -> Load:
    """One row to our server, in binary or JSON."""
    path = f"/v2/models/{found.name}/infer"
    if form == "json":
        # It is the same every time, so the cache must not answer.
        more = {"content-type": "application/json", "cache-control": "no-store"}
        return Load(path, found.json(), {**headers, **more}, vary=False)
    body, length = found.binary()
    return Load(path, body, {**headers, "inference-header-content-length": str(length),
                             "content-type": "application/octet-stream"})  # fmt: skip


def theirs(
    name: str, found: Model, forms: Iterable[str], headers: Mapping[str, str]
) -> dict[str, Load]:
    """One row to a peer, by form: JSON, or for a few of them what our server gets."""
    if name in BINARY:
        return {form: ours(found, form, headers) for form in forms}
    return {"json": Load(*request(name, found), headers, vary=False)}


def main() -> None:
    """Measure and publish."""
    parser = options(__doc__, turns=1)
    parser.add_argument("--connections", default="1,8,64,512", help="numbers of connections")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--models", default=",".join(MODELS), help="networks to serve")
    parser.add_argument("--forms", default="binary,json", help="forms of the request")
    parser.add_argument("--server-options", default="", help="more options of our server")
    parser.add_argument("--workers", default="2", help="processes of our server")
    parser.add_argument(
        "--peers", default="", help=f"other servers to measure: {','.join(PACKAGES)}"
    )
    parser.add_argument(
        "--venvs", type=Path, default=ROOT / ".venvs", help="folder of the peers' venvs"
    )
    parser.add_argument("--code", type=Path, help="also measure the server of another checkout")
    given = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed: apt-get install wrk")
    models = [model(name) for name in given.models.split(",")]
    rows: list[dict[str, Any]] = []
    numbers = [int(number) for number in given.connections.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        for found in models:
            for batch in (1, 32):
                rate = limit(found, batch, given.seconds / 2)
                rows.append(row(found, f"ONNX Runtime, batch {batch}, 1 core", "", "", rate))
        codes = {"modelmint": ROOT} | ({"other code": given.code} if given.code else {})
        # An earlier server knows no workers.
        workers = [] if given.code else ["--workers", given.workers]
        for name, code in codes.items():
            place = Path(folder) / name
            place.mkdir()
            more = [*workers, *given.server_options.split()]
            with modelmint(models, place, *more, code=code) as server:
                for found in models:
                    for form in given.forms.split(","):
                        load = ours(found, form, server.headers)
                        for connections in numbers:
                            figures = measure(server, load, connections, given.seconds, place)
                            rows.append(row(found, name, form, connections, *figures))
        for name in filter(None, given.peers.split(",")):
            for found in models:
                place = Path(folder) / f"{name}-{found.name}"
                place.mkdir()
                most = 32 if found.name == "wide" else 1
                with serving(name, found, place, given.venvs, most) as server:
                    loads = theirs(name, found, given.forms.split(","), server.headers)
                    if name == "torchserve":
                        # Java compiles in its first seconds.
                        measure(server, loads["json"], 8, 10, place)
                    for form, load in loads.items():
                        for connections in numbers:
                            figures = measure(server, load, connections, given.seconds, place)
                            rows.append(row(found, name, form, connections, *figures))
    publish("serving", {"rows": rows}, rows, ["onnxruntime", "starlette", "uvicorn"], given.json)


def row(found: Model, server: str, form: str, connections: Any, rate: float, *rest: float) -> Any:
    """One line of the table."""
    named: Iterable[Any] = zip(("p50 ms", "p99 ms", "failed", "CPU us"), rest, strict=False)
    head = {"model": found.name, "server": server, "form": form, "connections": connections}
    return head | {"rows/s": round(rate, 1)} | {name: round(value, 2) for name, value in named}


if __name__ == "__main__":
    main()
