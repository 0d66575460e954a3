"""Show a run to people: Prefect artifacts in the UI, figures and files in the MLflow run."""

import base64
import json
from typing import Any

from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)

from tasks import tracking
from tasks.progress import Event
from tasks.refs import Artifact, Dataset, Difference, Ref, Report, Verdict, Version
from tasks.server import endpoint
from tasks.store import store


class EpochLog:
    """A progress listener that writes every epoch into the MLflow run of the training."""

    def __init__(self, line: str) -> None:
        self.line, self.run = line, ""

    def __call__(self, event: Event) -> None:
        """Log the event if it is the end of an epoch."""
        if event.stage != "train":
            return
        if event.kind == "started":
            self.run = ""
            self.key = event.detail["key"]
        elif event.kind == "progress" and "epoch" in event.detail:
            self.run = self.run or tracking.run_for(self.line, self.key)
            tracking.log_epoch(self.run, event.detail)


def show(
    version: Version, dataset: Dataset, report: Report, artifact: Artifact, verdict: Verdict
) -> None:
    """The run as Prefect artifacts: data, quality, compression, verdict, plots and links."""
    line = version.line
    create_table_artifact(
        key=f"{line}-quarantine",
        table=[r.model_dump() for r in dataset.refused] or [{"reason": "nothing was refused"}],
        description=f"Rows used: {json.dumps(dataset.rows)}",
    )
    create_table_artifact(
        key=f"{line}-quality",
        table=quality_table(report, verdict),
        description="The test rows, before and after compression, beside baselines",
    )
    create_table_artifact(
        key=f"{line}-compression",
        table=compression_table(artifact),
        description=f"Served: {artifact.chosen}",
    )
    create_markdown_artifact(
        key=f"{line}-verdict",
        markdown=verdict_markdown(line, verdict),
        description=f"{verdict.decision}: {verdict.reasons[0] if verdict.reasons else ''}",
    )
    for title, digest in _plots(report, artifact).items():
        picture = base64.b64encode(store().get_content(str(digest))).decode()
        create_image_artifact(
            image_url=f"data:image/png;base64,{picture}",
            key=f"{line}-{title.replace(' ', '-')}-plot",
            description=title,
        )
    name = f"{line} version {version.number}"
    create_link_artifact(
        link=f"{endpoint()}/", link_text=f"{name}: where it answers", key=f"{line}-endpoint"
    )
    if page := tracking.page(version.run):
        create_link_artifact(
            link=page, link_text=f"{name}: figures and files in MLflow", key=f"{line}-mlflow"
        )


def log(run: str, report: Report, artifact: Artifact, verdict: Verdict) -> None:
    """The same as metrics and files of the MLflow run; called once for a version."""
    metrics = {f"test_{name}": found.value for name, found in report.metrics.items()}
    metrics |= {f"served_{name}": value for name, value in verdict.metrics.items()}
    for name, baseline in report.baselines.items():
        metrics |= {f"baseline_{name}_{metric}": value for metric, value in baseline.items()}
    metrics["served_bytes"] = float(_size(artifact, artifact.chosen))
    tracking.log_metrics(run, metrics)
    tracking.log_file(run, "verdict.json", verdict.model_dump_json(indent=1).encode())
    table = json.dumps(compression_table(artifact), indent=1).encode()
    tracking.log_file(run, "compression.json", table)
    tracking.log_file(run, "verdict.md", verdict_markdown("verdict", verdict).encode())
    tracking.log_file(run, "report.json", report.model_dump_json(indent=1).encode())
    for title, digest in _plots(report, artifact).items():
        name = f"{title.replace(' ', '_')}.png"
        tracking.log_file(run, name, store().get_content(str(digest)))


def _plots(*found: Ref) -> dict[str, str]:
    """Title -> digest of every picture the stages drew."""
    drawn: dict[str, str] = {}
    for ref in found:
        plots = ref.observed.get("plots")
        drawn |= {t: str(d) for t, d in plots.items()} if isinstance(plots, dict) else {}
    return drawn


def quality_table(report: Report, verdict: Verdict) -> list[dict[str, Any]]:
    """Metrics before and after compression, with intervals and baselines."""
    return [
        {
            "metric": name,
            "uncompressed": round(found.value, 4),
            "interval": f"{found.low:.4g} to {found.high:.4g}",
            "served": round(verdict.metrics[name], 4),
            **{f"baseline {b}": round(values[name], 4) for b, values in report.baselines.items()},
        }
        for name, found in report.metrics.items()
    ]


def compression_table(artifact: Artifact) -> list[dict[str, Any]]:
    """Every candidate: size, loss, CPU time of 1 and 32 rows, memory; the chosen one is marked."""
    cost: Any = artifact.observed.get("cpu_microseconds") or {}
    memory: Any = artifact.observed.get("memory_bytes") or {}

    def row(name: str, chosen: str, loss: str, size: int | None = None) -> dict[str, Any]:
        return {
            "candidate": name,
            "chosen": chosen,
            "kB": "" if size is None else round(size / 1000, 1),
            "loss": loss,
            **{
                f"µs, {batch}": "" if size is None else round(cost.get(name, {}).get(batch, 0.0), 1)
                for batch in ("1", "32")
            },
            "MB": round(memory[name] / 1e6, 1) if name in memory else "",
        }

    return [
        *(
            row(
                found.name,
                "collapsed" if found.collapsed else "yes" if found.name == artifact.chosen else "",
                f"{found.loss:+.2%}",
                found.size,
            )
            for found in artifact.candidates
        ),
        *(row(name, "failed", reason) for name, reason in artifact.failed.items()),
        *(row(name, "skipped", reason) for name, reason in artifact.skipped.items()),
    ]


def verdict_markdown(line: str, verdict: Verdict) -> str:
    """The verdict, its reasons and the evidence."""
    reasons = "\n".join(f"- {reason}" for reason in verdict.reasons)
    values = "\n".join(f"| {name} | {value:.4g} |" for name, value in verdict.metrics.items())
    judged: list[tuple[str, Difference]] = []
    if verdict.comparison:
        judged.append(("the champion", verdict.comparison))
    judged += [(f"the champion, {found.name}", found) for found in verdict.slices]
    if verdict.compression:
        judged.append(("its uncompressed form", verdict.compression))
    tests = "\n".join(
        f"| {name} | {found.rows:,} | {found.worse_by.value:+.2%} | {found.worse_by.low:+.2%} to"
        f" {found.worse_by.high:+.2%} | {'' if found.mcnemar is None else f'{found.mcnemar:.3g}'} |"
        for name, found in judged
    )
    few = f"\nToo few rows to judge: {', '.join(verdict.unjudged)}.\n" if verdict.unjudged else ""
    return (
        f"# {line}: {verdict.decision}\n\n{reasons}\n\n"
        f"| metric, served, test rows | |\n|---|---|\n{values}\n\n"
        "| worse than | rows | by | one-sided bounds | McNemar, mid-p |\n|---|---|---|---|---|\n"
        f"{tests}\n{few}"
    )


def _size(artifact: Artifact, name: str) -> int:
    return next(c.size for c in artifact.candidates if c.name == name)
