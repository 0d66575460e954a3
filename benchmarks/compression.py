"""Compression: the chosen form of a line against every single form of ONNX Runtime's quantizers.

    python -m benchmarks.compression [--lines digits,reviews/lstm] [--forms int8-static,...]

About five minutes on two idle cores, most of it for training smaller networks; half an hour of one
core each for speech and verses, which are asked for by name. `reviews/lstm` is the line with the
settings that benchmarks.quality has for it. Each line is cleaned
and trained as it is, then every form is built and measured: size, quality lost on the validation
rows, the least CPU time of a request of 1 and of 32 rows on one thread, all forms in turns, and the
memory a session adds to a process. `smaller` and `faster` are ratios to the uncompressed model in
ONNX Runtime. Goal: at least 4x smaller and 2x faster (batch 32) at 0.5 points lost, for flights 1%
of RMSE; where it is missed the front is the answer.
"""

from typing import Any

from benchmarks import measuring
from benchmarks.quality import VARIANTS
from models import catalog
from models.changes import changed
from models.forms import QUANTIZERS, UNCOMPRESSED, parts
from models.spec import Line
from tasks.refs import Artifact

PACKAGES = ("numpy", "onnx", "onnxruntime", "torch", "torch-pruning")
NETWORKS = ("pruned-25", "pruned-50", "student-small")
FORMS = (
    *QUANTIZERS,
    *NETWORKS,
    *(f"{network}+{quantizer}" for network in NETWORKS for quantizer in QUANTIZERS[:2]),
)


def main() -> None:
    """Measure, print, write the result."""
    parser = measuring.options(__doc__, turns=1)
    parser.add_argument(
        "--lines", default="digits,flights,reviews,reviews/lstm", help="names, separated by commas"
    )
    parser.add_argument("--forms", default=",".join(FORMS), help="names, separated by commas")
    options = parser.parse_args()
    measured = _measured(options.lines.split(","), tuple(options.forms.split(",")))
    # Lines that are not run now keep what was found for them.
    figures = measuring.known("compression") | measured
    rows = [
        {
            "line": line,
            "form": name,
            "smaller": f"{form['smaller']:.2f}x",
            "faster, batch 1": f"{form['faster, batch 1']:.2f}x",
            "faster, batch 32": f"{form['faster, batch 32']:.2f}x",
            "memory, MB": f"{form['memory'] / 1e6:.1f}",
            "lost": f"{form['lost']:+.2%}",
            "chosen": "yes" if form["chosen"] else "",
            "front": "yes" if form["front"] else "",
        }
        for line, forms in measured.items()
        for name, form in forms.items()
    ]
    measuring.publish("compression", figures, rows, PACKAGES, options.json)


def _measured(lines: list[str], forms: tuple[str, ...]) -> dict[str, Any]:
    from deployments.local.stack import STORE, stack
    from tasks import cluster

    with measuring.temporary_home(), stack(STORE):
        try:
            return {name: _figures(_compressed(_line(name, forms))) for name in lines}
        finally:
            cluster.close()


def _line(title: str, forms: tuple[str, ...]) -> Line:
    line = catalog.find(title.partition("/")[0])
    if line.model.carried():
        # Such a network is quantized and not retrained.
        forms = tuple(form for form in forms if parts(form).network is None)
    budget = line.budget.model_copy(update={"candidates": forms, "exhaustive": True})
    return line.changed(**changed(line, VARIANTS.get(title, ())), budget=budget).on("cpu")


def _compressed(line: Line) -> Artifact:
    from tasks.clean import clean
    from tasks.compress import compress
    from tasks.land import land
    from tasks.snapshot import list_objects, raw_prefix, take_snapshot
    from tasks.train import train

    land(line)
    prefix = raw_prefix(line.data)
    snapshot = take_snapshot.bare(prefix, list_objects(line.data))
    dataset = clean.bare(line.data, line.objective, prefix, snapshot)
    weights = train.bare(line.model, line.training, dataset)
    return compress.bare(line.model, line.training, line.budget, dataset, weights)


def _figures(found: Artifact) -> dict[str, Any]:
    from tasks.plots import front_of

    cost: Any = found.observed["cpu_microseconds"]
    memory: Any = found.observed["memory_bytes"]
    plain = next(c for c in found.candidates if c.name == UNCOMPRESSED)
    front = front_of([c for c in found.candidates if not c.collapsed])
    return {
        c.name: {
            "bytes": c.size,
            "smaller": plain.size / c.size,
            **{
                f"faster, batch {batch}": cost[plain.name][batch] / cost[c.name][batch]
                for batch in ("1", "32")
            },
            "memory": memory[c.name],
            "lost": c.loss,
            "metrics": c.metrics,
            "chosen": c.name == found.chosen,
            "front": c in front,
        }
        for c in found.candidates
    }


if __name__ == "__main__":
    main()
