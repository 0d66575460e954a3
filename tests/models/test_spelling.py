import math

import pytest

from models.spelling import EDGE, Spelling, count

TEXTS = ["abab", "aba", "b"]
COUNTS = count(TEXTS, 3)


def shares(before: str, order: int = 3) -> dict[str, float]:
    spelling = Spelling(count(TEXTS, order), order, 2)
    return {s: math.exp(spelling.log_probability(before, s)) for s in ("a", "b", EDGE)}


def test_sequences_up_to_the_order_are_counted_and_no_text_begins_anew() -> None:
    assert COUNTS["a"] == 4
    assert COUNTS["ab"] == 3
    assert COUNTS[f"{EDGE}ab"] == 2
    assert COUNTS[f"b{EDGE}"] == 2
    assert EDGE + EDGE not in COUNTS
    assert max(map(len, COUNTS)) == 3
    assert COUNTS[EDGE] == len(TEXTS), "the edge is an end, not a beginning"
    assert list(COUNTS) == sorted(COUNTS)
    assert count([], 3) == {}


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("before", ["", "a", "ab", "ba", "bb", "abababab"])
def test_probabilities_sum_to_one_and_none_is_nothing(before: str, order: int) -> None:
    found = shares(before, order)
    assert sum(found.values()) == pytest.approx(1)
    assert min(found.values()) > 0


def test_they_are_those_of_the_paper() -> None:
    # Seen: a 4, b 4, the edge 3; after `a`: b 3, the edge 1; two kinds follow.
    of_b = (4 + 3 * (1 / 3)) / (11 + 3)
    assert shares("a", 1)["b"] == pytest.approx(of_b)
    assert shares("a", 2)["b"] == pytest.approx((3 + 2 * of_b) / (4 + 2))


def test_what_was_seen_is_likelier_than_what_was_not() -> None:
    assert shares("b")["b"] < shares("b")["a"]
    assert shares("ab")[EDGE] > shares("")[EDGE]


def test_without_counts_all_letters_are_alike() -> None:
    empty = Spelling({}, 3, 2)
    assert empty.log_probability("ab", "a") == pytest.approx(math.log(1 / 3))
