"""Transcripts as they are published, brought to the letters that are said.

A line is `name: text`; one that starts with a semicolon is a remark. Only what certainly was said
is kept: what a transcript merely describes, or writes in a way that can be read aloud in several,
is refused with its reason.
"""

import re

import polars as pl

from models.data import RefusedObject

SCHEMA = {"name": pl.String, "text": pl.String}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PAUSES = str.maketrans(dict.fromkeys('.,;:!?"-\u2026\u2013\u2014', " ") | {"\u2019": "'"})
BRACKETS = re.compile(r"[\[(<{].*?[\])>}]")
WORD = re.compile(r"[a-z']*[a-z][a-z']*")


def read_transcripts(name: str, payload: bytes) -> pl.DataFrame:
    """A table of `SCHEMA`; raises RefusedObject where the text is no list of transcripts."""
    try:
        lines = payload.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise RefusedObject(f"{name} is not UTF-8 at byte {error.start:,}") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith(";"):
            continue
        clip, colon, text = line.partition(":")
        if not colon:
            raise RefusedObject(f"{name}, line {number}: no colon ends the name of a clip")
        if clip.strip() in found:
            raise RefusedObject(f"{name}, line {number}: {clip.strip()} has a transcript already")
        found[clip.strip()] = text.strip()
    return pl.DataFrame({"name": list(found), "text": list(found.values())}, schema=SCHEMA)


def spoken(text: str) -> str:
    """The words of a transcript in the letters a to z and the apostrophe, one blank between them.

    A digit alone is spelt out, as it is said. Raises ValueError for a remark in brackets, a longer
    number, another sign, or no word at all.
    """
    remark = BRACKETS.search(text)
    if remark:
        raise ValueError(f"it describes a sound: {remark[0][:40]!r}")
    words = []
    for word in text.lower().translate(PAUSES).split():
        if len(word) == 1 and word in "0123456789":
            words.append(DIGITS[int(word)])
        elif WORD.fullmatch(word):
            words.append(word)
        elif any(letter.isdecimal() for letter in word):
            raise ValueError(f"{word[:40]!r} can be said in several ways: spell it out")
        else:
            raise ValueError(f"{word[:40]!r} is no word in the letters a to z")
    if not words:
        raise ValueError("it is empty")
    return " ".join(words)
