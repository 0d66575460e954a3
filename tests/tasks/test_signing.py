"""The keys of a place: made once, kept private, rotated, revoked."""

import datetime
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.attestation import PROVENANCE, Statement, UntrustedError, described, signed, verified
from models.trust import KEYS_SETTING, TRUSTED, Trust, TrustError, trust
from tasks import signing
from tests.conftest import environment

STATEMENT = Statement(
    subject=(described("file", b"content"),), predicate_type=PROVENANCE, predicate={"a": 1}
)


@pytest.fixture(autouse=True)
def keys(tmp_path: Path) -> Iterator[Path]:
    """An empty folder of keys."""
    with environment(**{KEYS_SETTING: str(tmp_path / "keys")}):
        yield tmp_path / "keys"


def envelope() -> bytes:
    return signed(STATEMENT, [signing.signer()])


def test_the_first_signature_makes_the_key_and_only_its_owner_can_read_it(keys: Path) -> None:
    assert signing.keyid() == ""
    first, second = envelope(), envelope()
    assert first == second
    assert stat.S_IMODE((keys / signing.PRIVATE).stat().st_mode) == 0o600
    [key] = trust().all()
    assert key.keyid == signing.keyid()
    assert verified(first, trust(), predicate=PROVENANCE) == STATEMENT


def test_a_key_that_others_can_read_signs_nothing(keys: Path) -> None:
    envelope()
    (keys / signing.PRIVATE).chmod(0o640)
    with pytest.raises(TrustError, match="can be read by others"):
        envelope()


def test_what_a_rotated_key_signed_counts_until_it_is_revoked() -> None:
    old, before = envelope(), signing.keyid()
    signing.rotate()
    new = envelope()
    assert signing.keyid() != before
    for text in (old, new):
        verified(text, trust(), predicate=PROVENANCE)
    signing.revoke(before[:16])
    with pytest.raises(UntrustedError, match="not trusted here"):
        verified(old, trust(), predicate=PROVENANCE)
    verified(new, trust(), predicate=PROVENANCE)


def test_a_revoked_or_expired_key_signs_nothing_more() -> None:
    envelope()
    signing.revoke(signing.keyid())
    with pytest.raises(TrustError, match="revoked or has expired"):
        envelope()
    signing.rotate(expires=datetime.date(2020, 1, 1))
    with pytest.raises(TrustError, match="rotate"):
        envelope()


def test_revoking_names_one_key() -> None:
    envelope()
    with pytest.raises(TrustError, match="0 trusted keys begin with 'zz'"):
        signing.revoke("zz")
    signing.rotate()
    with pytest.raises(TrustError, match="2 trusted keys begin with ''"):
        signing.revoke("")


def test_files_that_are_no_keys_are_named(keys: Path) -> None:
    envelope()
    (keys / signing.PRIVATE).write_text("nothing")
    with pytest.raises(TrustError, match="no ed25519 key"):
        signing.signer()
    stray = keys / TRUSTED / "stray.json"
    stray.write_text("{}")
    with pytest.raises(TrustError, match=str(stray)):
        Trust(keys).all()


def test_another_statement_or_another_type_is_refused() -> None:
    text = envelope()
    with pytest.raises(UntrustedError, match="wanted is"):
        verified(text, trust(), predicate="https://example.org/other")
    for broken in (b"", b"{}", b"[]", text[:-20], text.replace(b"in-toto+json", b"in-toto+yaml")):
        with pytest.raises(UntrustedError):
            verified(broken, trust(), predicate=PROVENANCE)
    with pytest.raises(ValueError, match="was altered, swapped or cut short"):
        STATEMENT.about("file").check(b"other")
