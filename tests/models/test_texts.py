import numpy as np
import pytest

from models.data import RefusedObject, RefusedRequest
from models.splits import ByHash
from models.texts import LONGEST, TextFeatures, Texts, plain, tidy
from models.vocabulary import Characters

DATA = Texts(raw="reviews/", length=6, vocabulary=Characters(), split=ByHash())


def fitted() -> TextFeatures:
    rows = DATA.parse("a/x.txt", "很好 abc\n不错".encode(), {}).rows
    return DATA.fit([DATA.summarise(rows)])


def test_every_line_of_a_file_is_a_text_of_the_class_of_its_folder() -> None:
    found = DATA.parse("2024/pos/x.txt", "\ufeff很好\r\n\r\n  不  错 \n".encode(), {})
    assert found.rows.select("row", "text", "label").rows() == [
        (0, "很好", "pos"), (1, "", "pos"), (2, "不 错", "pos"),
    ]  # fmt: skip
    passed = found.rows.filter(*(check.holds for check in DATA.checks()))
    assert passed["row"].to_list() == [0, 2]


def test_a_csv_brings_its_labels() -> None:
    content = b'label,text,other\npos,"fine, really",1\nneg,,2\n'
    found = DATA.parse("x.csv", content, {})
    assert found.rows.select("text", "label").rows() == [("fine, really", "pos"), (None, "neg")]
    assert found.rows.filter(*(c.holds for c in DATA.checks())).height == 1


def test_texts_to_score_need_no_label() -> None:
    lines = DATA.parse_unlabelled("x.txt", b"fine\nbad\n", {}, "label")
    assert lines.rows["text"].to_list() == ["fine", "bad"]
    records = DATA.parse_unlabelled("x.csv", b"text\n fine\nbad\n", {}, "label")
    assert records.rows.select("text", "label").rows() == [("fine", None), ("bad", None)]


@pytest.mark.parametrize(
    ("name", "payload", "reason"),
    [
        ("pos/x.txt", b"", "the object is empty"),
        ("pos/x.txt", b"ab\xff", "not UTF-8 at byte 2"),
        ("x.txt", b"text", "in no folder named by its class"),
        ("x.csv", b"text\nfine\n", "column label is missing"),
    ],
)
def test_what_holds_no_labelled_text_is_refused_whole(
    name: str, payload: bytes, reason: str
) -> None:
    with pytest.raises(RefusedObject, match=reason):
        DATA.parse(name, payload, {})


def test_a_text_of_a_whole_book_is_no_row() -> None:
    rows = DATA.parse("a/x.txt", b"a" * (LONGEST + 1) + b"\nb", {}).rows
    reasons = [c.reason for c in DATA.checks() if not rows.select(c.holds).to_series().all()]
    assert reasons == ["over 100,000 characters"]


def test_the_same_letters_composed_or_not_are_the_same_text() -> None:
    assert tidy("e\u0301te\u0301") == tidy("\u00e9t\u00e9") == plain(b"e\xcc\x81te\xcc\x81")


def test_training_and_serving_give_the_same_tensor() -> None:
    rows = DATA.parse("a/x.txt", "  很好  abc def\n不错\n?\n".encode(), {}).rows
    features = fitted()
    trained = features.encode(rows)["tokens"]
    assert trained.shape == (3, 6)
    features.inputs[0].check(trained)
    for number in range(rows.height):
        sent = features.read(*features.write(rows[number : number + 1]))
        np.testing.assert_array_equal(features.encode(sent)["tokens"], trained[[number]])
    raw = features.read("  很好 \n abc def".encode(), "text/plain")
    np.testing.assert_array_equal(features.encode(raw)["tokens"], trained[:1])


def test_json_is_one_text_or_several() -> None:
    features = fitted()
    for payload in (b'"ab"', b'{"text": "ab"}', b'["ab"]', b'[{"text": " ab"}]'):
        assert features.read(payload, "application/json")["text"].to_list() == ["ab"]
    assert features.read(b"[]", "application/json").height == 0


@pytest.mark.parametrize(
    ("payload", "media_type", "reason"),
    [
        (b" \n ", "text/plain", "the text is empty"),
        (b"\xff", "text/plain", "not UTF-8"),
        (b"{", "application/json", "not readable as application/json"),
        (b"7", "application/json", "a text is a string"),
        (b'{"text": "a", "label": "pos"}', "application/json", "a text is a string"),
        (b'["a", null]', "application/json", "a text is a string"),
        (b"[" + b'"a",' * 1024 + b'"a"]', "application/json", "1,025 texts are over 1,024"),
        (b"a" * 100_001, "text/plain", "100,001 characters are over 100,000"),
        (b"a", "image/png", "image/png is neither text/plain nor application/json"),
    ],
)
def test_a_request_that_holds_no_text_is_refused(
    payload: bytes, media_type: str, reason: str
) -> None:
    with pytest.raises(RefusedRequest, match=reason):
        fitted().read(payload, media_type)


def test_drift_is_looked_for_in_length_and_unknown_tokens() -> None:
    features = fitted()
    rows = DATA.parse("a/x.txt", "很好\n很xy很\n".encode(), {}).rows
    found = features.describe(features.encode(rows))
    assert found.rows() == [(2.0, 0.0), (4.0, 0.5)]


def test_short_and_cut_texts_are_judged_apart() -> None:
    rows = DATA.parse("a/x.txt", b"a\nabcde\nabcdefgh", {}).rows
    found = {name: chosen.tolist() for name, chosen in fitted().slices(rows)}
    assert found == {"length=to 1": [True, False, False], "length=over 6": [False, False, True]}
