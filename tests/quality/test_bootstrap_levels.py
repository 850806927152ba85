"""How often the bootstrap that `retrain.metric_interval: bootstrap` takes everywhere misses the true difference.

Seeded, 150 hold-outs of 300 events with a known difference, 300 resamples each. The interval may miss in 5 %, plus 3 % that
are written down for quantiles at this size, plus three standard errors: 20 of 150. `docs/judging.md` has a longer run.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest

from monitor.retrain import intervals
from monitor.retrain.challenger import compare
from monitor.retrain.quality_metrics import Answers

RUNS = 150


def classes(rng: np.random.Generator, n: int) -> Answers:
    """Right in 85 and 90 %, of which the first is right by itself where the second is not in 3 of 10 cases."""
    label, first = rng.integers(0, 2, n), rng.random(n)
    old = np.where(first < 0.85, label, 1 - label)
    new = np.where((first < 0.80) | (first > 0.90), label, 1 - label)
    return Answers(label, old, new, ("no", "yes"))


def numbers(rng: np.random.Generator, n: int) -> Answers:
    """Errors of s.d. 1 and 0.8 around the label, half of them shared; mean absolute errors sqrt(2 / pi) times that."""
    label, shared = rng.normal(5, 1, n), rng.normal(size=n)
    return Answers(label, label + shared, label + 0.8 * (0.6 * shared + 0.8 * rng.normal(size=n)))


def scores(rng: np.random.Generator, n: int, *, rare: float = 0.2) -> Answers:
    """Two noisy readings of one score, equally good."""
    label = (rng.random(n) < rare).astype(float)
    shared = rng.normal(size=n) + label
    old, new = (1 / (1 + np.exp(1.5 - shared - rng.normal(size=n))) for _ in range(2))
    return Answers(label, label, label, None, old, new)


CASES = {"accuracy": (classes, 0.05), "mean_absolute_error": (numbers, 0.2 * sqrt(2 / np.pi)), "log_loss": (scores, 0.0),
         "roc_auc": (scores, 0.0)}


def misses(metric: str, n: int, runs: int, seed: int = 21) -> tuple[int, int]:
    """(lower bound above the truth, upper bound below it)."""
    make, truth = CASES[metric]
    rng, above, below = np.random.default_rng(seed), 0, 0
    for run in range(runs):
        verdict = compare(make(rng, n), metric=metric, events_min=100, seed=run, interval="bootstrap")  # type: ignore[arg-type]
        assert verdict.lower is not None
        assert verdict.upper is not None
        above, below = above + (verdict.lower > truth), below + (verdict.upper < truth)
    return above, below


@pytest.mark.parametrize("metric", CASES)
def test_the_bootstrap_of_every_metric_misses_about_as_often_as_it_says(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals.bootstrap_interval, "__kwdefaults__", {"confidence": 0.95, "resamples": 300})
    above, below = misses(metric, 300, RUNS)
    assert 0 < above + below <= RUNS * 0.08 + 3 * sqrt(RUNS * 0.08 * 0.92), (above, below)
