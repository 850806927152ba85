"""What each `retrain.metric` is: from the answers of both models on the same events to two qualities and an interval.

    accuracy                  share of right answers                                   Tango
    balanced_accuracy         mean over the labels' classes of the share found         bootstrap
    f1                        of `positive_label`; without one the mean over classes   bootstrap
    roc_auc                   of the scores                                            DeLong
    log_loss                  mean of -ln(probability given to what happened)          Student's t
    mean_absolute_error       mean of |answer - label|                                 Student's t
    root_mean_squared_error   root of the mean of (answer - label)^2                   bootstrap
    r2                        1 - squared errors / squared distances from the mean     bootstrap

Where `interval` is "bootstrap", every one of them gets a bootstrap (`resampled`).

`SMALLER_IS_BETTER` names the errors among them; a difference is always positive where the challenger is better.

Answers are numbers (float64) or classes (int64 codes with their names). Cost: one or two sorts of the events, and the
bootstrap's own. Neighbours: `holdout` reads answers, `intervals` computes, `challenger` draws the conclusion.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from monitor.config_retrain import SMALLER_IS_BETTER, Interval, Metric
from monitor.errors import TidemarkError
from monitor.retrain import intervals
from monitor.retrain.intervals import CONFIDENCE, GROUPS, Sums
from monitor.retrain.resampled import area_sums, mean_sums, share_sums, units

#: The metrics on numbers, on scores, and on classes one by one.
NUMBERS: frozenset[str] = frozenset({"mean_absolute_error", "root_mean_squared_error", "r2"})
SCORES: frozenset[str] = frozenset({"roc_auc", "log_loss"})
#: A probability that was said to be 0 costs as much as this one: else a single sure and wrong answer is an infinite loss.
PROBABILITY_MIN = 1e-15
CLASSES_MAX = 10_000

#: Draws an interval for a difference that is a function of sums over the events.
Draw = Callable[[Sums], tuple[float, float]]
Values = NDArray[np.float64] | NDArray[np.int64]


class NotComparable(TidemarkError):
    """The answers do not fit the metric; the text says what was expected and got."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What happened and what both models said, on the same n >= 1 events, nothing missing.

    label, champion, challenger : numbers, or codes of `classes`; all three of one kind
    champion_score, challenger_score : numbers, where there are any
    """

    label: Values
    champion: Values
    challenger: Values
    classes: tuple[str, ...] | None = None
    champion_score: NDArray[np.float64] | None = None
    challenger_score: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.label)


class Measured(NamedTuple):
    """Both qualities in the metric's own sense, the paired difference with its interval, and what it rests on."""

    champion: float
    challenger: float
    difference: float
    lower: float
    upper: float
    basis: str


def measured(answers: Answers, metric: Metric, *, positive_label: str | None = None, seed: int = 0,
             confidence: float = CONFIDENCE, interval: Interval = "auto") -> Measured:
    """Compare both models by one metric; NotComparable where the answers do not fit it.

    interval : "bootstrap" takes a bootstrap also where there is a closed form      seed : of what is drawn
    """
    draw: Draw = functools.partial(intervals.bootstrap_interval, seed=seed, confidence=confidence)
    wanted = draw if interval == "bootstrap" else None
    if metric in NUMBERS and answers.classes is not None:
        raise NotComparable(f"expected numbers for {metric}, got classes such as {answers.classes[0][:40]!r}; "
                            "or set retrain.metric to accuracy")
    if metric == "accuracy":
        return _accuracy(answers, confidence, wanted)
    if metric in SCORES:
        return _of_scores(answers, metric, positive_label, confidence, seed, wanted)
    if metric == "mean_absolute_error":
        with np.errstate(over="ignore", invalid="ignore"):      # absurd units are told by the caller, as the defect they are
            old, new = np.abs(answers.champion - answers.label), np.abs(answers.challenger - answers.label)
            return _of_losses(old, new, "positive is the error that the challenger saves", confidence, seed, wanted)
    with np.errstate(over="ignore", invalid="ignore"):
        sums, basis = _errors(answers, metric, seed) if metric in NUMBERS else _classes(answers, metric, positive_label, seed)
        champion, challenger = sums.observed().tolist()
        if not math.isfinite(champion) or not math.isfinite(challenger):
            return Measured(champion, challenger, math.nan, -math.inf, math.inf, basis)
        lower, upper = draw(sums)
    return Measured(champion, challenger, sums.sense * (challenger - champion), lower, upper, basis)


