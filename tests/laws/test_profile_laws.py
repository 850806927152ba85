"""Laws of counting: the batches, the order and the workers that counted events cannot be seen in the counts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.profile import Profile
from detectors.reference import Column, Reference
from detectors.ring import Ring
from detectors.scan import WINDOWS, Scan

COLUMNS = (Column("x", "numeric"), Column("level", "category"), Column("open", "boolean"))


def _reference():
    rng = np.random.default_rng(1)
    levels = rng.choice(["a", "b", "c", "d", *(f"rare{i}" for i in range(40))], 1500, p=[0.4, 0.3, 0.15, 0.05, *[0.0025] * 40])
    x = np.where(rng.random(1500) < 0.2, 0.0, rng.standard_normal(1500))
    return Reference.fit({"x": x, "level": levels.tolist(), "open": rng.choice(["true", "false"], 1500).tolist()},
                         COLUMNS, model="m", version="1")


REFERENCE = _reference()
SCAN = Scan(REFERENCE, panes_per_false_alarm=1000)

numbers = st.one_of(st.floats(allow_nan=True, allow_infinity=True), st.sampled_from([0.0, -0.0, 5e-324, np.nan, np.inf]))
levels = st.one_of(st.none(), st.sampled_from(["a", "b", "c", "d", "rare7", "true", "false"]), st.text(max_size=4))
events = st.lists(st.tuples(numbers, levels, levels), max_size=60)


def profile_of(rows):
    return REFERENCE.profile({"x": np.array([row[0] for row in rows], float), "level": [row[1] for row in rows],
                              "open": [row[2] for row in rows]})


@given(events)
@settings(deadline=None, max_examples=50)
def test_every_event_is_counted_once_in_every_row(rows):
    profile = profile_of(rows)
    assert profile.counts.sum(axis=1).tolist() == [len(rows)] * len(REFERENCE.rows)
    assert profile.events == len(rows)


@given(events)
@settings(deadline=None, max_examples=50)
def test_padded_bins_hold_nothing(rows):
    for j, row in enumerate(REFERENCE.records):
        assert not profile_of(rows).counts[j, row.binning.bins:].any()


@given(events, st.integers(0, 60))
@settings(deadline=None, max_examples=50)
def test_a_profile_does_not_depend_on_where_the_stream_was_cut(rows, cut):
    assert profile_of(rows) == profile_of(rows[:cut]) + profile_of(rows[cut:])


@given(events, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=50)
def test_a_profile_does_not_depend_on_the_order_of_events(rows, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert profile_of(rows).digest() == profile_of(shuffled).digest()


@given(events)
@settings(deadline=None, max_examples=50)
def test_many_rows_are_counted_as_few_are(rows):
    """Above 300 rows values are sorted first; the counts are those of searching each."""
    copies = 301 // max(len(rows), 1) + 1
    assert (profile_of(rows * copies).counts == copies * profile_of(rows).counts).all()


@given(events, events, events)
@settings(deadline=None, max_examples=50)
def test_merging_is_commutative_and_associative_with_a_zero(a, b, c):
    pa, pb, pc = profile_of(a), profile_of(b), profile_of(c)
    assert pa + pb == pb + pa
    assert (pa + pb) + pc == pa + (pb + pc)
    assert pa + Profile.empty(REFERENCE) == pa


@given(events, events)
@settings(deadline=None, max_examples=50)
def test_subtracting_undoes_adding(a, b):
    assert (profile_of(a) + profile_of(b)) - profile_of(b) == profile_of(a)


@given(events)
@settings(deadline=None, max_examples=50)
def test_a_profile_survives_its_bytes(rows):
    assert Profile.from_bytes(profile_of(rows).to_bytes()) == profile_of(rows)


@given(st.lists(st.tuples(events, st.integers(0, 140)), min_size=1, max_size=12))
@settings(deadline=None, max_examples=20)
def test_a_window_is_the_sum_of_its_panes(steps):
    ring, panes = Ring(REFERENCE), []
    for rows, silence in steps:
        ring.push(profile_of(rows))
        ring.skip(silence)
        panes += [profile_of(rows)] + [Profile.empty(REFERENCE)] * silence
    assert ring.panes == len(panes)
    for w in WINDOWS:
        if w <= len(panes):
            total = sum(panes[-w:], Profile.empty(REFERENCE))
            counts, count = ring.window(w)
            assert (counts == total.counts).all()
            assert count == total.events


streams = st.lists(st.lists(st.tuples(st.floats(-4, 4), st.sampled_from(["a", "b", "c", "new", None]),
                                      st.sampled_from(["true", "false"])), min_size=30, max_size=60), min_size=1, max_size=6)


@given(streams, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=20)
def test_scores_are_equal_whether_a_pane_came_whole_shuffled_or_from_four_workers(panes, random):
    whole, merged, skipped = Ring(REFERENCE), Ring(REFERENCE), Ring(REFERENCE)
    for rows in panes:
        whole.push(profile_of(rows))
        random.shuffle(rows)
        merged.push(sum((profile_of(rows[worker::4]) for worker in range(4)), Profile.empty(REFERENCE)))
        skipped.push(profile_of(rows))
    a, b = SCAN(whole), SCAN(merged)
    for name in set(a.__slots__) - {"strongest_severe"}:
        x, y = getattr(a, name), getattr(b, name)
        same = np.array_equal(x, y) if isinstance(x, np.ndarray) else x == y or (x != x and y != y)
        assert same, name
    for name in () if a.strongest_severe is None else a.strongest_severe.__slots__:
        np.testing.assert_array_equal(getattr(a.strongest_severe, name), getattr(b.strongest_severe, name))


@given(streams)
@settings(deadline=None, max_examples=20)
def test_scores_are_equal_after_a_restart_from_stored_panes(panes):
    """A ring filled again from the panes' bytes decides as the one that never stopped."""
    ring, again = Ring(REFERENCE), Ring(REFERENCE)
    for rows in panes:
        ring.push(profile_of(rows))
        again.push(Profile.from_bytes(profile_of(rows).to_bytes()))
    np.testing.assert_array_equal(SCAN(ring).z, SCAN(again).z)


