"""The registered versions of a line, as MLflow and the promotion record know them."""

from typing import Any

from tasks import tracking
from tasks.production import told
from tasks.promotion import promotions
from tasks.register import DIGEST_TAG
from tasks.replay import ATTEMPTED_TAG


def versions(line: str) -> list[dict[str, Any]]:
    """Number, digest, verdict, serving state and metrics of every version, oldest first."""
    record = promotions(line)
    champion = record.champion
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
                "production": told(record, digest),
                "replayed": version.tags.get("modelmint.replayed", ""),
                "replayed_at": version.tags.get("modelmint.replayed.at", ""),
                "attempted_at": version.tags.get(ATTEMPTED_TAG, ""),
                "metrics": {
                    name.removeprefix("served_"): value
                    for name, value in sorted(run.data.metrics.items())
                    if name.startswith("served_")
                },
            }
        )
    return sorted(found, key=lambda v: int(v["version"]))


def least_replayed(line: str, count: int) -> list[int]:
    """Numbers of the versions that were tried longest ago or never, the champion first."""
    found = versions(line)

    def place(version: dict[str, Any]) -> tuple[str, bool, int]:
        # Also one that cannot be replayed: it would be the first for ever.
        tried = max(version["replayed_at"], version["attempted_at"])
        return tried, not version["champion"], -version["version"]

    found.sort(key=place)
    return [int(v["version"]) for v in found[:count]]
