import math

import numpy as np
import polars as pl
import pytest

from models.data import Tensors
from models.generation import SAMPLING, Sampling
from models.language import UNKNOWN_NATS, NextToken, frequencies
from models.objectives import Classification
from models.passages import PassageFeatures
from models.texts import TextFeatures
from models.vocabulary import PADDING, SPECIAL, BytePairs, Characters, Vocabulary

VOCABULARY = Characters(known=tuple("ab"))
OBJECTIVE = NextToken().beside(PassageFeatures(vocabulary=VOCABULARY, length=4))


def test_a_sure_network_needs_no_bits_and_an_even_one_log_of_the_tokens() -> None:
    target = OBJECTIVE.encode(pl.DataFrame({"text": ["abab", "b"]}))
    sure = np.log(np.eye(OBJECTIVE.width)[target] + 1e-30)
    assert OBJECTIVE.measure(sure, target)["bits_per_character"] == pytest.approx(0, abs=1e-9)
    even = np.full(sure.shape, -math.log(OBJECTIVE.width))
    expected = math.log2(OBJECTIVE.width)
    assert OBJECTIVE.measure(even, target)["bits_per_character"] == pytest.approx(expected)


def test_what_is_no_text_counts_nothing() -> None:
    target = OBJECTIVE.encode(pl.DataFrame({"text": ["ab"]}))
    logs = np.full((1, 5, OBJECTIVE.width), -1.0)
    logs[:, 2:] = -100.0
    losses = OBJECTIVE.losses(logs, target)
    assert (losses["nats"].tolist(), losses["characters"].tolist()) == ([2.0], [2.0])


def test_an_unknown_character_also_costs_its_spelling() -> None:
    target = OBJECTIVE.encode(pl.DataFrame({"text": ["az"]}))
    losses = OBJECTIVE.losses(np.full((1, 5, OBJECTIVE.width), -1.0), target)
    assert losses["nats"][0] == pytest.approx(2 + UNKNOWN_NATS)


def test_byte_pairs_are_measured_by_characters_too() -> None:
    pairs = BytePairs(known=((97, 98),))
    objective = NextToken().beside(PassageFeatures(vocabulary=pairs, length=4))
    target = objective.encode(pl.DataFrame({"text": ["abéb"]}))
    assert np.count_nonzero(target) == 4
    losses = objective.losses(np.full((1, 5, objective.width), -3.0), target)
    assert (losses["nats"][0], losses["characters"][0]) == (12.0, 4.0)


def test_passages_that_are_cut_off_at_other_characters_do_not_compare() -> None:
    whole, cut = ({"characters": np.array([4.0, last])} for last in (9.0, 7.0))
    assert NextToken().unlike(whole, whole) is None
    assert NextToken().unlike(whole, cut) == "1 passages are cut off at other characters"


def test_bits_compare_across_vocabularies_unless_a_passage_is_cut_off() -> None:
    def reading(vocabulary: Vocabulary, length: int) -> NextToken:
        return NextToken().beside(PassageFeatures(vocabulary=vocabulary, length=length))

    other = Characters(known=tuple("abc"))
    assert other.size != VOCABULARY.size
    assert OBJECTIVE.incomparable(reading(other, 4)) is None
    assert OBJECTIVE.incomparable(reading(BytePairs(known=((97, 98),)), 5)) is None
    assert OBJECTIVE.incomparable(reading(other, 3)) == (
        "it reads 3 tokens of a passage, these have 4"
    )
    classes = Classification(target="text", labels=("a", "b"))
    assert OBJECTIVE.incomparable(classes) == "its output has another type or shape"


def test_the_best_constant_is_how_often_a_token_is_there() -> None:
    target = OBJECTIVE.encode(pl.DataFrame({"text": ["aaab", "aaab"]}))
    name, predicted = OBJECTIVE.constant(target, 3)
    assert (name, predicted.shape) == ("unigram", (3, 5, 5))
    shares = frequencies(target, OBJECTIVE.width)
    assert shares.sum() == pytest.approx(1)
    assert shares[SPECIAL] / shares[SPECIAL + 1] == pytest.approx(7 / 3)
    np.testing.assert_allclose(np.exp(predicted[2, 4]), shares, rtol=1e-6)
    assert shares[PADDING] < shares[SPECIAL + 1]


def test_an_answer_names_the_likeliest_next_tokens() -> None:
    logs = np.log(np.array([[[0.2] * 5, [0.0, 0.05, 0.0, 0.7, 0.25]]]) + 1e-12)
    [answer] = OBJECTIVE.answer(logs)
    assert list(answer["next"].items())[:3] == [("a", 0.7), ("b", 0.25), ("\ufffd", 0.05)]


def test_a_prompt_is_continued_as_its_request_says() -> None:
    def run(tensors: Tensors) -> Tensors:
        shape = (*tensors["tokens"].shape, OBJECTIVE.width)
        likely = np.where(np.arange(OBJECTIVE.width) == SPECIAL + 1, 0.0, -9.0)
        found = np.broadcast_to(likely, shape)
        return {"log_probabilities": found, "next_state": tensors["state"]}

    features = PassageFeatures(vocabulary=VOCABULARY, length=4, values=1)
    asked = b'{"prompt": "a", "characters": 3, "temperature": 0, "stream": true}'
    tensors = features.encode(features.read(asked, "application/json"))
    [sampling] = [Sampling.model_validate_json(one) for one in tensors[SAMPLING]]
    answer = OBJECTIVE.written(list(OBJECTIVE.write(run, tensors, sampling)), sampling)
    assert (answer["text"], answer["characters"], answer["completion_tokens"]) == ("bbb", 3, 3)
    assert answer["finish_reason"] == "length"
    assert "stream" not in answer


def test_labelled_texts_are_nothing_to_go_on_writing() -> None:
    with pytest.raises(ValueError, match="takes passages, not TextFeatures"):
        NextToken().beside(TextFeatures(vocabulary=VOCABULARY, length=4))
