import numpy as np
import polars as pl
import pytest

from models.data import RefusedObject, RefusedRequest
from models.generation import SAMPLING, Sampling
from models.language import NextToken
from models.passages import BLOCK, Passages
from models.splits import ByGroup
from models.vocabulary import BEGINNING, PADDING, BytePairs, Characters, Vocabulary, texts_of

TEXT = "Call me Ishmael. Some years ago - never mind how long precisely -\r\nhaving little. "


def passages(vocabulary: Vocabulary) -> Passages:
    split = ByGroup(column=BLOCK)
    return Passages(raw="verses/", length=16, block=2, vocabulary=vocabulary, split=split)


DATA = passages(Characters())


def test_passages_are_the_text_and_neighbours_share_a_block() -> None:
    rows = DATA.parse("a.txt", TEXT.encode(), {}).rows
    assert "".join(rows["text"]) == TEXT.replace("\r\n", "\n")
    assert set(rows["text"].str.len_chars()[:-1]) == {16}
    assert rows[BLOCK].to_list() == [
        "a.txt/0",
        "a.txt/0",
        "a.txt/1",
        "a.txt/1",
        "a.txt/2",
        "a.txt/2",
    ]


def test_a_block_is_in_one_split_only() -> None:
    rows = DATA.parse("a.txt", (TEXT * 40).encode(), {}).rows
    labels = DATA.split.label(rows, np.zeros(rows.height, np.uint64))
    assert set(labels) == {"train", "validation", "test"}
    together = rows.with_columns(labels.alias("split")).group_by(BLOCK)
    assert set(together.agg(n=pl.col("split").n_unique())["n"]) == {1}


@pytest.mark.parametrize(
    ("payload", "reason"), [(b"", "the object is empty"), (b"a\xffb", "not UTF-8 at byte 1")]
)
def test_what_is_no_text_is_refused(payload: bytes, reason: str) -> None:
    with pytest.raises(RefusedObject, match=reason):
        DATA.parse("a.txt", payload, {})


def test_a_passage_of_white_space_is_no_row() -> None:
    rows = DATA.parse("a.txt", b" " * 16 + b"words", {}).rows
    assert rows.filter(*(c.holds for c in DATA.checks()))["text"].to_list() == ["words"]


@pytest.mark.parametrize("vocabulary", [Characters(), BytePairs(merges=20)])
def test_training_and_serving_give_the_same_tensor(vocabulary: Vocabulary) -> None:
    data = passages(vocabulary)
    rows = data.parse("a.txt", TEXT.encode(), {}).rows
    features = data.fit([data.summarise(rows)])
    trained = features.encode(rows)["tokens"]
    assert trained.shape == (rows.height, 17)
    assert set(trained[:, 0]) == {BEGINNING}
    served = features.carrying(5)
    for number in range(rows.height):
        sent = served.encode(served.read(*served.write(rows[number : number + 1])))
        np.testing.assert_array_equal(sent["tokens"], trained[[number]])
        np.testing.assert_array_equal(sent["state"], np.zeros((1, 5), np.float32))
        for spec in served.inputs:
            spec.check(sent[spec.name])


def test_what_follows_each_token_is_the_next_one() -> None:
    rows = DATA.parse("a.txt", TEXT.encode(), {}).rows
    features = DATA.fit([DATA.summarise(rows)])
    target = NextToken().beside(features).encode(rows)
    np.testing.assert_array_equal(target[:, :-1], features.encode(rows)["tokens"][:, 1:])
    assert set(target[:, -1]) == {PADDING}


def test_a_request_says_how_to_write() -> None:
    features = DATA.fit([DATA.summarise(DATA.parse("a.txt", TEXT.encode(), {}).rows)])
    asked = b'{"prompt": "Call me", "characters": 7, "temperature": 0.5, "top_k": 3, "seed": 11}'
    tensors = features.encode(features.read(asked, "application/json"))
    expected = Sampling(characters=7, temperature=0.5, top_k=3, seed=11)
    assert Sampling.model_validate_json(tensors[SAMPLING][0]) == expected
    long = features.encode(features.read(TEXT.encode(), "text/plain"))["tokens"]
    np.testing.assert_array_equal(
        long, features.encode(features.read(TEXT.encode()[-16:], "text/plain"))["tokens"]
    )


def test_of_a_prompt_of_many_tokens_the_end_is_kept() -> None:
    data = passages(BytePairs(merges=2))
    features = data.fit([data.summarise(data.parse("a.txt", TEXT.encode(), {}).rows)])
    tokens = features.encode(features.read("é".encode() * 30 + b"end", "text/plain"))["tokens"]
    assert texts_of(features.vocabulary, tokens[0]).decode() == "é" * 6 + "end"


@pytest.mark.parametrize(
    ("payload", "media_type", "reason"),
    [
        (b"[]", "application/json", "the request must be"),
        (b"{}", "application/json", "the request must be"),
        (b'{"prompt": 7}', "application/json", "the request must be"),
        (b"{", "application/json", "not readable as application/json"),
        (b'{"prompt": "a", "temperature": 11}', "application/json", "temperature: Input should be"),
        (b'{"prompt": "a", "characters": 0}', "application/json", "characters: Input should be"),
        (b'{"prompt": "a", "style": "grand"}', "application/json", "style: Extra inputs"),
        (b"\xff", "text/plain", "not UTF-8"),
        (b"a" * 10_001, "text/plain", "the prompt is over 10,000 characters"),
        (b"a", "audio/wav", "audio/wav is neither"),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused(
    payload: bytes, media_type: str, reason: str
) -> None:
    features = DATA.fit([DATA.summarise(DATA.parse("a.txt", TEXT.encode(), {}).rows)])
    with pytest.raises(RefusedRequest, match=reason):
        features.read(payload, media_type)