def _accuracy(answers: Answers, confidence: float, draw: Draw | None) -> Measured:
    old, new = answers.champion == answers.label, answers.challenger == answers.label
    gained, lost = int(np.count_nonzero(new & ~old)), int(np.count_nonzero(old & ~new))
    if draw is None:
        lower, upper = intervals.paired_proportion_interval(gained, lost, len(answers), confidence)
    else:
        lower, upper = draw(share_sums(gained, lost, int(np.count_nonzero(old & new)), len(answers)))
    return Measured(float(np.mean(old)), float(np.mean(new)), (gained - lost) / len(answers), lower, upper,
                    f"right where the other was wrong: challenger {gained:,}, champion {lost:,}{_drawn(draw)}")


def _drawn(draw: Draw | None) -> str:
    return "; bootstrap interval" if draw else ""


def _of_losses(old: NDArray[np.float64], new: NDArray[np.float64], basis: str, confidence: float, seed: int,
               draw: Draw | None) -> Measured:
    """Of two losses per event, of which the mean is the quality."""
    means = float(np.mean(old)), float(np.mean(new))
    if draw is None:
        lower, upper = intervals.paired_mean_interval(old - new, confidence)
    elif not all(map(math.isfinite, means)):
        lower, upper = -math.inf, math.inf          # the caller tells it as the defect that it is
    else:
        lower, upper = draw(mean_sums(old, new, seed))
    return Measured(*means, means[0] - means[1], lower, upper, f"{basis}{_drawn(draw)}")


def _of_scores(answers: Answers, metric: Metric, positive_label: str | None, confidence: float, seed: int,
               draw: Draw | None) -> Measured:
    """roc_auc and log_loss: two classes, and a score for the positive one."""
    champion, challenger = answers.champion_score, answers.challenger_score
    if champion is None or challenger is None:
        raise NotComparable(f"expected the columns champion_score and challenger_score for {metric}, got "
                            f"{'one of them' if (champion is None) != (challenger is None) else 'neither'}; let the trainer "
                            "write them, or set retrain.metric to one without scores")
    positive = answers.label == _positive(answers, positive_label, metric)
    others = np.unique(answers.label[~positive])
    if len(others) > 1:
        raise NotComparable(f"expected two classes for {metric}, got {1 + len(others):,} labels; "
                            "set retrain.metric to f1, balanced_accuracy or accuracy")
    if positive.all() or not positive.any():
        raise NotComparable(f"expected positive and negative events for {metric}, got only "
                            f"{'positive' if positive.all() else 'negative'} ones; hold back events of both classes, "
                            "or mend retrain.positive_label")
    if metric == "roc_auc":
        old, new, lower, upper = intervals.auc_difference(positive, champion, challenger, confidence)
        if draw is not None:
            lower, upper = draw(area_sums(positive, champion, challenger, seed))
        return Measured(old, new, new - old, lower, upper, f"{int(positive.sum()):,} of them are positive{_drawn(draw)}")
    for name, score in (("champion_score", champion), ("challenger_score", challenger)):
        if score.min() < 0 or score.max() > 1:
            raise NotComparable(f"column {name}: expected probabilities of the positive class from 0 to 1 for log_loss, got "
                                f"{score.min():.6g} to {score.max():.6g}; write probabilities, or set retrain.metric to roc_auc")
    losses = [-np.log(np.maximum(np.where(positive, score, 1 - score), PROBABILITY_MIN)) for score in (champion, challenger)]
    return _of_losses(losses[0], losses[1], f"{int(positive.sum()):,} of them are positive", confidence, seed, draw)


def _positive(answers: Answers, said: str | None, metric: Metric) -> float | int:
    """The value of `label` that is the positive class: as configured, else 1 of the numbers 0 and 1 (so also `true`)."""
    if said is None:
        if answers.classes is None and set(np.unique(answers.label).tolist()) <= {0.0, 1.0}:
            return 1.0
        raise NotComparable(f"expected labels 0 and 1 for {metric}, got others; set retrain.positive_label")
    if answers.classes is None:
        number = as_number(said)
        if number is None:
            raise NotComparable(f"expected the positive label {said[:40]!r} among the labels, got numbers; "
                                "mend retrain.positive_label")
        return number
    # A name that no answer has is no class: nothing is equal to -1.
    return answers.classes.index(said) if said in answers.classes else -1


