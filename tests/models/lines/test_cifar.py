"""The line on a few images in batches of the true format."""

from pathlib import Path

import numpy as np
import pytest

from models import catalog
from models.data import RefusedObject
from models.images import Images, ImageSize
from models.lines import cifar
from tests.models.batches import batch

DATA = cifar.line.data
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 3072), np.uint8)
LABELS = [number % 10 for number in range(20)]


def test_a_batch_lands_from_the_folder_a_user_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(cifar.SETTING, raising=False)
    with pytest.raises(LookupError, match="set CIFAR10 to its folder cifar-10-batches-py"):
        list(cifar.load("test_batch"))
    (tmp_path / "test_batch").write_bytes(b"content")
    monkeypatch.setenv(cifar.SETTING, str(tmp_path))
    assert list(cifar.load("test_batch")) == [("test_batch", b"content")]
    with pytest.raises(LookupError, match="data_batch_3 is not at hand"):
        list(cifar.load("data_batch_3"))
    assert catalog.find("cifar") == cifar.line


@pytest.mark.parametrize(
    ("name", "splits"), [("test_batch", {"test"}), ("data_batch_5", {"train", "validation"})]
)
def test_the_test_batch_is_the_test(name: str, splits: set[str]) -> None:
    rows = DATA.parse(name, batch(PIXELS, LABELS), {}).rows
    assert rows["label"].to_list() == [cifar.CLASSES[n] for n in LABELS]
    identity = np.linspace(0, 2.0**63, 20).astype(np.uint64)
    assert set(DATA.split.label(rows, identity)) == splits


def test_training_and_serving_give_the_same_tensor() -> None:
    rows = DATA.parse("data_batch_1", batch(PIXELS, LABELS), {}).rows
    features = DATA.fit([DATA.summarise(rows)])
    trained = features.encode(rows)["image"]
    np.testing.assert_array_equal(trained, PIXELS.reshape(-1, 3, 32, 32))
    for number in range(3):
        sent = features.read(*features.write(rows[number : number + 1]))
        np.testing.assert_array_equal(features.encode(sent)["image"], trained[number : number + 1])


def test_what_is_no_batch_is_quarantined_with_its_reason() -> None:
    with pytest.raises(RefusedObject, match="which no batch does: it was not opened"):
        DATA.parse("data_batch_1", b"cos\nsystem\n(S'true'\ntR.", {})
    other = Images(raw="x/", size=ImageSize(channels=1), split=DATA.split)
    with pytest.raises(
        RefusedObject, match="its images are 32 x 32 x 3, the line's are 28 x 28 x 1"
    ):
        other.parse("data_batch_1", batch(PIXELS, LABELS), {})


def test_a_label_without_a_name_fails_its_check() -> None:
    rows = DATA.parse("test_batch", batch(PIXELS, [n + 5 for n in LABELS]), {}).rows
    passed = rows.filter(*(check.holds for check in cifar.line.objective.checks()))
    assert sorted(set(passed["label"])) == sorted(cifar.CLASSES[5:])
