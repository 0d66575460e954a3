"""How likely a letter follows others: a language model of letters, counted in training texts.

Interpolated n-grams after Witten, Bell 1991: what is seen after a short context is mixed into what
is seen after a longer one, the more so the more different letters follow that.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

EDGE = "\n"
"""Stands before the first letter of a text and behind its last."""


def count(texts: Iterable[str], order: int) -> dict[str, int]:
    """How often every sequence of up to `order` letters occurs, by sequence in their order."""
    found: Counter[str] = Counter()
    for text in texts:
        whole = f"{EDGE}{text}{EDGE}"
        for end in range(2, len(whole) + 1):
            found.update(whole[start:end] for start in range(max(0, end - order), end))
    return dict(sorted(found.items()))


class Spelling:
    """Probabilities of letters from counts; `symbols` of the alphabet may be unseen."""

    def __init__(self, counts: Mapping[str, int], order: int, symbols: int) -> None:
        self._counts, self._order, self._symbols = counts, order, symbols
        self._seen: Counter[str] = Counter()
        self._kinds: dict[str, int] = defaultdict(int)
        for sequence, times in counts.items():
            self._seen[sequence[:-1]] += times
            self._kinds[sequence[:-1]] += 1
        self._known: dict[str, float] = {}

    def log_probability(self, before: str, letter: str) -> float:
        """Natural logarithm of the probability of a letter, or the EDGE, behind a text."""
        context = f"{EDGE}{before}"[1 - self._order :] if self._order > 1 else ""
        found = self._known.get(context + letter)
        if found is None:
            found = self._known[context + letter] = self._mixed(context, letter)
        return found

    def _mixed(self, context: str, letter: str) -> float:
        # The edge is a symbol too.
        share = 1 / (self._symbols + 1)
        for length in range(len(context) + 1):
            known = context[len(context) - length :]
            seen = self._seen.get(known, 0)
            if not seen:
                break
            kinds = self._kinds[known]
            share = (self._counts.get(known + letter, 0) + kinds * share) / (seen + kinds)
        return math.log(share)