def as_number(text: str) -> float | None:
    """The finite number, or truth value, that a text stands for; None for any other text.

    >>> [as_number(text) for text in ("1", "1.0", "true", "yes", "nan")]
    [1.0, 1.0, 1.0, None, None]
    """
    plain = text.strip().lower()
    if plain in ("true", "false"):
        return float(plain == "true")
    try:
        number = float(plain)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _errors(answers: Answers, metric: Metric, seed: int) -> tuple[Sums, str]:
    """root_mean_squared_error and r2 as functions of five sums."""
    # Distances from the mean, so that large numbers far from zero keep their digits when they are squared.
    away = answers.label - np.mean(answers.label)
    old, new = (answers.champion - answers.label) ** 2, (answers.challenger - answers.label) ** 2
    terms = (np.ones(len(answers)), old, new, away, away**2)
    if metric == "r2" and not np.any(away):
        raise NotComparable("column label: expected labels that differ for r2, got one value; hold back more events, "
                            "or set retrain.metric to mean_absolute_error")
    def root_mean_squared_error(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.sqrt(sums[:, 1:3] / sums[:, :1])

    def r2(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        around = sums[:, 4] - sums[:, 3] ** 2 / sums[:, 0]
        with np.errstate(divide="ignore", invalid="ignore"):    # a resample of equal labels has none: told by the interval
            return 1 - sums[:, 1:3] / around[:, None]

    unit = units(len(answers), seed)
    parts = np.stack([np.bincount(unit, term) for term in terms], axis=1)
    sums = Sums(sparse.csr_array(parts), np.ones(len(parts), np.int64), r2 if metric == "r2" else root_mean_squared_error,
                -1 if metric in SMALLER_IS_BETTER else 1)
    return sums, f"bootstrap over {len(parts):,} {'events' if len(answers) <= GROUPS else 'groups of events'}"


def _classes(answers: Answers, metric: Metric, positive_label: str | None, seed: int) -> tuple[Sums, str]:
    """balanced_accuracy and f1 as functions of counts per class: labels, right answers and answers of both models."""
    positive = _positive(answers, positive_label, metric) if metric == "f1" and positive_label is not None else None
    if positive is not None:
        if not np.any(answers.label == positive):
            raise NotComparable(f"column label: expected events of the positive class {positive_label!r}, got none; "
                                "hold some back, or mend retrain.positive_label")
        known, codes = 2, [(values == positive).astype(np.int64) for values in (answers.label, answers.champion,
                                                                               answers.challenger)]
    elif answers.classes is not None:
        known, codes = len(answers.classes), [values.astype(np.int64, copy=False) for values in (
            answers.label, answers.champion, answers.challenger)]
    else:
        values, joined = np.unique(np.concatenate([answers.label, answers.champion, answers.challenger]), return_inverse=True)
        known, codes = len(values), np.split(joined.astype(np.int64), 3)
    if known > CLASSES_MAX:
        raise NotComparable(f"expected at most {CLASSES_MAX:,} classes for {metric}, got {known:,}; "
                            "set retrain.metric to accuracy, or to an error for numbers")
    cells, counts = np.unique((codes[0] * known + codes[1]) * known + codes[2], return_counts=True)
    if len(cells) > GROUPS:                         # as many as there are events, or nearly: draw groups of them
        group = units(len(answers), seed)
        parts = _per_class(codes[0], codes[1], codes[2], known, group)
        counts = np.ones(parts.shape[0], np.int64)
    else:
        rest, last = np.divmod(cells, known)
        label, champion = np.divmod(rest, known)
        parts = _per_class(label, champion, last, known, np.arange(len(cells)))

    def balanced_accuracy(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        labels, right = sums[:, None, :known], sums[:, known: 3 * known].reshape(-1, 2, known)
        there = labels > 0
        found: NDArray[np.float64] = np.divide(right, labels, where=there, out=np.zeros_like(right))
        return np.asarray(found.sum(axis=2) / there.sum(axis=2))

    def f1(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        right, both = sums[:, known: 3 * known].reshape(-1, 2, known), sums[:, 3 * known:].reshape(-1, 2, known)
        both = both + sums[:, None, :known]
        each: NDArray[np.float64] = np.divide(2 * right, both, where=both > 0, out=np.zeros_like(right))
        return np.asarray(each[:, :, 1] if positive is not None else each.sum(axis=2) / (both > 0).sum(axis=2))

    changed = int(np.count_nonzero(codes[1] != codes[2]))
    over = f"the class {positive_label!r}" if positive is not None else f"{known:,} classes"
    return Sums(parts, counts, balanced_accuracy if metric == "balanced_accuracy" else f1), (
        f"over {over}; the models differ on {changed:,} events")


def _per_class(label: NDArray[np.int64], champion: NDArray[np.int64], challenger: NDArray[np.int64], known: int,
               unit: NDArray[np.int64]) -> sparse.csr_array:
    """(units, 5 x classes): labels, right answers of both models, answers of both models, by class."""
    ones = np.ones(len(label))
    columns = [label, known + label, 2 * known + label, 3 * known + champion, 4 * known + challenger]
    weights = [ones, (champion == label).astype(float), (challenger == label).astype(float), ones, ones]
    return sparse.csr_array((np.concatenate(weights), (np.tile(unit, 5), np.concatenate(columns))),
                            shape=(int(unit.max()) + 1, 5 * known))
