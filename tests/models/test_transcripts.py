import pytest

from models.data import RefusedObject
from models.transcripts import read_transcripts, spoken


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Please press 1,  or 0 now!", "please press one or zero now"),
        ("Don't — I'm at the \u2019office\u2019...", "don't i'm at the 'office'"),
        ('A.M. o\'clock re-record: it; "done"?', "a m o'clock re record it done"),
    ],
)
def test_what_is_said_is_kept_in_letters(text: str, said: str) -> None:
    assert spoken(text) == said


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[beep]", r"it describes a sound: '\[beep\]'"),
        ("(10 seconds of silence)", "it describes a sound"),
        ("<beep ascending>", "it describes a sound"),
        ("After the tone. (a tone)", "it describes a sound"),
        ("dial 28.8 now", "'28' can be said in several ways: spell it out"),
        ("3D audio", "'3d' can be said in several ways"),
        ("press ٣", "can be said in several ways"),
        ("press #", "'#' is no word in the letters a to z"),
        ("naïve", "'naïve' is no word"),
        ("rock ' roll", "is no word"),
        ("...", "it is empty"),
        ("", "it is empty"),
    ],
)
def test_what_was_not_certainly_said_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        spoken(text)


def test_a_list_of_transcripts_is_read_by_name() -> None:
    found = read_transcripts("t.txt", b"\xef\xbb\xbf; remark\n\na/b: One: two. \r\n c:\n")
    assert dict(found.iter_rows()) == {"a/b": "One: two.", "c": ""}
    assert read_transcripts("t.txt", b"").height == 0


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"a: \xff", "t.txt is not UTF-8 at byte 3"),
        (b"a: one\nnothing\n", "t.txt, line 2: no colon"),
        (b"a: one\na: two\n", "t.txt, line 2: a has a transcript already"),
    ],
)
def test_what_is_no_list_is_refused_with_its_line(payload: bytes, reason: str) -> None:
    with pytest.raises(RefusedObject, match=reason):
        read_transcripts("t.txt", payload)
