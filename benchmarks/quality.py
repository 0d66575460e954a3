"""Quality: what the lines reach on held-out rows, as served, beside their baselines.

    python -m benchmarks.quality [--json] [--lines digits,fashion] [--set digits.training.epochs=4]

Minutes a line. Everything runs in MODELMINT_HOME; what was computed there before is not computed
again, and example data is landed where a line has none. The speed of the training is told by the
stage that ran it, in samples a second.
"""

from benchmarks import measuring
from models import catalog

LINES = ("digits", "fashion", "flights", "speech", "reviews", "verses")
PACKAGES = ("onnxruntime", "polars", "torch")


def main() -> None:
    """Run the lines, print, write the result."""
    parser = measuring.options(__doc__, turns=1)
    parser.add_argument("--lines", default=",".join(LINES), help="which lines, comma-separated")
    parser.add_argument("--set", action="append", default=[], help="LINE.section.field=value")
    options = parser.parse_args()
    # Lines that are not run now keep what was found for them.
    figures = measuring.known("quality")
    rows = []
    for name in options.lines.split(","):
        changes = [c.removeprefix(f"{name}.") for c in options.set if c.startswith(f"{name}.")]
        measuring.run(measuring.python("modelmint", "land", name, "--if-empty", "--json"))
        settings = [word for change in changes for word in ("--set", change)]
        found = measuring.run(
            measuring.python("modelmint", "run", name, *settings, "--json")
        ).answer
        metric = catalog.find(name).objective.primary.name
        trained = next(stage for stage in found["stages"] if stage["name"] == "train")
        figures[name] = {
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
        beside = {title: scores[metric] for title, scores in found["baselines"].items()}
        rows.append(
            {
                "line": " ".join([name, *changes]),
                "metric": metric,
                "baselines": ", ".join(f"{title} {value:.4g}" for title, value in beside.items()),
                "uncompressed": f"{found['uncompressed'][metric]['value']:.4f}",
                "served": f"{found['metrics'][metric]:.4f}",
                "form": found["compression"]["chosen"],
            }
        )
    measuring.publish("quality", figures, rows, PACKAGES, options.json)


if __name__ == "__main__":
    main()
