"""Train the line's network on a Dask worker, in a process with the numeric profile of its spec."""

from functools import partial

from models.spec import Family, Training
from tasks.gang import together
from tasks.isolated import isolated
from tasks.jobs import TrainJob
from tasks.refs import Dataset, Weights
from tasks.stage import current_key, scratch, stage


@stage("train")
def train(model: Family, training: Training, dataset: Dataset) -> Weights:
    """Weights after all epochs; the same bits whenever and however often it is interrupted.

    Raises IsolatedError with the trainer's message.
    """
    if training.device == "auto":
        raise ValueError("training.device must be settled before the stage: see cluster.device")
    job = TrainJob(
        model=model, training=training, dataset=dataset, checkpoint=scratch(current_key())
    )
    run = isolated if training.ranks == 1 else partial(together, ranks=training.ranks)
    return run(
        "tasks.trainer:fit",
        job,
        Weights,
        stage="train",
        profile=training.profile,
        threads=training.threads,
        gpu=training.device == "cuda",
    )
