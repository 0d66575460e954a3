"""Which operations refuse with which status, as the OpenAPI document tells it."""

import re
from typing import NamedTuple


class Refusal(NamedTuple):
    """When a status is answered, and by which operations, a pattern of `METHOD path`.

    Paths are those without a version; `BODY` is every operation that takes a body.
    """

    when: str
    operations: str


BODY = "BODY"
_OPEN = "GET /v2/health/(live|ready)"
_OWN = "GET (/|/v2|/v1/usage|/v1/models|/v1/requests/{id})|POST /v2/repository/index"
"""What every key may ask: it sees what is its own."""
_COMPUTED = "POST .*/(infer|predict|explain|completions)"
_CHANGED = "POST .*/(load|unload|promote|rollback|canary|shadow)"
REFUSALS = {
    400: Refusal("It is wrong: `error` says what", f"{BODY}|GET /v1/(usage|audit)|POST .*/record"),
    401: Refusal("No key, or one that does not count", f"(?!{_OPEN}).*"),
    403: Refusal("The key lacks the scope", f"(?!({_OPEN}|{_OWN})$).*"),
    404: Refusal(
        "Nothing of that name is here",
        f"(?!.*/record|GET /v1/requests).*{{\\w+}}.*|{_COMPUTED}",
    ),
    408: Refusal("The body did not come in time", BODY),
    409: Refusal("It contradicts how things are", f"{_CHANGED}|POST .*/rotate"),
    413: Refusal("The body, or what it unpacks to, is too large", BODY),
    415: Refusal("Another content type or encoding is taken", BODY),
    422: Refusal(
        "No finite answer, or a version that is not as it was signed",
        f"{_COMPUTED}|POST .*/load",
    ),
    429: Refusal("Over a rate, a quota or what may wait: see `retry-after`", f"(?!{_OPEN}).*"),
    502: Refusal("The store does not answer", "POST .*/load"),
    503: Refusal(
        "A version, a decoder or a worker that is to serve it does not, the disk is full, or a file"
        " of the server is damaged: try again",
        # Also what needs no version: whoever has a rate is counted, which takes room on the disk.
        f"(?!{_OPEN}).*",
    ),
    504: Refusal("The deadline passed before the answer", _COMPUTED),
}


def refusals(method: str, path: str, body: bool) -> dict[int, str]:
    """The statuses, and when each is answered, of an operation; `body`: it takes one."""
    return {
        status: one.when
        for status, one in REFUSALS.items()
        if re.fullmatch(one.operations, f"{method} {path}")
        or (body and BODY in one.operations.split("|"))
    }
