"""In `portable`, products of matrices are oneDNN's: right, with gradients, and of no other type."""

import json
from typing import Any

import pytest
from pydantic import BaseModel

from tasks.isolated import Emit, environment, run


class Nothing(BaseModel):
    """No job."""


class Products(BaseModel):
    """What a process with a profile's environment computed."""

    deviation: float
    """Largest distance to the same in float64, over all results."""
    kernels: dict[str, int]
    """How many products oneDNN computed, by the size of the layer."""
    others: list[float]
    """Sums of products of other types, none of them oneDNN's."""


def counted(profile: Any) -> int:
    """How often oneDNN's product ran."""
    events = {event.key: event.count for event in profile.key_averages()}
    return int(events.get("mkldnn::_linear_pointwise", 0))


def multiplied(job: Nothing, emit: Emit) -> Products:
    """In a process of its own: layers of two sizes forward and back, other types."""
    import torch
    from torch import nn

    from tasks.determinism import deterministic

    del job, emit
    deterministic(1)
    deterministic(1)
    torch.manual_seed(0)
    deviation, kernels = 0.0, {}
    for size in (8, 128):
        layer, exact = nn.Linear(size, size), nn.Linear(size, size, dtype=torch.float64)
        exact.load_state_dict(layer.state_dict())
        rows = torch.randn(size, size, requires_grad=True)
        same = rows.detach().double().requires_grad_()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            # Without a bias, and from a view that is not contiguous, too.
            (layer(rows).tanh() @ rows.T).sum().backward()
        (exact(same).tanh() @ same.T).sum().backward()
        for found, wanted in zip(
            (rows.grad, *(p.grad for p in layer.parameters())),
            (same.grad, *(p.grad for p in exact.parameters())),
            strict=True,
        ):
            assert found is not None
            assert wanted is not None
            deviation = max(deviation, float((found - wanted).abs().max() / wanted.abs().max()))
        kernels[str(size)] = counted(profile)
    big = torch.ones(128, 128)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        others = [
            float((big.double() @ big.double()).sum()),
            float((big.int() @ big.int()).sum()),
            float(torch.addmm(big, big, big, beta=2, alpha=3).sum()),
            float((torch.ones(0, 3) @ torch.ones(3, 2)).sum()),
        ]
    kernels["others"] = counted(profile)
    for wrong in (big[:, :64], big[0]):
        with pytest.raises(RuntimeError, match="mat1 and mat2 shapes|must be a matrix|tensors"):
            torch.mm(big, wrong.T)
    return Products(deviation=deviation, kernels=kernels, others=others)


# Forward with a bias and without, and two gradients of each.
@pytest.mark.parametrize(("profile", "large"), [("portable", 6), ("fast", 0)])
def test_large_products_are_onednns_in_the_profile_that_is_portable(
    profile: Any, large: int
) -> None:
    answer = run("tests.tasks.test_products:multiplied", "{}", environment(profile, 1), print)
    found = Products.model_validate(json.loads(answer))
    assert found.kernels == {"8": 0, "128": large, "others": 0}
    assert found.deviation < 1e-5
    assert found.others == [128**3, 128**3, 2 * 128**2 + 3 * 128**3, 0]
