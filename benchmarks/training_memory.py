"""Training: peak memory at 1x and 30x the data, rows streamed, beside all rows held in memory.

    python -m benchmarks.training_memory [--json] [--turns 1]

Five minutes on two idle cores. The line `digits` is cleaned once; 1x is its partitions ten times
over, 30x three hundred times, each read from the store as if it were another. The smallest network
trains for one epoch in windows of 1 MB, of which 1x has dozens: with fewer the process has not yet
taken what it needs for any number of them. `growth` is how much of the added rows
was in memory at the peak: 0 is flat, 1 is all of them; `held` has a window that takes them all.
Goal: at most 0.1.
"""

import os
from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarks import measuring
from benchmarks.training import cleaned
from models import catalog, cnn
from models.digests import bytes_digest, canonical_json
from tasks.jobs import TrainJob
from tasks.refs import Dataset

ONCE, TIMES = 10, 30
WINDOW_MB, HELD_MB = 1, 1000
PACKAGES = ("numpy", "torch")


def main() -> None:
    """Measure, print, write the result."""
    options = measuring.options(__doc__, turns=1).parse_args()
    figures = _measured(options.turns)
    rows = [
        {
            "case": case,
            "rows": f"{found['rows']:,}",
            "MB of rows": f"{found['bytes'] / 1e6:.1f}",
            "peak, MiB": f"{found['peak'] / measuring.MIB:.0f}",
            "growth": f"{found['growth']:.2f}" if "growth" in found else "",
        }
        for case, found in figures.items()
    ]
    measuring.publish("training_memory", figures, rows, PACKAGES, options.json)


def _measured(turns: int) -> dict[str, Any]:
    from deployments.local.stack import STORE, stack
    from tasks.batches import Stored

    line = catalog.find("digits").on("cpu")
    with measuring.temporary_home(), stack(STORE):
        once = repeated(cleaned(line), ONCE)
        many = repeated(once, TIMES)
        cases = {
            "1x": (once, WINDOW_MB),
            f"{TIMES}x": (many, WINDOW_MB),
            f"{TIMES}x, held": (many, HELD_MB),
        }
        contestants: dict[str, Callable[[], int]] = {
            name: lambda data=data, window=window: _peak(_job(data, window))  # type: ignore[misc]
            for name, (data, window) in cases.items()
        }
        peaks = measuring.in_turns(contestants, turns)
        figures: dict[str, Any] = {}
        for name, (data, window) in cases.items():
            source = Stored(data, "train")
            count = sum(source.counts)
            figures[name] = {
                "rows": count,
                "bytes": count * source.row_bytes,
                "window_mb": window,
                "peak": median(peaks[name]),
                "all": peaks[name],
            }
    first = figures["1x"]
    for name, found in figures.items():
        if name != "1x":
            more = found["peak"] - first["peak"]
            found["growth"] = more / (found["bytes"] - first["bytes"])
    return figures


def repeated(dataset: Dataset, times: int) -> Dataset:
    """The dataset with every partition so many times, under other names."""
    from tasks.dataset import manifest
    from tasks.store import store

    found = manifest(dataset)
    partitions = tuple(
        part.model_copy(update={"name": f"{number}/{part.name}"})
        for number in range(times)
        for part in found.partitions
    )
    excluded = {
        f"{number}/{name}": positions
        for number in range(times)
        for name, positions in found.excluded.items()
    }
    larger = found.model_copy(update={"partitions": partitions, "excluded": excluded})
    digest = store().put_content(canonical_json(larger.model_dump(mode="json")))
    rows = {split: count * times for split, count in dataset.rows.items()}
    return dataset.model_copy(update={"digest": digest, "rows": rows})


def _job(dataset: Dataset, window: int) -> TrainJob:
    line = catalog.find("digits").on("cpu")
    training = line.training.model_copy(
        update={"epochs": 1, "batch_size": 512, "augmentation": None, "window_mb": window}
    )
    return TrainJob(
        model=cnn.Spec(size="tiny"),
        training=training,
        dataset=dataset,
        checkpoint=bytes_digest(os.urandom(32)),
    )


def _peak(job: TrainJob) -> int:
    """Bytes of the training process at its largest."""
    from tasks import isolated

    peaks: list[measuring.Peak] = []
    variables = isolated.environment(job.training.profile, job.training.threads)
    isolated.run(
        "tasks.trainer:fit",
        job.model_dump_json(),
        variables,
        lambda _: None,
        lambda process: peaks.append(measuring.Peak(process.pid)),
    )
    return peaks[0].stop()


if __name__ == "__main__":
    main()
