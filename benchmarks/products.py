"""Matrix products: why `portable` costs what it costs, and what another library would make of it.

    python -m benchmarks.products [--json] [--turns 3]

About three minutes on an idle core, most of it emulation, which is left out without
`qemu-x86_64`. One step of training a linear layer is three products: forward, gradient of the
input, gradient of the weights. Each contestant does those of the layers of `flights` (1000-500-100,
batch 512) on one thread in a process of its own; time is the least CPU time of a step.

- *fast*: MKL with `MKL_CBWR=AVX2,STRICT`.
- *MKL*: with `MKL_CBWR=COMPATIBLE`, the one mode whose bits Intel promises on processors of any
  maker: it computes with SSE2.
- *portable*: the same products as `tasks/products.py` has them in that profile, by oneDNN.

No goal: it explains one. `equal` says whether oneDNN's sums have the bits of MKL's.

Then *portable* multiplies pairs of matrices of many sizes, those of `flights` among them, on
emulated processors whose caches differ, by which a library may cut its sums, with and without a
bias, on one thread: their bits must be those of here.
"""

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarks import measuring
from benchmarks.platforms import QEMU
from models.digests import bytes_digest
from tasks import isolated
from tasks.isolated import Profile

LAYERS = ((64, 1000), (1000, 500), (500, 100))
"""Inputs and outputs; the first as wide as the encoded columns of `flights` by order of size."""
BATCH, ROUNDS = 512, 15
PAIRS = (
    (512, 64, 1000), (512, 1000, 500), (512, 500, 100), (512, 100, 512), (1000, 512, 64),
    (100, 512, 500), (64, 33, 1000), (7, 1000, 500), (128, 2304, 384), (1, 384, 1030),
    (32, 5000, 64), (300, 144, 576),
)  # fmt: skip
"""Rows, columns that are summed, columns of the answer."""
PROCESSORS = (
    "Haswell",
    "Haswell,l3-cache=off",
    "EPYC-Rome",
    "EPYC-Rome,legacy-cache=on",
    "EPYC-Milan",
)
CACHES = ("LEVEL1_DCACHE_SIZE", "LEVEL2_CACHE_SIZE", "LEVEL3_CACHE_SIZE")
CONTESTANTS: dict[str, tuple[Profile, str]] = {
    "fast": ("fast", "mkl"),
    "MKL": ("portable", "mkl"),
    "portable": ("portable", "onednn"),
}


def main() -> None:
    """Measure, print, write the result."""
    parser = measuring.options(__doc__, turns=3)
    parser.add_argument("--inside", choices=("mkl", "onednn", "pairs"), help="own process")
    options = parser.parse_args()
    if options.inside:
        inside = _pairs() if options.inside == "pairs" else _steps(options.inside)
        print(json.dumps(inside))
        return
    found = measuring.in_turns({name: _process(name) for name in CONTESTANTS}, options.turns)
    seconds = {name: [run["seconds"] for run in runs] for name, runs in found.items()}
    figures: dict[str, Any] = {
        f"{name} over fast": measuring.ratio(seconds[name], seconds["fast"])
        for name in ("MKL", "portable")
    }
    figures["equal"] = found["MKL"][0]["digest"] == found["portable"][0]["digest"]
    places = [(), *((QEMU, "-cpu", name) for name in PROCESSORS)] if shutil.which(QEMU) else []
    if there := [_on(place) for place in places]:
        equal = sum(place["digest"] == there[0]["digest"] for place in there)
        figures |= {"processors": there, "processors equal": equal}
        print(f"portable: {equal} of {len(there)} processors, this one included, multiply alike")
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


def _on(emulator: tuple[str, ...]) -> dict[str, Any]:
    """The bits of the pairs on a processor, and the sizes of its caches in bytes."""
    command = [*emulator, *measuring.python("benchmarks.products", "--inside", "pairs")]
    answer = measuring.run(command, isolated.environment("portable", 1)).answer
    getconf = shutil.which("getconf") or "getconf"
    caches = [
        int(subprocess.run([*emulator, getconf, name], capture_output=True, check=True).stdout or 0)
        for name in CACHES
    ]
    return {"processor": emulator[-1] if emulator else "native", "caches": caches, **answer}


def _pairs() -> dict[str, Any]:
    """In a process whose environment is `portable`'s: the bits of every pair's product."""
    import torch

    from tasks import products

    torch.set_num_threads(1)
    products.replace()
    torch.manual_seed(0)
    found = []
    for n, k, m in PAIRS:
        a, b, bias = torch.rand(n, k), torch.rand(k, m), torch.rand(m)
        found += [a @ b, torch.addmm(bias, a, b)]
    return {"digest": bytes_digest(b"".join(y.numpy().tobytes() for y in found))}


def _steps(library: str) -> dict[str, Any]:
    """In a process whose environment is a profile's: the least CPU time of a step, and its bits."""
    import torch

    from tasks import products

    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = [(torch.randn(BATCH, i), torch.randn(o, i), torch.randn(BATCH, o)) for i, o in LAYERS]

    if library == "onednn":
        products.replace()

    def step() -> list[torch.Tensor]:
        return [
            y
            for x, w, g in layers
            for y in (
                x @ w.T,
                g @ w,
                g.T @ x,
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
