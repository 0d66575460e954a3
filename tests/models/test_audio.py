from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from models.audio import TRANSCRIPTS, Audio, Clip
from models.data import RefusedObject, RefusedRequest
from models.padding import LENGTH
from models.waves import write_wave
from tests.models.clips import RATE, TALK, say, shard, talk, text, texts, tone

NUMBERS = range(12)
REFERENCES = {TRANSCRIPTS: TALK.reference("texts.txt", texts(NUMBERS))}
ROWS = TALK.parse("0.tar", talk(NUMBERS), REFERENCES).rows
FEATURES = TALK.fit([TALK.summarise(ROWS)])


def clip(seconds: float) -> bytes:
    return write_wave(tone(440, seconds), RATE)


def test_clips_meet_their_transcripts() -> None:
    assert ROWS["row"].to_list() == list(NUMBERS)
    assert ROWS["transcript"].to_list() == [text(n) for n in NUMBERS]
    assert ROWS["seconds"][3] == len(say(text(3), 3)) / RATE
    assert ROWS["sound"].n_unique() == len(NUMBERS)
    np.testing.assert_array_equal(np.frombuffer(ROWS["audio"][3], "<i2"), say(text(3), 3))


def test_a_single_object_is_a_clip() -> None:
    found = TALK.parse("7.wav", write_wave(say(text(7), 7), RATE), REFERENCES).rows
    assert found.drop("row").equals(ROWS[7].drop("row"))


def test_training_and_serving_give_the_same_tensors() -> None:
    trained = FEATURES.encode(ROWS)
    for number in NUMBERS:
        sent = FEATURES.encode(FEATURES.read(*FEATURES.write(ROWS[number])))
        length = int(sent[LENGTH][0])
        assert length == trained[LENGTH][number]
        np.testing.assert_array_equal(
            sent["spectrogram"][0], trained["spectrogram"][number, :length]
        )
        assert not trained["spectrogram"][number, length:].any()
    for spec in FEATURES.inputs:
        spec.check(trained[spec.name])


def test_means_are_of_all_frames_and_the_same_for_any_partition() -> None:
    frames = np.concatenate(
        [FEATURES.mel.spectrogram(say(text(n), n), RATE) for n in NUMBERS]
    ).astype(np.float64)
    np.testing.assert_allclose(FEATURES.mean, frames.mean(0), atol=1e-4)
    np.testing.assert_allclose(FEATURES.deviation, frames.std(0), atol=1e-4)
    assert TALK.fit([TALK.summarise(ROWS[:5]), TALK.summarise(ROWS[5:])]) == FEATURES


def test_what_cannot_be_learnt_from_is_quarantined_with_the_reason() -> None:
    good = write_wave(say("ab"), RATE)
    clips = {
        "good.wav": good,
        "empty.wav": write_wave(tone(440, 0), RATE),
        "short.wav": clip(0.05),
        "long.wav": clip(73),
        "beep.wav": clip(0.4),
        "silence.wav": clip(0.4),
        "number.wav": clip(1),
        "nameless.wav": clip(1),
        "cut.wav": good[:-100],
        "stereo.wav": good[:22] + b"\x02" + good[23:],
        "rate.wav": write_wave(say("ab"), 16_000),
        "text.wav": b"no sound at all",
    }
    listed = TALK.reference(
        "t", b"good: ab\nempty: a\nshort: a\nlong: a\nbeep: [beep]\nsilence: (silence)\n"
        b"number: 12\ncut: ab\nstereo: ab\nrate: ab\ntext: ab\n"
    )  # fmt: skip
    found = TALK.parse("x.tar", shard(clips), {TRANSCRIPTS: listed})
    assert found.rows["transcript"].to_list() == ["ab"]
    reasons = dict(found.refused.select("field", "reason").iter_rows())
    assert len(reasons) == len(clips) - 1
    for name, reason in {
        "empty": "the clip is empty",
        "short": "it lasts 0.050 s, less than 0.1 s",
        "long": "it lasts 73.0 s, over 3 s: cut it up",
        "beep": "it describes a sound: '[beep]'",
        "silence": "it describes a sound",
        "number": "'12' can be said in several ways",
        "nameless": "no transcript has its name",
        "cut": "it is cut short",
        "stereo": "2 channels",
        "rate": "it has 16,000 samples a second, 8,000 are taken",
        "text": "not a WAV file",
    }.items():
        assert reason in reasons[f"{name}.wav"]


