import pytest

from models import catalog
from models.space import Choice, Range, of_line, parsed


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("training.optimizer.lr=1e-4..1e-2", Range(low=1e-4, high=1e-2, log=True)),
        ("training.optimizer.lr=1e-4..1e-2:linear", Range(low=1e-4, high=1e-2)),
        ("model.dropout=0..0.5", Range(low=0, high=0.5)),
        ("training.epochs=2..12", Range(low=2, high=12, whole=True)),
        ("training.epochs=1..100", Range(low=1, high=100, log=True, whole=True)),
        ("model.size=small,base", Choice(values=("small", "base"))),
        ("training.batch_size=32,64", Choice(values=(32, 64))),
        ("training.optimizer.nesterov=true,false", Choice(values=(True, False))),
    ],
)
def test_words_say_what_is_searched(word: str, expected: Range | Choice) -> None:
    assert parsed([word]) == {word.partition("=")[0]: expected}


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("training.epochs=5", "at least 2 items"),
        ("training.epochs=5..5", "no range"),
        ("training.epochs=a..b", "could not convert"),
        ("training.clip=0..1:log", "has no logarithm"),
        ("training.clip=1..2:square", "neither log nor linear"),
        ("training.clip", "at least 2 items"),
    ],
)
def test_other_words_are_refused_with_the_reason(word: str, said: str) -> None:
    with pytest.raises(ValueError, match=rf"(?s)--over {word}: expected .*{said}"):
        parsed([word])


def test_every_line_can_be_searched_without_a_word() -> None:
    for line in catalog.lines().values():
        found = of_line(line)
        rate = found["training.optimizer.lr"]
        assert isinstance(rate, Range)
        assert rate.low < line.training.optimizer.lr < rate.high
        assert "model.dropout" in found
