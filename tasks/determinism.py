"""Numeric work that repeats: what PyTorch is told before it computes; see tasks.isolated."""

import os

import torch

from tasks import products
from tasks.isolated import PROFILES


def deterministic(threads: int) -> None:
    """Only algorithms that repeat exactly, with this many compute threads; in the profile
    `portable`, which the environment tells, with products that repeat on other processors."""
    torch.use_deterministic_algorithms(True)
    # Else every new tensor is filled first, which costs time; what is unset is never read, or
    # replays would differ (benchmarks/replays.py, benchmarks/determinism.py).
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_num_threads(threads)
    if os.environ.get("MKL_CBWR") == PROFILES["portable"]["MKL_CBWR"]:
        products.replace()
