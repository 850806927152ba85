"""The metrics: their values are scikit-learn's, a positive difference is a better challenger, repeating is the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn import metrics as theirs

from monitor.config_retrain import SMALLER_IS_BETTER
from monitor.retrain import intervals, quality_metrics, resampled
from monitor.retrain.challenger import compare
from monitor.retrain.intervals import Sums, auc_difference, bootstrap_interval
from monitor.retrain.quality_metrics import Answers, NotComparable, measured

NAMES = ("a", "b", "c", "d")


def classes(seed: int = 1, n: int = 500, known: int = 4, old: float = 0.6, new: float = 0.8) -> Answers:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, known, n)
    answers = [np.where(rng.random(n) < right, label, rng.integers(0, known, n)) for right in (old, new)]
    return Answers(label, answers[0], answers[1], NAMES[:known])


def scored(seed: int = 1, n: int = 500, old: float = 0.5, new: float = 1.5) -> Answers:
    rng = np.random.default_rng(seed)
    label = (rng.random(n) < 0.3).astype(float)
    scores = [1 / (1 + np.exp(-(rng.normal(size=n) + gap * (label - 0.3)))) for gap in (old, new)]
    return Answers(label, label, label, None, scores[0].round(2), scores[1].round(2))


def numbers(seed: int = 1, n: int = 500, old: float = 1.0, new: float = 0.5) -> Answers:
    rng = np.random.default_rng(seed)
    label = rng.normal(1000, 2, n)
    return Answers(label, label + rng.normal(0, old, n), label + rng.normal(0, new, n))


def rmse(label, answer):
    return float(np.sqrt(theirs.mean_squared_error(label, answer)))


@pytest.mark.parametrize(("metric", "positive", "truth"), [
    ("accuracy", None, theirs.accuracy_score), ("balanced_accuracy", None, theirs.balanced_accuracy_score),
    ("f1", None, lambda y, p: theirs.f1_score(y, p, average="macro")),
    ("f1", "b", lambda y, p: theirs.f1_score(y == 1, p == 1))])
def test_a_quality_of_classes_is_that_of_scikit_learn(metric, positive, truth):
    for answers in (classes(), classes(n=5000), classes(known=2)):
        found = measured(answers, metric, positive_label=positive)
        assert (truth(answers.label, answers.champion), truth(answers.label, answers.challenger)) == pytest.approx(found[:2])


@pytest.mark.parametrize(("metric", "truth"), [
    ("mean_absolute_error", theirs.mean_absolute_error), ("root_mean_squared_error", rmse), ("r2", theirs.r2_score)])
def test_a_quality_of_numbers_is_that_of_scikit_learn(metric, truth):
    for answers in (numbers(), numbers(n=7001)):
        found = measured(answers, metric)
        assert (truth(answers.label, answers.champion), truth(answers.label, answers.challenger)) == pytest.approx(found[:2])


@pytest.mark.parametrize(("metric", "truth"), [("roc_auc", theirs.roc_auc_score), ("log_loss", theirs.log_loss)])
def test_a_quality_of_scores_is_that_of_scikit_learn(metric, truth):
    answers = scored()
    found = measured(answers, metric)
    expected = truth(answers.label, answers.champion_score), truth(answers.label, answers.challenger_score)
    assert expected == pytest.approx(found[:2])


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "f1", "roc_auc", "log_loss", "mean_absolute_error",
                                    "root_mean_squared_error", "r2"])
def test_a_positive_difference_is_a_better_challenger_and_changing_places_changes_the_sign(metric):
    answers = scored() if metric in quality_metrics.SCORES else numbers() if metric in quality_metrics.NUMBERS else classes()
    swapped = Answers(answers.label, answers.challenger, answers.champion, answers.classes, answers.challenger_score,
                      answers.champion_score)
    one, other = measured(answers, metric, seed=3), measured(swapped, metric, seed=3)
    assert one.lower < one.difference < one.upper
    assert (one.lower > 0, other.upper < 0) == (True, True)
    assert one.difference == pytest.approx(-other.difference)
    assert (-other.upper, -other.lower) == pytest.approx((one.lower, one.upper), abs=0.004)
    assert (one.challenger < one.champion) == (metric in SMALLER_IS_BETTER)
    assert (compare(answers, metric=metric, events_min=200).verdict, compare(swapped, metric=metric, events_min=200).verdict) == (
        "better", "worse")


def test_the_same_seed_is_the_same_interval_and_another_is_nearly_the_same():
    for answers, metric in ((classes(), "f1"), (numbers(n=5000), "r2")):
        one, again, other = (measured(answers, metric, seed=seed) for seed in (7, 7, 8))
        assert one == again != other
        assert other.lower == pytest.approx(one.lower, abs=0.2 * (one.upper - one.lower))


def test_units_and_groups_give_the_interval_of_single_events():
    """Against drawing 1,500 events one by one 3,000 times; the bound is five Monte Carlo errors of a quantile (0.044 s.d.)."""
    answers, rng = numbers(n=6000), np.random.default_rng(5)
    old, new = (answers.champion - answers.label) ** 2, (answers.challenger - answers.label) ** 2
    drawn = np.array([np.sqrt(old[at].mean()) - np.sqrt(new[at].mean())
                      for at in (rng.integers(0, 6000, 6000) for _ in range(3000))])
    found = measured(answers, "root_mean_squared_error")
    assert np.quantile(drawn, [0.025, 0.975]) == pytest.approx((found.lower, found.upper), abs=5 * 0.044 * drawn.std())


def test_many_classes_are_drawn_in_groups_with_the_same_quality():
    rng = np.random.default_rng(2)
    label = rng.integers(0, 300, 20_000)
    old, new = (np.where(rng.random(20_000) < right, label, rng.integers(0, 300, 20_000)) for right in (0.5, 0.6))
    answers = Answers(label, old, new, tuple(map(str, range(300))))
    found = measured(answers, "balanced_accuracy")
    assert theirs.balanced_accuracy_score(label, new) == pytest.approx(found.challenger)
    assert 0 < found.lower < found.difference < found.upper < 0.13


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(8, 40))
def test_the_area_and_its_variance_are_those_of_all_pairs(seed, n):
    """DeLong's estimator by its definition: kernel psi over all pairs of a positive and a negative event."""
    rng = np.random.default_rng(seed)
    positive = np.arange(n) % 3 == 0
    scores = [rng.integers(0, 6, n).astype(float) for _ in range(2)]
    kernels = [(s[positive][:, None] > s[~positive]) + 0.5 * (s[positive][:, None] == s[~positive]) for s in scores]
    gap = kernels[1] - kernels[0]
    variance = gap.mean(axis=1).var(ddof=1) / gap.shape[0] + gap.mean(axis=0).var(ddof=1) / gap.shape[1]
    old, new, lower, upper = auc_difference(positive, scores[0], scores[1])
    assert (kernels[0].mean(), kernels[1].mean()) == pytest.approx((old, new))
    assert upper - lower == pytest.approx(2 * 1.959963984540054 * np.sqrt(variance), abs=1e-9)


