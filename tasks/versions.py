"""The registered versions of a line, as MLflow and the promotion record know them."""

from typing import Any

from tasks import tracking
from tasks.promotion import promotions
from tasks.register import DIGEST_TAG


def versions(line: str) -> list[dict[str, Any]]:
    """Number, digest, verdict, serving state and metrics of every version, oldest first."""
    champion = promotions(line).champion
    found = []
    for version in tracking.client().search_model_versions(f"name = '{line}'"):
        digest = version.tags.get(DIGEST_TAG, "")
        run = tracking.client().get_run(str(version.run_id))
        found.append(
            {
                "version": int(version.version),
                "digest": digest,
                "verdict": version.tags.get("modelmint.verdict", ""),
                "champion": champion is not None and champion.digest == digest,
                "metrics": {
                    name.removeprefix("served_"): value
                    for name, value in sorted(run.data.metrics.items())
                    if name.startswith("served_")
                },
            }
        )
    return sorted(found, key=lambda v: int(v["version"]))
