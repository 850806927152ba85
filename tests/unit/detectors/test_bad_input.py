"""Bad references, bad windows and the wrong profiles: each a state or one clear line, never a wrong number or a warning.

Warnings are errors in every test, so a division by nothing would be seen here.
"""

import contextlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detectors import Column, Profile, Reference, ReferenceMismatch, Scan
from detectors.ring import Ring

N = 1_000
STATES = {"drift", "quiet", "below_ignore", "too_few_events"}


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    assert ": expected " in text
    assert ", got " in text
    assert "; " in text
    return text


def scanned(reference, *batches, **knobs):
    """The last scores of a stream, every number of them checked for what it may be."""
    scan = Scan(reference, **knobs)
    for batch in batches:
        profile = reference.profile(batch)
        assert profile.counts.min() >= 0
        assert (profile.counts.sum(axis=1) == profile.events).all()
        scores = scan.update(profile)
        for numbers in (scores.z, scores.z_quality, scores.z_severe, scores.effect, scores.evidence):
            assert np.isfinite(numbers).all()
        assert not np.isnan(scores.effect_lower).any()
        assert not np.isnan(scores.effect_upper).any()
        assert set(scores.state) <= STATES
        # The one place for NaN: nothing took part, so that there is nothing to say.
        nothing = set(scores.state) == {"too_few_events"}
        assert np.isnan(scores.score) == nothing
        assert np.isnan(scores.severe) == nothing
        assert len(scores.records()) == len(reference.rows)
    return scores


def normal(n, seed=1):
    return np.random.default_rng(seed).standard_normal(n)


def names(n, levels, seed=2):
    return [f"v{level}" for level in np.random.default_rng(seed).integers(0, levels, n).tolist()]


def fitted(values, kind="numeric"):
    """A reference of one odd column `x` beside an ordinary one."""
    data = {"x": values, "y": normal(len(values))}
    return Reference.fit(data, (Column("x", kind), Column("y", "numeric"))), data


def some(n, seed, *values):
    return [values[i] for i in np.random.default_rng(seed).integers(0, len(values), n).tolist()]


#: n values of a seed, and their kind.
ODD = {
    "constant": (lambda n, seed: np.full(n, 3.5), "numeric"),
    "constant zero": (lambda n, seed: np.zeros(n), "numeric"),
    "constant text": (lambda n, seed: ["same"] * n, "category"),
    "constant truth": (lambda n, seed: [True] * n, "boolean"),
    "all missing numbers": (lambda n, seed: np.full(n, np.nan), "numeric"),
    "all missing levels": (lambda n, seed: [None] * n, "category"),
    "all missing truth": (lambda n, seed: [None] * n, "boolean"),
    "all infinite": (lambda n, seed: np.where(normal(n, seed) > 0, np.inf, -np.inf), "numeric"),
    "some not finite": (lambda n, seed: np.where(normal(n, seed + 1) > 1, np.inf, normal(n, seed)), "numeric"),
    "ends of float64": (lambda n, seed: np.clip(normal(n, seed), -3, 3) * 5e307, "numeric"),
    "largest float": (lambda n, seed: np.full(n, np.finfo(float).max), "numeric"),
    "smallest floats": (lambda n, seed: np.floor(normal(n, seed)) * 5e-324, "numeric"),
    "300 levels": (lambda n, seed: names(n, 300, seed), "category"),
    "empty texts": (lambda n, seed: [""] * n, "category"),
    "some empty texts": (lambda n, seed: some(n, seed, "", "a", " ", "\x00", "\udc80"), "category"),
    "huge whole numbers": (lambda n, seed: some(n, seed, *(2**70 + i * 2**60 for i in range(9))), "numeric"),
    "beyond float64": (lambda n, seed: some(n, seed, 10**400, -10**400), "numeric"),
    "whole numbers as levels": (lambda n, seed: some(n, seed, *(2**70 + i for i in range(9))), "category"),
    "mixed types": (lambda n, seed: some(n, seed, "a", 1, 2.0, True, None, np.int8(4), 2**70), "category"),
    "texts": (lambda n, seed: some(n, seed, "my order is late", "", None, "!!", "9 8"), "text"),
    "no text at all": (lambda n, seed: [None] * n, "text"),
    "vectors": (lambda n, seed: normal(3 * n, seed).reshape(n, 3), "embedding"),
    "constant vectors": (lambda n, seed: np.ones((n, 3)), "embedding"),
    "no vector at all": (lambda n, seed: np.full((n, 3), np.nan), "embedding"),
}


