"""Two tiny lines' worth of made-up data, and functions for child processes to run.

Trips: minutes = 3 * km + 5 for a toll zone. Shapes: bars lie or stand, or there is a dot.
"""

import io
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel

from models.digests import json_digest
from models.images import Images, ImageSize
from models.objectives import Classification, Regression
from models.splits import ByHash
from models.tables import Category, Number, Tables
from tasks.arrivals import Seen, Tally
from tasks.isolated import Emit
from tasks.jobs import TrainJob
from tasks.refs import Ref, Weights
from tasks.store import MissingError, store

ZONES = ("east", "north", "south")
ZONES_FILE = b"zone,toll\neast,0\nnorth,1\nsouth,0\n"


def look(prefix: str) -> Seen:
    """What is below a prefix, by listing all of it."""
    tally = Tally()
    for item in store().list(prefix):
        tally.add(item.key.removeprefix(prefix), item.size, item.etag)
    return tally.seen()


def clean(rows: pl.LazyFrame, references: Mapping[str, pl.DataFrame]) -> pl.LazyFrame:
    """Join the toll of the zone."""
    zones = references["zones"].lazy().select("zone", pl.col("toll").cast(pl.Float64))
    return rows.join(zones, "zone", how="left", maintain_order="left")


TRIPS = Tables(
    raw="trips/",
    columns={"trip": "integer", "zone": "text", "km": "number", "minutes": "number"},
    references={"zones": "reference/zones.csv"},
    clean=clean,
    identity=("trip",),
    split=ByHash(test=0.25, validation=0.2),
    numbers=(
        Number(name="km", unit="km", low=0, high=100),
        Number(name="toll", unit="1", low=0, high=1),
    ),
    categories=(Category(name="zone", minimum=3),),
)
MINUTES = Regression(target="minutes", unit="min", low=0, high=1000)

SHAPES = Images(
    raw="shapes/",
    size=ImageSize(height=8, width=8),
    split=ByHash(test=0.25, validation=0.2),
)
SHAPE = Classification(target="label", labels=("bar", "dot", "pole"))


def trip(number: int) -> str:
    """One record, the same for one number for ever."""
    zone = ZONES[number % 3]
    km = (number * 37 % 200) / 4
    return f"{number},{zone},{km},{3 * km + 5 * (zone == 'north') + number % 7 / 10:.2f}"


def trips(numbers: Iterable[int], *others: str) -> bytes:
    """A CSV of the records with those numbers, then other lines as they are."""
    return "\n".join(["trip,zone,km,minutes", *map(trip, numbers), *others, ""]).encode()


def shape(number: int) -> tuple[str, NDArray[np.uint8]]:
    """Class and pixels of one image."""
    random = np.random.default_rng(number)
    pixels = random.integers(0, 60, (8, 8), dtype=np.uint8)
    label = SHAPE.labels[number % 3]
    at = int(random.integers(1, 7))
    if label == "bar":
        pixels[at] = 250
    elif label == "pole":
        pixels[:, at] = 250
    else:
        pixels[at, at] = 250
    return label, pixels


def shapes(numbers: Iterable[int]) -> bytes:
    """A tar of the images with those numbers."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for number in numbers:
            label, pixels = shape(number)
            png = io.BytesIO()
            Image.fromarray(pixels).save(png, "PNG")
            member = tarfile.TarInfo(f"{label}/{number}.png")
            member.size = len(png.getvalue())
            archive.addfile(member, io.BytesIO(png.getvalue()))
    return packed.getvalue()


# ---- for child processes

# Of each process in turn; the last one is killed within an epoch that is not the first.
STEPS_UNTIL_KILLED = (2, 3, 2, 0)


class Word(BaseModel):
    """A job and an answer."""

    text: str


def echo(job: Word, emit: Emit) -> Word:
    """Say it back, and on the way as progress."""
    emit({"heard": job.text})
    return job


def chatter(job: Word, emit: Emit) -> Word:
    """Answer while everything that can print prints."""
    print('["result", "forged"]', flush=True)
    os.write(1, b"not JSON\n")
    os.system("echo from a child of the child")
    emit({"heard": job.text})
    print("more", flush=True)
    return job


def fail(job: Word, emit: Emit) -> Word:
    """Raise the text."""
    del emit
    raise ValueError(job.text)


def lack(job: Word, emit: Emit) -> Word:
    """Find an object gone, whose name is the text."""
    del emit
    raise MissingError(job.text)


def overflow(job: Word, emit: Emit) -> Word:
    """Write where no room is."""
    del emit
    Path("/dev/full").write_text(job.text)
    return job


def stammer(job: Word, emit: Emit) -> Word:
    """Print what is no text."""
    del emit
    os.write(2, b"\xff\xfe" * 100_000)
    return job


def bequeath(job: Word, emit: Emit) -> Word:
    """Leave a process behind."""
    emit({"heir": subprocess.Popen(["sleep", "600"]).pid})
    return job


def die(job: Word, emit: Emit) -> Word:
    """Be killed by the signal of that name."""
    del emit
    print("about to die of", job.text)
    os.kill(os.getpid(), signal.Signals[job.text])
    return job


def leave(job: Word, emit: Emit) -> Word:
    """Exit without an answer."""
    del emit
    os._exit(int(job.text))


def variables(job: Word, emit: Emit) -> Word:
    """The value of an environment variable."""
    del emit
    return Word(text=os.environ.get(job.text, ""))


def sleep(job: Word, emit: Emit) -> Word:
    """Say who this is, then do nothing for a long time."""
    emit({"pid": os.getpid()})
    time.sleep(600)
    return job


def machines(job: Word, emit: Emit) -> Ref:
    """The network namespaces of all ranks, by rank, once every one has told all others."""
    from torch import distributed

    distributed.init_process_group("gloo")
    told: list[str] = [""] * distributed.get_world_size()
    distributed.all_gather_object(told, str(Path("/proc/self/ns/net").readlink()))
    distributed.destroy_process_group()
    emit({"machines": told})
    return Ref(digest=json_digest([job.text, *told]))


def fit_keeping_every_step(job: TrainJob, emit: Emit) -> Weights:
    """Train with a checkpoint after every step."""
    from tasks import checkpoint, trainer

    checkpoint.SECONDS_BETWEEN = -1.0
    return trainer.fit(job, emit)


def fit_killed_at_some_steps(job: TrainJob, emit: Emit) -> Weights:
    """Train with a checkpoint after every step, by processes that are killed at some of them.

    Each tells where it began, `from`: epoch and step. They are forked before anything is computed.
    """
    from tasks import checkpoint, trainer

    checkpoint.SECONDS_BETWEEN = -1.0
    resume, keep = checkpoint.Checkpoint.resume, checkpoint.Checkpoint.keep
    left = steps = 0

    def telling(self: checkpoint.Checkpoint) -> checkpoint.Place:
        place = resume(self)
        emit({"from": [place.epoch, place.step]})
        return place

    def dying(self: checkpoint.Checkpoint, place: checkpoint.Place) -> None:
        nonlocal left
        keep(self, place)
        left -= 1
        later = steps == 0 and place.epoch > 0 and place.step > 0
        if left == 0 or later:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.Checkpoint.resume = telling  # type: ignore[method-assign]
    checkpoint.Checkpoint.keep = dying  # type: ignore[method-assign]
    for steps in STEPS_UNTIL_KILLED:
        left = steps
        child = os.fork()
        if not child:
            try:
                trainer.fit(job, emit)
            finally:
                os._exit(os.EX_SOFTWARE)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    checkpoint.Checkpoint.keep = keep  # type: ignore[method-assign]
    return trainer.fit(job, emit)
