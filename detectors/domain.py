"""A domain classifier for texts: can one tell from its words whether a text is of the reference or of the window?

Idea (Lopez-Paz and Oquab 2017, classifier two-sample tests): a logistic regression on which words stand in a text is
fitted on one half of both sets and asked about the other half. Where it cannot tell them apart, the area under its curve
is a half; where it can, its largest weights are the words in which they differ. It *explains* an alarm of a text
column; it raises none, since no test on a few thousand texts can vouch for one false alarm in a million events.

Invariant: halves are made of whole blocks of consecutive texts, and the interval comes from drawing whole blocks again:
neighbours resemble each other, and texts drawn one by one would be taken for more than they are.

Cost: about 2 s for 2 x 4,000 texts of 20 words. Memory: texts x words x 16 bytes, 130 MB at most.

Neighbours: `text` cuts texts into words, and makes the rows that decide.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import t as student

from detectors.method import Method
from detectors.text import words

Floats = NDArray[np.float64]

METHODS: tuple[Method, ...] = (
    Method("domain_classifier", "sample", "area under the curve, 0.5 to 1", frozenset({"text"}),
           "How well the words of a text tell the window from the reference; drift when the interval lies above one half."),
)

#: Texts that are used of each set, evenly spaced; and fewest of each, below which nothing can be said.
TEXTS_MAX, TEXTS_MIN = 4_000, 40
#: Words that the classifier may look at: those in most texts, and in `IN_TEXTS_MIN` of one set at least.
WORDS_MAX, IN_TEXTS_MIN = 1_000, 3
#: Blocks that each set is cut into. Five neighbours stay together, for fitting or not, so that few texts that resemble
#: each other stand on both sides.
BLOCKS, TOGETHER = 40, 5
#: Draws of blocks for the interval.
DRAWS = 499
#: Weight of the squared coefficients, per text: strong, so that a thousand words cannot learn the texts by heart.
_RIDGE = 0.05


@dataclass(frozen=True, slots=True)
class TellingWord:
    """A word that tells the sets apart: shares of the texts that hold it, and its weight (above 0: of the window)."""

    word: str
    reference_share: float
    window_share: float
    weight: float


@dataclass(frozen=True, slots=True)
class DomainClassifier:
    """How well the words of a text tell the window from the reference.

    auc          : area under the curve on texts that it was not fitted on: 0.5 cannot tell, 1 always can; NaN where
                   one of the sets has fewer than `TEXTS_MIN` texts
    lower, upper : 95 % interval of it
    words        : the words of largest weight, the strongest first
    """

    auc: float
    lower: float
    upper: float
    words: tuple[TellingWord, ...]
    reference_texts: int
    window_texts: int


def domain_classifier(reference_texts: Sequence[str | None], window_texts: Sequence[str | None], seed: int, *,
                      words_shown: int = 10) -> DomainClassifier:
    """Tell the texts of the window from those of the reference by their words; both in time order, None is left out.

    >>> old, new = ["red green", "green blue"] * 50, ["green red", "blue green pink"] * 50
    >>> found = domain_classifier(old, new, seed=1)
    >>> found.words[0].word, found.words[0].reference_share, found.words[0].window_share
    ('pink', 0.0, 0.5)
    """
    sets = [_taken(reference_texts), _taken(window_texts)]
    sizes = [len(texts) for texts in sets]
    if min(sizes) < TEXTS_MIN:
        return DomainClassifier(math.nan, 0.0, 1.0, (), *sizes)
    block = np.concatenate([np.arange(size) * BLOCKS // size for size in sizes])
    of_window = np.repeat([False, True], sizes)
    fitting = block // TOGETHER % 2 == 0
    found = [set(words(text)) for texts in sets for text in texts]
    chosen = _chosen(found, fitting, of_window)
    if not chosen:
        return DomainClassifier(0.5, 0.5, 0.5, (), *sizes)
    present = _present(found, chosen)
    shares = present[~of_window].mean(axis=0), present[of_window].mean(axis=0)
    standard = present
    standard -= present[fitting].mean(axis=0)
    standard /= np.maximum(standard[fitting].std(axis=0), 1e-3)
    weights = _fitted(standard[fitting], of_window[fitting])
    scores = standard[~fitting] @ weights
    auc, lower, upper = _area(scores, of_window[~fitting], block[~fitting], np.random.default_rng(seed))
    telling = tuple(TellingWord(chosen[i], float(shares[0][i]), float(shares[1][i]), float(weights[i]))
                    for i in np.argsort(-np.abs(weights), kind="stable")[:words_shown].tolist())
    return DomainClassifier(auc, lower, upper, telling, *sizes)


def _taken(texts: Sequence[str | None]) -> list[str]:
    """At most `TEXTS_MAX` of the texts, evenly spaced, in order."""
    present = [text for text in texts if text is not None]
    if len(present) <= TEXTS_MAX:
        return present
    return [present[i] for i in np.linspace(0, len(present) - 1, TEXTS_MAX).astype(int).tolist()]


def _chosen(found: Sequence[set[str]], fitting: NDArray[np.bool_], of_window: NDArray[np.bool_]) -> list[str]:
    """The words in most texts of the fitting half, both sets weighing the same; ties by the alphabet."""
    shares: dict[str, float] = {}
    enough: set[str] = set()
    for side in (False, True):
        texts = [words_found for words_found, use in zip(found, (fitting & (of_window == side)).tolist(), strict=True) if use]
        counts = Counter(word for words_found in texts for word in words_found)
        for word, count in counts.items():
            shares[word] = shares.get(word, 0.0) + count / len(texts)
            if count >= IN_TEXTS_MIN:
                enough.add(word)
    return sorted(enough, key=lambda word: (-shares[word], word))[:WORDS_MAX]


def _present(found: Sequence[set[str]], chosen: Sequence[str]) -> Floats:
    """1 where a text holds a word, shape (texts, words)."""
    place = {word: i for i, word in enumerate(chosen)}
    present = np.zeros((len(found), len(chosen)))
    for row, words_found in zip(present, found, strict=True):   # turns: the texts
        row[[place[word] for word in words_found if word in place]] = 1.0
    return present


def _fitted(standard: Floats, of_window: NDArray[np.bool_]) -> Floats:
    """Weights of the ridge logistic regression; both sets weigh the same, whatever their sizes."""
    sign = np.where(of_window, 1.0, -1.0)
    weight = np.where(of_window, 0.5 / of_window.sum(), 0.5 / (~of_window).sum())

    def loss(parameters: Floats) -> tuple[float, Floats]:
        margin = sign * (standard @ parameters[1:] + parameters[0])
        slope = -weight * sign * expit(-margin)
        gradient = np.concatenate([[slope.sum()], slope @ standard + _RIDGE * parameters[1:]])
        return float(weight @ np.logaddexp(0.0, -margin) + 0.5 * _RIDGE * parameters[1:] @ parameters[1:]), gradient

    solved = minimize(loss, np.zeros(standard.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 200})
    return np.asarray(solved.x[1:], np.float64)


def _area(scores: Floats, of_window: NDArray[np.bool_], block: NDArray[np.int64],
          rng: np.random.Generator) -> tuple[float, float, float]:
    """Area under the curve, ties counting half, with its 95 % interval from drawing whole blocks again."""
    distinct, rank = np.unique(scores, return_inverse=True)
    low, high = ([rank[(of_window == side) & (block == i)] for i in np.unique(block).tolist()] for side in (False, True))
    below = np.stack([np.cumsum(np.bincount(ranks, minlength=len(distinct))) for ranks in low])
    half = below - 0.5 * np.stack([np.bincount(ranks, minlength=len(distinct)) for ranks in low])
    wins = np.stack([half[:, ranks].sum(axis=1) for ranks in high], axis=1)              # (reference, window) blocks
    sizes = np.array([len(ranks) for ranks in low]), np.array([len(ranks) for ranks in high])
    draws = [rng.multinomial(len(size), np.full(len(size), 1 / len(size)), DRAWS) for size in sizes]
    drawn = np.einsum("di,ij,dj->d", draws[0], wins, draws[1]) / ((draws[0] @ sizes[0]) * (draws[1] @ sizes[1]))
    area = float(wins.sum() / (sizes[0].sum() * sizes[1].sum()))
    width = float(student.isf(0.025, BLOCKS // 2 - 1) * drawn.std())
    return area, max(0.0, area - width), min(1.0, area + width)
