import pytest
import torch
from torch import nn

from models import cnn, mlp, transformer
from models.audio import AudioFeatures, Clip
from models.data import Features
from models.images import ImageFeatures, ImageSize
from models.mel import LogMel
from models.spec import Family
from models.tables import FittedCategory, FittedNumber, TableFeatures
from tasks.pruning import PruningError, pruned, weights

IMAGES = ImageFeatures(size=ImageSize(), mean=30.0, deviation=60.0)
ROWS = TableFeatures(
    numbers=(FittedNumber(name="km", unit="km", mean=1.0, deviation=2.0),),
    categories=(FittedCategory(name="zone", vocabulary=("a", "b")),),
)
IMAGE = (torch.zeros((2, 1, 28, 28), dtype=torch.uint8),)
ROW = (torch.ones(2, 1), torch.zeros((2, 1), dtype=torch.int64))
SIZES = [(cnn.Spec.model_validate({"size": size}), IMAGES, IMAGE) for size in cnn.SIZES]


def built(model: Family, features: Features) -> nn.Module:
    torch.manual_seed(0)
    return model.build(features, 10)


@pytest.mark.parametrize(
    ("model", "features", "inputs"), [*SIZES, (mlp.Spec(size="small"), ROWS, ROW)]
)
def test_every_network_loses_channels_and_keeps_its_inputs_and_output(
    model: Family, features: Features, inputs: tuple[torch.Tensor, ...]
) -> None:
    network = built(model, features)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found, again = pruned(network, inputs, 0.5), pruned(network, inputs, 0.5)
    assert weights(found) < 0.6 * weights(network)
    assert found(*inputs).shape == (2, 10)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), "the network itself was changed"
    for one, other in zip(found.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_goes_is_what_counts_least() -> None:
    network = built(mlp.Spec(size="tiny"), ROWS)
    first, last = (layer for layer in network.modules() if isinstance(layer, nn.Linear))
    with torch.no_grad():
        first.weight[::2], first.bias[::2], last.weight[:, ::2] = 0.0, 0.0, 0.0
    found = pruned(network, ROW, 0.5)
    torch.testing.assert_close(found(*ROW), network.eval()(*ROW))
    assert len(list(found.parameters())[-1]) == 10


def test_a_recurrent_network_is_refused_by_name() -> None:
    network = nn.Sequential(nn.GRU(4, 8, batch_first=True))
    with pytest.raises(PruningError, match="cannot prune a GRU"):
        pruned(network, (torch.zeros(2, 3, 4),), 0.5)


def test_a_network_whose_parts_no_longer_fit_together_is_refused() -> None:
    features = AudioFeatures(clip=Clip(), mel=LogMel(), mean=(0.0,) * 40, deviation=(1.0,) * 40)
    network = transformer.Spec(size="tiny").build(features, 5)
    rows = torch.zeros(2, 20, 40), torch.tensor([20, 9])
    with pytest.raises(PruningError, match="does not fit together"):
        pruned(network, rows, 0.5)


def test_a_network_with_nothing_to_prune_is_refused() -> None:
    with pytest.raises(PruningError, match="no channel that could go"):
        pruned(nn.Sequential(nn.Linear(4, 2)), (torch.zeros(2, 4),), 0.5)
