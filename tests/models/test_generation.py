from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.generation import Sampling, Step, draw, write
from models.objectives import NotFiniteError
from models.vocabulary import BEGINNING, SPECIAL, BytePairs, Characters

LOGS = np.log(np.array([0.3, 0.2, 0.1, 0.05, 0.2, 0.1, 0.05], np.float32))
"""Three special tokens, then 3 to 6, of which 4 is the likeliest."""


def drawn(sampling: Sampling, count: int = 4000) -> NDArray[np.int64]:
    random = np.random.default_rng(7)
    found = [draw(LOGS, sampling, random) for _ in range(count)]
    return np.bincount(found, minlength=len(LOGS))


def test_tokens_are_drawn_as_often_as_they_are_likely_and_special_ones_never() -> None:
    found = drawn(Sampling(temperature=1)) / 4000
    np.testing.assert_allclose(found[SPECIAL:], [0.125, 0.5, 0.25, 0.125], atol=0.03)
    assert not found[:SPECIAL].any()


def test_a_low_temperature_sharpens_and_a_high_one_flattens() -> None:
    sharp, flat = (drawn(Sampling(temperature=t)) / 4000 for t in (0.5, 10.0))
    np.testing.assert_allclose(sharp[SPECIAL:], np.array([1, 16, 4, 1]) / 22, atol=0.03)
    np.testing.assert_allclose(flat[SPECIAL:], 0.25, atol=0.05)


def test_top_k_draws_among_the_likeliest_and_temperature_zero_takes_the_first() -> None:
    assert set(np.flatnonzero(drawn(Sampling(temperature=5, top_k=2)))) == {4, 5}
    assert set(np.flatnonzero(drawn(Sampling(temperature=0)))) == {4}
    # 3 and 6 are as likely: the lower one is in, the higher one out.
    assert set(np.flatnonzero(drawn(Sampling(temperature=1, top_k=3)))) == {3, 4, 5}


def test_a_nucleus_is_the_fewest_tokens_that_have_the_share() -> None:
    # Without the special ones 4 has a half, 5 a quarter, 3 and 6 an eighth each.
    for share, inside in ((0.4, {4}), (0.6, {4, 5}), (0.8, {4, 5, 3}), (1.0, {3, 4, 5, 6})):
        found = drawn(Sampling(temperature=1, top_p=share))
        assert set(np.flatnonzero(found)) == inside
    found = drawn(Sampling(temperature=1, top_p=0.6)) / 4000
    np.testing.assert_allclose(found[[4, 5]], [2 / 3, 1 / 3], atol=0.03)


def test_likelihoods_of_nothing_but_the_impossible_do_no_harm() -> None:
    logs = np.full(7, -np.inf, np.float32)
    logs[5] = 0.0
    assert draw(logs, Sampling(temperature=0.1), np.random.default_rng(0)) == 5