def test_without_any_disagreement_nothing_is_known():
    answers = classes(old=0.8)
    same = Answers(answers.label, answers.champion, answers.champion, answers.classes)
    for metric in ("accuracy", "balanced_accuracy", "f1"):
        assert compare(same, metric=metric, events_min=100).verdict == "not yet known"


def test_a_small_improvement_is_not_enough_where_a_larger_one_is_asked_for():
    answers = classes(n=5000)
    gain = measured(answers, "accuracy")
    assert compare(answers, metric="accuracy", events_min=200, min_improvement=gain.lower - 0.01).verdict == "better"
    verdict = compare(answers, metric="accuracy", events_min=200, min_improvement=gain.lower + 0.001)
    assert verdict.verdict == "not yet known"
    assert "not surely by more than the" in verdict.detail
    # Worse stays worse, whatever is asked for.
    swapped = Answers(answers.label, answers.challenger, answers.champion, answers.classes)
    assert compare(swapped, metric="accuracy", events_min=200, min_improvement=0.5).verdict == "worse"


def scores_of(answers: Answers, **changes) -> Answers:
    whole = {name: getattr(answers, name) for name in ("label", "champion", "challenger", "classes", "champion_score",
                                                       "challenger_score")}
    return Answers(**{**whole, **changes})


@pytest.mark.parametrize(("answers", "metric", "positive", "words"), [
    (classes(), "roc_auc", None, "champion_score and challenger_score for roc_auc, got neither"),
    (scores_of(scored(), challenger_score=None), "log_loss", None, "got one of them"),
    (scores_of(scored(), champion_score=scored().champion_score * 3), "log_loss", None, "probabilities of the positive class"),
    (scores_of(scored(), label=np.zeros(500)), "roc_auc", None, "got only negative ones"),
    (scores_of(scored(), label=np.arange(500.0)), "roc_auc", None, "set retrain.positive_label"),
    (scores_of(scored(), label=np.arange(500.0)), "roc_auc", "1", "expected two classes for roc_auc, got 500 labels"),
    (scores_of(scored(), label=np.zeros(500)), "roc_auc", "yes", "among the labels, got numbers"),
    (classes(), "mean_absolute_error", None, "or set retrain.metric to accuracy"),
    (classes(), "f1", "nobody", "got none"),
    (Answers(np.ones(9), np.ones(9), np.zeros(9)), "r2", None, "labels that differ for r2"),
    (Answers(np.arange(9e4), np.arange(9e4), np.zeros(90_000)), "f1", None, "at most 10,000 classes for f1, got 90,000"),
])
def test_answers_that_do_not_fit_the_metric_are_one_line(answers, metric, positive, words):
    with pytest.raises(NotComparable, match=words) as raised:
        measured(answers, metric, positive_label=positive)
    assert "\n" not in str(raised.value)


