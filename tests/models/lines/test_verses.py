"""The line on a little text in the file's true format."""

from pathlib import Path

import numpy as np
import pytest

from models import catalog
from models.lines import verses

DATA = verses.line.data
TEXT = "CHAPTER 1. Loomings.\n\nCall me Ishmael. Some years ago—never mind how long precisely—\n"


def test_a_text_lands_from_the_file_a_user_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(verses.SETTING, raising=False)
    with pytest.raises(LookupError, match="VERSES is not set: name the file moby-dick/data"):
        list(verses.load("moby-dick"))
    monkeypatch.setenv(verses.SETTING, str(tmp_path / "data.txt"))
    with pytest.raises(LookupError, match="VERSES must name a UTF-8 text"):
        list(verses.load("moby-dick"))
    (tmp_path / "data.txt").write_text(TEXT, encoding="utf-8")
    assert list(verses.load("moby-dick")) == [("moby-dick.txt", TEXT.encode())]
    assert catalog.find("verses") == verses.line


def test_training_and_serving_give_the_same_tensor() -> None:
    rows = DATA.parse("moby-dick.txt", (TEXT * 18).encode(), {}).rows
    features = DATA.fit([DATA.summarise(rows)])
    trained = features.encode(rows)["tokens"]
    assert trained.shape == (rows.height, 513)
    for number, passage in enumerate(rows["text"]):
        read = features.read(passage.encode(), "text/plain")
        np.testing.assert_array_equal(features.encode(read)["tokens"], trained[[number]])
