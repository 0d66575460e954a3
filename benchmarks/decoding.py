"""What decoding in a process of its own costs a request, beside decoding in a thread.

    python -m benchmarks.decoding [--turns 5] [--requests 400] [--json]

Half a minute. Each payload is turned into tensors both ways, in turns: by `Features.read` and
`encode` in a thread, as the server once did, and by a decoder. Tensors sent to `infer` pass
neither.
"""

import asyncio
import io
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import anyio.to_thread
import numpy as np
import orjson
from PIL import Image

from benchmarks.measuring import in_turns, options, publish
from benchmarks.served import model
from deployments.serving.decoder import Limits
from deployments.serving.decoding import Decoders
from deployments.serving.session import Served
from models.objectives import Classification
from models.signature import Signature
from models.tables import FittedNumber, TableFeatures


def main() -> None:
    """Measure and publish."""
    parser = options(__doc__, turns=5)
    parser.add_argument("--requests", type=int, default=400, help="of each measurement")
    given = parser.parse_args()
    rows = []
    for name, (served, payload, media_type) in _payloads().items():
        decoders = Decoders(Limits())
        ways: dict[str, Callable[[], object]] = {
            "thread": partial(_read, served, payload, media_type),
            "decoder": partial(_decoded, decoders, served, payload, media_type),
        }
        measured = {way: partial(_microseconds, work, given.requests) for way, work in ways.items()}
        found = in_turns(measured, given.turns)
        decoders.close()
        thread, decoder = (median(found[way]) for way in ways)
        rows.append(
            {
                "payload": name,
                "bytes": len(payload),
                "us, thread": round(thread, 1),
                "us, decoder": round(decoder, 1),
                "more": round(decoder - thread, 1),
            }
        )
    publish("decoding", {"rows": rows}, rows, ["pillow", "polars", "orjson"], given.json)


def _payloads() -> dict[str, tuple[Served, bytes, str]]:
    """What people send, and versions that take it."""
    cnn = model("cnn")
    features = TableFeatures(
        numbers=tuple(FittedNumber(name=f"n{i}", unit="", mean=0, deviation=1) for i in range(8)),
        categories=(),
    )
    large = np.random.default_rng(7).integers(0, 256, (1024, 1024, 3), np.uint8)
    record = {f"n{i}": i / 7 for i in range(8)}
    lines = [",".join(record), *(",".join(map(str, record.values())) for _ in range(1000))]
    return {
        "PNG 28 x 28": (_served(cnn.features), _image(cnn.rows[0, 0]), "image/png"),
        "PNG 1024 x 1024": (_served(cnn.features), _image(large), "image/png"),
        "JSON, a record": (_served(features), orjson.dumps(record), "application/json"),
        "CSV, 1000 rows": (_served(features), "\n".join(lines).encode(), "text/csv"),
    }


def _image(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    packed = io.BytesIO()
    Image.fromarray(pixels).save(packed, "PNG", compress_level=1)
    return packed.getvalue()


def _served(features: object) -> Served:
    signature = Signature.model_validate(
        {"features": features, "objective": Classification(target="label", labels=("a", "b"))}
    )
    inputs = signature.features.inputs
    return Served("line", "1", "0" * 64, signature, inputs, signature.outputs, None, 0, 0.0, 1)


def _decoded(decoders: Decoders, served: Served, payload: bytes, media_type: str) -> object:
    return decoders.read(served, payload, media_type, 60.0).result()


def _read(served: Served, payload: bytes, media_type: str) -> object:
    rows = served.signature.features.read(payload, media_type)
    return served.signature.features.encode(rows)


def _microseconds(work: Callable[[], object], requests: int) -> float:
    """The median request's, its thread included."""

    async def timed() -> list[float]:
        seconds = []
        for _ in range(requests):
            start = time.perf_counter()
            await anyio.to_thread.run_sync(work)
            seconds.append(time.perf_counter() - start)
        return seconds

    return median(asyncio.run(timed())) * 1e6


if __name__ == "__main__":
    main()
