"""Swaps: requests that meet fifty changes of the version in production, and what rollback takes.

    python -m benchmarks.swaps [--requests 100000] [--swaps 50] [--workers 2] [--clients 4] [--json]

About three minutes on two cores; `--requests 10000 --swaps 10` takes half of one. What is served is
the golden version of digits under two numbers: to the server a swap of any two is the same work.
The store and MLflow are down throughout. Each client asks without a pause on a connection of its
own; every other swap is a rollback. The same number of requests without swaps runs beside it, in
turns, since the slowest answer of a busy machine is not the server's doing alone.
Goals: no request fails, none takes over 50 ms because of a swap, rollback within 1 s.
"""

import http.client
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import psutil

from benchmarks import measuring
from benchmarks.startup import LINE, request_body
from deployments.local.model_server import FIRST_KEY
from deployments.local.ports import HOST, free_ports, unanswered
from deployments.serving.folder import version_folder
from models.signature import VERSION_FILE
from models.trust import KEYS_SETTING, TRUSTED

DOWN = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
GOLDEN = measuring.ROOT / "tests" / "golden" / "current" / LINE
EXTRA = 20
"""Copies of a version that are loaded to see what one more costs."""
GOALS = {"failed": 0, "slowest_ms": 50.0, "rollback_s": 1.0}


