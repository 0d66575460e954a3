"""Trials of a hyperparameter search: what to try next, and what came of it.

Trials are asked for in batches of a fixed size and told in order, so the search is a function of
its seed, its batches and the data, however fast which trial is. Its record is content, by digest.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from models.changes import changed
from models.digests import Digest, bytes_digest, canonical_json
from models.objectives import Primary
from models.open import Frozen
from models.space import Choice, Space
from models.spec import Line
from tasks.refs import HISTORY_FILE, Weights
from tasks.store import store

if TYPE_CHECKING:
    import optuna

# Digits of a suggested number: enough to matter, few enough to be typed.
DIGITS = 3


class Trial(Frozen):
    """One training of a search."""

    number: int
    settings: dict[str, JsonValue]
    """By path, as in `training.optimizer.lr`."""
    value: float | None = None
    """The line's primary metric on the validation rows; None where training failed."""
    weights: Digest | None = None
    error: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        """The settings as `modelmint run` takes them after --set."""
        return tuple(f"{path}={_text(value)}" for path, value in self.settings.items())

    def line(self, base: Line) -> Line:
        """The line with the trial's settings; raises UnknownSettingError for one it lacks."""
        return base.changed(**changed(base, self.words))


class Record(Frozen):
    """A whole search: all it is a function of, and all trials."""

    line: str
    dataset: Digest
    metric: Primary
    seed: int
    parallel: int
    space: Space
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """The best trial, the first of equals; raises ValueError where all have failed."""
        done = [trial for trial in self.trials if trial.value is not None]
        if not done:
            said = self.trials[0].error if self.trials else "there was none"
            raise ValueError(f"no trial of {self.line} could be trained: {said}")
        sign = -1 if self.metric.better == "higher" else 1
        return min(done, key=lambda trial: (sign * (trial.value or 0.0), trial.number))

    def keep(self) -> str:
        """Store the record; its key in the bucket."""
        content = canonical_json(self.model_dump(mode="json"))
        key = f"searches/{self.line}/{bytes_digest(content)}.json"
        store().put(key, content)
        return key


class Suggestions:
    """Settings to try: first the line's own, then what a tree-structured Parzen estimator suggests.

    Source: Bergstra, Bardenet, Bengio, Kegl, "Algorithms for Hyper-Parameter Optimization" (2011).
    """

    def __init__(self, line: Line, space: Space, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.space, self.failed = space, optuna.trial.TrialState.FAIL
        better = line.objective.primary.better
        self.study = optuna.create_study(
            direction="maximize" if better == "higher" else "minimize",
            # A trial under way counts as a bad one, so that a batch does not try one thing twice.
            sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True),
        )
        self.own = _current(line, space)
        self.study.enqueue_trial(self.own)
        self.asked: dict[int, optuna.Trial] = {}

    def ask(self, count: int) -> list[Trial]:
        """The next trials, to be trained in any order."""
        trials = []
        for _ in range(count):
            asked = self.study.ask()
            self.asked[asked.number] = asked
            settings = {path: self._suggested(asked, path) for path in self.space}
            trials.append(Trial(number=asked.number, settings=settings))
        return trials

    def tell(self, trials: Sequence[Trial]) -> None:
        """What came of them, in the order they were asked for."""
        for trial in trials:
            if trial.value is None:
                self.study.tell(self.asked[trial.number], state=self.failed)
            else:
                self.study.tell(self.asked[trial.number], trial.value)

    def _suggested(self, asked: "optuna.Trial", path: str) -> JsonValue:
        wanted = self.space[path]
        if isinstance(wanted, Choice):
            chosen: JsonValue = asked.suggest_categorical(path, wanted.values)
            return chosen
        if wanted.whole:
            return asked.suggest_int(path, int(wanted.low), int(wanted.high), log=wanted.log)
        found = asked.suggest_float(path, wanted.low, wanted.high, log=wanted.log)
        if asked.number == 0 and path in self.own:
            return found
        return float(f"{found:.{DIGITS}g}")


def outcome(trial: Trial, weights: Weights, primary: Primary, patience: int) -> Trial:
    """The trial with what its training gave: the metric of the epoch whose weights were kept."""
    history = json.loads(store().get_file(weights.manifest, HISTORY_FILE))
    values = [entry[primary.name] for entry in history]
    best = max(values) if primary.better == "higher" else min(values)
    value = best if patience else values[-1]
    return trial.model_copy(update={"value": float(value), "weights": weights.digest})


def _current(line: Line, space: Space) -> dict[str, Any]:
    """The line's own value of every setting that lies within the space; the others are drawn."""
    found = {}
    for path, wanted in space.items():
        section, *fields = path.split(".")
        value: Any = getattr(line, section).model_dump(mode="json")
        for field in fields:
            value = value.get(field) if isinstance(value, dict) else None
        inside = (
            value in wanted.values
            if isinstance(wanted, Choice)
            else isinstance(value, int | float) and wanted.low <= value <= wanted.high
        )
        if inside:
            found[path] = value
    return found


def _text(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value)
