"""Names of compressed forms: a smaller network, a quantizer, or both, as `pruned-50+int8-static`.

`pruned-50` is the trained network without half of the channels of every layer, `student-small` a
fresh one of that size of the family's table; both learn from the trained network.
"""

import re
from typing import Annotated, NamedTuple

from pydantic import Field

UNCOMPRESSED = "fp32"
QUANTIZERS = ("int8-dynamic", "int8-static", "int8-weights", "int4-weights", "fp16")
_QUANTIZER = "|".join(QUANTIZERS)
_NETWORK = "pruned-[1-9][0-9]|student-[a-z][a-z0-9_]*"
PATTERN = rf"^({_QUANTIZER}|({_NETWORK})(\+({_QUANTIZER}))?)$"

Form = Annotated[str, Field(pattern=PATTERN)]


class FormError(ValueError):
    """A form that cannot be made of a network, or that does not run; the message says why."""


class Parts(NamedTuple):
    """What a form consists of; None is the trained network itself, or no quantizer."""

    network: str | None
    quantizer: str | None

    @property
    def share(self) -> float | None:
        """Share of the channels that are pruned; None where none are."""
        kind, _, value = (self.network or "").partition("-")
        return int(value) / 100 if kind == "pruned" else None

    @property
    def size(self) -> str | None:
        """The student's size; None where there is none."""
        kind, _, value = (self.network or "").partition("-")
        return value if kind == "student" else None


def parts(form: str) -> Parts:
    """The parts of a form's name; raises ValueError for a name that is none."""
    if not re.match(PATTERN, form):
        raise ValueError(
            f"{form!r} is no form of compression: it is pruned-PERCENT or student-SIZE, one of"
            f" {', '.join(QUANTIZERS)}, or both, as in pruned-50+int8-static"
        )
    if form in QUANTIZERS:
        return Parts(None, form)
    network, _, quantizer = form.partition("+")
    return Parts(network, quantizer or None)
