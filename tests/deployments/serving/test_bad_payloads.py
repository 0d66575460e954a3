"""What people send that is made to harm, sent to `predict` and `explain` of a real server.

Images, sound, texts and tables: each is refused with a code and the request's id, and nothing of
our inside; the same process goes on, and another tenant is answered in between.
"""

import struct
from typing import Any

import pytest

from tests.deployments.serving.bad import RECORD, Bad, Table, answered, chunk, huge_image, refused
from tests.deployments.serving.sequences import RATE, clip
from tests.deployments.serving.versions import png

JSON, CSV, TEXT = "application/json", "text/csv", "text/plain"
LARGEST = 2**32 - 1


def part(kind: bytes, content: bytes, size: int | None = None) -> bytes:
    """A chunk of a WAV file, which may claim another size than it has."""
    return kind + struct.pack("<I", len(content) if size is None else size) + content


def form(
    kind: int = 1, channels: int = 1, rate: int = RATE, bits: int = 16, size: int | None = None
) -> bytes:
    fields = struct.pack("<HHIIHH", kind, channels, rate, rate * 2 % 2**32, 2, bits)
    return part(b"fmt ", fields, size)


def wave(*parts: bytes, size: int | None = None) -> bytes:
    """A WAV file of these chunks."""
    return part(b"RIFF", b"WAVE" + b"".join(parts), size)


SECOND = bytes(2 * RATE)
SOUND = part(b"data", SECOND)
WAVES: dict[str, Any] = {
    "good": wave(form(), SOUND),
    "no channel": wave(form(channels=0), SOUND),
    "65,535 channels": wave(form(channels=65_535), SOUND),
    "no rate": wave(form(rate=0), SOUND),
    "largest rate": wave(form(rate=LARGEST), SOUND),
    "samples of 0 bits": wave(form(bits=0), SOUND),
    "samples of 65,535 bits": wave(form(bits=65_535), SOUND),
    "another coding": wave(form(kind=0xFFFE), SOUND),
    "a form cut short": wave(part(b"fmt ", b"\1\0\1\0"), SOUND),
    "a form of 4 GB": wave(form(size=LARGEST), SOUND),
    "two forms": wave(form(), form(channels=2), SOUND),
    "no form": wave(SOUND),
    "no samples": wave(form()),
    "a sample and a half": wave(form(), part(b"data", b"\0\0\0")),
    "samples of 4 GB": wave(form(), part(b"data", SECOND, LARGEST)),
    "a file of 4 GB": wave(form(), part(b"data", SECOND, LARGEST), size=LARGEST),
    "a file of nothing": wave(form(), SOUND, size=0),
    "a remark of 4 GB": wave(form(), part(b"LIST", b"INFO", LARGEST), SOUND),
    "remarks that overlap": wave(form(), part(b"LIST", part(b"LIST", SOUND), LARGEST - 7)),
    "files in files": wave(*[part(b"RIFF", b"WAVE", LARGEST)] * 1000, form(), SOUND),
    # A size that as an integer of 32 bits leads back to the chunk itself.
    "a cycle": wave(form(), part(b"LIST", b"", LARGEST - 7), SOUND),
    "a flood of chunks": lambda: wave(*[part(b"LIST", b"")] * 1_900_000, form(), SOUND),
    "a quarter of an hour": lambda: wave(form(), part(b"data", bytes(2 * RATE * 900))),
    "cut in its head": wave(form(), SOUND)[:30],
    "cut in its samples": wave(form(), SOUND)[:-1000],
    "another file": b"OggS" + bytes(1000),
    "nothing": b"",
}


def payload(line: str, body: Any, kind: str, status: int = 400) -> Bad:
    return Bad(f"/v1/lines/{line}/predict", body, (status,), {"content-type": kind})


def noisy(pixels: bytes) -> bytes:
    """A PNG whose pixels are packed in these bytes."""
    return png()[:33] + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def waves(what: str) -> Bad:
    made = WAVES[what]
    return payload("tones", made() if callable(made) else made, "audio/wav")


