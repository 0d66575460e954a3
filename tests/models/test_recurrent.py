import pytest
import torch

from models import recurrent, rnn
from models.images import ImageFeatures, ImageSize
from models.language import NextToken
from models.layers import Served, training_loss
from models.passages import PassageFeatures
from models.texts import TextFeatures
from models.vocabulary import PADDING, UNKNOWN, Characters

VOCABULARY = Characters(known=tuple("abcdefgh"))
TEXTS = TextFeatures(vocabulary=VOCABULARY, length=12)
PASSAGES = PassageFeatures(vocabulary=VOCABULARY, length=12)
CLASSIFIER = rnn.Classifier(size="tiny", pairs=64)
WRITER = rnn.Writer(size="tiny", dropout=0.0)


def tokens(*texts: str, length: int = 12) -> torch.Tensor:
    return torch.from_numpy(VOCABULARY.rows(texts, length, beginning=False))


@pytest.mark.parametrize("size", ["tiny", "shallow"])
def test_what_follows_a_text_changes_nothing(size: str) -> None:
    torch.manual_seed(0)
    wide = {"pairs": 64, "triples": 64, "direct": 64}
    model = rnn.Classifier.model_validate({"size": size, **wide})
    network = model.build(TEXTS, 3).eval()
    for weight in network.weights.parameters():
        torch.nn.init.normal_(weight)
    alone = network(tokens("abc", length=3))
    padded = network(tokens("abc", length=12))
    among = network(tokens("abc", "abcdefghabcd"))[:1]
    assert alone.shape == (1, 3)
    torch.testing.assert_close(padded, alone)
    torch.testing.assert_close(among, alone)


def test_both_directions_are_those_of_packed_sequences() -> None:
    torch.manual_seed(0)
    network = rnn.Classifier(size="large", dropout=0.0).build(TEXTS, 2).eval()
    both = torch.nn.LSTM(128, 128, 2, batch_first=True, bidirectional=True)
    for layer in range(2):
        for suffix, parts in (("", network.forwards), ("_reverse", network.backwards)):
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                own = getattr(parts[layer], f"{name}_l0")
                setattr(both, f"{name}_l{layer}{suffix}", own)
    rows = tokens("abc", "hgfedcba")
    lengths = torch.tensor([3, 8])
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        network.embed(rows), lengths, batch_first=True, enforce_sorted=False
    )
    x, _ = torch.nn.utils.rnn.pad_packed_sequence(both(packed)[0], batch_first=True)
    x = torch.cat([network.embed(rows)[:, :8], x], dim=2)
    pooled = [x[i, :n].mean(0) for i, n in enumerate(lengths)]
    torch.testing.assert_close(network(rows), network.output(torch.stack(pooled)))


def test_a_pair_of_tokens_has_an_embedding_of_its_own() -> None:
    torch.manual_seed(0)
    alone = rnn.Classifier(size="tiny", pairs=0).build(TEXTS, 2)
    paired = rnn.Classifier(size="tiny", pairs=64).build(TEXTS, 2)
    one, other = tokens("ab"), tokens("ac")
    torch.testing.assert_close(alone.embed(one)[:, 0], alone.embed(other)[:, 0])
    assert not torch.allclose(paired.embed(one)[:, 0], paired.embed(other)[:, 0])


def test_three_tokens_in_a_row_have_an_embedding_of_their_own() -> None:
    torch.manual_seed(0)
    paired = rnn.Classifier(size="tiny", pairs=64).build(TEXTS, 2)
    tripled = rnn.Classifier(size="tiny", pairs=64, triples=64).build(TEXTS, 2)
    one, other = tokens("abc"), tokens("abd")
    torch.testing.assert_close(paired.embed(one)[:, 0], paired.embed(other)[:, 0])
    assert not torch.allclose(tripled.embed(one)[:, 0], tripled.embed(other)[:, 0])
    for text in ("a", "ab"):
        assert tripled.embed(tokens(text, length=len(text))).shape == (1, len(text), 16)


def test_numbers_of_triples_are_not_negative_and_tell_them_apart() -> None:
    rows = torch.cartesian_prod(*[torch.arange(1, 65_536, 5_000)] * 3)
    numbers = recurrent._triples(rows)[:, 0]
    assert (numbers >= 0).all()
    assert len(numbers.unique()) == len(rows)


def test_the_linear_model_counts_triples_too() -> None:
    torch.manual_seed(0)
    network = rnn.Classifier(size="tiny", triples=64, direct=64).build(TEXTS, 2).eval()
    one, other = tokens("abcab"), tokens("abdab")
    before = network(one) - network(other)
    with torch.no_grad():
        network.weights[2].weight += torch.arange(64.0)[:, None] ** 2
    assert not torch.allclose(network(one) - network(other), before, atol=1.0)


