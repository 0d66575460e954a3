"""Change what is in production from the Prefect UI: go back to an earlier version, or promote one.

modelmint rollback digits --reason "wrong labels"
"""

from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact

from models import catalog
from tasks.production import catch_up, promote_version, roll_back
from tasks.promotion import mirror


@flow(name="rollback", flow_run_name="rollback {line}", persist_result=False)
def rollback(line: str, version: int | None = None, reason: str = "") -> dict[str, Any]:
    """Put an earlier version back into production.

    Args:
        line: Name of the model line.
        version: Number of the version to go back to, instead of the one before the present one.
        reason: Why, for the promotion record and the audit log.
    """
    catalog.find(line)
    found = roll_back(line, version, reason)
    create_table_artifact(key=f"{line}-production", table=[found])
    # The version answers by now; a store or an MLflow that is down fails this run and no request.
    catch_up(line)
    return found


@flow(name="promote", flow_run_name="promote {line} {version}", persist_result=False)
def promote(line: str, version: int, reason: str = "") -> dict[str, Any]:
    """Put a registered version into production, whatever the gate said of it.

    Args:
        line: Name of the model line.
        version: Number of the registered version.
        reason: Why, for the promotion record.
    """
    catalog.find(line)
    found = promote_version(line, version, reason)
    create_table_artifact(key=f"{line}-production", table=[found])
    mirror(line)
    return found
