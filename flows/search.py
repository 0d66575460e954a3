"""Search a line's settings: trials train on Dask, judged on the validation rows.

modelmint search digits --trials 16
"""

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

from prefect import flow
from prefect.artifacts import create_table_artifact
from pydantic import JsonValue

from models import catalog
from models.space import Space, of_line
from models.spec import Line, Training
from tasks import cluster
from tasks.clean import clean
from tasks.isolated import IsolatedError, ResourceError
from tasks.refs import Dataset
from tasks.search import Record, Suggestions, Trial, outcome
from tasks.snapshot import list_objects, raw_prefix, take_snapshot
from tasks.train import train


@flow(name="search", flow_run_name="search {line}", persist_result=False)
def search(
    line: str,
    trials: int = 16,
    parallel: int = 4,
    seed: int = 0,
    space: Space | None = None,
    model: dict[str, JsonValue] | None = None,
    training: Training | None = None,
) -> Record:
    """Train a line with other settings and find those with the best validation metric.

    The first trial has the line's own settings. A training that was done before is found again.

    Args:
        line: Name of the model line.
        trials: How many trainings.
        parallel: Trainings asked for at once. Another number is another search.
        seed: Of the search; the trainings keep the line's.
        space: Ranges and choices by setting, instead of what is searched for every line.
        model: Fields of the line's architecture to change in all trials.
        training: How to train in all trials, instead of as the line says.
    """
    spec = catalog.find(line).changed(model, training).on(cluster.device())
    wanted = space or of_line(spec)
    prefix = raw_prefix(spec.data)
    snapshot = take_snapshot(prefix, list_objects(spec.data))
    dataset = clean(spec.data, spec.objective, prefix, snapshot)
    suggestions = Suggestions(spec, wanted, seed)
    done: list[Trial] = []
    with ThreadPoolExecutor(parallel) as pool:
        while len(done) < trials:
            asked = suggestions.ask(min(parallel, trials - len(done)))
            running = [
                pool.submit(copy_context().run, _trained, spec, trial, dataset) for trial in asked
            ]
            told = [future.result() for future in running]
            suggestions.tell(told)
            done += told
    record = Record(
        line=line, dataset=dataset.digest, metric=spec.objective.primary, seed=seed,
        parallel=parallel, space=wanted, trials=tuple(done),
    )  # fmt: skip
    record.keep()
    rows = [{**t.settings, "value": t.value, "error": t.error} for t in record.trials]
    create_table_artifact(key=f"{line}-search", table=rows, description=f"{record.metric.name}")
    return record


def _trained(spec: Line, trial: Trial, dataset: Dataset) -> Trial:
    try:
        changed = trial.line(spec)
    except ValueError as error:
        if trial.number == 0:
            # The line's own settings go together: there is no such setting.
            raise
        return trial.model_copy(update={"error": str(error)})
    try:
        weights = train(changed.model, changed.training, dataset)
    except ResourceError:
        # It is about this machine: the next search would find something else.
        raise
    except IsolatedError as error:
        # Settings under which the loss is no number are a result too.
        return trial.model_copy(update={"error": str(error)})
    return outcome(trial, weights, spec.objective.primary, changed.training.patience)
