"""Envelopes that securesystemslib signed, verified here: what fits nobody is nobody's word."""

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from securesystemslib.dsse import Envelope as SigningEnvelope
from securesystemslib.signer import CryptoSigner

from models.dsse import Envelope
from models.trust import PublicKey

# The specification's own example.
TYPE, PAYLOAD = "http://example.com/HelloWorld", b"hello world"
GOLDEN = Path(__file__).parents[1] / "golden" / "current" / "diabetes"
SIGNER, STRANGER = CryptoSigner.generate_ed25519(), CryptoSigner.generate_ed25519()


def public(signer: CryptoSigner) -> PublicKey:
    key = signer.public_key
    return PublicKey(keyid=key.keyid, public=key.keyval["public"])


def envelope(*signers: CryptoSigner, **changes: Any) -> Envelope:
    """As securesystemslib signs and writes it, then with fields of its JSON changed."""
    made = SigningEnvelope(PAYLOAD, TYPE, {})
    for signer in signers:
        made.sign(signer)
    return Envelope.model_validate_json(json.dumps({**made.to_dict(), **changes}))


def test_what_is_signed_is_the_encoding_of_the_specification() -> None:
    assert envelope()._encoded() == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_those_who_signed_are_found_among_the_keys() -> None:
    ours, theirs = public(SIGNER), public(STRANGER)
    assert envelope(SIGNER).signers([theirs, ours]) == [ours]
    assert envelope(STRANGER, SIGNER).signers([ours]) == [ours]
    assert envelope(STRANGER, SIGNER).signers([ours, theirs]) == [ours, theirs]
    assert envelope(SIGNER).signers([theirs]) == []
    assert envelope().signers([ours]) == []
    assert envelope(SIGNER).payload == PAYLOAD


@pytest.mark.parametrize(
    "change",
    [
        {"payload": base64.b64encode(b"hello World").decode()},
        {"payloadType": TYPE + "s"},
        {"signatures": [{"keyid": public(SIGNER).keyid, "sig": ""}]},
        {"signatures": [{"keyid": public(SIGNER).keyid, "sig": "A" * 86 + "=="}]},
    ],
)
def test_another_payload_type_or_signature_is_nobodys(change: dict[str, Any]) -> None:
    assert envelope(SIGNER, **change).signers([public(SIGNER)]) == []


def test_a_signature_counts_under_the_id_of_its_key_only() -> None:
    """A stranger's signature under our id, and ours under a stranger's."""
    other = public(STRANGER).model_copy(update={"keyid": public(SIGNER).keyid})
    assert envelope(SIGNER).signers([other]) == []
    assert envelope(SIGNER).signers([public(SIGNER).model_copy(update={"keyid": "0" * 64})]) == []


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"payload": 1}, "payload"),
        ({"payload": "no base64"}, "payload"),
        ({"payloadType": None}, "payloadType"),
        ({"signatures": {}}, "signatures"),
        ({"signatures": [{"sig": ""}]}, "signatures.0.keyid"),
        ({"signatures": [{"keyid": "", "sig": "*"}]}, "signatures.0.sig"),
        ({"signatures": [{"keyid": "", "sig": ""}] * 101}, "signatures"),
    ],
)
def test_what_is_no_envelope_is_an_error(change: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as raised:
        envelope(SIGNER, **change)
    assert ".".join(map(str, raised.value.errors()[0]["loc"])) == field


def test_a_server_verifies_without_the_clients_of_key_stores(tmp_path: Path) -> None:
    """What importing securesystemslib brings took most of a server's start."""
    (tmp_path / "trusted").mkdir()
    key = PublicKey.model_validate_json((GOLDEN / "key.json").read_bytes())
    (tmp_path / "trusted" / f"{key.keyid}.json").write_bytes((GOLDEN / "key.json").read_bytes())
    program = (
        "import sys; from pathlib import Path; import deployments.serving.app\n"
        "from deployments.serving.folder import local\n"
        "from models.trust import Trust; from models.version import read_verified\n"
        f"read_verified(local(Path({str(GOLDEN)!r})), Trust(Path({str(tmp_path)!r})))\n"
        "print(sorted({'boto3', 'botocore', 'securesystemslib', 'torch'} & sys.modules.keys()))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout == "[]\n"