BAD: Table = {
    "1 KB image of 10 GB": lambda: payload("clothes", huge_image(), "image/png"),
    "no image": payload("clothes", b"\x89PNG\r\n\x1a\n" + b"\0" * 999, "image/png"),
    "an image cut short": payload("clothes", png()[:60], "image/png"),
    "an image without pixels": payload("clothes", noisy(b""), "image/png"),
    "an image that is damaged": payload("clothes", noisy(b"\xff" * 99), "image/png"),
    "an image of another kind": payload("clothes", b"GIF89a" + bytes(99), "image/gif"),
    "text of 10 MB": lambda: payload("opinions", b"abc " * 2_500_000, TEXT),
    "text that is no UTF-8": payload("opinions", b"abc\xff\xfe", TEXT),
    "a half of a surrogate": payload("opinions", b'"\\ud800"', JSON),
    "a text that is none": payload("opinions", b"{}", JSON),
    "a text as an image": payload("opinions", b"abc", "image/png"),
    "100,000 texts": lambda: payload("opinions", b'["a"' + b',"a"' * 100_000 + b"]", JSON),
    "record of 10 MB": lambda: payload(
        "air-time", b'{"distance":"' + b"9" * 10_000_000 + b'"}', JSON
    ),
    "a name of 10 MB": lambda: payload("air-time", b'{"' + b"a" * 10_000_000 + b'":1}', JSON),
    "a megabyte of nesting": lambda: payload("air-time", b"[" * 1_000_000, JSON),
    "a number no double holds": payload("air-time", b'{"distance":1e999,"hour":4}', JSON),
    "a number of 400 digits": payload(
        "air-time", b'{"distance":1' + b"0" * 400 + b',"hour":4}', JSON
    ),
    "bare NaN": payload("air-time", b'{"distance":NaN,"hour":4}', JSON),
    "null": payload("air-time", {"distance": None, "hour": 4}, JSON, 422),
    "another kind of value": payload("air-time", RECORD | {"hour": "4"}, JSON),
    "no record": payload("air-time", b"[]", JSON),
    "a field less": payload("air-time", {"distance": 3}, JSON),
    "a CSV without a column": payload("air-time", b"distance\n3\n", CSV),
    "a CSV of texts": payload("air-time", b"distance,hour\nx,y\n", CSV),
    "a CSV that is no UTF-8": payload("air-time", b"distance,hour\n\xff,\xfe\n", CSV),
    "a CSV of a million columns": lambda: payload(
        "air-time", b",".join(b"%d" % number for number in range(1_000_000)), CSV
    ),
    **{f"sound: {what}": (lambda what=what: waves(what)) for what in WAVES if what != "good"},
}


@pytest.mark.parametrize("verb", ["predict", "explain"])
@pytest.mark.parametrize("what", BAD)
def test_it_is_refused_and_the_server_goes_on(
    exposed: Any, quiet: dict[str, str], what: str, verb: str
) -> None:
    found = BAD[what]
    bad = found() if callable(found) else found
    bad = bad._replace(path=bad.path.replace("predict", verb))
    code = refused(exposed, quiet, bad)
    assert code in (("not_finite",) if bad.statuses == (422,) else ("refused_request",))


def test_good_ones_are_answered(exposed: Any, quiet: dict[str, str], picture: bytes) -> None:
    answered(exposed, quiet)
    sent = {
        "tones": (clip("ab"), "audio/wav"),
        "clothes": (picture, "image/png"),
        "opinions": (b"a +", TEXT),
    }
    for line, (body, kind) in sent.items():
        answer = exposed.ask("POST", f"/v1/lines/{line}/predict", body, content_type=kind)
        assert answer.status == 200, answer
    # What the hostile clips are made of is a clip.
    path = "/v1/lines/tones/predict"
    assert exposed.ask("POST", path, WAVES["good"], content_type="audio/wav").status == 200
