"""Multi-layer perceptrons over table rows: entity embeddings (Guo, Berkhahn 2016), then dense.

Size `base` is the 1000-500-100-1 regression network of the Model-as-a-Service literature.
"""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from models.data import Features
from models.spec import Family

if TYPE_CHECKING:
    from torch import nn

SIZES: dict[str, tuple[int, ...]] = {
    "tiny": (16,),
    "small": (128, 64),
    "base": (1000, 500, 100),
}


class Spec(Family):
    """A perceptron over numbers and embedded categories."""

    size: Literal["tiny", "small", "base"] = "base"
    """Hidden widths: tiny 16; small 128-64; base 1000-500-100."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of hidden values dropped in training, after every hidden layer."""

    def build(self, features: Features, width: int) -> "nn.Module":
        """A fresh network: `features.inputs` in order -> float32 [n, width]."""
        from torch import nn

        from models.layers import Chain, table_input

        first = table_input(features)
        layers: list[nn.Module] = [first]
        last = first.width
        for hidden in SIZES[self.size]:
            layers += [nn.Linear(last, hidden), nn.ReLU(), nn.Dropout(self.dropout)]
            last = hidden
        layers.append(nn.Linear(last, width))
        return Chain(*layers)
