"""What a row of a version costs alone and among others, and whether its answer stays the same."""

import logging
import math
import time
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deployments.serving.protocol import Tensors
from models.signature import Signature

BATCHED_ROWS = 32
"""Rows that are computed together when a version is loaded, to see whether that pays and agrees."""
QUICK_SECONDS = 0.002
SAME = 1e-4
"""Largest `Signature.closeness` of rows computed together to the same rows computed alone."""
_log = logging.getLogger("modelmint.serving")


class Paces(NamedTuple):
    """CPU seconds of a row computed alone, and of a row among `BATCHED_ROWS`."""

    alone: float
    together: float


def paces_of(session: Any, feeds: Tensors, names: list[str], signature: Signature) -> Paces | None:
    """What batching gains; None where a row's answer is not its own business.

    A fixed first dimension cannot grow. A network that looks at the whole batch, as one does whose
    activations are quantized by their range, would let one caller's rows change another's answer.
    """
    values = [*session.get_inputs(), *session.get_outputs()]
    rows = len(next(iter(feeds.values())))
    if rows < 2 or any(not v.shape or isinstance(v.shape[0], int) for v in values):
        return None
    order = np.arange(BATCHED_ROWS) % rows
    many = {key: tensor[order] for key, tensor in feeds.items()}

    def timed(given: Tensors) -> tuple[list[NDArray[Any]], float]:
        start = time.thread_time()
        found = session.run(names, given)
        return found, time.thread_time() - start

    try:
        alone = [timed({k: t[i : i + 1] for k, t in feeds.items()}) for i in range(rows)]
        # Again where it costs nothing: cold caches would make batching look as if it paid.
        quick = alone[0][1] < QUICK_SECONDS
        first = {key: tensor[:1] for key, tensor in feeds.items()}
        again = [timed(first)[1] for _ in range(10 * quick)]
        found, together = min((timed(many) for _ in range(4)), key=itemgetter(1))
    except Exception as error:  # ONNX Runtime's errors share no base class
        _log.info("rows of other requests cannot be added: %s", error)
        return None
    for at, one in enumerate(found):
        each = [answer[at] for answer, _ in alone]
        if any(len(answer) != 1 or answer.shape[1:] != one.shape[1:] for answer in each):
            return None
        expected = np.concatenate(each)[order]
        if one.shape != expected.shape:
            return None
        if not (_near if at else signature.closeness)(one, expected) <= SAME:
            return None
    seconds = [*again, *(seconds for _, seconds in alone)]
    return Paces(min(seconds), together / BATCHED_ROWS)


def _near(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """How far outputs are apart that no objective measures, as it does by default."""
    if found.dtype.kind != "f":
        return 0.0 if np.array_equal(found, expected) else math.inf
    if not found.size:
        return 0.0
    spread = float(np.max(np.abs(expected))) or 1.0
    return float(np.max(np.abs(found - expected))) / spread
