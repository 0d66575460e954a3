"""Where a training is: weights, optimizer state and position, in one object of the store.

Nothing is pickled, and a put is all or nothing, so whatever is read back is a whole checkpoint.
"""

import json
import time
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from tasks.store import MissingError, store

SECONDS_BETWEEN = 20.0


class Checkpoint:
    """The last place of one training, under one key."""

    def __init__(self, key: str, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.key, self.network, self.optimizer = key, network, optimizer
        self.kept = time.monotonic()

    def due(self) -> bool:
        """Whether enough time has passed to keep the place again."""
        return time.monotonic() - self.kept > SECONDS_BETWEEN

    def keep(self, epoch: int, step: int, total: Tensor, history: list[dict[str, Any]]) -> None:
        """Store the place: the next step of the epoch, the sum of its losses, past epochs."""
        state = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        state["total"] = total
        for index, values in self.optimizer.state_dict()["state"].items():
            state |= {
                f"optimizer.{index}.{name}": value
                for name, value in values.items()
                if isinstance(value, Tensor)
            }
        place = json.dumps({"epoch": epoch, "step": step, "history": history})
        state = {name: value.detach().cpu().clone() for name, value in state.items()}
        store().put(self.key, safetensors.torch.save(state, {"place": place}))
        self.kept = time.monotonic()

    def forget(self) -> None:
        """The training is over and its weights are stored: the place is worthless."""
        store().delete(self.key)

    def resume(self) -> tuple[int, int, Tensor, list[dict[str, Any]]]:
        """Epoch, step, sum of this epoch's losses and history to go on from."""
        zero = torch.zeros((), dtype=torch.float64)
        try:
            content = store().get(self.key).content
        except MissingError:
            return 0, 0, zero, []
        length = int.from_bytes(content[:8], "little")
        place = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["place"])
        state = safetensors.torch.load(content)
        prefix = "network."
        self.network.load_state_dict(
            {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
        )
        fresh = self.optimizer.state_dict()
        values: dict[int, dict[str, Tensor]] = {}
        for name, value in state.items():
            if name.startswith("optimizer."):
                _, index, field = name.split(".", 2)
                values.setdefault(int(index), {})[field] = value
        self.optimizer.load_state_dict({**fresh, "state": values})
        return place["epoch"], place["step"], state["total"], place["history"]
