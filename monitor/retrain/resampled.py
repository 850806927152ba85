"""What the bootstrap needs of the metrics that have an interval in closed form, for whoever wants a bootstrap everywhere.

    accuracy                        three kinds of events: gained, lost, alike
    log_loss, mean_absolute_error   the sum of each model's losses
    roc_auc                         every event by itself; beyond GROUPS events the sums of their placements

The first three are functions of a few sums over the events (`intervals.Sums`). An area under a ROC curve is not: it is a sum
over pairs. Up to GROUPS events it is computed anew from every resample, with ties counted half. Beyond, from the placements
V of the observed events (of a positive: the share of negatives below it; of a negative: of positives above it): a resample's
area is mean V of its positives + mean V of its negatives - the observed area, up to a term of the order 1 / events, which is
what DeLong's interval rests on, too.

Neighbours: `quality_metrics` asks for them where `retrain.metric_interval` is `bootstrap`; `intervals` draws.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, stats

from monitor.retrain.intervals import GROUPS, Floats, Sums


def units(events: int, seed: int) -> NDArray[np.int64]:
    """The unit of each event: one of its own, or of more than GROUPS events a random group, all of one size (up to one)."""
    if events <= GROUPS:
        return np.arange(events)
    return np.random.default_rng([seed, events]).permutation(events) * GROUPS // events


def share_sums(gained: int, lost: int, both: int, pairs: int) -> Sums:
    """Accuracies, of pairs of which only the challenger, only the champion, both were right."""
    parts = np.array([[1.0, 0, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0]])
    counts = np.array([gained, lost, both, pairs - gained - lost - both])
    return Sums(sparse.csr_array(parts[counts > 0]), counts[counts > 0], _means)


def mean_sums(champion: Floats, challenger: Floats, seed: int) -> Sums:
    """Means of two losses per event, of which less is better."""
    unit = units(len(champion), seed)
    parts = np.stack([np.bincount(unit, term) for term in (np.ones(len(champion)), champion, challenger)], axis=1)
    return Sums(sparse.csr_array(parts), np.ones(len(parts), np.int64), _means, -1)


def area_sums(positive: NDArray[np.bool_], champion: Floats, challenger: Floats, seed: int) -> Sums:
    """Areas under both ROC curves; a resample without a positive or without a negative has none (nan)."""
    n = len(positive)
    if n > GROUPS:
        return _placed(positive, champion, challenger, units(n, seed))
    orders = [_Order(positive, score) for score in (champion, challenger)]

    def areas(weights: Floats) -> Floats:
        return np.stack([order.areas(weights) for order in orders], axis=1)

    return Sums(sparse.csr_array(sparse.identity(n)), np.ones(n, np.int64), areas)


def _means(sums: Floats) -> Floats:
    means: Floats = sums[:, 1:3] / sums[:, :1]
    return means


class _Order:
    """One score's order of the events, in which an area is a sum over positives of the weight of negatives below them."""

    def __init__(self, positive: NDArray[np.bool_], score: Floats) -> None:
        self.order = np.argsort(score, kind="stable")
        ordered = score[self.order]
        self.positive = positive[self.order]
        mine = ordered[self.positive]
        self.first = np.searchsorted(ordered, mine, "left")         # events with a lower score
        self.last = np.searchsorted(ordered, mine, "right")         # events with no higher score

    def areas(self, weights: Floats) -> Floats:
        """(r, events) -> (r,)."""
        drawn = weights[:, self.order]
        negatives = np.zeros((len(drawn), drawn.shape[1] + 1))
        np.cumsum(np.where(self.positive, 0.0, drawn), axis=1, out=negatives[:, 1:])
        positives = drawn[:, self.positive]
        below = (negatives[:, self.first] + negatives[:, self.last]) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            area: Floats = (positives * below).sum(axis=1) / (positives.sum(axis=1) * negatives[:, -1])
        return area


def _placed(positive: NDArray[np.bool_], champion: Floats, challenger: Floats, unit: NDArray[np.int64]) -> Sums:
    """Areas by the placements of the observed events: six sums."""
    terms, observed = [positive.astype(float), (~positive).astype(float)], []
    for score in (champion, challenger):
        placement, ranks = np.empty(len(score)), stats.rankdata(score)
        placement[positive] = (ranks[positive] - stats.rankdata(score[positive])) / np.count_nonzero(~positive)
        placement[~positive] = 1 - (ranks[~positive] - stats.rankdata(score[~positive])) / np.count_nonzero(positive)
        observed.append(float(placement[positive].mean()))
        terms += [np.where(positive, placement, 0.0), np.where(positive, 0.0, placement)]
    parts = np.stack([np.bincount(unit, term) for term in terms], axis=1)

    def areas(sums: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.stack([sums[:, at] / sums[:, 0] + sums[:, at + 1] / sums[:, 1] - area
                             for at, area in zip((2, 4), observed, strict=True)], axis=1)

    return Sums(sparse.csr_array(parts), np.ones(len(parts), np.int64), areas)