@pytest.mark.parametrize("rows", [1, 199, 200, N])
@pytest.mark.parametrize("odd", ODD)
def test_an_odd_reference_column_fits_and_is_quiet_on_more_of_the_same(odd, rows):
    make, kind = ODD[odd]
    reference, _ = fitted(make(rows, 5), kind)
    scores = scanned(reference, *({"x": make(300, seed), "y": normal(300, seed + 90)} for seed in (6, 7)))
    assert not scores.score > 1
    assert reference.too_small == (rows < 200)
    assert reference.inadequate or rows == N


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_reference_column_survives_every_other_batch_of_its_kind(odd):
    make, kind = ODD[odd]
    reference, _ = fitted(make(N, 5), kind)
    for make_other, other_kind in ODD.values():
        if other_kind == kind or {kind, other_kind} == {"category", "boolean"}:
            values = make_other(300, 6)
            scanned(reference, {"x": values, "y": normal(300)}, {"x": values[:0], "y": normal(0)},
                    {"x": values[:1], "y": normal(1)})


@pytest.mark.parametrize(("values", "kind", "other", "what"), [
    (np.full(N, 3.5), "numeric", np.full(400, 4.0), "above"),
    (["same"] * N, "category", ["new"] * 400, "unseen"),
    (np.full(N, np.nan), "numeric", np.ones(400), "unseen"),
    ([None] * N, "category", ["a"] * 400, "unseen"),
    ([True] * N, "boolean", [False] * 400, "unseen"),
])
def test_any_other_value_in_a_column_that_held_but_one_is_seen(values, kind, other, what):
    reference, _ = fitted(values, kind)
    scores = scanned(reference, {"x": other, "y": normal(400)})
    assert scores.score > 1
    first = scores.records()[0]
    assert first["row"] == "x"
    assert first["kind"] == "quality"
    assert scores.faults[reference.rows.index("x")].kind == what


@pytest.mark.parametrize("rows", [1, 2, 49, 199])
def test_a_reference_of_few_rows_decides_nothing_and_says_why(rows):
    reference, _ = fitted(normal(rows))
    assert reference.too_small
    assert f"{rows} rows" in reference.inadequate
    scores = scanned(reference, {"x": normal(5_000) + 9, "y": normal(5_000, 3)})
    assert np.isnan(scores.score)
    assert set(scores.state) == {"too_few_events"}


def test_a_reference_of_200_rows_decides_and_is_called_inadequate():
    reference, _ = fitted(normal(200))
    assert not reference.too_small
    assert reference.inadequate
    assert scanned(reference, {"x": normal(5_000) + 3, "y": normal(5_000)}).score > 1


def test_a_reference_of_one_column_has_no_joint_rows_and_decides():
    reference = Reference.fit({"x": normal(N)})
    assert reference.rows == ("x",)
    assert not scanned(reference, {"x": normal(500)}).score > 1
    assert scanned(reference, {"x": normal(500) + 1}).score > 1


@pytest.mark.parametrize("events", [0, 1, 19])
def test_a_window_of_few_events_is_called_so_whatever_they_are(events):
    reference, _ = fitted(normal(N))
    scores = scanned(reference, {"x": np.full(events, 1e9), "y": np.full(events, np.nan)})
    assert np.isnan(scores.score)
    assert set(scores.state) == {"too_few_events"}
    assert scores.named == ()
    assert scores.faults == {}


def test_an_empty_pane_changes_no_score_of_the_windows_that_reach_beyond_it():
    reference, _ = fitted(normal(N))
    shifted = {"x": normal(400) + 1, "y": normal(400, 3)}
    assert scanned(reference, shifted, {"x": [], "y": []}).score == scanned(reference, shifted).score


@pytest.mark.parametrize("push", [
    lambda reference, profile: Ring(reference).push(profile),
    lambda reference, profile: Scan(reference).update(profile),
    lambda reference, profile: Profile.empty(reference) + profile,
    lambda reference, profile: Profile.empty(reference) - profile,
])
def test_a_profile_of_another_schema_is_refused_with_both_digests(push):
    reference, _ = fitted(normal(N))
    stranger = Reference.fit({"other": names(N, 5)})
    with pytest.raises(ReferenceMismatch) as refusal:
        push(reference, stranger.profile({"other": ["v1"]}))
    assert reference.digest in one_line(refusal)
    assert stranger.digest in str(refusal.value)


def test_a_refused_profile_leaves_the_scan_as_it_was():
    reference, data = fitted(normal(N))
    scan, undisturbed = Scan(reference, max_false_alarms_per_events=1e-6), Scan(reference, max_false_alarms_per_events=1e-6)
    stranger = Reference.fit({"other": names(N, 5)})
    with pytest.raises(ReferenceMismatch):
        scan.update(stranger.profile({"other": ["v1"] * 90_000}))
    batch = {name: values[:250] for name, values in data.items()}
    assert scan.update(reference.profile(batch)).score == undisturbed.update(reference.profile(batch)).score
    assert scan.threshold == undisturbed.threshold