@pytest.mark.parametrize("columns", [COLUMNS[::-1], COLUMNS[1:]])
def test_rows_do_not_influence_one_another(columns):
    """Each row's comparisons are the same beside other columns: only the threshold knows how many there are."""
    rng = np.random.default_rng(9)
    batch = {"x": rng.standard_normal(500) + 0.2, "level": rng.choice(["a", "b"], 500).tolist(), "open": ["true"] * 500}
    rng = np.random.default_rng(1)
    levels_ = rng.choice(["a", "b", "c"], 1500).tolist()
    data = {"x": rng.standard_normal(1500), "level": levels_, "open": rng.choice(["true", "false"], 1500).tolist()}
    found = []
    for schema in (COLUMNS, columns):
        reference = Reference.fit(data, schema, model="m", version="1")
        ring = Ring(reference)
        ring.push(reference.profile(batch))
        scores = Scan(reference)(ring)
        z = np.maximum(scores.z, scores.z_quality).tolist()
        found.append({name: of for name, of, plain in zip(reference.rows, z, reference.is_plain, strict=True) if plain})
    assert len(found[1]) == len(columns)
    assert all(found[0][name] == found[1][name] for name in found[1])


@given(events.filter(len), st.integers(1, 400), st.integers(1, 7), st.booleans())
@settings(deadline=None, max_examples=50)
def test_sets_that_are_counted_together_are_counted_as_each_alone(rows, copies, groups, is_sorted):
    rows = (rows * copies)[:2500] * groups                      # every set has one at least
    group = np.arange(len(rows)) % groups
    group = np.sort(group) if is_sorted else group
    columns = {"x": np.array([row[0] for row in rows], float), "level": [row[1] for row in rows],
               "open": [row[2] for row in rows]}
    expected = [profile_of([row for row, place in zip(rows, group, strict=True) if place == k]) for k in range(groups)]
    assert list(REFERENCE.profiles(columns, group, groups)) == expected


def test_more_small_sets_than_one_block_holds_are_counted_in_their_order():
    group = np.random.default_rng(3).permutation(np.repeat(np.arange(600), 2))
    rows = [(float(place), "a" if place % 2 else None, "true") for place in group.tolist()]
    columns = {"x": np.array([row[0] for row in rows]), "level": [row[1] for row in rows]}       # `open` is absent: missing
    for place, profile in enumerate(REFERENCE.profiles(columns, group, 600)):
        assert profile == profile_of([(float(place), "a" if place % 2 else None, None)] * 2)
    assert place == 599
