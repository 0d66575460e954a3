"""Where a training is: weights, optimizer state and position, in one object of the store.

Nothing is pickled, and a put is all or nothing, so whatever is read back is a whole checkpoint.
"""

import json
import time
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from tasks.store import MissingError, store

SECONDS_BETWEEN = 20.0


class Place(NamedTuple):
    """Where to go on: the next step of an epoch, the sum of its losses, past epochs' figures."""

    epoch: int
    step: int
    total: Tensor
    history: list[dict[str, Any]]
    best: dict[str, Tensor]
    """Weights of the best epoch; empty where they are not asked for."""

    @classmethod
    def start(cls) -> "Place":
        """The beginning of a training."""
        return cls(0, 0, torch.zeros((), dtype=torch.float64), [], {})


class Checkpoint:
    """The last place of one training, under one key."""

    def __init__(self, key: str, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.key, self.network, self.optimizer = key, network, optimizer
        self.kept = time.monotonic()

    def due(self) -> bool:
        """Whether enough time has passed to keep the place again."""
        return time.monotonic() - self.kept > SECONDS_BETWEEN

    def keep(self, place: Place) -> None:
        """Store the place with the weights and the optimizer's state as they are."""
        state = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        state |= {f"best.{name}": value for name, value in place.best.items()}
        state["total"] = place.total
        for index, values in self.optimizer.state_dict()["state"].items():
            state |= {
                f"optimizer.{index}.{name}": value
                for name, value in values.items()
                if isinstance(value, Tensor)
            }
        said = {"epoch": place.epoch, "step": place.step, "history": place.history}
        state = {name: value.detach().cpu().clone() for name, value in state.items()}
        store().put(self.key, safetensors.torch.save(state, {"place": json.dumps(said)}))
        self.kept = time.monotonic()

    def forget(self) -> None:
        """The training is over and its weights are stored: the place is worthless."""
        store().delete(self.key)

    def resume(self) -> Place:
        """The place to go on from; the network and the optimizer are put there."""
        try:
            content = store().get(self.key).content
        except MissingError:
            return Place.start()
        length = int.from_bytes(content[:8], "little")
        place = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["place"])
        state = safetensors.torch.load(content)
        self.network.load_state_dict(_below("network.", state))
        fresh = self.optimizer.state_dict()
        values: dict[int, dict[str, Tensor]] = {}
        for name, value in state.items():
            if name.startswith("optimizer."):
                _, index, field = name.split(".", 2)
                values.setdefault(int(index), {})[field] = value
        self.optimizer.load_state_dict({**fresh, "state": values})
        return Place(
            place["epoch"], place["step"], state["total"], place["history"], _below("best.", state)
        )


def _below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
