"""The compressed forms of one network: each is made and measured once, and found again.

A form is ONNX bytes and what they are worth on the validation rows. A smaller network is exported
as a form of its own, from which its quantized forms are made. A network that ONNX Runtime does not
run is a program of torch instead, which no quantizer takes.
"""

from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

import numpy as np
from torch import nn

from models.data import Tensors
from models.digests import bytes_digest
from models.forms import UNCOMPRESSED, FormError, parts
from models.layers import Served
from models.objectives import Floats
from models.signature import Signature
from tasks import candidates
from tasks.batches import Encoded, Source, Stored, in_order, settled
from tasks.dataset import spread
from tasks.inference import BATCH, REFUSALS, predict, scarce, session
from tasks.isolated import Emit
from tasks.jobs import CompressJob
from tasks.loop import TrainingError
from tasks.refs import Candidate
from tasks.store import MissingError, store
from tasks.students import Students
from tasks.trainer import measure, restore
from tasks.trials import Trials

CALIBRATION_ROWS = 512
# A form that loses half of the metric on the first rows is measured no further.
PROBE_ROWS, COLLAPSE = 256, 0.5


class HopelessError(FormError):
    """A network that would have collapsed; the message says what it had learnt halfway."""


class Measuring(NamedTuple):
    """What every candidate is measured with: the validation rows, and the plain form's metrics."""

    signature: Signature
    rows: Source
    plain: dict[str, dict[str, float]]
    """By stage of the measurement, `probe` or `whole`."""
    peak: Callable[[str, bytes], object]
    """Tries a form of that name where it may crash."""

    def of(self, content: bytes, name: str) -> Candidate:
        """Size and quality of a network's bytes; raises FormError where they do not run."""
        self.peak(name, content)
        try:
            return self._of(content, name)
        except REFUSALS as error:
            if scarce(error):
                raise
            raise FormError(f"{name} does not run: {error}") from error

    def _of(self, content: bytes, name: str) -> Candidate:
        model, objective = session(content), self.signature.objective
        primary = objective.primary
        measured: dict[str, float] = {}
        loss = 0.0
        probe, whole = objective.at_once(PROBE_ROWS), objective.at_once(BATCH)
        for part, size, most in (("probe", probe, PROBE_ROWS // probe), ("whole", whole, None)):
            found: list[dict[str, Floats]] = []
            for rows, target in islice(in_order(self.rows, size), most):
                found.append(objective.losses(predict(model, rows), target))
            joined = {n: np.concatenate([losses[n] for losses in found]) for n in found[0]}
            measured = {n: float(v) for n, v in objective.metrics(joined).items()}
            reference = self.plain.setdefault(part, measured)
            loss = primary.loss(measured[primary.name], reference[primary.name])
            if not loss <= COLLAPSE:
                break
        return Candidate(
            name=name,
            size=len(content),
            blake3=bytes_digest(content),
            metrics=measured,
            loss=loss,
            collapsed=not loss <= COLLAPSE,
        )

    def despair(self, name: str, served: Served) -> None:
        """Raise HopelessError where a network has collapsed halfway through its training."""
        found = measure(served, self.rows, self.signature)
        primary = self.signature.objective.primary
        value, reference = found[primary.name], self.plain["whole"][primary.name]
        if not primary.loss(value, reference) <= COLLAPSE:
            raise HopelessError(
                f"{name} was given up halfway: {primary.name} {value:.4g}, uncompressed"
                f" {reference:.4g}; give it budget.retraining.epochs, another lr, or take it out of"
                " budget.candidates"
            )


class Forms:
    """Makes and measures the forms of one network, each once; `made` has them by name."""

    def __init__(self, job: CompressJob, trials: Trials, emit: Emit) -> None:
        signature = job.dataset.signature
        rows = settled(Stored(job.dataset, "validation"), job.training.window_mb)
        if not sum(rows.counts):
            raise ValueError("no validation row is there to measure forms on")
        self.job, self.emit = job, emit
        self.first = first_rows(rows, CALIBRATION_ROWS)
        trials.begin(self.first)
        self.trials = trials
        self._peaks: dict[str, int | None] = {}
        self.measuring = Measuring(signature, rows, {}, self._tried)
        # Not the first: they may all be of one class, or of one day.
        calibration = spread(job.dataset, "train", CALIBRATION_ROWS)
        self.calibration = signature.features.encode(calibration)
        served = restore(job.model, job.dataset, job.weights)
        self.without_onnx = ""
        """Why the network is a program of torch; empty when it is not."""
        self.made = {UNCOMPRESSED: self._plain(served)}
        # Two forms may need one network: it is trained once, and fails once.
        self.failed: dict[str, FormError | TrainingError] = {}
        self.students = Students(job, served, self.calibration)

    def form(self, name: str) -> tuple[Candidate, bytes]:
        """The form of that name; a network it takes is made first, and kept like any form.

        Raises FormError; TrainingError where a smaller network's loss is no number.
        """
        if name in self.failed:
            raise self.failed[name]
        if name not in self.made:
            try:
                self.made[name] = self.remembered(name) or self._new(name)
            except (FormError, TrainingError) as error:
                self.failed[name] = error
                raise
        return self.made[name]

    def peak(self, name: str) -> int | None:
        """What `Trials.peak` tells of a form that was made."""
        if name not in self._peaks:
            self._tried(name, self.made[name][1])
        return self._peaks[name]

    def _tried(self, name: str, content: bytes) -> None:
        self._peaks[name] = self.trials.peak(name, content)

    def _new(self, name: str) -> tuple[Candidate, bytes]:
        found, content = self._made(name)
        self._remember(found, content)
        return found, content

    def remembered(self, name: str) -> tuple[Candidate, bytes] | None:
        """The form as an interrupted search, or one with another budget, left it."""
        if self.job.cache is None:
            return None
        try:
            record = store().get(f"candidates/{self.job.cache}/{name}").content
            found = Candidate.model_validate_json(record)
            return found, store().get_content(found.blake3)
        except MissingError:
            return None

    def _remember(self, found: Candidate, content: bytes) -> None:
        if self.job.cache is not None:
            store().put_content(content)
            place = f"candidates/{self.job.cache}/{found.name}"
            store().put(place, found.model_dump_json().encode())

    def _made(self, name: str) -> tuple[Candidate, bytes]:
        network, quantizer = parts(name)
        if quantizer is not None:
            _, plain = self.form(network or UNCOMPRESSED)
            content = candidates.quantized(quantizer, plain, self.calibration)
            return self.measuring.of(content, name), content
        begun = self.students.begun(name)
        judged = None if self.job.budget.exhaustive else self.measuring.despair
        taught = self.students.taught(name, begun, self.emit, judged)
        return self._exported(name, taught)

    def _plain(self, network: nn.Module) -> tuple[Candidate, bytes]:
        """The trained network as ONNX, or else as a program, as then all others are.

        Raises FormError where it is neither.
        """
        try:
            return self._exported(UNCOMPRESSED, network)
        except FormError as error:
            self.without_onnx = str(error)
        try:
            return self._exported(UNCOMPRESSED, network)
        except FormError as error:
            raise FormError(f"{self.without_onnx}; {error}") from error

    def _exported(self, name: str, network: nn.Module) -> tuple[Candidate, bytes]:
        write = candidates.program if self.without_onnx else candidates.export
        content = write(network, self.measuring.signature, self.calibration)
        return self.measuring.of(content, name), content


def first_rows(source: Source, count: int) -> Tensors:
    """The first rows of a source, fewer where there are fewer."""
    nothing: Encoded = {}, np.empty(0)
    return next(in_order(source, count), nothing)[0]
