"""Quality: what the lines reach on held-out rows, as served, beside their baselines.

    python -m benchmarks.quality [--lines digits,fashion/lenet] [--set digits.training.epochs=4]

Minutes a line; `fashion/lenet` is the line with the settings that VARIANTS has for it. Everything
runs in MODELMINT_HOME; what was computed there before is not computed again, and example data is
landed where a line has none. The cost of the training is told by the stage that ran it, in samples
a second and CPU seconds.
"""

from typing import Any

from benchmarks import measuring
from models import catalog

# Smaller networks for images, in four epochs.
QUICK = (
    "model.dropout=0.1",
    "training.epochs=4",
    "training.batch_size=64",
    "training.augmentation=null",
    "training.optimizer.lr=0.004",
)
VARIANTS = {
    "fashion/lenet": ("model.size=lenet", *QUICK),
    "fashion/small": ("model.size=small", *QUICK),
    "reviews/lstm": ("model.size=small",),
}
LINES = ("digits", "fashion", *VARIANTS, "flights", "speech", "reviews", "verses")
PACKAGES = ("onnxruntime", "polars", "torch")


def main() -> None:
    """Run the lines, print, write the result."""
    parser = measuring.options(__doc__, turns=1)
    parser.add_argument("--lines", default=",".join(LINES), help="which lines, comma-separated")
    parser.add_argument("--set", action="append", default=[], help="LINE.section.field=value")
    options = parser.parse_args()
    measured: dict[str, Any] = {}
    rows = []
    for title in options.lines.split(","):
        name = title.partition("/")[0]
        changes = [*VARIANTS.get(title, ())]
        changes += [c.removeprefix(f"{title}.") for c in options.set if c.startswith(f"{title}.")]
        measuring.run(measuring.python("modelmint", "land", name, "--if-empty", "--json"))
        settings = [word for change in changes for word in ("--set", change)]
        found = measuring.run(
            measuring.python("modelmint", "run", name, *settings, "--json")
        ).answer
        metric = catalog.find(name).objective.primary.name
        trained = next(stage for stage in found["stages"] if stage["name"] == "train")
        measured[title] = {
            "commit": measuring.commit(),
            "changes": changes,
            "metric": metric,
            "served": found["metrics"],
            "uncompressed": found["uncompressed"],
            "baselines": found["baselines"],
            "verdict": found["verdict"],
            "compressed": found["compression"]["chosen"],
            "rows": found["rows"],
            "quarantined": sum(refusal["rows"] for refusal in found["refused"]),
            "training": trained["observed"],
            "version digest": found["digest"],
        }
        beside = {model: scores[metric] for model, scores in found["baselines"].items()}
        rows.append(
            {
                "line": " ".join([title, *changes]),
                "metric": metric,
                "baselines": ", ".join(f"{model} {value:.4g}" for model, value in beside.items()),
                "uncompressed": f"{found['uncompressed'][metric]['value']:.4f}",
                "served": f"{found['metrics'][metric]:.4f}",
                "form": found["compression"]["chosen"],
                "CPU s": trained["observed"].get("cpu_seconds", ""),
            }
        )
    # Lines that are not run now keep what was found for them.
    figures = measuring.known("quality") | measured
    measuring.publish("quality", figures, rows, PACKAGES, options.json)


if __name__ == "__main__":
    main()
