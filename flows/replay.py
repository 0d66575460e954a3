"""Replay versions: make them again from their recipes, with no cache, and compare every digest.

modelmint replay digits 1
"""

from typing import Any, Literal

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.runtime import flow_run

from models import catalog
from models.digests import IntegrityError
from models.version import Verified
from tasks import checkout
from tasks.clean import clean
from tasks.compress import compress
from tasks.evaluate import evaluate
from tasks.publish_replay import show_replay
from tasks.recorded import (
    CannotReplayError,
    ChangedCodeError,
    recorded_line,
    recorded_output,
    recorded_snapshot,
    recorded_version,
)
from tasks.refs import Dataset, Weights
from tasks.replay import (
    DiffersError,
    Replay,
    check_identity,
    check_numbers,
    compared,
    forget,
    needed,
    note_attempt,
    write_back,
)
from tasks.snapshot import raw_prefix
from tasks.stage import StageRun, afresh, recording
from tasks.store import MissingError
from tasks.train import train
from tasks.versions import least_replayed

Stage = Literal["clean", "train", "evaluate", "compress"]


class SampleError(RuntimeError):
    """A version of the sample did not come out the same, or could not be made again."""


@flow(name="replay", flow_run_name="replay {line} {version}", persist_result=False)
def replay(
    line: str,
    version: int,
    stage: Stage | None = None,
    from_raw: bool = False,
    here: bool = False,
    install: bool = False,
) -> Replay:
    """Prove that a version is the output of its recipe, or name the first stage that differs.

    Whatever it finds is a table artifact. Raises DiffersError, with what was found, unless every
    stage is identical; CannotReplayError or IntegrityError when the version cannot be made again.

    Args:
        line: Name of the model line.
        version: Number of the registered version.
        stage: Only this stage, from its recorded inputs.
        from_raw: The stage named and all it needs, from the raw objects.
        here: Use this checkout, its libraries and this processor whatever is recorded: the digests
            decide, and the answer says what else is different.
        install: Install the recorded libraries, and run the recorded code with them.
    """
    wanted, found = needed(stage, from_raw), None
    with recording() as runs:
        try:
            found = recorded_version(line, version)
            result = _replayed(found, version, stage, from_raw, here, install, runs)
        except (CannotReplayError, IntegrityError) as error:
            recipe = found.recipe if found else None
            done = compared(line, version, recipe, runs).stages if recipe else ()
            show_replay(line, version, wanted, recipe, done, "cannot be replayed", str(error))
            raise
    cause = f"stage {result.first_difference}: {result.first_cause}"
    reason = "" if result.verdict == "identical" else cause
    show_replay(line, version, wanted, found.recipe, result.stages, result.verdict, reason)
    if result.verdict == "differs":
        raise DiffersError(result)
    return result


def _replayed(
    found: Verified,
    version: int,
    stage: Stage | None,
    from_raw: bool,
    here: bool,
    install: bool,
    runs: list[StageRun],
) -> Replay:
    """What comes out here, or with the recorded code; `runs` has the stages that ran here."""
    try:
        if install:
            raise ChangedCodeError("the recorded code and libraries are asked for")
        _stages(found, needed(stage, from_raw), here)
    except ChangedCodeError:
        if here or checkout.inside():
            raise
        return checkout.replayed(found, version, stage, from_raw=from_raw, install=install)
    result = compared(found.recipe.line, version, found.recipe, runs)
    write_back(result, found)
    return result


def _stages(found: Verified, wanted: tuple[str, ...], here: bool) -> None:
    """Run the wanted stages afresh."""
    recipe = found.recipe
    spec = recorded_line(recipe)
    profile, threads = spec.training.profile, spec.training.threads

    def check(name: str, identity: dict[str, Any]) -> None:
        if here:
            # The digests decide; `compared` says what else is different.
            return
        check_identity(recipe, name, identity)
        if name == wanted[0]:
            check_numbers(spec, found, wanted)

    # A run that is started again after a kill has the same id.
    with afresh(check, flow_run.get_id() or "") as kept:
        try:
            if "clean" in wanted:
                snapshot = recorded_snapshot(spec, found)
                dataset = clean(spec.data, spec.objective, raw_prefix(spec.data), snapshot)
            else:
                dataset = recorded_output(Dataset, recipe.stages["clean"])
            if "train" in wanted:
                weights = train(spec.model, spec.training, dataset)
            elif wanted != ("clean",):
                weights = recorded_output(Weights, recipe.stages["train"])
            if "evaluate" in wanted:
                evaluate(spec.model, dataset, weights, spec.gate.confidence, profile, threads)
            if "compress" in wanted:
                compress(spec.model, spec.training, spec.budget, dataset, weights)
        except MissingError as error:
            raise CannotReplayError(f"missing object: {error}") from None
        finally:
            forget(kept)


@flow(name="replay-sample", persist_result=False)
def replay_sample(lines: list[str] | None = None, each: int = 1) -> list[dict[str, Any]]:
    """Replay the versions of every line that were tried longest ago, champions first.

    Whatever happens to one, the others are tried; then it raises SampleError if not all of them
    came out the same.

    Args:
        lines: Names of the model lines, instead of all there are.
        each: Versions a line.
    """
    rows: list[dict[str, Any]] = []
    known, broken = catalog.sound()
    for line in lines or known:
        rows += _sampled(line, each)
    create_table_artifact(key="replays", table=rows, description="Versions made again, compared")
    failed = [row for row in rows if row["verdict"] != "identical"]
    told = [f"{row['line']} {row['version']}: {row['verdict']}" for row in failed]
    told += [] if lines else map(str, broken)
    if told:
        raise SampleError("; ".join(told))
    return rows


def _sampled(line: str, each: int) -> list[dict[str, Any]]:
    """The rows of one line; where its versions cannot even be listed, one row that says so."""
    rows: list[dict[str, Any]] = []
    try:
        for version in least_replayed(line, each):
            rows.append({"line": line, "version": version, "verdict": _outcome(line, version)})
    except Exception as error:
        rows.append({"line": line, "version": None, "verdict": _failed(error)})
    return rows


def _outcome(line: str, version: int) -> str:
    try:
        # Before: one that ends the process must not be the first of the next sample too.
        note_attempt(line, version)
        return replay(line, version).verdict
    except DiffersError as error:
        return error.replay.verdict
    except (CannotReplayError, IntegrityError) as error:
        return f"cannot be replayed: {error}"
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> str:
    return f"failed: {type(error).__name__}: {error}"
