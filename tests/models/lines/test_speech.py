"""The line on a few clips of the true format, from landed files to a served answer's tensor."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from models import catalog
from models.audio import TRANSCRIPTS
from models.lines import speech
from models.padding import LENGTH
from models.waves import write_wave
from tests.models.clips import tone

DATA, NAMES = speech.line.data, [f"digits/{n}" for n in range(9)] + ["beep", "activated"]
TEXTS = "; Core Asterisk Sounds in English\n\n" + "".join(
    f"{name}: {'[a beep]' if name == 'beep' else 'Please press 1.'}\n" for name in NAMES
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for number, name in enumerate(NAMES):
        path = tmp_path / speech.SOUNDS / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(write_wave(tone(300 + 90 * number, 1 + number / 10), 8000))
    texts = tmp_path / speech.TEXTS
    texts.parent.mkdir(parents=True)
    texts.write_bytes(gzip.compress(TEXTS.encode()))
    monkeypatch.setenv(speech.SETTING, str(tmp_path))
    return tmp_path


def landed() -> dict[str, bytes]:
    return {name: content for part in speech.SHARDS for name, content in speech.load(part)}


def test_the_line_is_shipped() -> None:
    assert catalog.find("speech") == speech.line


def test_parts_bring_every_clip_once_and_the_transcripts(folder: Path) -> None:
    objects = landed()
    texts = objects.pop(DATA.references[TRANSCRIPTS])
    assert texts.decode() == TEXTS
    assert set(objects) == {f"{part}.tar" for part in speech.SHARDS}
    assert objects == {n: c for n, c in landed().items() if n in objects}
    references = {TRANSCRIPTS: DATA.reference("texts", texts)}
    found = [DATA.parse(name, content, references) for name, content in objects.items()]
    assert sum(one.rows.height for one in found) == len(NAMES) - 1
    assert {t for one in found for t in one.rows["transcript"]} == {"please press one"}
    refused = [row for one in found for row in one.refused.iter_rows()]
    assert refused == [(refused[0][0], "beep.wav", "it describes a sound: '[a beep]'")]


@pytest.mark.parametrize("missing", [speech.TEXTS, speech.SOUNDS])
def test_without_the_files_the_error_says_how_to_get_them(folder: Path, missing: str) -> None:
    (folder / missing).rename(folder / "elsewhere")
    with pytest.raises(LookupError, match="asterisk-core-sounds-en-wav and asterisk-core-sounds"):
        dict(speech.load("shard-0"))


def test_training_and_serving_give_the_same_tensors(folder: Path) -> None:
    objects = landed()
    references = {TRANSCRIPTS: DATA.reference("t", objects[DATA.references[TRANSCRIPTS]])}
    rows = DATA.parse("shard-1.tar", objects["shard-1.tar"], references).rows
    features = DATA.fit([DATA.summarise(rows)])
    trained = features.encode(rows)
    for number, name in enumerate(sorted(NAMES)[1 :: len(speech.SHARDS)]):
        if name == "beep":
            continue
        raw = (folder / speech.SOUNDS / f"{name}.wav").read_bytes()
        sent = features.encode(features.read(raw, "audio/wav"))
        at = rows["row"].to_list().index(number)
        length = int(trained[LENGTH][at])
        assert sent[LENGTH].tolist() == [length]
        np.testing.assert_array_equal(sent["spectrogram"][0], trained["spectrogram"][at, :length])