def test_the_linear_model_counts_tokens_and_pairs_over_the_root_of_the_length() -> None:
    torch.manual_seed(0)
    network = rnn.Classifier(size="tiny", direct=64).build(TEXTS, 2).eval()
    rows = tokens("abab", "ab")
    before = network(rows)
    alone, paired = network.weights
    torch.nn.init.ones_(alone.weight)
    torch.testing.assert_close(network(rows) - before, torch.tensor([[2.0] * 2, [2**0.5] * 2]))
    torch.nn.init.zeros_(alone.weight)
    with torch.no_grad():
        paired.weight += torch.arange(64.0)[:, None] ** 2
    one, other = (network(tokens(text)) for text in ("abcd", "acbd"))
    assert not torch.allclose(one, other, atol=1.0), "an order of tokens is other pairs"


def test_an_order_turned_round_is_another_text() -> None:
    torch.manual_seed(0)
    network = CLASSIFIER.build(TEXTS, 2).eval()
    one, other = network(tokens("abcd", "dcba"))
    assert not torch.allclose(one, other)


def test_a_row_of_nothing_has_an_answer() -> None:
    network = CLASSIFIER.build(TEXTS, 2).eval()
    assert torch.isfinite(network(torch.full((2, 12), PADDING))).all()


def test_training_hides_tokens_and_never_invents_one() -> None:
    network = rnn.Classifier(size="tiny", pairs=0, dropout=0.0, token_dropout=0.5).build(TEXTS, 2)
    seen: list[torch.Tensor] = []
    network.embedding.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    rows = tokens("abcd", "ab")
    network.train()(rows)
    shown = rows[:, :4]
    assert seen[0].shape == shown.shape
    hidden = seen[0] != shown
    assert hidden.any()
    assert (seen[0][hidden] == UNKNOWN).all()
    assert (shown[hidden] != PADDING).all()
    network.eval()(rows)
    assert (seen[1] == rows).all()


def test_a_language_model_goes_on_from_its_state() -> None:
    torch.manual_seed(0)
    for size in ("tiny", "large"):
        family = rnn.Writer(size=size, dropout=0.0)
        network = family.build(PASSAGES, VOCABULARY.size).eval()
        rows = tokens("abcdefgh", "hgfedcba", length=8)
        whole = network(rows)
        state = torch.zeros(2, family.carried())
        first, state = network(rows[:, :3], state)
        second, _ = network(rows[:, 3:], state)
        torch.testing.assert_close(torch.cat([first, second], dim=1), whole)


def test_what_comes_next_depends_on_nothing_after_it() -> None:
    network = WRITER.build(PASSAGES, VOCABULARY.size).eval()
    one, other = network(tokens("abcdef", "abchgf", length=6))
    torch.testing.assert_close(one[:3], other[:3])
    assert not torch.allclose(one[3:], other[3:])


def test_the_loss_is_that_of_the_metric() -> None:
    torch.manual_seed(0)
    objective = NextToken().beside(PASSAGES)
    served = Served(WRITER.build(PASSAGES, objective.width), objective).eval()
    target = tokens("abcdef", "ab", length=13)
    rows = tokens("habcdef", "hab", length=13)
    loss = training_loss(objective, 0.0)(served.network(rows), target).detach()
    losses = objective.losses(served(rows).detach().numpy(), target.numpy())
    assert float(loss) == pytest.approx(losses["nats"].sum() / 8, rel=1e-5)
    # Training leaves the padding at the end out.
    short = served.network.train()(rows)
    assert short.shape[1] == 7
    torch.testing.assert_close(training_loss(objective, 0.0)(short, target).detach(), loss)


@pytest.mark.parametrize("family", [CLASSIFIER, WRITER])
def test_images_are_no_tokens(family: rnn.Classifier | rnn.Writer) -> None:
    features = ImageFeatures(size=ImageSize(), mean=0.0, deviation=1.0)
    with pytest.raises(TypeError, match=r"this family takes (texts|passages), the line has Image"):
        family.build(features, 2)


@pytest.mark.parametrize("family", [rnn.Classifier, rnn.Writer])
def test_its_sizes_are_those_it_describes(family: type[rnn.Classifier | rnn.Writer]) -> None:
    described = family.model_fields["size"].description or ""
    table = rnn.CLASSIFIERS if family is rnn.Classifier else rnn.WRITERS
    for name, size in table.items():
        assert f"{name} {size.embedding}, {size.state}," in described.replace("\n", " ")
