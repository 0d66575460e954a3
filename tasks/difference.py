"""What is not the same in two versions of a line, as one typed record."""

from collections.abc import Mapping
from typing import Literal

from pydantic import JsonValue

from models.digests import Digest
from models.open import Frozen
from tasks.refs import Interval
from tasks.verify import Testimony


class Change(Frozen):
    """One named thing that A and B do not have in common."""

    name: str
    kind: Literal["added", "removed", "changed"]
    a: JsonValue = None
    b: JsonValue = None


class Side(Frozen):
    """One of the two versions, as its signed record has it."""

    version: int
    digest: Digest
    made_at: str
    commit: str
    processor: str
    verdict: str
    """The gate's decision, empty when none was recorded."""
    reasons: tuple[str, ...]
    served: dict[str, float]
    """Metrics of the served model on the version's own test rows."""
    replays: tuple[Testimony, ...]


class StageDifference(Frozen):
    """Whether a stage was asked the same, and whether it gave the same."""

    name: str
    same_key: bool
    same_output: bool
    a: Digest
    b: Digest


class Objects(Frozen):
    """The raw objects of both snapshots."""

    a: int
    b: int
    bytes_a: int
    bytes_b: int
    added: int
    removed: int
    changed: int
    """Of the same name with other content."""
    listed: tuple[Change, ...]
    """The first of them, by name, with the SHA-256 of their content."""


class Rows(Frozen):
    """The cleaned rows of both: how many in each split and in quarantine."""

    a: dict[str, int]
    b: dict[str, int]
    added: int | None
    """By the line's identity columns; None where A and B do not identify rows alike."""
    removed: int | None


class FileChange(Frozen):
    """A file of code, as a unified diff from A to B."""

    name: str
    diff: str


class Code(Frozen):
    """The code that determines results; text that cannot change one is only named."""

    modules: tuple[Change, ...]
    files: tuple[FileChange, ...]
    others: tuple[str, ...]


class Environment(Frozen):
    """Libraries and platform."""

    distributions: tuple[Change, ...]
    """Those that results depend on."""
    others: tuple[Change, ...]
    """Others that were installed."""
    platform: tuple[Change, ...]


class Metric(Frozen):
    """One metric of both served models on the same rows."""

    name: str
    a: float
    b: float


class Paired(Frozen):
    """Both served models on B's test rows, less those A had seen in training or validation."""

    rows: int
    seen: int
    metrics: tuple[Metric, ...]
    primary: str
    confidence: float
    worse_by: Interval
    """How much worse B is in the primary metric, as a fraction of A's value: the paired bootstrap,
    each end a one-sided bound at `confidence`; below 0 B is better."""
    mcnemar: float | None
    """Mid-p value of McNemar's test that B's labels are no worse; None where there are none."""
    finding: Literal["B is better", "B is worse", "no difference is shown"]


class Scores(Frozen):
    """The paired comparison, or why there is none."""

    paired: Paired | None
    obstacle: str = ""


class Served(Frozen):
    """The form that is served, and what it cost where it was compressed."""

    form: str
    size: int
    """Of the model, in bytes."""
    cpu_microseconds: dict[str, float]
    """CPU time of one request by batch size."""


class Difference(Frozen):
    """Version B of a line against version A."""

    line: str
    a: Side
    b: Side
    identical: bool
    stages: tuple[StageDifference, ...]
    objects: Objects | None
    rows: Rows | None
    code: Code
    parameters: tuple[Change, ...]
    environment: Environment
    paired: Paired | None
    files: tuple[Change, ...]
    """Served files that differ: size and digest."""
    served: tuple[Served, Served] | None
    unknown: dict[str, str]
    """What could not be compared, and why."""


def changes(a: Mapping[str, JsonValue], b: Mapping[str, JsonValue]) -> tuple[Change, ...]:
    """What the two do not have in common, by name."""
    found = []
    for name in sorted({*a, *b}):
        if name not in a:
            found.append(Change(name=name, kind="added", b=b[name]))
        elif name not in b:
            found.append(Change(name=name, kind="removed", a=a[name]))
        elif a[name] != b[name]:
            found.append(Change(name=name, kind="changed", a=a[name], b=b[name]))
    return tuple(found)


def flat(value: JsonValue, path: str = "") -> dict[str, JsonValue]:
    """The leaves of nested objects by their dotted path; a list is a leaf."""
    if not isinstance(value, dict) or not value:
        return {path: value}
    return {
        name: leaf
        for key, inner in value.items()
        for name, leaf in flat(inner, f"{path}.{key}" if path else key).items()
    }
