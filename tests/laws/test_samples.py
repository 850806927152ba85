"""Laws of sampled rows: which rows a pane keeps depends on what it holds, not on how it came."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.errors import CheckpointRefused
from monitor.flow import TEXT_CHARACTERS
from monitor.state.panes import Panes
from monitor.state.sample import Sampling, _small_keys, draw, from_bytes, in_time_order, keys_of, merged, to_bytes
from tests.unit.state.streams import TOPIC, batch, cut, rows_at, small_reference, stream

REFERENCE = small_reference()
SAMPLING = Sampling(rows=5, panes=4, names=("x", "c"))
TIMES = st.lists(st.integers(0, 30_000), min_size=1, max_size=120).map(
    lambda times: [t + (i * 7919) % 3000 for i, t in enumerate(sorted(times))])


def sampled(parts, partitions=(0,), sampling=SAMPLING, **options):
    """Pane -> the bytes of its sample, over a whole run."""
    watched = stream(REFERENCE)
    watched.sampling = sampling
    panes = Panes([watched], clock=lambda: 0.0, **options)
    found = {}
    for part in [*parts, None]:
        panes.add(batch(partitions, ended=part is None), [] if part is None else [part])
        found |= {window.pane: window.sample for window in panes.closed()}
    assert watched.samples == {}                    # nothing is kept of a pane that is closed
    return {pane: to_bytes(sample) for pane, sample in found.items()}


def of(rows, size=5):
    """The sample of rows as one pane."""
    return drawn(replace(SAMPLING, rows=size), rows, rows.columns)


def drawn(sampling, rows, columns):
    (sample,) = draw(sampling, {}, [rows], columns, np.zeros(1, np.int64), np.zeros(len(rows), np.intp)).values()
    return sample


@settings(max_examples=60, deadline=None)
@given(times=TIMES, cuts=st.lists(st.integers(0, 120), max_size=5))
def test_samples_do_not_depend_on_where_the_stream_was_cut(times, cuts):
    rows, parts, start = rows_at(times), [], 0
    for at in [*sorted({min(c, len(rows)) for c in cuts}), len(rows)]:
        if at > start:
            parts.append(cut(cut(rows, at)[0], start)[1] if start else cut(rows, at)[0])
            start = at
    assert sampled(parts) == sampled([rows])


@settings(max_examples=60, deadline=None)
@given(first=TIMES, second=TIMES, room=st.integers(3, 8))
def test_samples_do_not_depend_on_how_partitions_interleave_nor_on_what_had_to_wait(first, second, room):
    one, two = rows_at(first, 0), rows_at(second, 1)
    expected = sampled([one, two], (0, 1))
    assert sampled([two, one], (0, 1)) == expected
    assert sampled([*cut(one, len(one) // 2)[:1], two, *cut(one, len(one) // 2)[1:]] if len(one) > 1 else [two, one],
                   (0, 1)) == expected
    assert sampled([one, two], (0, 1), open_panes_max=room) == expected


@settings(max_examples=60, deadline=None)
@given(times=TIMES, start=st.integers(0, 119), end=st.integers(1, 120))
def test_reading_records_again_changes_no_sample(times, start, end):
    rows = rows_at(times)
    end = min(end, len(rows))
    again = cut(rows, min(start, end - 1))[1]
    head, tail = cut(rows, end)
    assert sampled([part for part in (head, again, head, tail) if len(part)]) == sampled([rows])


@settings(max_examples=60, deadline=None)
@given(times=st.lists(st.integers(0, 30_000), min_size=30, max_size=120), at=st.integers(1, 29), size=st.integers(1, 20))
def test_the_sample_of_a_whole_is_the_merged_sample_of_its_parts_in_either_order(times, at, size):
    rows = rows_at(times)
    parts = cut(rows, at)
    whole = to_bytes(of(rows, size))
    for order in (parts, parts[::-1]):
        together = of(order[0], size)
        for part in order[1:]:
            together = merged(together, of(part, size), size)
        assert to_bytes(together) == whole


@settings(max_examples=60, deadline=None)
@given(times=TIMES, size=st.integers(1, 20))
def test_a_sample_holds_the_rows_of_the_smallest_keys_with_their_own_values(times, size):
    rows = rows_at(times)
    sample = of(rows, size)
    keys = keys_of(TOPIC, 0, rows.offsets)
    assert sample.keys.tolist() == sorted(keys.tolist())[:size]
    for i, offset in enumerate(sample.offsets.tolist()):
        assert sample.columns["x"][i] == rows.columns["x"][offset]
        assert sample.columns["c"][i] == rows.columns["c"][offset]
        assert sample.times[i] == rows.times[offset]


def test_a_sample_comes_back_from_its_bytes_as_it_was_numbers_vectors_texts_and_missing_ones():
    rows = rows_at([5, 3, 4])
    columns = {"x": np.array([1.5, np.nan, -0.0]), "v": np.arange(6.0).reshape(3, 2), "c": ["a", None, "é" * 300]}
    sample = drawn(Sampling(9, 1, ("x", "v", "c")), rows, columns)
    back = from_bytes(to_bytes(sample))
    assert to_bytes(back) == to_bytes(sample)
    ordered = in_time_order(back)
    assert ordered.times.tolist() == [3, 4, 5]
    np.testing.assert_array_equal(ordered.columns["x"], [np.nan, -0.0, 1.5])
    np.testing.assert_array_equal(ordered.columns["v"], [[2.0, 3.0], [4.0, 5.0], [0.0, 1.0]])
    assert ordered.columns["c"] == [None, "é" * TEXT_CHARACTERS, "a"]


@pytest.mark.parametrize("damage", [b"", b"\x00" * 40, to_bytes(of(rows_at([1, 2])))[:-7]])
def test_a_damaged_sample_is_refused_in_one_line(damage):
    with pytest.raises(CheckpointRefused, match="stored sample: expected rows of equal length, got damage"):
        from_bytes(damage)


def test_keys_are_spread_evenly_and_partitions_do_not_share_them():
    """10,000 consecutive offsets over 100 equal ranges: chi-square with 99 degrees of freedom stays below 148 (p = 0.001)."""
    keys = keys_of("topic", 3, np.arange(10_000))
    counts = np.bincount((keys >> np.uint64(32)).astype(np.int64) * 100 >> 32, minlength=100)
    assert ((counts - 100) ** 2 / 100).sum() < 148.2
    assert not set(keys.tolist()) & set(keys_of("topic", 4, np.arange(10_000)).tolist())


@pytest.mark.parametrize("size", [1, 7, 200])
@pytest.mark.parametrize("events", [150, 1_000, 20_000])
def test_few_keys_are_sorted_and_none_is_missed(size, events):
    """Large batches, where only the lowest part of the keys is looked at."""
    rows = rows_at(np.zeros(events, np.int64))
    assert of(rows, size).keys.tolist() == sorted(keys_of(TOPIC, 0, rows.offsets).tolist())[:size]


def test_keys_that_are_not_spread_evenly_only_cost_time():
    """All keys of one pane lie high: the guess of how low they would lie leaves too few, so all are taken."""
    keys = np.concatenate([np.arange(1_000, dtype=np.uint64), np.uint64(2**64 - 1) - np.arange(1_000, dtype=np.uint64)])
    group = np.repeat([0, 1], 1_000)
    found = _small_keys(keys, group, 5, [None, None])
    for place in (0, 1):
        mine = keys[found[group[found] == place]]
        assert sorted(mine.tolist())[:5] == sorted(keys[group == place].tolist())[:5]


def test_nothing_is_kept_without_sampling():
    watched = stream(REFERENCE)
    panes = Panes([watched], clock=lambda: 0.0)
    panes.add(batch(), [rows_at([100, 1_500])])
    assert [window.sample for window in panes.closed()] == [None]
    assert watched.samples == {}
