"""Numeric work that repeats: what PyTorch is told before it computes; see tasks.isolated."""

import torch


def deterministic(threads: int) -> None:
    """Only algorithms that repeat exactly, with this many compute threads."""
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(threads)
