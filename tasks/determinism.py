"""Numeric work that repeats: what PyTorch is told before it computes; see tasks.isolated."""

import torch


def deterministic(threads: int) -> None:
    """Only algorithms that repeat exactly, with this many compute threads."""
    torch.use_deterministic_algorithms(True)
    # Else every new tensor is filled first, which costs time; what is unset is never read, or
    # replays would differ (benchmarks/replays.py, benchmarks/determinism.py).
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_num_threads(threads)
