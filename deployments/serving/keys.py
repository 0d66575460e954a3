"""API keys: who may ask what, stored as hashes, revocable in every worker at once.

A key is `mm_<id>_<secret>`, shown once. Its secret has 256 random bits, so one SHA-256 is enough to
store: a slow hash protects passwords, which can be guessed.
Scopes are `verb:line`, `*` for every line:

    predict   infer, predict                 read    metadata, index, readiness, metrics
    manage    load, unload, promote          admin   keys, usage, audit
"""

import fcntl
import hashlib
import hmac
import logging
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import orjson
from pydantic import Field, StringConstraints, ValidationError

from deployments.serving import metrics
from deployments.serving.disk import Damaged, parsed, written
from deployments.serving.folder import stamp
from deployments.serving.protocol import ProtocolError
from models.digests import Digest
from models.files import write
from models.open import Frozen

KEYS_FILE = "keys.json"
Verb = Literal["predict", "read", "manage", "admin"]
VERBS: tuple[Verb, ...] = ("predict", "read", "manage", "admin")
Scope = Annotated[
    str, StringConstraints(pattern=r"^(predict|read|manage|admin):(\*|[a-z][a-z0-9-]{1,40})$")
]
Scopes = Annotated[tuple[Scope, ...], Field(min_length=1, max_length=200)]
Tenant = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,59}$")]
EVERYTHING: tuple[Scope, ...] = tuple(f"{verb}:*" for verb in VERBS)
REFRESH_SECONDS = 0.25
"""Longest that a worker goes on with keys another one changed."""
SLOWEST = 1 / 86_400
"""Requests a second: one a day."""
MOST_SHOWN, LONGEST_SHOWN = 1000, 256
"""Headers whose key is remembered: hashing costs a small request a twentieth of its time."""
_log = logging.getLogger("modelmint.serving")


class Limits(Frozen):
    """What a key may use; None is no limit. Days are UTC."""

    rate: float | None = Field(None, gt=0, le=1e6, allow_inf_nan=False)
    """Requests a second, on average."""
    burst: int | None = Field(None, ge=1, le=1_000_000)
    """Requests at once; by default one second of `rate`."""
    daily_rows: int | None = Field(None, ge=1, le=10**15)
    daily_bytes: int | None = Field(None, ge=1, le=10**15)
    """Bytes of requests and answers."""

    @cached_property
    def any(self) -> bool:
        """Whether anything is limited."""
        return (self.rate, self.daily_rows, self.daily_bytes) != (None, None, None)


class NewLimits(Limits):
    """What a new key may use."""

    rate: float | None = Field(None, ge=SLOWEST, le=1e6, allow_inf_nan=False)


class Grant(Frozen):
    """What a new key is asked to be, but for its end."""

    tenant: Tenant
    scopes: Scopes
    limits: NewLimits = NewLimits()


class ApiKey(Frozen):
    """A key as it is stored: everything but its secret."""

    id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]
    tenant: Tenant
    scopes: Scopes
    sha256: Digest
    """Of the whole key."""
    created: float
    """Seconds since 1970 UTC, as all times here."""
    expires: float | None = None
    revoked: float | None = None
    limits: Limits = Limits()
    replaced: Digest | None = None
    """SHA-256 of the secret before the last rotation, which counts until `replaced_until`."""
    replaced_until: float = 0.0

    def allows(self, verb: Verb, line: str) -> bool:
        """Whether its scopes cover the verb for the line; `*` asks for all lines."""
        return f"{verb}:*" in self.scopes or f"{verb}:{line}" in self.scopes

    def counts(self, now: float) -> bool:
        """Whether it lets its caller in, at a time in seconds since 1970 UTC."""
        return self.revoked is None and (self.expires is None or now < self.expires)


class KeyFile(Frozen):
    """The content of `keys.json`."""

    keys: tuple[ApiKey, ...] = ()


def read_keys(folder: Path) -> KeyFile:
    """The keys of a private folder, none for a new one; raises Damaged if unreadable."""
    path = folder / KEYS_FILE
    return parsed(path, KeyFile) if path.exists() else KeyFile()


