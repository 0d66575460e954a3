import pytest

from models.digests import Manifest, canonical_json
from models.signature import MANIFEST_FILE
from tasks.promotion import champion_for, promote, promotions, version_folder
from tasks.store import MissingError, store

LINE = "trips"
FIRST, SECOND, THIRD = ("a" * 64, "b" * 64, "c" * 64)


def register(digest: str, content: bytes) -> str:
    """A registered version whose artifact holds the content; the artifact's digest."""
    manifest = Manifest.of({"model.onnx": content})
    key = version_folder(LINE, digest) + MANIFEST_FILE
    store().put(key, canonical_json(manifest.model_dump(mode="json")))
    return manifest.digest


def test_a_line_without_versions_has_no_champion(bucket: str) -> None:
    assert promotions(LINE).champion is None
    assert champion_for(LINE, FIRST) is None


def test_the_last_one_promoted_is_champion(bucket: str) -> None:
    promote(LINE, 1, FIRST)
    promote(LINE, 3, SECOND)
    champion = promotions(LINE).champion
    assert champion is not None
    assert (champion.number, champion.digest, champion.against) == (3, SECOND, FIRST)
    assert [entry.digest for entry in promotions(LINE).history] == [FIRST, SECOND]


def test_promoting_the_champion_again_changes_nothing(bucket: str) -> None:
    promote(LINE, 1, FIRST)
    before = promotions(LINE)
    promote(LINE, 1, FIRST)
    assert promotions(LINE) == before


def test_lines_do_not_share_their_champions(bucket: str) -> None:
    promote(LINE, 1, FIRST)
    assert promotions("shapes").champion is None


def test_a_challenger_is_judged_against_the_champion(bucket: str) -> None:
    register(FIRST, b"one")
    artifact = register(SECOND, b"two")
    promote(LINE, 1, FIRST)
    found = champion_for(LINE, artifact)
    assert found is not None
    assert (found.digest, found.number) == (FIRST, 1)
    assert found.manifest == Manifest.of({"model.onnx": b"one"})


def test_the_champion_itself_is_judged_against_whom_it_was_judged_then(bucket: str) -> None:
    first = register(FIRST, b"one")
    second = register(SECOND, b"two")
    promote(LINE, 1, FIRST)
    assert champion_for(LINE, first) is None
    promote(LINE, 2, SECOND)
    again = champion_for(LINE, second)
    assert again is not None
    assert again.digest == FIRST
    back = champion_for(LINE, first)
    assert back is not None
    assert back.digest == SECOND


def test_other_data_that_gave_the_same_files_is_judged_as_they_were(bucket: str) -> None:
    register(FIRST, b"one")
    artifact = register(SECOND, b"two")
    promote(LINE, 1, FIRST)
    promote(LINE, 2, SECOND)
    # A repeated object landed: another version, whose files are the champion's.
    assert register(THIRD, b"two") == artifact
    for _ in range(2):
        found = champion_for(LINE, artifact)
        assert found is not None
        assert found.digest == FIRST
        promote(LINE, 3, THIRD)


def test_a_version_can_be_promoted_back(bucket: str) -> None:
    first = register(FIRST, b"one")
    register(SECOND, b"two")
    for number, digest in ((1, FIRST), (2, SECOND), (1, FIRST)):
        promote(LINE, number, digest)
    assert promotions(LINE).champion == promotions(LINE).history[-1]
    found = champion_for(LINE, first)
    assert found is not None
    assert found.digest == SECOND


def test_a_champion_whose_files_are_gone_is_an_error(bucket: str) -> None:
    promote(LINE, 1, FIRST)
    with pytest.raises(MissingError, match=f"versions/{LINE}/{FIRST}/{MANIFEST_FILE}"):
        champion_for(LINE, SECOND)
