"""Training: samples a second of the one trainer against a bare PyTorch loop over the same model.

    python -m benchmarks.training [--json] [--turns 3] [--cases digits,flights,reviews,speech]

Two to four minutes a case on two idle cores, ten for verses; cases that are not run keep their
figures. Lines of each family; `reviews/lstm` is the line with the settings that benchmarks.quality
has for it; reviews, speech and verses need the data they name. Expect ratios of 1 and more. Every
run is a process of its own with the line's number of threads (1), from the same cleaned rows, and
judges the validation rows after every epoch; `without validation` leaves that out of the bare
loop's time only.

- *modelmint*: `tasks.trainer.fit` in the `fast` profile with all it guarantees: deterministic
  algorithms, seeded order, learning-rate schedule, checkpoints in the store.
- *bare*: eager, AdamW as PyTorch builds it, `index_select` batches of tensors in memory; nothing
  deterministic, no schedule, no checkpoint.
- *loader*: the same with `DataLoader(TensorDataset(...), shuffle=True)`, as people write it.
- *fabric*: *loader* in Lightning Fabric, which sets up the network, the optimizer and the loader.

Where rows differ in length, all cut off what is padding in the whole batch; *modelmint* also puts
rows of like length together. Goal: at least 1.0 times the bare loop and 1.1 times Fabric.
"""

import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks import measuring
from benchmarks.quality import VARIANTS
from models import catalog
from models.changes import changed
from models.digests import bytes_digest
from models.spec import Line
from tasks.jobs import TrainJob
from tasks.refs import Dataset

if TYPE_CHECKING:
    import torch


class Case(NamedTuple):
    """One line, trained for some epochs with or without its augmentation."""

    line: str
    family: str
    epochs: int
    augmented: bool = False

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{self.line}-augmented" if self.augmented else self.line


CASES = (
    Case("digits", "cnn", 3),
    Case("digits", "cnn", 3, augmented=True),
    Case("flights", "mlp", 1),
    Case("reviews", "embeddings", 1),
    Case("reviews/lstm", "lstm", 1),
    Case("verses", "gru", 1),
    Case("speech", "transformer", 1, augmented=True),
)
BARE = ("bare", "loader", "fabric")
PACKAGES = ("lightning-fabric", "numpy", "torch")


def main() -> None:
    """Measure, print, write the result."""
    parser = measuring.options(__doc__, turns=3)
    parser.add_argument("--cases", default=",".join(case.name for case in CASES), help="by name")
    parser.add_argument("--inside", nargs=2, metavar=("CONTESTANT", "JOB"), help="run as one")
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(loop(options.inside[0], Path(options.inside[1]))))
        return
    wanted = options.cases.split(",")
    measured = _measured([case for case in CASES if case.name in wanted], options.turns)
    # Cases that are not run now keep what was found for them.
    figures = measuring.known("training") | measured
    rows = [
        {
            "line": case,
            "family": next(c.family for c in CASES if c.name == case),
            "who": who,
            "samples/s": f"{found['samples per second']:,.0f}",
            "modelmint is": f"{found['modelmint is']:.2f}x",
            "without validation": f"{found['modelmint is, without validation']:.2f}x"
            if who in BARE
            else "",
        }
        for case, known in measured.items()
        for who, found in known["contestants"].items()
    ]
    measuring.publish("training", figures, rows, PACKAGES, options.json)


def _measured(cases: Iterable[Case], turns: int) -> dict[str, Any]:
    from deployments.local.stack import STORE, stack

    figures: dict[str, Any] = {}
    datasets: dict[str, Dataset] = {}
    with measuring.temporary_home() as home, stack(STORE):
        for case in cases:
            name = case.line.partition("/")[0]
            line = catalog.find(name).on("cpu")
            if name not in datasets:
                datasets[name] = cleaned(line)
            line = line.changed(**changed(line, VARIANTS.get(case.line, ())))
            job = train_job(line, case, datasets[name])
            path = home / "job.json"
            path.write_text(job.model_dump_json())
            found = measuring.in_turns(_contestants(job, path), turns)
            figures[case.name] = {"commit": measuring.commit(), "contestants": _figures(found)}
    return figures


