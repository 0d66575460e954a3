"""Data and settings of which no version can be made; the champion goes on."""

import io
import tarfile

import httpx
import numpy as np
import pytest
from PIL import Image

from deployments.local.stack import SERVER
from flows.produce import Production, produce
from models import catalog
from models.spec import Optimizer, Training
from models.waves import write_wave
from tasks.clean import clean
from tasks.dataset import manifest
from tasks.isolated import IsolatedError
from tasks.promotion import promotions
from tasks.server import authorization
from tasks.snapshot import list_objects, raw_prefix, take_snapshot
from tasks.store import store
from tasks.versions import versions

LINE = "diabetes"


def test_broken_data_fails_and_the_champion_goes_on(
    first: Production, services: dict[str, str]
) -> None:
    prefix = raw_prefix(catalog.find(LINE).data)
    kept = {item.key: store().get(item.key).content for item in store().list(prefix)}
    before = versions(LINE)
    for key in kept:
        store().put(key, b"patient,age\n1,2\n")
    with pytest.raises(ValueError, match="column .*progression.* is missing"):
        produce(LINE)
    assert versions(LINE) == before
    for key, content in kept.items():
        store().put(key, content)
    champion = promotions(LINE).champion
    assert champion is not None
    ready = httpx.get(f"{services[SERVER]}/v2/models/{LINE}", headers=authorization())
    assert ready.headers["modelmint-version"] == str(champion.number)
    assert first.version.number <= champion.number


def picture(width: int, height: int, grey: int = 90) -> bytes:
    content = io.BytesIO()
    Image.new("L", (width, height), grey).save(content, "PNG")
    return content.getvalue()


def packed(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, payload in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(payload)
            archive.addfile(member, io.BytesIO(payload))
    return content.getvalue()


def clip(seconds: float) -> bytes:
    return write_wave(np.zeros(round(8000 * seconds), np.int16), 8000)


ONE_CLASS = {f"1/{number}.png": picture(28, 28, number) for number in range(80)}
PIXELS = {"1/a.png": picture(1, 1), "2/b.png": picture(20_000, 20_000)}
SOUNDS = {"a.wav": clip(0), "b.wav": clip(73)}
UNUSABLE: dict[str, tuple[str, dict[str, bytes], str]] = {
    "classes without samples": (
        "digits", {"a.tar": packed(ONE_CLASS)}, "no training row has the class 0, 2, 3",
    ),
    "one pixel and too many": (
        "digits", {"a.tar": packed(PIXELS)},
        r"1/a.png: 1 x 1 is under half of 28 x 28; 2/b.png: it is over 16,000,000 pixels",
    ),
    "texts under both labels": (
        "reviews", {"pos/a.txt": b"good\nbad\n", "neg/a.txt": b"bad\ngood\n"},
        "is there with another label too",
    ),
    "an empty and an endless clip": (
        "speech", {"a.tar": packed(SOUNDS), "core-sounds-en.txt": b"a: no\nb: too much\n"},
        r"a.wav: the clip is empty; b.wav: it lasts 73.0 s, over 20 s",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "objects", "reason"), UNUSABLE.values(), ids=UNUSABLE)
def test_data_that_cannot_be_used_is_never_a_version(
    first: Production, name: str, objects: dict[str, bytes], reason: str
) -> None:
    assert first.version.number
    prefix = raw_prefix(catalog.find(name).data)
    for key, content in objects.items():
        store().put(prefix + key, content)
    with pytest.raises(ValueError, match=reason):
        produce(name)
    for key in objects:
        store().delete(prefix + key)
    assert versions(name) == []
    assert promotions(name).champion is None


def test_a_loss_that_is_no_number_is_never_a_version(first: Production) -> None:
    assert first.version.number
    before, serving = versions(LINE), promotions(LINE).champion
    wild = Optimizer(name="sgd", lr=10, momentum=0.99)
    with pytest.raises(IsolatedError, match=r"TrainingError: the loss is (nan|inf) at step"):
        produce(LINE, training=Training(epochs=200, optimizer=wild, clip=0.0))
    assert versions(LINE) == before
    assert promotions(LINE).champion == serving


def test_quarantine_names_object_row_and_reason(first: Production) -> None:
    line = catalog.find(LINE)
    prefix = raw_prefix(line.data)
    kept = store().get(prefix + "first.csv").content
    lines = kept.decode().splitlines()
    lines[17] = ",".join(["seventeen", *lines[17].split(",")[1:]])
    store().put(prefix + "first.csv", "\n".join(lines).encode())
    try:
        snapshot = take_snapshot.bare(prefix, list_objects(line.data))
        dataset = clean.bare(line.data, line.objective, prefix, snapshot)
    finally:
        store().put(prefix + "first.csv", kept)
    partition = next(p for p in manifest(dataset).partitions if p.name == "first.csv")
    table = store().get_table(partition.refused)
    assert table.rows() == [(16, "age", "'seventeen' is no number")]
    assert sum(first.dataset.rows.values()) == 221