def test_a_transcript_of_another_clip_fails_its_check() -> None:
    fast = TALK.reference("t", b"0: abababababab abababab\n")
    rows = TALK.parse("0.wav", clip(0.4), {TRANSCRIPTS: fast}).rows
    assert rows.filter(*(check.holds for check in TALK.checks())).is_empty()
    assert ROWS.filter(*(check.holds for check in TALK.checks())).height == len(NUMBERS)


@pytest.mark.parametrize(
    ("name", "payload", "reason"),
    [
        ("0.wav", b"", "the object is empty"),
        ("0.tar", talk(range(2))[:-9000], "not a whole tar archive"),
        ("0.tar", shard({}), "the archive holds no file"),
    ],
)
def test_an_object_that_holds_nothing_is_refused(name: str, payload: bytes, reason: str) -> None:
    with pytest.raises(RefusedObject, match=reason):
        TALK.parse(name, payload, REFERENCES)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (clip(0), "the clip is empty"),
        (clip(3.1), "it lasts 3.1 s, over 3 s"),
        (clip(1)[:-5], "cut short"),
        (b"{}", "not a WAV file"),
    ],
)
def test_a_request_that_is_no_such_clip_says_why(payload: bytes, reason: str) -> None:
    with pytest.raises(RefusedRequest, match=reason):
        FEATURES.read(payload, "audio/wav")


def test_clips_of_one_sentence_are_in_one_split() -> None:
    rows = pl.DataFrame({"transcript": [text(n) for n in range(300)]})
    labels = TALK.split.label(rows, np.arange(300, dtype=np.uint64))
    per_text = rows.with_columns(labels.alias("label")).group_by("transcript").n_unique()
    assert per_text["label"].max() == 1
    assert set(labels) == {"train", "validation", "test"}


def test_slices_are_by_how_long_clips_last() -> None:
    found = dict(FEATURES.slices(pl.DataFrame({"seconds": [0.3, 1.9, 2.0, 7.0]})))
    assert {name: chosen.tolist() for name, chosen in found.items()} == {
        "seconds=0 to 2": [True, True, False, False],
        "seconds=2 to 5": [False, False, True, False],
        "seconds=5 to inf": [False, False, False, True],
    }


def test_clips_to_be_heard_need_no_transcript(tmp_path: Path) -> None:
    clips = talk(NUMBERS)
    found = TALK.parse_unlabelled("new.tar", clips, {}, "transcript").rows
    assert found["transcript"].null_count() == len(NUMBERS)
    assert found.drop("transcript").equals(ROWS.drop("transcript"))
    assert found.filter(*(check.holds for check in TALK.checks())).height == len(NUMBERS)
    path = tmp_path / "new.tar"
    path.write_bytes(clips)
    pieces = list(TALK.pieces("new.tar", path, 20_000))
    assert len(pieces) > 2
    parts = [TALK.parse_unlabelled("new.tar", p.payload, {}, "transcript").rows for p in pieces]
    rows = [r.with_columns(pl.col("row") + p.first) for r, p in zip(parts, pieces, strict=True)]
    assert pl.concat(rows).cast(found.schema).equals(found)
    assert [p.payload for p in TALK.pieces("new.wav", path, 10)] == [clips]


def test_drift_is_looked_for_in_how_clips_sound() -> None:
    def described(samples: np.ndarray) -> dict[str, float]:
        sent = FEATURES.read(write_wave(samples, RATE), "audio/wav")
        return FEATURES.describe(FEATURES.encode(sent)).row(0, named=True)

    low, high, quiet = (described(tone(f, 1.0, loud)) for f, loud in
                        ((300, 0.3), (3000, 0.3), (300, 0.1)))  # fmt: skip
    assert low["seconds"] == pytest.approx(0.98)
    assert low["brightness"] < high["brightness"]
    assert quiet["loudness"] < low["loudness"]
    whole = FEATURES.describe(FEATURES.encode(ROWS))
    alone = described(say(text(3), 3))
    assert whole.row(3, named=True) == pytest.approx(alone), "padding counts"
    assert FEATURES.describe(FEATURES.encode(ROWS.clear())).height == 0


def test_no_row_has_tensors_too() -> None:
    found = FEATURES.encode(ROWS.clear())
    assert found["spectrogram"].shape == (0, 0, 16)
    assert found[LENGTH].shape == (0,)


def test_without_a_list_of_transcripts_there_is_no_such_data() -> None:
    with pytest.raises(ValidationError, match="name the list of transcripts 'transcripts'"):
        Audio.model_validate({**dict(TALK), "references": {}})


def test_the_settings_survive_as_text() -> None:
    assert Audio.model_validate_json(TALK.model_dump_json()) == TALK
    assert Clip.model_validate_json(FEATURES.clip.model_dump_json()) == TALK.clip