class Server(NamedTuple):
    """A server process, its port, and the key that may do everything."""

    process: "subprocess.Popen[bytes]"
    port: int
    headers: dict[str, str]

    def connect(self) -> http.client.HTTPConnection:
        """A connection of its own."""
        return http.client.HTTPConnection(HOST, self.port, timeout=60)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The answer to a control action; raises RuntimeError for a refusal."""
        connection = self.connect()
        try:
            connection.request("POST", path, json.dumps(body), self.headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {content.decode()}")
        return json.loads(content)

    def resident(self) -> int:
        """Bytes of memory of one worker; the largest."""
        root = psutil.Process(self.process.pid)
        tree = root.children(recursive=True) or [root]
        return max(int(process.memory_info().rss) for process in tree)


class Load(NamedTuple):
    """What the clients saw: milliseconds of every answer, and what was no answer."""

    milliseconds: list[float]
    failed: list[str]
    versions: set[str]


def main() -> None:
    """Measure, print, write the result."""
    parser = measuring.options(__doc__, turns=1)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clients", type=int, default=4)
    options = parser.parse_args()
    with measuring.temporary_home() as home:
        _trusted(home)
        body = request_body(GOLDEN)
        numbers = ["1", "2"]
        with _serving(home / "serving", options.workers) as server:
            for number in numbers:
                _loaded_as(server, home / "serving", number)
                server.post(f"/v1/lines/{LINE}/promote", {"version": number})
            quiet: list[Load] = []
            swapped: list[Load] = []
            seconds: list[tuple[str, float]] = []
            for _ in range(options.turns):
                quiet.append(_loaded(server, body, options, swaps=[]))
                swapped.append(_loaded(server, body, options, swaps=numbers, seconds=seconds))
            idle = [_rolled_back(server, numbers) for _ in range(10)]
            per_version = _memory(server, home / "serving")
    _publish(options, quiet, swapped, seconds, idle, per_version)


def _publish(
    options: Any, quiet: list[Load], swapped: list[Load], seconds: list[tuple[str, float]],
    idle: list[float], per_version: float,
) -> None:  # fmt: skip
    figures: dict[str, Any] = {"goals": GOALS, "swaps": options.swaps, "workers": options.workers}
    rows = []
    for name, loads in (("no swap", quiet), (f"{options.swaps} swaps", swapped)):
        spent = sorted(one for load in loads for one in load.milliseconds)
        failed = [one for load in loads for one in load.failed]
        found: dict[str, Any] = {
            "requests": len(spent) + len(failed),
            "failed": len(failed),
            "median_ms": median(spent),
            "p99_ms": spent[int(len(spent) * 0.99)],
            "p99.9_ms": spent[int(len(spent) * 0.999)],
            "slowest_ms": spent[-1],
            "problems": sorted(set(failed))[:5],
        }
        figures[name] = found
        rows.append({"": name, **{n: round(v, 2) for n, v in found.items() if n != "problems"}})
    changes = {"promote": "promote, under load", "rollback": "rollback, under load"}
    taken = {text: [s for kind, s in seconds if kind == name] for name, text in changes.items()}
    taken["rollback, idle"] = idle
    for name, took in taken.items():
        figures[name] = {"median_s": median(took), "slowest_s": max(took), "count": len(took)}
    figures["megabytes_per_version"] = per_version
    packages = ("onnxruntime", "starlette", "uvicorn")
    measuring.publish("swaps", figures, rows, packages, options.json)
    if not options.json:
        for name, took in taken.items():
            print(f"{name}: median {median(took):.3f} s, slowest {max(took):.3f} s")
        print(f"one more version: {per_version:.2f} MB in each worker")


def _trusted(home: Path) -> None:
    """Have the key count that signed the golden version."""
    key = (GOLDEN / "key.json").read_bytes()
    folder = home / "keys" / TRUSTED
    folder.mkdir(parents=True)
    (folder / f"{json.loads(key)['keyid']}.json").write_bytes(key)


@contextmanager
def _serving(repository: Path, workers: int) -> Iterator[Server]:
    port = free_ports(("http",), paired=False)["http"]
    address = ["--host", HOST, "--port", str(port), "--workers", str(workers)]
    command = measuring.python(
        "deployments.serving", *address, "--repository", str(repository), "--log-level", "error",
        "--first-key", str(repository.parent / FIRST_KEY),
    )  # fmt: skip
    keys = {KEYS_SETTING: str(repository.parent / "keys")}
    process = subprocess.Popen(command, cwd=measuring.ROOT, env=os.environ | keys | DOWN)
    try:
        for _ in range(600):
            serving = len(list((repository / ".workers").glob("*.json")))
            if serving >= workers and unanswered(port, "/v2/health/live", {200}) is None:
                break
            time.sleep(0.1)
        key = (repository.parent / FIRST_KEY).read_text().strip()
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        yield Server(process, port, headers)
    finally:
        process.terminate()
        process.wait()


def _loaded(
    server: Server, body: bytes, options: Any, swaps: list[str],
    seconds: list[tuple[str, float]] | None = None,
) -> Load:  # fmt: skip
    """So many requests by all clients, with swaps spread evenly among them."""
    found = Load([], [], set())
    share = options.requests // options.clients
    clients = [
        threading.Thread(target=_ask, args=(server, body, share, found))
        for _ in range(options.clients)
    ]
    for client in clients:
        client.start()
    for swap in range(options.swaps if swaps else 0):
        while len(found.milliseconds) < options.requests * (swap + 0.5) / options.swaps:
            if not any(client.is_alive() for client in clients):
                break
            time.sleep(0.002)
        kind = "rollback" if swap % 2 else "promote"
        # The second one went into production last: it is back after each pair of swaps.
        wanted = {} if kind == "rollback" else {"version": swaps[0]}
        start = time.perf_counter()
        server.post(f"/v1/lines/{LINE}/{kind}", wanted)
        if seconds is not None:
            seconds.append((kind, time.perf_counter() - start))
    for client in clients:
        client.join()
    if swaps and found.versions != set(swaps):
        raise RuntimeError(f"answered by {found.versions} and not by both of {swaps}")
    return found


def _ask(server: Server, body: bytes, count: int, found: Load) -> None:
    connection = server.connect()
    for _ in range(count):
        start = time.perf_counter()
        try:
            connection.request("POST", f"/v2/models/{LINE}/infer", body, server.headers)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            found.failed.append(repr(error))
            connection.close()
            continue
        spent = (time.perf_counter() - start) * 1000
        if answer.status == 200:
            found.milliseconds.append(spent)
            found.versions.add(str(answer.getheader("modelmint-version")))
        else:
            found.failed.append(f"{answer.status} {content[:100].decode()}")
    connection.close()


def _rolled_back(server: Server, numbers: list[str]) -> float:
    server.post(f"/v1/lines/{LINE}/promote", {"version": numbers[0]})
    start = time.perf_counter()
    server.post(f"/v1/lines/{LINE}/rollback", {})
    return time.perf_counter() - start


def _memory(server: Server, repository: Path) -> float:
    """Megabytes that one more version adds to a worker."""
    before = server.resident()
    for extra in range(1000, 1000 + EXTRA):
        _loaded_as(server, repository, str(extra))
    return (server.resident() - before) / EXTRA / 1e6


def _loaded_as(server: Server, repository: Path, number: str) -> None:
    """Load the golden version under a number."""
    shutil.copytree(GOLDEN, version_folder(repository, LINE, number))
    digest = json.loads((GOLDEN / VERSION_FILE).read_bytes())["digest"]
    wanted = {"parameters": {"version": number, "digest": digest}}
    server.post(f"/v2/repository/models/{LINE}/load", wanted)


if __name__ == "__main__":
    main()
