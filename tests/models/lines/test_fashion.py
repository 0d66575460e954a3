"""The line on a few images of the true format, from landed files to a served answer's tensor."""

import gzip
import struct
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from models import catalog
from models.data import RefusedObject
from models.images import Images
from models.lines import fashion

DATA = fashion.line.data
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)
NUMBERS = np.arange(20, dtype=np.uint8) % 10


def idx(array: NDArray[np.uint8]) -> bytes:
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return gzip.compress(head + array.tobytes())


def labels(numbers: NDArray[np.uint8] = NUMBERS) -> dict[str, pl.DataFrame]:
    return {part: DATA.reference(part, idx(numbers)) for part in fashion.PARTS}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for part in fashion.PARTS:
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(PIXELS))
        (tmp_path / fashion.LABELS[part]).write_bytes(idx(NUMBERS))
    monkeypatch.setenv(fashion.SETTING, str(tmp_path))
    return tmp_path


def test_the_line_is_shipped() -> None:
    assert catalog.find("fashion") == fashion.line


def test_a_part_brings_its_images_and_all_labels(folder: Path) -> None:
    landed = dict(fashion.load("t10k"))
    assert set(landed) == {"t10k-images-idx3-ubyte.gz", *fashion.LABELS.values()}
    assert set(fashion.LABELS.values()) == set(DATA.references.values())


def test_without_the_files_the_error_says_how_to_get_them(folder: Path) -> None:
    (folder / fashion.LABELS["train"]).unlink()
    with pytest.raises(LookupError, match="install the Debian package dataset-fashion-mnist"):
        dict(fashion.load("t10k"))


def test_images_meet_their_labels_and_the_published_test_set_is_the_test() -> None:
    found = {
        part: DATA.parse(f"{part}-images-idx3-ubyte.gz", idx(PIXELS), labels()).rows
        for part in fashion.PARTS
    }
    assert found["train"]["label"].to_list() == [fashion.CLASSES[n] for n in NUMBERS]
    identity = np.linspace(0, 2.0**63, 20).astype(np.uint64)
    assert set(DATA.split.label(found["t10k"], identity)) == {"test"}
    assert set(DATA.split.label(found["train"], identity)) == {"train", "validation"}


def test_training_and_serving_give_the_same_tensor() -> None:
    rows = DATA.parse("train-images-idx3-ubyte.gz", idx(PIXELS), labels()).rows
    features = DATA.fit([DATA.summarise(rows)])
    trained = features.encode(rows)["image"]
    np.testing.assert_array_equal(trained[:, 0], PIXELS)
    for number in range(3):
        sent = features.read(*features.write(rows[number : number + 1]))
        np.testing.assert_array_equal(features.encode(sent)["image"], trained[number : number + 1])


@pytest.mark.parametrize(
    ("name", "images", "reason"),
    [
        ("train", PIXELS[:, :1, :1], "its images are 1 x 1 x 1, the line's are 28 x 28 x 1"),
        ("train", np.zeros((1, 1, 20_000), np.uint8), "its images are 20000 x 1 x 1"),
        ("train", PIXELS[:7], "it holds 7 images, train 20 labels"),
        ("other", PIXELS, "the line names no labels for 'other'"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_whole(
    name: str, images: NDArray[np.uint8], reason: str
) -> None:
    with pytest.raises(RefusedObject, match=reason):
        DATA.parse(f"{name}-images-idx3-ubyte.gz", idx(images), labels())


def test_colour_lines_take_no_idx() -> None:
    colour = Images.model_validate({**dict(DATA), "size": {"channels": 3}})
    with pytest.raises(RefusedObject, match="the line's are 28 x 28 x 3"):
        colour.parse("train-images-idx3-ubyte.gz", idx(PIXELS), labels())


def test_a_label_without_a_name_fails_its_check() -> None:
    rows = DATA.parse("t10k-images-idx3-ubyte.gz", idx(PIXELS), labels(NUMBERS + 7)).rows
    passed = rows.filter(*(check.holds for check in fashion.line.objective.checks()))
    assert sorted(set(passed["label"])) == sorted(fashion.CLASSES[7:])
    assert passed.height < rows.height


def test_labels_that_are_no_idx_file_are_refused() -> None:
    with pytest.raises(RefusedObject, match="reference train: not an idx file"):
        DATA.reference("train", b"0,1,2")


def test_a_class_without_a_sample_is_named() -> None:
    rows = DATA.parse("train-images-idx3-ubyte.gz", idx(PIXELS), labels()).rows
    some = rows.filter(pl.col("label") != "bag")
    with pytest.raises(ValueError, match="no training row has the class bag"):
        fashion.line.objective.fit([fashion.line.objective.summarise(some)])