def test_a_positive_label_may_be_a_name_a_number_or_a_truth_value():
    named = Answers(np.array([0, 1] * 300), np.zeros(600, np.int64), np.array([0, 1] * 300), ("no", "yes"))
    assert measured(named, "f1", positive_label="yes").challenger == 1.0
    as_numbers = Answers(np.array([0.0, 1.0] * 300), np.zeros(600), np.array([0.0, 1.0] * 300))
    for text in ("1", "1.0", "true"):
        assert measured(as_numbers, "f1", positive_label=text)[:2] == (0.0, 1.0)


def test_a_resample_without_a_quality_gives_no_interval():
    answers = Answers(np.array([1.0, 2.0]), np.array([1.0, 1.0]), np.array([1.0, 2.0]))
    verdict = compare(answers, metric="r2", events_min=1)
    assert (verdict.verdict, verdict.lower, verdict.challenger) == ("not yet known", None, 1.0)


def test_the_memory_of_the_bootstrap_is_bounded_by_blocks(monkeypatch):
    sums = Sums(sparse.csr_array(np.ones((50, 1))), np.ones(50, np.int64), lambda s: np.stack([s[:, 0], s[:, 0]], axis=1))
    monkeypatch.setattr(intervals, "_BLOCK", 500)
    assert bootstrap_interval(sums, seed=1, resamples=101) == (0.0, 0.0)


# -- the bootstrap for every metric --------------------------------------------------------------------------------------

def compared(metric: str, n: int, interval: str, **options):
    answers = (scored(n=n) if metric in quality_metrics.SCORES else numbers(n=n, new=0.95)
               if metric in quality_metrics.NUMBERS else classes(n=n, new=0.63))
    return measured(answers, metric, interval=interval, **options)


@pytest.mark.parametrize("n", [600, 5_000])
@pytest.mark.parametrize("metric", ["accuracy", "roc_auc", "log_loss", "mean_absolute_error"])
def test_a_bootstrap_agrees_with_the_closed_form_where_events_are_many(metric, n):
    closed, drawn = compared(metric, n, "auto"), compared(metric, n, "bootstrap", seed=5)
    assert drawn[:3] == closed[:3]
    width = closed.upper - closed.lower
    assert (drawn.lower, drawn.upper) == pytest.approx((closed.lower, closed.upper), abs=0.08 * width)
    assert drawn.lower != closed.lower
    assert drawn.basis.endswith("bootstrap interval")
    assert drawn == compared(metric, n, "bootstrap", seed=5)
    assert drawn.lower != compared(metric, n, "bootstrap", seed=6).lower


def test_an_area_of_a_resample_is_the_area_of_its_events():
    """Every weighting of the events against the definition, ties included; and the placements give the observed areas."""
    answers, rng = scored(n=60), np.random.default_rng(4)
    positive, scores_ = answers.label == 1, (answers.champion_score.round(1), answers.challenger_score)
    sums = resampled.area_sums(positive, *scores_, seed=1)
    weights = rng.multinomial(60, np.full(60, 1 / 60), size=20).astype(float)
    found = sums.qualities(weights @ sums.parts)
    for row, drawn in zip(found, weights.astype(int), strict=True):
        rows = np.repeat(np.arange(60), drawn)
        assert row == pytest.approx([theirs.roc_auc_score(positive[rows], score[rows]) for score in scores_])
    many = scored(n=5_000)
    placed = resampled.area_sums(many.label == 1, many.champion_score, many.challenger_score, seed=1)
    assert placed.parts.shape[0] == intervals.GROUPS
    assert placed.observed() == pytest.approx([theirs.roc_auc_score(many.label, score)
                                               for score in (many.champion_score, many.challenger_score)])


def test_a_resample_without_a_positive_is_told_and_not_left_out():
    label = np.zeros(300)
    label[:2] = 1
    score = np.linspace(0, 1, 300)
    found = measured(Answers(label, label, label, None, score, score[::-1].copy()), "roc_auc", interval="bootstrap")
    assert (found.lower, found.upper) == (-np.inf, np.inf)
