"""What stages exchange: small frozen references, a digest and where its content is.

`observed` holds what was seen on the way (seconds, counts of reused parts); it is recorded and
never part of a digest. `stored` names the store's keys without which the reference is worthless:
a cached reference with a key missing is no cache hit.
"""

from typing import Literal

from pydantic import JsonValue

from models.digests import Digest, Manifest
from models.open import Frozen
from models.signature import Signature
from models.splits import Subset

WEIGHTS_FILE = "weights.safetensors"
HISTORY_FILE = "history.json"


class Ref(Frozen):
    """A reference to the output of a stage."""

    digest: Digest
    stored: tuple[str, ...] = ()
    observed: dict[str, JsonValue] = {}
    fingerprint: dict[str, Digest] = {}
    """The numeric fingerprint of where it was computed, by library; see tasks.fingerprint."""


class Listing(Ref):
    """What a prefix of the bucket held at one moment: a table of key, size and ETag."""

    objects: int
    size: int
    """Sum of the objects' sizes in bytes."""


class Snapshot(Ref):
    """The raw objects a run is made from: a table of name, size and SHA-256."""

    objects: int
    size: int
    """Sum of the objects' sizes in bytes."""
    located: Digest
    """The table that also says which version of each object was read; not part of `digest`."""


class Refusal(Frozen):
    """How many rows, or whole objects, were quarantined for one reason."""

    field: str
    reason: str
    rows: int


class Dataset(Ref):
    """Cleaned partitions, their splits and the fitted preprocessing; `digest` is its manifest."""

    rows: dict[Subset, int]
    refused: tuple[Refusal, ...]
    signature: Signature


class Weights(Ref):
    """Trained parameters and the figures of every epoch; `digest` is their manifest."""

    manifest: Manifest
    parameters: int


class Interval(Frozen):
    """A metric with its bootstrap confidence interval."""

    value: float
    low: float
    high: float


class Report(Ref):
    """The quality of the uncompressed network on the test rows, with baselines beside it."""

    metrics: dict[str, Interval]
    baselines: dict[str, dict[str, float]]
    slices: dict[str, dict[str, float]]
    losses: Digest
    """Table of per-row losses, in the order of the test rows."""


class Candidate(Frozen):
    """One compressed form of the network and what it costs."""

    name: str
    size: int
    blake3: Digest
    metrics: dict[str, float]
    """On the validation rows."""
    loss: float
    """Loss of the primary metric against the uncompressed network, as a fraction."""
    collapsed: bool = False
    """Lost so much on the first rows that it was measured no further; never chosen."""


class Artifact(Ref):
    """The served form: a folder with the model, its signature and a sample."""

    manifest: Manifest
    chosen: str
    candidates: tuple[Candidate, ...]
    within_budget: bool
    failed: dict[str, str] = {}
    """Forms that could not be made or run, with the reason."""
    skipped: dict[str, str] = {}
    """Forms that were not trained, because they could not have been chosen, with the reason."""


class Champion(Ref):
    """The version that serves; `digest` is its version digest."""

    number: int
    manifest: Manifest
    dataset: Dataset | None = None
    """What it was made from; `unknown` says why that is not known."""
    unknown: str = "nobody has looked"


class Difference(Frozen):
    """How much worse one model is than another on the same rows."""

    worse_by: Interval
    """Loss of the primary metric as a fraction of the other's, with one-sided bounds; above 0 it
    is worse."""
    mcnemar: float | None = None
    """Mid-p value of McNemar's test that its labels are no worse; None where accuracy does not
    decide."""
    rows: int = 0


class Comparison(Difference):
    """Challenger against champion on the same rows."""

    champion: Digest
    challenger_metric: float
    champion_metric: float
    seen: int = 0
    """Test rows left out because the champion had seen them in training or validation."""
    unknown: str = ""
    """Why it is not known which rows it had seen, so that none is left out; else empty."""


class SliceComparison(Difference):
    """Challenger against champion on one slice of the rows."""

    name: str
    margin: float
    worse: bool


class Verdict(Ref):
    """What the gate decided, and why."""

    decision: Literal["promote", "hold", "refuse"]
    reasons: tuple[str, ...]
    metrics: dict[str, float]
    """Of the compressed model on the test rows, calibration included."""
    against: Digest | None = None
    """The champion it was judged beside, comparable or not."""
    comparison: Comparison | None = None
    slices: tuple[SliceComparison, ...] = ()
    """Of the slices the gate names; together they raise a false alarm as rarely as one test."""
    unjudged: tuple[str, ...] = ()
    """Slices the gate names that have too few test rows."""
    compression: Difference | None = None
    """The served model against the uncompressed network."""


class Version(Ref):
    """A registered model version; `digest` is the version digest."""

    line: str
    number: int
    artifact: Digest
    source: str
    """s3:// address of the version's folder."""
    run: str
    """The MLflow run."""


class Endpoint(Ref):
    """Where a version answers."""

    url: str
    serving: int
    """The version that answers when none is named."""
