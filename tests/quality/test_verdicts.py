"""How often a verdict is wrong: the intervals of every metric on equally good models, and the looks of a shadow together.

Seeded. Every bound is the level that is promised, 2.5 % on the side of "better", plus what is written down for small samples,
plus three standard errors of the simulation. `docs/judging.md` holds the table of a longer run.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
import pyarrow as pa
import pytest

from monitor import config
from monitor.config_retrain import Shadow
from monitor.flow import Launch
from monitor.retrain import intervals
from monitor.retrain.challenger import compare
from monitor.retrain.promotions import PromotionWaits
from monitor.retrain.quality_metrics import Answers
from monitor.retrain.shadow import LOOK_SECONDS, Shadows, Watching

RUNS = 250


def classes(rng: np.random.Generator, n: int, *, rare: float, right: float, alike: float) -> Answers:
    """Two models that are right equally often; `alike` of their answers are the same one."""
    label = (rng.random(n) < rare).astype(np.int64)
    first, other = (np.where(rng.random(n) < right, label, 1 - label) for _ in range(2))
    return Answers(label, first, np.where(rng.random(n) < alike, first, other), ("no", "yes"))


def numbers(rng: np.random.Generator, n: int) -> Answers:
    label, shared = rng.normal(5, 1, n), rng.normal(size=n)
    return Answers(label, label + shared + rng.normal(size=n), label + shared + rng.normal(size=n))


def scores(rng: np.random.Generator, n: int) -> Answers:
    label = (rng.random(n) < 0.2).astype(float)
    shared = rng.normal(size=n) + label
    old, new = (1 / (1 + np.exp(1.5 - shared - rng.normal(size=n))) for _ in range(2))
    return Answers(label, label, label, None, old, new)


@pytest.mark.parametrize(("metric", "make", "positive"), [
    ("f1", lambda rng: classes(rng, 250, rare=0.1, right=0.9, alike=0.7), "yes"),
    ("balanced_accuracy", lambda rng: classes(rng, 250, rare=0.1, right=0.9, alike=0.7), None),
    ("root_mean_squared_error", lambda rng: numbers(rng, 250), None), ("r2", lambda rng: numbers(rng, 250), None),
    ("roc_auc", lambda rng: scores(rng, 250), None), ("log_loss", lambda rng: scores(rng, 250), None)])
def test_an_equally_good_challenger_is_seldom_called_better(metric, make, positive, monkeypatch):
    """250 hold-outs of 250 events, 25 of them positive; 2.5 % plus 1.5 % for small samples plus 3 s.e. = 7.7 %."""
    monkeypatch.setattr(intervals.bootstrap_interval, "__kwdefaults__", {"confidence": 0.95, "resamples": 400})
    rng = np.random.default_rng(11)
    found = [compare(make(rng), metric=metric, events_min=100, positive_label=positive, seed=seed).verdict
             for seed in range(RUNS)]
    bound = RUNS * 0.04 + 3 * sqrt(RUNS * 0.04 * 0.96)
    assert (found.count("better") <= bound, found.count("worse") <= bound) == (True, True), (metric, found.count("better"),
                                                                                            found.count("worse"))
    assert found.count("not yet known") < RUNS


@pytest.mark.parametrize(("metric", "make", "truth"), [
    ("balanced_accuracy", lambda rng: gain(rng, 600), 0.1), ("f1", lambda rng: gain(rng, 600), 0.1),
    ("root_mean_squared_error", lambda rng: sharper(rng, 600), 0.5)])
def test_the_bootstrap_holds_the_truth_in_about_95_of_100_cases(metric, make, truth, monkeypatch):
    """250 hold-outs of 600 events; the misses lie within 5 % plus 1.5 % and 3 standard errors of that."""
    monkeypatch.setattr(intervals.bootstrap_interval, "__kwdefaults__", {"confidence": 0.95, "resamples": 400})
    rng, misses = np.random.default_rng(12), 0
    for seed in range(RUNS):
        verdict = compare(make(rng), metric=metric, events_min=100, seed=seed)
        assert verdict.lower is not None
        assert verdict.upper is not None
        misses += not verdict.lower <= truth <= verdict.upper
    margin = 3 * sqrt(RUNS * 0.065 * 0.935)
    assert RUNS * 0.05 - margin <= misses <= RUNS * 0.065 + margin


def gain(rng: np.random.Generator, n: int) -> Answers:
    """Both classes as often, right in 80 and 90 %: balanced accuracy and macro F1 differ by 0.1."""
    label = rng.permutation(np.arange(n) % 2)
    old, new = (np.where(rng.random(n) < right, label, 1 - label) for right in (0.8, 0.9))
    return Answers(label, old, new, ("no", "yes"))


def sharper(rng: np.random.Generator, n: int) -> Answers:
    """Errors of s.d. 1 and 0.5."""
    label = rng.normal(5, 1, n)
    return Answers(label, label + rng.normal(size=n), label + rng.normal(0, 0.5, n))


class Serving:
    """Takes what it is told."""

    def shadow(self, launch: Launch, column: str) -> None:
        """Nothing to do."""

    def shadow_over(self, launch: Launch) -> None:
        """Nothing to do."""


def test_looking_often_at_a_shadow_lets_hardly_any_equal_challenger_in():
    """300 shadows of two equally good models, looked at with 50, 100 ... 3,200 events; 2.5 % plus 3 s.e. = 5.2 %."""
    policy = config.Retrain(launcher=config.LocalLauncher(command=["x"]), shadow=Shadow(prediction="s", events_min=50))
    rng, better, n = np.random.default_rng(13), 0, 3_200
    for _ in range(300):
        label = rng.integers(0, 2, n)
        old, new = (np.where(rng.random(n) < 0.8, label, 1 - label) for _ in range(2))
        table = pa.table({"y": label, "p": old, "s": new, "id": np.arange(n), "timestamp": np.arange(n)})
        there = [0]
        shadows = Shadows({"m": Watching("y", "p", "s")}, lambda *_: table.slice(0, there[0]), lambda _: 0)  # noqa: B023
        launch = Launch("a", "m", "1", 1, "local", "judged", "{}", (("judged", 0.0),), verdict="better")
        launch = shadows.begins(launch, 1.0) or launch
        for look in range(7):
            there[0] = 50 << look
            try:
                ended = shadows.look(launch, policy, Serving(), 10.0 + 2 * LOOK_SECONDS * look)
            except PromotionWaits:
                continue
            assert ended is not None
            better += ended.shadow_verdict == "better"
            break
    assert better <= 300 * 0.025 + 3 * sqrt(300 * 0.025 * 0.975)
    assert better > 0                               # the looks do spend their share
