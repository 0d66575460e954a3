"""Writes into the promotion record what the server put into production by itself.

A rollback must work while the store is down, so its entry is first kept in `state.json`; from
there it is written to the bucket as soon as that answers, once, however often it is tried.
"""

import fcntl
import logging
import os
import threading
from typing import Any

from deployments.serving.protocol import ProtocolError
from deployments.serving.repository import Repository
from models.promotions import Entry, Promotions, record_key

EVERY_SECONDS = 1.0
LONGEST_SECONDS = 10.0
"""How long it waits, at most, before a store that did not answer is asked again."""
ATTEMPTS = 5
"""How often a record is read again when another process was quicker to change it."""
_log = logging.getLogger("modelmint.serving")


class Recorder:
    """Records what a repository holds unrecorded; of all workers one at a time does it."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._turn = threading.Lock()
        self._client: Any = None

    def start(self) -> None:
        """Record from now on, in a thread."""
        threading.Thread(target=self._keep_on, name="record", daemon=True).start()

    def record(self) -> int:
        """Write what is not recorded yet; returns how many entries remain because of the store."""
        with self._turn, (self._repository.root / ".record.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._repository.refresh()
            done: set[str] = set()
            for one in self._repository.state.unrecorded:
                try:
                    self._append(one.line, one.entry)
                except Exception as error:  # whatever the store said, the entry is kept
                    _log.warning("%s is not recorded yet: %s", record_key(one.line), error)
                    break
                done.add(one.entry.id)
            if done:
                self._repository.recorded(done)
            return len(self._repository.state.unrecorded)

    def _keep_on(self) -> None:
        ended, wait = threading.Event(), EVERY_SECONDS
        while not ended.wait(wait):
            try:
                left = self.record() if self._repository.state.unrecorded else 0
            except (OSError, ValueError, ProtocolError):
                _log.exception("the state cannot be recorded")
                left = 1
            wait = min(wait * 2, LONGEST_SECONDS) if left else EVERY_SECONDS

    def _append(self, line: str, entry: Entry) -> None:
        from botocore.exceptions import ClientError

        client, key = self._store(), record_key(line)
        bucket = os.environ.get("MODELMINT_BUCKET", "modelmint")
        for _ in range(ATTEMPTS):
            record, condition = Promotions(), {"IfNoneMatch": "*"}
            try:
                found = client.get_object(Bucket=bucket, Key=key)
                record = Promotions.model_validate_json(found["Body"].read())
                condition = {"IfMatch": found["ETag"]}
            except ClientError as error:
                if error.response["Error"]["Code"] != "NoSuchKey":
                    raise
            changed = record.with_entry(entry)
            if changed == record:
                return
            content = changed.model_dump_json(indent=1).encode()
            try:
                client.put_object(Bucket=bucket, Key=key, Body=content, **condition)
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] in (409, 412):
                    continue
                raise
            return
        raise OSError(f"{key} was changed by others {ATTEMPTS} times")

    def _store(self) -> Any:
        if self._client is None:
            import boto3
            from botocore.config import Config

            patience = Config(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 2})
            self._client = boto3.session.Session().client("s3", config=patience)
        return self._client