def counting(size: int, steps: list[dict[str, NDArray[Any]]]) -> Any:
    """A network whose next token is the last one plus one; its state counts the tokens it saw."""

    def run(tensors: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        steps.append(tensors)
        tokens = tensors["tokens"]
        following = np.maximum(tokens + 1, SPECIAL)
        following[following >= size] = SPECIAL
        logs = np.log(np.eye(size, dtype=np.float32)[following] + 1e-9)
        return {"out": logs, "next_state": tensors["state"] + tokens.shape[1]}

    return run


def test_writing_feeds_each_token_and_the_state_back() -> None:
    vocabulary = Characters(known=tuple("abc"))
    steps: list[dict[str, NDArray[Any]]] = []
    inputs = {
        "tokens": vocabulary.rows(["ab"], 8, beginning=True),
        "state": np.zeros((1, 1), np.float32),
    }
    run = counting(vocabulary.size, steps)
    found = list(write(run, inputs, "out", vocabulary, Sampling(characters=5)))
    assert [step.text for step in found] == ["c", "a", "b", "c", "a"]
    assert [step.end for step in found] == [None] * 4 + ["length"]
    assert steps[0]["tokens"].tolist() == [[BEGINNING, SPECIAL, SPECIAL + 1]]
    assert [step["state"][0, 0] for step in steps] == [0, 3, 4, 5, 6]
    assert [step["tokens"].shape for step in steps[1:]] == [(1, 1)] * 4


def alphabet(sampling: Sampling, **more: Any) -> list[Step]:
    """What follows `a` where the alphabet of six letters goes round and round."""
    vocabulary = Characters(known=tuple("abcdef"))
    inputs = {
        "tokens": vocabulary.rows(["a"], 4, beginning=True),
        "state": np.zeros((1, 1), np.float32),
    }
    run = counting(vocabulary.size, [])
    return list(write(run, inputs, "out", vocabulary, sampling, **more))


@pytest.mark.parametrize(
    ("stop", "texts"),
    [
        (("e",), ["b", "c", "d", ""]),
        (("de",), ["b", "c", "", ""]),
        (("dx", "ef"), ["b", "c", "", "d", ""]),
        (("de", "d"), ["b", "c", ""]),
        (("xyz",), ["b", "c", "d", "e", "f", "a", "b", "c"]),
        (("cx",), ["b", "", "cd", "e", "f", "a", "b", "c"]),  # the last one waits for nothing
    ],
)
def test_writing_ends_before_a_stop_and_holds_back_what_may_begin_one(
    stop: tuple[str, ...], texts: list[str]
) -> None:
    found = alphabet(Sampling(characters=8, stop=stop))
    assert [step.text for step in found] == texts
    assert found[-1].end == ("length" if len(texts) == 8 else "stop")


def test_tokens_are_counted_where_characters_are_not() -> None:
    found = alphabet(Sampling(tokens=3, characters=1))
    assert ("".join(step.text for step in found), found[-1].end) == ("bcd", "length")


def test_half_a_character_at_the_end_is_told() -> None:
    vocabulary = BytePairs()
    queue = [SPECIAL + byte for byte in "🐋".encode()]

    def run(tensors: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        logs = np.log(np.eye(vocabulary.size, dtype=np.float32)[[[queue.pop(0)]]] + 1e-9)
        return {"out": logs, "next_state": tensors["state"]}

    inputs = {"tokens": np.array([[BEGINNING]]), "state": np.zeros((1, 1), np.float32)}
    found = list(write(run, inputs, "out", vocabulary, Sampling(tokens=2)))
    assert [step.text for step in found] == ["", "\ufffd"]


def test_the_likeliest_tokens_are_told_and_choices_differ() -> None:
    [step] = alphabet(Sampling(characters=1), likeliest=2)
    assert step.token == step.likeliest[0][0] == SPECIAL + 1
    assert step.log_probability == step.likeliest[0][1] == pytest.approx(0, abs=1e-6)
    assert step.likeliest[1][1] < -10
    hot = Sampling(characters=60, temperature=10)
    texts = ["".join(s.text for s in alphabet(hot, choice=choice)) for choice in (0, 1, 1)]
    assert texts[0] != texts[1] == texts[2]


def test_pieces_of_a_character_wait_until_it_is_whole() -> None:
    vocabulary = BytePairs()
    whale = "🐋".encode()
    queue = [SPECIAL + byte for byte in (*whale, ord("!"), 0xFF, ord("?"))]

    def run(tensors: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        logs = np.log(np.eye(vocabulary.size, dtype=np.float32)[[[queue.pop(0)]]] + 1e-9)
        return {"out": logs, "next_state": tensors["state"]}

    inputs = {"tokens": np.array([[BEGINNING]]), "state": np.zeros((1, 1), np.float32)}
    sampling = Sampling(characters=4, temperature=0)
    found = list(write(run, inputs, "out", vocabulary, sampling))
    assert [step.text for step in found] == ["", "", "", "🐋", "!", "\ufffd", "?"]


def test_a_network_that_says_no_number_is_not_listened_to() -> None:
    vocabulary = Characters(known=tuple("ab"))
    nothing = {"out": np.full((1, 1, 5), np.nan, np.float32), "next_state": np.zeros((1, 1))}
    inputs = {"tokens": np.array([[BEGINNING]]), "state": np.zeros((1, 1), np.float32)}
    with pytest.raises(NotFiniteError, match="no finite probabilities"):
        next(write(lambda _: nothing, inputs, "out", vocabulary, Sampling()))


@pytest.mark.parametrize("field", [{"temperature": -1}, {"characters": 5000}, {"top_k": -1}])
def test_settings_have_bounds(field: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        Sampling.model_validate(field)
