"""A soak: minutes of mixed requests to a model server, and whether its memory stays flat.

    python -m benchmarks.soak [--minutes 10] [--workers 2] [--clients 4] [--rate 100] [--json]

Each client sends, `--rate` times a second at most: tensors in binary and in JSON, images that are
decoded, and requests that are refused (a wrong shape, no image, an unknown line), new rows each
time. Memory is the proportional sets (PSS, a shared page counts once) of all processes of the
server, every five seconds. Goals: no request fails (an answer other than the one expected), and the
memory of the last fifth is within 5% of the second fifth's; the first is warm-up: caches fill.
"""

import itertools
import threading
import time
from collections import Counter
from io import BytesIO
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

from benchmarks.measuring import options, publish
from benchmarks.served import Model, Served, model, modelmint

LINE = "cnn"
GOAL = 0.05
SAMPLE_SECONDS = 5.0


def main() -> None:
    """Soak and publish."""
    parser = options(__doc__, turns=1)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second of a client")
    given = parser.parse_args()
    counts: Counter[str] = Counter()
    samples: list[float] = []
    with TemporaryDirectory() as folder:
        found = model(LINE)
        with modelmint([found], Path(folder), "--workers", str(given.workers)) as server:
            ended = threading.Event()
            clients = [
                threading.Thread(target=_ask, args=(server, found, n, given.rate, ended, counts))
                for n in range(given.clients)
            ]
            for client in clients:
                client.start()
            # Counted in samples: a run that was stopped for a while is not over sooner.
            for _ in range(round(60 * given.minutes / SAMPLE_SECONDS)):
                time.sleep(SAMPLE_SECONDS)
                samples.append(_memory(server))
            ended.set()
            for client in clients:
                client.join()
    fifth = max(1, len(samples) // 5)
    early, late = median(samples[fifth : 2 * fifth]), median(samples[-fifth:])
    figures: dict[str, Any] = {
        "goal": GOAL,
        "minutes": given.minutes,
        "requests": sum(counts.values()),
        "failed": counts["failed"],
        "megabytes": {"second fifth": early, "last fifth": late, "all": samples},
        "growth": late / early - 1,
    }
    row = {n: round(v, 3) for n, v in figures.items() if isinstance(v, int | float)}
    row |= {"MB, second fifth": round(early, 1), "MB, last fifth": round(late, 1)}
    publish("soak", figures, [row], ["onnxruntime", "starlette", "uvicorn"], given.json)


def _ask(
    server: Served, found: Model, number: int, rate: float, ended: threading.Event,
    counts: "Counter[str]",
) -> None:  # fmt: skip
    rng = np.random.default_rng(number)
    binary, length = found.binary()
    raw = {"inference-header-content-length": str(length)}
    infer, predict = f"/v2/models/{LINE}/infer", f"/v1/lines/{LINE}/predict"
    with httpx.Client(base_url=server.url, headers=server.headers, timeout=60) as client:
        for turn in itertools.count():
            if ended.wait(1 / rate):
                return
            pixels = rng.integers(0, 256, (28, 28), np.uint8)
            row = {"name": "image", "datatype": "UINT8", "shape": [1, 1, 28, 28]}
            data = pixels.reshape(-1).tolist()
            png = BytesIO()
            Image.fromarray(pixels).save(png, "PNG")
            asked: list[tuple[str, dict[str, Any], int]] = [
                (infer, {"content": binary[:length] + pixels.tobytes(), "headers": raw}, 200),
                (infer, {"json": {"inputs": [row | {"data": data}]}}, 200),
                (predict, {"content": png.getvalue()}, 200),
                (infer, {"json": {"inputs": [row | {"data": data[1:]}]}}, 400),
                (predict, {"content": pixels.tobytes()}, 400),
                ("/v2/models/nobody/infer", {"json": {}}, 404),
            ]
            path, request, status = asked[turn % len(asked)]
            try:
                answered = client.post(path, **request).status_code == status
            except httpx.HTTPError:
                answered = False
            counts["answered" if answered else "failed"] += 1


def _memory(server: Served) -> float:
    """Megabytes of the server and all processes below it."""
    root = psutil.Process(server.process.pid)
    tree = [root, *root.children(recursive=True)]
    return sum(process.memory_full_info().pss for process in tree) / 1e6


if __name__ == "__main__":
    main()
