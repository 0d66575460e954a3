from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from models.vocabulary import (
    BEGINNING,
    PADDING,
    SPECIAL,
    UNKNOWN,
    WORDS,
    BytePairs,
    Characters,
    Vocabulary,
    texts_of,
)

TEXT = "low lower lowest, newer and wider: 低い山 é 🐋\n\n  low"


def fitted(vocabulary: Vocabulary, *texts: str) -> Vocabulary:
    return vocabulary.fit([vocabulary.summarise([text]) for text in texts])


BOTH = pytest.mark.parametrize("kind", [Characters(), BytePairs(merges=30)])


@BOTH
def test_tokens_are_the_text_again(kind: Vocabulary) -> None:
    vocabulary = fitted(kind, TEXT)
    tokens = vocabulary.encode(TEXT)
    assert texts_of(vocabulary, tokens).decode() == TEXT
    assert min(tokens) >= SPECIAL
    assert max(tokens) < vocabulary.size


@BOTH
def test_every_character_is_counted_once(kind: Vocabulary) -> None:
    vocabulary = fitted(kind, TEXT)
    assert vocabulary.characters[vocabulary.encode(TEXT)].sum() == len(TEXT)
    assert vocabulary.characters.shape == (vocabulary.size,)


@BOTH
def test_it_is_text_and_comes_back_from_it(kind: Vocabulary) -> None:
    vocabulary = fitted(kind, TEXT)
    again = type(vocabulary).model_validate_json(vocabulary.model_dump_json())
    assert again.encode(TEXT) == vocabulary.encode(TEXT)


@BOTH
def test_how_the_rows_are_cut_into_objects_changes_nothing(kind: Vocabulary) -> None:
    words = TEXT.split()
    one = fitted(kind, *words)
    assert one == fitted(kind, *reversed(words))
    assert one == kind.fit([kind.summarise(words)])


@BOTH
def test_no_training_text_is_an_error(kind: Vocabulary) -> None:
    with pytest.raises(ValueError, match="training rows"):
        fitted(kind, "")


def test_a_character_not_seen_often_enough_is_unknown() -> None:
    vocabulary = fitted(Characters(minimum=2), "aab", "bcd")
    assert vocabulary.encode("abcz") == [SPECIAL, SPECIAL + 1, UNKNOWN, UNKNOWN]
    assert texts_of(vocabulary, vocabulary.encode("az")).decode() == "a\ufffd"


def test_byte_pairs_know_every_text() -> None:
    vocabulary = fitted(BytePairs(merges=4), "aaaa")
    assert texts_of(vocabulary, vocabulary.encode(TEXT)).decode() == TEXT


def test_the_most_frequent_pair_is_merged_first_and_of_equals_the_lower() -> None:
    text = "low low lower newest newest newest abab aaaaa " + TEXT
    found = fitted(BytePairs(merges=20), text)
    assert isinstance(found, BytePairs)
    # The same by counting all pairs anew after every merge, until none is there twice.
    words = [list(word.encode()) for word in WORDS.findall(text)]
    expected: list[tuple[int, int]] = []
    while len(expected) < 20:
        counts = Counter(pair for word in words for pair in pairwise(word))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        if counts[best] < 2:
            break
        new = 256 + len(expected)
        for word in words:
            for at in range(len(word)):
                if tuple(word[at : at + 2]) == best:
                    word[at : at + 2] = [new]
        expected.append(best)
    assert list(found.known) == expected
    assert {b"we", b" low"} <= set(found.pieces[256:])
    vocabulary = fitted(BytePairs(merges=10), "low low low")
    assert [vocabulary.pieces[t - SPECIAL] for t in vocabulary.encode("low low")] == [
        b"low",
        b" low",
    ]


def test_a_pair_seen_once_is_not_merged() -> None:
    assert fitted(BytePairs(), "abcdef").size == SPECIAL + 256


def test_rows_are_cut_or_filled_up() -> None:
    vocabulary = fitted(Characters(), "abc")
    found = vocabulary.rows(["abcabc", "b", ""], 4, beginning=False)
    a, b, c = range(SPECIAL, SPECIAL + 3)
    assert found.dtype == np.int64
    assert found.tolist() == [[a, b, c, a], [b, 0, 0, 0], [PADDING] * 4]
    begun = vocabulary.rows(["abcabc", ""], 4, beginning=True)
    assert begun.tolist() == [[BEGINNING, a, b, c], [BEGINNING, 0, 0, 0]]