def test_numbers_in_a_category_column_are_levels_that_the_reference_has_not_seen():
    reference, _ = fitted(names(N, 4), "category")
    scores = scanned(reference, {"x": [1, 2.0, None, True] * 100, "y": normal(400)})
    x = reference.rows.index("x")
    assert reference.profile({"x": [1, 2.0, None, True] * 100}).counts[x, [0, reference.records[x].binning.bins - 1]].tolist() \
        == [100, 300]
    assert scores.quality[x]


@pytest.mark.parametrize(("data", "columns", "says"), [
    ({"x": ["a", "b"]}, [Column("x", "numeric")], "numeric values in column 'x', got 'a' (str) in row 0"),
    ({"x": ["1", "2"]}, [Column("x", "numeric")], "numeric values in column 'x', got '1' (str) in row 0"),
    ({"x": [1.0, None, "n/a"]}, [Column("x", "numeric")], "got 'n/a' (str) in row 2"),
    ({"x": np.array(["2024-01-01"], "M8[s]")}, [Column("x", "numeric")], "got times"),
    ({"x": np.ones(3) * 1j}, [Column("x", "numeric")], "got values of type complex128"),
    ({"x": np.ones((3, 2))}, [Column("x", "numeric")], "got an array of shape (3, 2)"),
    ({"x": [[1.0], [1.0, 2.0]]}, [Column("x", "embedding")], "embedding values in column 'x', got shapes (1,), (2,)"),
    ({"x": [1.0, 2.0]}, [Column("x", "embedding")], "embedding values in column 'x', got shapes ()"),
    ({"x": [["a"], ["b"]]}, [Column("x", "embedding")], "embedding values in column 'x', got"),
    ({"x": [[], []]}, [Column("x", "embedding")], "embedding values in column 'x', got"),
    ({"x": [["a"], ["b"]]}, [Column("x", "category")], "category values in column 'x', got values of type list"),
    ({"x": [{"a": 1}]}, [Column("x", "text")], "text values in column 'x', got values of type dict"),
    ({"x": ["yes", "no"]}, [Column("x", "boolean")], "boolean values in column 'x', got '"),
    ({"x": [0, 1, 2]}, [Column("x", "boolean")], "boolean values in column 'x', got '2'"),
    ({"x": []}, None, "columns of one length above 0"),
    ({}, None, "a column to watch, got none"),
    ({"x": [1.0], "y": [1.0, 2.0]}, None, "columns of one length above 0, got"),
    ({"x": [1.0]}, [Column("x", "numeric"), Column("x", "category")], "every column once, got 'x' 2 times"),
    ({"x": [1.0]}, [Column("z", "numeric")], "column 'z', got 'x'"),
    ({"x": [1.0]}, [], "a column to watch, got none"),
    ({"1": [1.0], 1: [2.0]}, None, "every column once, got two named '1'"),
    ({"x": "abc"}, None, "one value per event, got 'abc' (str)"),
    ({"x": 3.0}, None, "one value per event, got '3.0' (float)"),
    ({"x": np.float64(3)}, None, "one value per event, got"),
    (np.ones((5, 2)), None, "a dict of columns, a pandas DataFrame or a pyarrow Table, got a ndarray"),
    ([{"x": 1.0}], None, "a pyarrow Table, got a list"),
    (None, None, "a pyarrow Table, got a NoneType"),
])
def test_data_that_no_reference_can_be_made_of_is_refused_in_one_line(data, columns, says):
    with pytest.raises(ReferenceMismatch) as refusal:
        Reference.fit(data, columns)
    assert says in one_line(refusal)
    assert str(refusal.value).startswith("reference of model 1: ")


