"""Parameters of the protocol, over HTTP and gRPC alike: what is understood; all else is refused.

Triton knows more of them, and what is passed over in silence gives a wrong answer: who names a
region of shared memory for an output would read there what an older answer left.
"""

from collections.abc import Mapping
from typing import Any, Literal

Owner = Literal["request", "input", "output"]
FINAL = "triton_enable_empty_final_response"
"""Asks a stream for an empty answer after the last; every request has one, which is the last."""
UNDERSTOOD: dict[Owner, frozenset[str]] = {
    "request": frozenset(("binary_data_output", "timeout", FINAL)),
    "input": frozenset(("binary_data_size",)),
    "output": frozenset(("binary_data",)),
}
"""By whose parameters they are. Tensors of gRPC are raw whatever it says of binary data."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "sequence_id": (0, ""), "sequence_start": (False,), "sequence_end": (False,), "priority": (0,),
}  # fmt: skip
"""Understood of a request only where they change nothing."""
EXTENSIONS = {
    "classification": "the classification extension",
    "shared_memory": "shared memory",
    "sequence": "the sequence extension",
}
"""What is not supported, by how its parameters begin."""


def check(given: Mapping[str, Any], owner: Owner, what: str) -> None:
    """Raises ValueError that names the first parameter of `what` that is not understood."""
    known = UNDERSTOOD[owner]
    if type(given.get(FINAL, False)) is not bool:
        raise ValueError(f"{FINAL} must be true or false")
    for name in given:
        if name in known or (owner == "request" and given[name] in NEUTRAL.get(name, ())):
            continue
        why = next((said for start, said in EXTENSIONS.items() if name.startswith(start)), "it")
        raise ValueError(f"{what} has the parameter {name[:60]!r}: {why} is not supported")


def patience(given: Mapping[str, Any]) -> float | None:
    """Seconds until an answer must be there by `timeout`, which is in microseconds; None without.

    0 is none, as it is in Triton. Raises ValueError for what is no such number.
    """
    found = given.get("timeout", 0)
    if type(found) is not int or found < 0:
        raise ValueError("timeout must be a number of microseconds")
    return found / 1e6 if found else None
