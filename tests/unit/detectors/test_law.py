"""Made-up events look like the reference that they are drawn from, and drift in the way that was asked for."""

import numpy as np
import pytest

from detectors.law import Law, LawStream
from detectors.reference import Column, Reference
from detectors.synthetic import MIXED, Drift, Stream

QUANTITIES = (*MIXED[:3], *MIXED[8:13:2], MIXED[15], MIXED[17], MIXED[18])
NUMBER, COUNT, LEVELS = 0, 4, 6


@pytest.fixture(scope="module")
def reference():
    stream = Stream(21, QUANTITIES)
    return Reference.fit(stream.rows(8_000), stream.columns, model="m", version="1")


@pytest.fixture(scope="module")
def law(reference):
    return Law.of(reference)


def draw(law, n, seed=1, drift=None):
    return LawStream(law, np.random.default_rng(seed)).rows(n, drift)


def test_every_column_has_the_shares_of_its_reference(reference, law):
    """20,000 draws: no fine bin is off by more than 5 s.d. and 5 events; P < 1e-3 over some 600 bins."""
    counts = reference.profile(draw(law, 20_000)).counts.copy()
    for j, row in enumerate(reference.records[:len(QUANTITIES)]):
        p = row.counts / row.counts.sum()
        if not row.is_numeric:                                  # levels beyond the kept ones are named otherwise
            counts[j, len(p) - 2] += counts[j, len(p) - 1]
        off = counts[j, :len(p) - 1] - 20_000 * p[:-1]
        allowed = 0 if row.is_numeric else 60                   # Good-Turing's levels, never seen before
        assert (np.abs(off) <= 5 * np.sqrt(20_000 * p[:-1]) + 5 + allowed).all()


def test_columns_depend_on_each_other_as_in_the_sample(law):
    rows = draw(law, 20_000)
    assert np.corrcoef(rows["c0"], rows["c1"])[0, 1] == pytest.approx(0.7, abs=0.06)
    assert abs(np.corrcoef(rows["c0"], rows["c2"])[0, 1]) < 0.1
    assert law.closest_pair()[:2] == (0, 1)


def test_events_depend_on_the_past_as_the_design_effect_says():
    stream = Stream(22, MIXED[:1], ar=0.9)
    reference = Reference.fit(stream.rows(20_000), stream.columns, model="m", version="1")
    law = Law.of(reference)
    again = Reference.fit(draw(law, 20_000), law.columns, model="m", version="1")
    assert 0.5 * reference.deff[0] < again.deff[0] < 2 * reference.deff[0]
    drawn = LawStream(law, np.random.default_rng(2))            # also from one call to the next
    alone = np.array([drawn.rows(1)["c0"][0] for _ in range(1_000)])
    assert np.corrcoef(alone[1:], alone[:-1])[0, 1] > 0.7
    assert Law.of(Reference.fit(Stream(22, MIXED[:1]).rows(20_000), stream.columns)).memory[0] == 0


def test_one_stream_is_the_same_however_it_was_asked_for_its_seed(law):
    first, second, other = (draw(law, 50, seed) for seed in (3, 3, 4))
    assert first["c6"] == second["c6"]
    assert np.array_equal(first["c0"], second["c0"])
    assert not np.array_equal(first["c0"], other["c0"])


@pytest.mark.parametrize(("drift", "column", "seen"), [
    (Drift(mean=0.5), NUMBER, lambda now, then: now.mean() - then.mean() == pytest.approx(0.5, abs=0.06)),
    (Drift(spread=1.3), NUMBER, lambda now, then: now.std() / then.std() > 1.15),
    (Drift(two_humps=True), NUMBER, lambda now, then: (abs(now) < 0.2).mean() < 0.8 * (abs(then) < 0.2).mean()),
    (Drift(replaced=0.1, constant=None), COUNT, lambda now, then: np.isnan(now).mean() == pytest.approx(0.1, abs=0.02)),
    (Drift(replaced=0.1, constant=77.0), COUNT, lambda now, then: (now == 77).mean() == pytest.approx(0.1, abs=0.02)),
    (Drift(replaced=0.1, constant="x"), LEVELS, lambda now, then: now.count("x") / len(now) == pytest.approx(0.1, abs=0.02)),
], ids=lambda value: str(value)[:40])
def test_a_drift_is_what_it_says_and_leaves_the_others_alone(law, drift, column, seen):
    name = law.names[column]
    moved = Drift(**{field: getattr(drift, field) for field in drift.__slots__} | {"column": column})
    now, then = draw(law, 8_000, 5, moved), draw(law, 8_000, 6)
    assert seen(now[name], then[name])
    other = law.names[2]
    assert np.nanmean(now[other]) == pytest.approx(np.nanmean(then[other]), abs=0.08)


def test_a_column_can_be_made_independent(law):
    rows = draw(law, 8_000, drift=Drift(joint=True, column=0))
    assert abs(np.corrcoef(rows["c0"], rows["c1"])[0, 1]) < 0.06


def test_whole_numbers_stay_whole_and_lone_values_alone():
    rng, columns = np.random.default_rng(7), tuple(Column(name, "numeric") for name in ("age", "flat", "none", "far"))
    data = {"age": rng.integers(0, 99, 3_000).astype(float), "flat": np.full(3_000, 2.5), "none": np.full(3_000, np.nan),
            "far": np.where(rng.random(3_000) < 0.1, np.inf, rng.normal(size=3_000))}
    rows = draw(Law.of(Reference.fit(data, columns)), 2_000)
    assert np.array_equal(rows["age"], np.floor(rows["age"]))
    assert (rows["flat"] == 2.5).all()
    assert np.isnan(rows["none"]).all()
    assert np.isposinf(rows["far"]).mean() == pytest.approx(0.1, abs=0.03)


def test_without_a_sample_columns_are_independent_and_vectors_left_out():
    rng = np.random.default_rng(8)
    columns = (Column("x", "numeric"), Column("y", "numeric"), Column("v", "embedding"), Column("words", "text"))
    x = rng.normal(size=1_000)
    data = {"x": x, "y": x, "v": rng.normal(size=(1_000, 6)), "words": ["a few words", "and others"] * 500}
    known, bare = (Law.of(Reference.fit(data, columns, sample_rows=rows)) for rows in (500, 0))
    assert known.left_out == ()
    assert bare.left_out == ("v", "words")
    assert [column.name for column in bare.columns] == ["x", "y"]
    rows = draw(bare, 2_000)
    assert abs(np.corrcoef(rows["x"], rows["y"])[0, 1]) < 0.1
    rows = draw(known, 2_000)
    assert np.corrcoef(rows["x"], rows["y"])[0, 1] > 0.9
    assert set(rows["words"]) == {"a few words", "and others"}
    assert len(np.unique(rows["v"], axis=0)) == 2_000
    spread = np.trace(np.cov(draw(known, 8_000)["v"].T)) / np.trace(np.cov(known.pools["v"].T))
    assert spread == pytest.approx(1, abs=0.05)                 # the s.d. of this ratio is 0.007
