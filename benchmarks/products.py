"""Matrix products: why `portable` costs what it costs, and what another library would make of it.

    python -m benchmarks.products [--json] [--turns 3]

About a minute on an idle core. One step of training a linear layer is three products: forward,
gradient of the input, gradient of the weights. Each contestant does those of the layers of
`flights` (1000-500-100, batch 512) on one thread in a process of its own; time is the least CPU
time of a step.

- *fast*: MKL with `MKL_CBWR=AVX2,STRICT`.
- *portable*: MKL with `MKL_CBWR=COMPATIBLE`, the one mode whose bits Intel promises on processors
  of any maker: it computes with SSE2.
- *oneDNN*: the same products by oneDNN's inner product, held to AVX2 as `portable` holds it.

No goal: it explains one. `equal` says whether oneDNN's sums have the bits of `portable`'s.
"""

import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarks import measuring
from models.digests import bytes_digest
from tasks import isolated
from tasks.isolated import Profile

LAYERS = ((64, 1000), (1000, 500), (500, 100))
"""Inputs and outputs; the first as wide as the encoded columns of `flights` by order of size."""
BATCH, ROUNDS = 512, 15
CONTESTANTS: dict[str, tuple[Profile, str]] = {
    "fast": ("fast", "mkl"),
    "portable": ("portable", "mkl"),
    "oneDNN": ("portable", "onednn"),
}


def main() -> None:
    """Measure, print, write the result."""
    parser = measuring.options(__doc__, turns=3)
    parser.add_argument("--inside", choices=("mkl", "onednn"), help="for its own processes")
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(_steps(options.inside)))
        return
    found = measuring.in_turns({name: _process(name) for name in CONTESTANTS}, options.turns)
    seconds = {name: [run["seconds"] for run in runs] for name, runs in found.items()}
    figures: dict[str, Any] = {
        f"{name} over fast": measuring.ratio(seconds[name], seconds["fast"])
        for name in ("portable", "oneDNN")
    }
    figures["equal"] = found["oneDNN"][0]["digest"] == found["portable"][0]["digest"]
    rows = [
        {
            "products by": name,
            "ms a step": f"{1000 * median(seconds[name]):.2f}",
            "over fast": f"{measuring.ratio(seconds[name], seconds['fast']):.2f}x",
        }
        for name in CONTESTANTS
    ]
    measuring.publish("products", {**figures, "seconds": seconds}, rows, ("torch",), options.json)


def _process(name: str) -> Callable[[], dict[str, Any]]:
    profile, library = CONTESTANTS[name]
    command = measuring.python("benchmarks.products", "--inside", library)
    variables = isolated.environment(profile, 1)
    return lambda: measuring.run(command, variables).answer


def _steps(library: str) -> dict[str, Any]:
    """In a process whose environment is a profile's: the least CPU time of a step, and its bits."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = [(torch.randn(BATCH, i), torch.randn(o, i), torch.randn(BATCH, o)) for i, o in LAYERS]

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """A times B transposed, as a linear layer computes it."""
        if library == "mkl":
            return a @ b.T
        found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
        return found

    def step() -> list[torch.Tensor]:
        return [
            y
            for x, w, g in layers
            for y in (
                product(x, w),
                product(g, w.T.contiguous()),
                product(g.T.contiguous(), x.T.contiguous()),
            )
        ]

    best = float("inf")
    with torch.inference_mode():
        digest = bytes_digest(b"".join(y.numpy().tobytes() for y in step()))
        for _ in range(ROUNDS):
            start = time.process_time()
            step()
            best = min(best, time.process_time() - start)
    return {"seconds": best, "digest": digest}


if __name__ == "__main__":
    main()
