"""Where Prefect keeps stage results: our bucket, one JSON record for each stage key."""

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import orjson
from anyio import to_thread
from prefect.filesystems import WritableFileSystem
from prefect.serializers import JSONSerializer
from prefect.settings import get_current_settings

from tasks import refs
from tasks.refs import Ref
from tasks.store import MissingError, store

RESULTS = "stages/"


class UntrustedResultError(ValueError):
    """A stored result is not a JSON reference; it is treated as missing and computed again."""


class StageResults(WritableFileSystem):
    """Prefect result storage in our bucket, with the credentials of the environment.

    A record that names a missing object reads as missing, so the stage is computed again instead
    of handing a dead reference on.
    """

    _block_type_name = "Modelmint stage results"
    _block_type_slug = "modelmint-stage-results"

    # Prefect passes `_sync` to say that it does not await the answer.
    def read_path(self, path: str, _sync: bool = True) -> bytes:  # type: ignore[override]
        """The record stored as `path`; raises MissingError."""
        content = store().get(RESULTS + path).content
        reference = _reference(path, orjson.loads(content))
        with ThreadPoolExecutor(8) as pool:
            lost = [k for k, there in pool.map(_exists, reference.stored) if not there]
        if lost:
            raise MissingError(f"{path}: the store no longer has {lost[0]}")
        return content

    def write_path(self, path: str, content: bytes, _sync: bool = True) -> None:  # type: ignore[override]
        """Store the record as `path`."""
        store().put(RESULTS + path, content)

    async def aread_path(self, path: str) -> bytes:
        """`read_path` for Prefect's asynchronous engine."""
        return await to_thread.run_sync(self.read_path, path)

    async def awrite_path(self, path: str, content: bytes) -> None:
        """`write_path` for Prefect's asynchronous engine."""
        await to_thread.run_sync(self.write_path, path, content)


def _exists(key: str) -> tuple[str, bool]:
    return key, store().exists(key)


def recorded_result(key: str) -> Ref:
    """The reference a stage with this key once gave; raises MissingError when it is not whole."""
    return _reference(key, orjson.loads(StageResults().read_path(key)))


def _reference(path: str, record: Any) -> Ref:
    """The reference in a record.

    Raises UntrustedResultError for anything else: Prefect would follow a record's word on how to
    read it, unpickle it or construct any class, and whoever can write to the bucket could run code
    here.
    """
    serializer = record["metadata"]["serializer"]
    if serializer.get("type") != "json" or serializer != JSONSerializer().model_dump():
        raise UntrustedResultError(f"{RESULTS}{path} is not stored as plain JSON")
    result = orjson.loads(record["result"])
    module, _, name = str(result.get("__class__")).rpartition(".")
    kind = getattr(refs, name, None) if module == refs.__name__ else None
    if not (isinstance(kind, type) and issubclass(kind, Ref)):
        raise UntrustedResultError(f"{RESULTS}{path} holds no reference of ours")
    return kind.model_validate(result["data"])


def stage_results() -> StageResults:
    """The result storage, known to the Prefect server."""
    return _saved(str(get_current_settings().api.url))


@cache
def _saved(_address: str) -> StageResults:
    block = StageResults()
    block.save("default", overwrite=True)
    return block