def _figures(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    ours = [run["with"] for run in found["modelmint"]]
    return {
        who: {
            "samples per second": median(run["with"] for run in runs),
            "modelmint is": measuring.ratio(ours, [run["with"] for run in runs]),
            "modelmint is, without validation": measuring.ratio(
                ours, [run["without"] for run in runs]
            ),
            "all": runs,
        }
        for who, runs in found.items()
    }


def cleaned(line: Line) -> Dataset:
    """The line's example data, landed and cleaned."""
    from tasks import cluster
    from tasks.clean import clean
    from tasks.land import land
    from tasks.snapshot import list_objects, raw_prefix, take_snapshot

    land(line)
    prefix = raw_prefix(line.data)
    snapshot = take_snapshot.bare(prefix, list_objects(line.data))
    try:
        return clean.bare(line.data, line.objective, prefix, snapshot)
    finally:
        cluster.close()


def train_job(line: Line, case: Case, dataset: Dataset) -> TrainJob:
    """The case's training."""
    training = line.training.model_copy(
        update={
            "epochs": case.epochs,
            "augmentation": line.training.augmentation if case.augmented else None,
        }
    )
    return TrainJob(
        model=line.model, training=training, dataset=dataset, checkpoint=bytes_digest(b"")
    )


def _contestants(job: TrainJob, path: Path) -> dict[str, Callable[[], dict[str, float]]]:
    from tasks import isolated

    training = job.training
    variables = isolated.environment(training.profile, training.threads)

    def modelmint() -> dict[str, float]:
        # A checkpoint of its own: a training that is done would not be done again.
        place = {"checkpoint": bytes_digest(os.urandom(32))}
        text = job.model_copy(update=place).model_dump_json()
        answer = isolated.run("tasks.trainer:fit", text, variables, lambda _: None)
        rate = float(json.loads(answer)["observed"]["samples_per_second"])
        return {"with": rate, "without": rate}

    def bare(who: str) -> dict[str, float]:
        threads = {name: str(training.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        command = measuring.python("benchmarks.training", "--inside", who, str(path))
        return measuring.run(command, threads).answer

    return {"modelmint": modelmint} | {who: lambda who=who: bare(who) for who in BARE}


def loop(who: str, path: Path) -> dict[str, float]:
    """The loop one writes without thinking of anything: samples a second, CPU seconds an epoch."""
    import torch
    from lightning_fabric import Fabric
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    from models.layers import Served, training_loss
    from models.padding import trimmed
    from tasks.dataset import tensors
    from tasks.trainer import predict

    job = TrainJob.model_validate_json(path.read_text())
    training, signature = job.training, job.dataset.signature
    torch.set_num_threads(training.threads)
    names = [spec.name for spec in signature.features.inputs]
    arrays, target = tensors(job.dataset, "train")
    data = [torch.from_numpy(arrays[name]) for name in names] + [torch.from_numpy(target)]
    validation, validation_target = tensors(job.dataset, "validation")
    network = job.model.build(signature.features, signature.objective.width)
    served = Served(network, signature.objective)
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=training.optimizer.lr,
        weight_decay=training.optimizer.weight_decay,
    )
    loss_of = training_loss(signature.objective, training.label_smoothing)
    chance = torch.Generator()
    loader: Any = DataLoader(
        TensorDataset(*data), batch_size=training.batch_size, shuffle=True, drop_last=True
    )
    fabric: Fabric | None = None
    if who == "fabric":
        fabric = Fabric(accelerator="cpu", devices=1)
        network, optimizer = fabric.setup(network, optimizer)
        loader = fabric.setup_dataloaders(loader)
    seen, judged, start = 0, 0.0, time.perf_counter()
    cpu = time.process_time()
    for _ in range(training.epochs):
        network.train()
        for batch in _selected(data, training.batch_size) if who == "bare" else loader:
            *inputs, wanted = batch
            rows = trimmed(dict(zip(names, inputs, strict=True)))
            if training.augmentation is not None:
                rows = training.augmentation.apply(rows, chance)
            optimizer.zero_grad()
            loss = loss_of(network(*rows.values()), wanted)
            if fabric:
                fabric.backward(loss)
            else:
                loss.backward()
            if training.clip:
                nn.utils.clip_grad_norm_(network.parameters(), training.clip)
            optimizer.step()
            seen += len(wanted)
        before = time.perf_counter()
        served.eval()
        signature.objective.measure(predict(served, names, validation), validation_target)
        judged += time.perf_counter() - before
    seconds = time.perf_counter() - start
    cpu = (time.process_time() - cpu) / training.epochs
    return {"with": seen / seconds, "without": seen / (seconds - judged), "cpu an epoch": cpu}


def _selected(data: list["torch.Tensor"], size: int) -> Iterable[list["torch.Tensor"]]:
    import torch

    order = torch.randperm(len(data[0]))
    for first in range(0, len(order) - size + 1, size):
        chosen = order[first : first + size]
        yield [tensor.index_select(0, chosen) for tensor in data]


if __name__ == "__main__":
    main()
