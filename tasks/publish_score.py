"""Show a scoring run to people: its result as a Prefect artifact."""

from prefect.artifacts import create_table_artifact

from tasks.score import Scored


def show_scored(scored: Scored) -> None:
    """Rows answered, rows refused by reason, and where the manifest is."""
    rows = [{"rows": scored.scored, "what": "answered"}]
    rows += [{"rows": r.rows, "what": f"{r.field}: {r.reason}"} for r in scored.refusals]
    rows += [{"rows": 0, "what": f"{key} changed meanwhile: run again"} for key in scored.missed]
    create_table_artifact(
        key=f"{scored.line}-scored",
        table=rows,
        description=(
            f"{scored.rows:,} rows of {scored.objects:,} objects by version {scored.version};"
            f" {scored.manifest}"
        ),
    )
