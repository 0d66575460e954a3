import base64
import json
import pickle
from typing import Any

import pytest
from prefect import flow

from models.digests import json_digest
from models.open import Frozen
from tasks.progress import Event, listening
from tasks.refs import Listing
from tasks.stage import afresh, current_key, recording, scratch, stage
from tasks.store import content_key, store

ran: list[str] = []


class Wish(Frozen):
    """What a stage is asked for."""

    text: str


def stored(text: str) -> Listing:
    digest = store().put_content(text.encode())
    return Listing(digest=digest, stored=(content_key(digest),), objects=1, size=len(text))


@stage("make")
def make(wish: Wish, loud: bool = False) -> Listing:
    """Store the text."""
    ran.append(wish.text)
    if wish.text == "fail":
        raise ValueError("no such wish")
    return stored(wish.text.upper() if loud else wish.text)


@stage("tell", cached=False)
def tell(made: Listing) -> Listing:
    """The same again, known to be unchanged."""
    ran.append("tell")
    return made.model_copy(update={"observed": {"unchanged": True}})


@flow
def both(text: str) -> Listing:
    return tell(make(Wish(text=text)))


@pytest.fixture(autouse=True)
def _served(prefect_service: str, bucket: str) -> None:
    del prefect_service, bucket
    ran.clear()


def test_a_stage_runs_once_for_the_same_arguments() -> None:
    with recording() as first:
        result = both("a")
    with recording() as second:
        again = both("a")
    assert again == result
    assert ran == ["a", "tell", "tell"]
    assert [(run.name, run.cached) for run in first] == [("make", False), ("tell", True)]
    assert [(run.name, run.cached) for run in second] == [("make", True), ("tell", True)]
    assert [run.key for run in first] == [run.key for run in second]
    with recording() as other:
        both("b")
    assert other[0].key != first[0].key
    assert ran == ["a", "tell", "tell", "b", "tell"]


def test_a_cached_reference_to_lost_content_is_made_again() -> None:
    result = both("a")
    store().delete(content_key(result.digest))
    assert both("a").digest == result.digest
    assert ran == ["a", "tell", "a", "tell"]
    assert store().get_content(result.digest) == b"a"


def test_a_default_argument_spelt_out_is_the_same_call() -> None:
    wish = Wish(text="a")
    assert make.identity(wish) == make.identity(wish, loud=False) == make.identity(wish=wish)
    assert make.identity(wish) != make.identity(wish, loud=True)


def test_the_error_of_a_stage_reaches_the_caller_and_is_not_kept() -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="no such wish"):
            both("fail")
    assert ran == ["fail", "fail"]


def test_a_bare_stage_knows_its_key_and_needs_no_prefect() -> None:
    seen: list[str] = []

    @stage("look")
    def look(wish: Wish) -> Listing:
        seen.append(current_key())
        return stored(wish.text)

    wish = Wish(text="a")
    look.bare(wish)
    assert seen == [json_digest(look.identity(wish))]
    with pytest.raises(LookupError):
        current_key()


def test_an_attempt_that_is_begun_again_finds_what_it_kept_and_another_one_does_not() -> None:
    def kept(attempt: str) -> list[str]:
        with afresh(lambda *_: None, attempt) as names:
            assert scratch(json_digest("stage")) == names[0]
        return names

    assert scratch(json_digest("stage")) == json_digest("stage")
    assert kept("one") == kept("one") != kept("other")
    assert kept("") != kept("")


def test_listeners_hear_of_start_and_end() -> None:
    heard: list[Event] = []
    with listening(heard.append):
        both("a")
    both("b")
    assert [(event.stage, event.kind) for event in heard] == [
        ("make", "started"), ("make", "finished"), ("tell", "started"), ("tell", "finished"),
    ]  # fmt: skip


def test_a_result_that_would_be_unpickled_or_is_no_reference_is_not_read(bucket: str) -> None:
    from prefect.results import ResultRecord, ResultRecordMetadata
    from prefect.serializers import JSONSerializer, PickleSerializer

    from tasks.results import StageResults, UntrustedResultError

    def record(serializer: Any, result: bytes) -> bytes:
        metadata = ResultRecordMetadata(storage_key="k", serializer=serializer)
        found: bytes = ResultRecord(metadata=metadata, result=None).serialize()
        parsed = json.loads(found)
        parsed["result"] = result.decode()
        return json.dumps(parsed).encode()

    pickled = base64.encodebytes(pickle.dumps({"any": "thing"}))
    foreign = b'{"__class__": "subprocess.Popen", "data": {}}'
    for serializer, result in ((PickleSerializer(), pickled), (JSONSerializer(), foreign)):
        store().put("stages/k", record(serializer, result))
        with pytest.raises(UntrustedResultError, match="stages/k"):
            StageResults().read_path("k")
