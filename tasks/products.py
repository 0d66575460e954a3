"""Matrix products with equal bits on all x86-64 processors with AVX2: oneDNN's, in MKL's place.

MKL promises that on processors of any maker in one mode alone, `MKL_CBWR=COMPATIBLE`, which
computes with SSE2 and takes twice the time. oneDNN takes the instructions it is held to, and how it
cuts a sum into blocks does not follow the caches: `benchmarks/platforms.py` tries processors with
others, `benchmarks/products.py` times both.
"""

import warnings
from functools import cache

import torch
from torch import Tensor

SMALLEST = 1 << 17
"""Multiplications from which a product is oneDNN's: a smaller one takes less than the way to it."""


@cache
def replace() -> torch.library.Library:
    """Have float32 products of two matrices on the CPU, gradients included, computed by oneDNN.

    For the whole process and for good. Small ones, batches of them (attention), those into a given
    tensor and those of other types stay MKL's.
    """
    product, sum_of = (torch.library.get_kernel(f"aten::{name}", "CPU") for name in ("mm", "addmm"))
    linear = torch.ops.mkldnn._linear_pointwise.default

    def mm(keys: torch.DispatchKeySet, a: Tensor, b: Tensor) -> Tensor:
        if not _large(a, b):
            small: Tensor = product.call_boxed(keys, a, b)
            return small
        found: Tensor = linear(a.contiguous(), b.T.contiguous(), None, "none", [], "")
        return found

    def addmm(
        keys: torch.DispatchKeySet, bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1,
        alpha: float = 1,
    ) -> Tensor:  # fmt: skip
        added = bias.dtype == torch.float32 and beta == alpha == 1
        if not (added and _large(a, b) and bias.shape == b.shape[1:]):
            small: Tensor = sum_of.call_boxed(keys, bias, a, b, beta=beta, alpha=alpha)
            return small
        found: Tensor = linear(a.contiguous(), b.T.contiguous(), bias.contiguous(), "none", [], "")
        return found

    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        # That a kernel is replaced, which is what is wanted.
        warnings.simplefilter("ignore")
        library.impl("mm", mm, "CPU", with_keyset=True)
        library.impl("addmm", addmm, "CPU", with_keyset=True)
    return library


def _large(a: Tensor, b: Tensor) -> bool:
    """Whether it is a product of a [n, k] and b [k, m] that is oneDNN's."""
    fits = a.dim() == b.dim() == 2 and a.shape[1] == b.shape[0]
    single = a.dtype == b.dtype == torch.float32
    return fits and single and a.numel() * b.shape[1] >= SMALLEST