@pytest.mark.parametrize(("batch", "says"), [
    ({"x": ["a"], "c": ["v1"]}, "numeric values in column 'x', got 'a' (str) in row 0"),
    ({"x": np.array(["1"]), "c": ["v1"]}, "numeric values in column 'x', got '1' (str) in row 0"),
    ({"x": np.ones((2, 2)), "c": ["v1", "v2"]}, "got an array of shape (2, 2)"),
    ({"x": np.ones(2) * 1j}, "got values of type complex128"),
    ({"x": np.ones(2), "c": ["v1"]}, "columns of one length, got 'x': 2, 'c': 1"),
    ({"x": [1], "c": []}, "columns of one length, got 'x': 1, 'c': 0"),
    ({"x": [1.0], "c": [["v1"]]}, "category values in column 'c', got values of type list"),
    ({"x": 1.0, "c": ["v1"]}, "one value per event, got '1.0' (float)"),
    ({"z\n": np.ones(3)}, "got 'z\\n'; "),
    ({"z": np.ones(3)}, "some of the columns 'c', 'e', 'x', got 'z'"),
    ({"e": [[1.0], [1.0, 2.0]]}, "embedding values in column 'e', got shapes (1,), (2,)"),
    ({"e": [[1.0], [1.0]]}, "of shape (events, 2), got (2, 1)"),
    ([1.0, 2.0], "a pyarrow Table, got a list"),
])
def test_a_batch_that_the_reference_cannot_count_is_refused_in_one_line(batch, says):
    reference = Reference.fit({"x": normal(N), "c": names(N, 3), "e": normal(2 * N).reshape(N, 2)})
    with pytest.raises(ValueError) as refusal:
        reference.profile(batch)
    assert says in one_line(refusal)


@pytest.mark.parametrize("knobs", [
    {"tolerance": -0.1}, {"tolerance": float("nan")}, {"tolerance": 0.5, "retrain_above": 0.3}, {"panes_per_false_alarm": 0},
    {"panes_per_false_alarm": float("nan")}, {"panes_per_false_alarm": float("inf")}, {"panes_per_false_alarm": 1e300},
    {"max_false_alarms_per_events": 0},
    {"max_false_alarms_per_events": 1}, {"max_false_alarms_per_events": float("nan")}, {"retrain_above": float("inf")},
])
def test_knobs_out_of_range_are_refused_in_one_line(knobs):
    reference, _ = fitted(normal(N))
    with pytest.raises(ValueError) as refusal:
        Scan(reference, **knobs)
    one_line(refusal)


# ---- any small table whatever -----------------------------------------------------------------------------------------

NUMBERS = st.one_of(st.none(), st.floats(width=64), st.integers(-(2**80), 2**80),
                    st.sampled_from([0.0, 1.0, 2**1100, -1e308, np.finfo(float).max, 5e-324]))
VALUE = {
    "numbers": NUMBERS,
    "texts": st.one_of(st.none(), st.text(max_size=6), st.sampled_from(["a", "b", ""])),
    "truths": st.one_of(st.none(), st.booleans()),
    "whole": st.integers(0, 3),
    "sentences": st.one_of(st.none(), st.lists(st.sampled_from(["my", "order", "is", "late", "7"]), max_size=6).map(" ".join)),
    "vectors": st.one_of(st.none(), st.lists(NUMBERS, min_size=2, max_size=2)),
    "ragged": st.one_of(st.none(), st.lists(st.floats(), max_size=3)),
    "mixed": st.one_of(NUMBERS, st.text(max_size=3), st.booleans(), st.dates(), st.binary(max_size=2)),
}
ROWS = st.sampled_from([0, 1, 2, 49, 199, 200, 230, 1_000])


@st.composite
def pools(draw):
    """For each of up to four columns a few values of one kind."""
    kinds = draw(st.lists(st.sampled_from(sorted(VALUE)), min_size=1, max_size=4))
    return {f"{kind}{i}": draw(st.lists(VALUE[kind], min_size=1, max_size=8)) for i, kind in enumerate(kinds)}


def drawn(values, rows, rng):
    """Any number of rows: all the values first, then whichever."""
    return {name: [*pool, *(pool[i] for i in rng.integers(0, len(pool), rows).tolist())][:rows] for name, pool in values.items()}


@given(pools(), ROWS, st.integers(0, 2**32 - 1), st.lists(st.sampled_from([0, 1, 30, 400]), min_size=1, max_size=3),
       st.booleans())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_any_table_fits_or_is_refused_and_one_that_fits_counts_and_scans_any_batch(values, rows, seed, sizes, ordered):
    rng = np.random.default_rng(seed)
    try:
        reference = Reference.fit(drawn(values, rows, rng), ordered=ordered)
    except ReferenceMismatch as refusal:
        assert str(refusal).count("\n") == 0                    # noqa: PT017 (most tables are not refused)
        return
    loaded = Reference.from_json(reference.to_json())
    assert loaded.digest == reference.digest
    batches = [drawn(values, size, rng) for size in sizes]
    if rows < 8:                                                # not every value was seen, so kinds may not fit them all
        with contextlib.suppress(ReferenceMismatch):
            scanned(reference, *batches)
        return
    scores = scanned(reference, *batches)
    assert loaded.profile(batches[0]) == reference.profile(batches[0])
    assert rows >= 200 or np.isnan(scores.score)
