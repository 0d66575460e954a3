"""Score the objects below a prefix of the bucket with a registered version.

modelmint score flights raw/flights/
"""

from prefect import flow

from tasks.progress_artifact import progress_artifact
from tasks.publish_score import show_scored
from tasks.score import Scored
from tasks.score import score as score_objects
from tasks.scoring import scoring
from tasks.served import served
from tasks.snapshot import list_prefix


@flow(name="score", flow_run_name="score {line} {prefix}", persist_result=False)
def score(line: str, prefix: str, version: int | None = None, output: str | None = None) -> Scored:
    """Answer every record of every object below a prefix; what was scored is not scored again.

    Args:
        line: Name of the model line.
        prefix: Where the raw objects are in the bucket; their target may be absent.
        version: Number of the registered version that answers, instead of the champion.
        output: Key prefix for the answers, instead of scored/<line>/<version digest>/.
    """
    found, verified = served(line, version)
    how = scoring(found, verified, output)
    with progress_artifact(f"{line}-score"):
        scored = score_objects(how, prefix, list_prefix(prefix))
    show_scored(scored)
    return scored
