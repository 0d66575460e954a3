import numpy as np
import polars as pl
import pytest

from models.decoding import one_hot
from models.padding import joined
from models.transcription import Transcription

SAID = Transcription(target="text", alphabet=" abc", beam=4)
TEXTS = ["ab c", "a", "cc"]
TARGET = SAID.encode(pl.DataFrame({"text": TEXTS}))


def sure(*texts: str) -> np.ndarray:
    """Probabilities that are sure of every text."""
    return joined([one_hot(row[row > 0], SAID.width)[None] for text in texts
                   for row in SAID.encode(pl.DataFrame({"text": [text]}))])  # fmt: skip


def test_letters_are_numbered_from_one_and_zeros_fill_up() -> None:
    assert TARGET.tolist() == [[2, 3, 1, 4], [2, 0, 0, 0], [4, 4, 0, 0]]
    assert TARGET.dtype == np.int64
    assert SAID.output.shape == (-1, -1, 5)


def test_a_text_the_alphabet_lacks_fails_with_the_reason() -> None:
    rows = pl.DataFrame({"text": ["abc", None, "", "abd", "a^b"]})
    found = [
        [c.reason for c in SAID.checks() if rows[i].select(c.holds).item() is not True]
        for i in range(rows.height)
    ]
    assert found[0] == []
    assert found[1][0] == found[2][0] == "missing"
    assert found[3] == found[4] == ["has a letter the line's alphabet lacks"]


def test_any_letter_can_be_of_an_alphabet() -> None:
    odd = Transcription(target="text", alphabet="]^-\\ä[")
    rows = pl.DataFrame({"text": ["]^-\\ä[", "a"]})
    assert [rows.select(c.holds).to_series().to_list() for c in odd.checks()][1] == [True, False]


def test_a_letter_without_a_training_transcript_cannot_be_taught() -> None:
    summaries = [SAID.summarise(pl.DataFrame({"text": [text]})) for text in ("ab a", "b")]
    assert {letter: summaries[0].get(letter) for letter in SAID.alphabet} == {
        " ": 1, "a": 2, "b": 1, "c": None,
    }  # fmt: skip
    with pytest.raises(ValueError, match="no training transcript has 'c': land some"):
        SAID.fit(summaries)


def test_a_fitted_objective_knows_the_sequences_of_all_partitions() -> None:
    texts = ["ab a", "b", "cab"]
    parts = [SAID.summarise(pl.DataFrame({"text": [text]})) for text in texts]
    fitted = SAID.fit(parts)
    assert fitted == SAID.fit([SAID.summarise(pl.DataFrame({"text": texts}))])
    assert fitted.counts["ab"] == 2
    assert Transcription.model_validate_json(fitted.model_dump_json()) == fitted


def test_spelling_decides_between_what_sounds_alike() -> None:
    seen = SAID.summarise(pl.DataFrame({"text": ["cab", "cab a", "cab c"]}))
    fitted = SAID.fit([seen])
    unsure = sure("cbb").copy()
    unsure[0, 3] = [0.0, 0.0, 0.45, 0.55, 0.0]
    heard = [o.answer(unsure)[0]["text"] for o in (SAID, fitted)]
    assert heard == ["cbb", "cab"]
    deaf = fitted.model_copy(update={"language": 0.0})
    assert deaf.answer(unsure)[0]["text"] == "cbb"


def test_error_rates_weigh_every_clip_by_what_is_said() -> None:
    losses = SAID.losses(sure("ab c", "b", "ccc"), TARGET)
    assert losses["edits"].tolist() == [0, 1, 1]
    assert losses["letters"].tolist() == [4, 1, 2]
    assert losses["word_edits"].tolist() == [0, 1, 1]
    assert losses["words"].tolist() == [2, 1, 1]
    assert SAID.metrics(losses) == {"cer": pytest.approx(2 / 7), "wer": pytest.approx(2 / 4)}


def test_metrics_of_resamples_are_those_of_the_resampled_rows() -> None:
    predicted = sure("abc", "a", "c")
    samples = np.random.default_rng(0).integers(0, 3, (5, 3))
    losses = SAID.losses(predicted, TARGET)
    found = SAID.metrics({name: values[samples] for name, values in losses.items()})
    for index, chosen in enumerate(samples):
        alone = SAID.measure(predicted[chosen], TARGET[chosen])
        assert {name: values[index] for name, values in found.items()} == pytest.approx(alone)


def test_the_best_constant_is_the_most_frequent_transcript() -> None:
    seen = SAID.encode(pl.DataFrame({"text": ["b", "cc", "a", "cc", "abc"]}))
    name, predicted = SAID.constant(seen, 2)
    assert name == "most frequent"
    assert [a["text"] for a in SAID.answer(predicted)] == ["cc", "cc"]


def test_a_letter_one_frame_later_is_close_and_another_text_is_not() -> None:
    frames = np.tile(sure("ab c"), (1, 5, 1))
    later = frames.copy()
    later[0, 3:5] = later[0, [4, 3]]
    assert SAID.closeness(frames, frames) == 0
    assert SAID.closeness(later, frames) < 0.1
    assert SAID.closeness(frames[:, ::-1], frames) > 0.5
    assert SAID.closeness(np.full_like(frames, 0.2), frames) > 0.5


def test_an_answer_is_the_text_and_a_confidence() -> None:
    unsure = 0.8 * sure("ab c") + 0.05
    (said,) = SAID.answer(unsure)
    assert said["text"] == "ab c"
    assert 0.4 < said["confidence"] < SAID.answer(sure("ab c"))[0]["confidence"] == 1.0
    assert SAID.answer(sure("")) == [{"text": "", "confidence": 1.0}]
