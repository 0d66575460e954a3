import pytest
from pydantic import ValidationError

from models.digests import (
    IntegrityError,
    Manifest,
    bytes_digest,
    canonical_json,
    json_digest,
)

FILES = {"b.bin": b"\x00\x01", "a.json": b"{}"}


def test_bytes_have_their_blake3_digest() -> None:
    # The empty input of the BLAKE3 paper's test vectors.
    empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert bytes_digest(b"") == empty
    assert bytes_digest(memoryview(b"abc")) == bytes_digest(bytearray(b"abc"))


def test_json_is_canonical() -> None:
    # RFC 8785: sorted keys, no blanks, shortest numbers, UTF-8.
    value = {"b": [1.0, 1e21, 0.1, None], "a": "é\n"}
    assert canonical_json(value) == '{"a":"é\\n","b":[1,1e+21,0.1,null]}'.encode()
    assert json_digest({"x": 1, "y": 2}) == json_digest({"y": 2, "x": 1})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"bytes"])
def test_json_refuses_what_it_cannot_say(value: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        canonical_json(value)


def test_a_manifest_names_a_folder_by_names_and_contents() -> None:
    digest = Manifest.of(FILES).digest
    assert digest == "42de9023b81ec287fbc20e56734b8ce6241274b8a443d6d72aee19073d2fcc56"
    assert Manifest.of(dict(reversed(FILES.items()))).digest == digest
    others = [{**FILES, "a.json": b"[]"}, {"c.bin": b"\x00\x01", "a.json": b"{}"}, {"a.json": b""}]
    assert digest not in {Manifest.of(other).digest for other in others}


def test_a_manifest_comes_back_from_json() -> None:
    manifest = Manifest.of(FILES)
    assert Manifest.model_validate_json(canonical_json(manifest.model_dump())) == manifest


def test_a_manifest_lets_the_right_content_pass() -> None:
    Manifest.of(FILES).check("a.json", b"{}")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"{} ", "a.json: content has digest"),
        ("a.json", b"", "altered or cut short"),
        ("c.txt", b"{}", "c.txt: not named by the manifest"),
    ],
)
def test_a_manifest_stops_any_other(name: str, content: bytes, message: str) -> None:
    with pytest.raises(IntegrityError, match=message):
        Manifest.of(FILES).check(name, content)


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a" * 101])
def test_a_file_name_cannot_leave_its_folder(name: str) -> None:
    with pytest.raises(ValidationError):
        Manifest.of({name: b""})