class Keys:
    """The keys of a server, read again when another process changed them; thread-safe.

    Raises Damaged, a ValueError, when `keys.json` cannot be read: with no keys nobody could ask
    anything. When that happens later, the keys that were read before count on.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path, self._lock = folder / KEYS_FILE, folder / ".keys.lock"
        self._changes = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._damaged: tuple[int, int, int] | None = None
        """When the file was last changed, as `stamp` tells it: that was read, that cannot be."""
        self._checked = 0.0
        self._keys: dict[str, ApiKey] = {}
        self._shown: dict[str, ApiKey] = {}
        """By the headers that were right lately; begun anew with every change of the keys."""
        self._read()

    def refresh(self) -> None:
        """Read the file if it is not the one that was read last, and can be."""
        self._checked = time.monotonic()
        if self._damaged is None or self._damaged != stamp(self._path):
            with suppress(Damaged):  # which is logged
                self._read()

    def _read(self) -> None:
        found = stamp(self._path)
        if found == self._seen and self._damaged is None:
            return
        try:
            content = read_keys(self._path.parent)
        except Damaged as error:
            if found != self._damaged:
                _log.error("%s; the keys it held still count", error)
                metrics.unreadable(KEYS_FILE, True)
            self._damaged = found
            raise
        if self._damaged is not None:
            metrics.unreadable(KEYS_FILE, False)
        self._keys = {key.id: key for key in content.keys}
        self._shown = {}  # last: what was found in older keys goes into the older one
        self._seen, self._damaged = found, None

    def all(self) -> list[ApiKey]:
        """Every key, also those that no longer count, oldest first."""
        self.refresh()
        return list(self._keys.values())

    def authenticate(self, header: str | None) -> ApiKey:
        """The key in an `Authorization` header; raises ProtocolError 401."""
        if time.monotonic() - self._checked > REFRESH_SECONDS:
            self.refresh()
        key = self._shown.get(header or "") or self._found(header or "")
        if key.counts(time.time()):
            return key
        if key.revoked is not None:
            raise ProtocolError(401, f"key {key.id} was revoked", "revoked_key")
        raise ProtocolError(
            401, f"key {key.id} has expired: have it rotated with a later end", "expired_key"
        )

    def _found(self, header: str) -> ApiKey:
        shown = self._shown
        kind, _, token = header.partition(" ")
        if kind.lower() != "bearer" or not token:
            raise ProtocolError(401, "send your key: Authorization: Bearer mm_...", "no_key")
        found = _hash(token.strip())
        key = self._matching(token.strip(), found)
        if key is None:
            self.refresh()  # another worker may have made it just now
            key = self._matching(token.strip(), found)
        if key is None:
            raise ProtocolError(401, "this key is not known here", "unknown_key")
        if key.sha256 == found:  # what was replaced counts for a while only
            if len(shown) >= MOST_SHOWN:
                shown.clear()
            if len(header) <= LONGEST_SHOWN:
                shown[header] = key
        return key

    def create(
        self,
        tenant: str,
        scopes: tuple[str, ...],
        expires: float | None = None,
        limits: Limits | None = None,
        secret: str | None = None,
    ) -> tuple[ApiKey, str]:
        """A new key and its secret form; raises ProtocolError 400 for a wrong field."""
        with self._changing():
            token = secret or f"mm_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"
            try:
                key = ApiKey(
                    id=token.split("_", 2)[1],
                    tenant=tenant,
                    scopes=tuple(sorted(set(scopes))),
                    sha256=_hash(token),
                    created=time.time(),
                    expires=expires,
                    limits=limits or Limits(),
                )
            except (ValidationError, IndexError) as error:
                raise refused(error) from None
            self._write({**self._keys, key.id: key})
            return key, token

    def rotate(self, identity: str, grace: float, expires: float | None) -> tuple[ApiKey, str]:
        """A new secret under the same id; the old one counts for `grace` seconds more.

        It expires when the key did, unless another end is given: a leak that is answered by a
        rotation is to prolong nothing. Raises ProtocolError: 404 for an unknown key, 409 for a
        revoked one, and for one that has expired and would not count after it.
        """
        with self._changing():
            key = self._named(identity)
            if key.revoked is not None:
                raise ProtocolError(409, f"key {key.id} was revoked: create another", "conflict")
            ends = key.expires if expires is None else expires
            if ends is not None and time.time() >= ends:
                raise ProtocolError(
                    409, f"key {key.id} would count no more: give a later expires", "conflict"
                )
            token = f"mm_{key.id}_{secrets.token_urlsafe(32)}"
            changed = {
                "sha256": _hash(token),
                "expires": ends,
                "replaced": key.sha256 if grace > 0 else None,
                "replaced_until": time.time() + grace,
            }
            key = key.model_copy(update=changed)
            self._write({**self._keys, key.id: key})
            return key, token

    def revoke(self, identity: str) -> ApiKey:
        """No longer let a key in; revoking it again changes nothing. Raises ProtocolError 404."""
        with self._changing():
            key = self._named(identity)
            if key.revoked is None:
                key = key.model_copy(update={"revoked": time.time()})
                self._write({**self._keys, key.id: key})
            return key

    def first(self, file: Path) -> None:
        """Where there is no key yet: let the one in `file` do everything, making it if need be.

        The file has mode 0600. A key that was ever known here is never let in again by it.
        """
        if self.all():
            return
        if file.exists():
            self.create("first", EVERYTHING, secret=file.read_text().strip())
            return
        token = f"mm_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"
        file.parent.mkdir(parents=True, exist_ok=True)
        # On disk before it counts: a key nobody knows would lock everybody out.
        write(file, token.encode())
        self.create("first", EVERYTHING, secret=token)

    def _matching(self, token: str, found: str) -> ApiKey | None:
        parts = token.split("_", 2)
        key = self._keys.get(parts[1]) if len(parts) == 3 else None
        # Compared in constant time; an id is no secret, so how it is looked up tells nothing.
        return key if key is not None and _fits(key, found) else None

    def _named(self, identity: str) -> ApiKey:
        found = self._keys.get(identity)
        if found is None:
            raise ProtocolError(404, f"no key {identity[:20]!r}", "unknown_key_id")
        return found

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """The keys as they are now; ProtocolError 503 unless they can be read and written."""
        with self._changes, written(self._path), self._lock.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the workers of one server take turns
            self._read()
            yield

    def _write(self, keys: dict[str, ApiKey]) -> None:
        content = KeyFile(keys=tuple(keys.values())).model_dump(mode="json")
        write(self._path, orjson.dumps(content, option=orjson.OPT_INDENT_2))
        self.refresh()


def refused(error: Exception) -> ProtocolError:
    """The answer to fields that are not as they must be: which, and why."""
    if isinstance(error, ValidationError):
        one = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, one["loc"]))
        return ProtocolError(400, f"{where}: {one['msg']}")
    return ProtocolError(400, "this is no key of the form mm_<id>_<secret>")


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _fits(key: ApiKey, found: str) -> bool:
    if hmac.compare_digest(key.sha256, found):
        return True
    counts = key.replaced is not None and time.time() < key.replaced_until
    return counts and hmac.compare_digest(str(key.replaced), found)
