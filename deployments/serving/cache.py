"""Answers to inputs that came before, kept by version digest and the digest of the inputs.

A version is immutable and its digest covers all it computes from, so an answer never grows old. It
is found again by the same tenant only: a hit that another one's request caused would tell what that
one asked.
"""

from collections import OrderedDict
from typing import Any

from blake3 import blake3
from numpy.typing import NDArray

from deployments.serving.elements import pack
from deployments.serving.protocol import Tensors
from deployments.serving.session import Served

LARGEST_INPUT = 262_144
"""Bytes of inputs up to which they are looked up: digesting more would hold the event loop."""
OVERHEAD = 400
"""Bytes of an entry beside its arrays' contents, roughly."""


class Cache:
    """Least recently used answers of one process, within `largest` bytes; for the event loop."""

    def __init__(self, largest: int, without: frozenset[str] = frozenset()) -> None:
        self._largest, self._without = largest, without
        self._answers: OrderedDict[bytes, tuple[Tensors, int]] = OrderedDict()
        self._bytes = 0

    def key(self, served: Served, tenant: str, tensors: Tensors) -> bytes | None:
        """Under what an answer is kept; None when it is not to be."""
        if not self._largest or served.line in self._without:
            return None
        if sum(tensor.nbytes for tensor in tensors.values()) > LARGEST_INPUT:
            return None
        digest = blake3(f"{tenant}/{served.digest}".encode())
        for name, tensor in tensors.items():
            content = pack(tensor)
            # With every length, so that no two requests give the same bytes to digest.
            digest.update(f"/{name}{tensor.shape}{len(content)}/".encode())
            digest.update(content)
        return digest.digest()

    def get(self, key: bytes) -> Tensors | None:
        """The answer, if it is here; its arrays are read-only."""
        found = self._answers.get(key)
        if found is None:
            return None
        self._answers.move_to_end(key)
        return found[0]

    def put(self, key: bytes, answer: Tensors) -> None:
        """Keep an answer, and let the ones go that were not asked for longest."""
        # A batch's outputs are views of one array, which they would keep alive whole.
        kept = {name: array.copy() for name, array in answer.items()}
        size = OVERHEAD + sum(_size(array) for array in kept.values())
        if size > self._largest // 8 or key in self._answers:
            return
        for array in kept.values():
            array.flags.writeable = False
        self._answers[key] = kept, size
        self._bytes += size
        while self._bytes > self._largest:
            _, (_, freed) = self._answers.popitem(last=False)
            self._bytes -= freed


def _size(array: NDArray[Any]) -> int:
    if array.dtype != object:
        return array.nbytes
    return sum(len(item) * 4 + 64 for item in array.reshape(-1).tolist())
