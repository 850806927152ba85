"""One table in every form that people have it: the same reference, the same counts, whichever container it came in."""

import decimal
from collections import OrderedDict
from datetime import date

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from detectors import Column, Reference
from detectors.tables import batch_of, columns_of, is_ready

N = 1_200
RNG = np.random.default_rng(3)
TABLE = {"number": RNG.standard_normal(N), "whole": RNG.integers(0, 5, N), "open": RNG.random(N) < 0.3,
         "level": [("a", "b", "c")[i] for i in RNG.integers(0, 3, N)]}
FRAME = pd.DataFrame(TABLE)
LACKING = RNG.random(N) < 0.1


def lists(frame, missing=None):
    """Plain lists, with `missing` where values are missing."""
    return {name: [missing if lacks else value for value, lacks in zip(frame[name].tolist(), LACKING.tolist(), strict=True)]
            for name in frame}


def same(frame):
    """Forms of one data frame."""
    return {
        "frame": frame,
        "dict of series": dict(frame.items()),
        "other mapping": OrderedDict(frame.items()),
        "nullable": frame.convert_dtypes(),
        "arrow series": frame.convert_dtypes(dtype_backend="pyarrow"),
        "objects": frame.astype(object),
        "categorical": frame.astype({"level": "category"}),
        "table": pa.Table.from_pandas(frame),
        "record batch": pa.Table.from_pandas(frame).to_batches()[0],
        "table in chunks": pa.concat_tables([pa.Table.from_pandas(frame[:700]), pa.Table.from_pandas(frame[700:])]),
        "dictionary": pa.Table.from_pandas(frame.astype({"level": "category"})),
        "tuples": {name: tuple(frame[name]) for name in frame},
        "object arrays": {name: frame[name].to_numpy(dtype=object) for name in frame},
    }


WHOLE = same(FRAME) | {"numpy texts": {**TABLE, "level": np.array(TABLE["level"])},
                       "half": {**TABLE, "whole": np.float16(TABLE["whole"])}}
GAPS = same(FRAME.mask(np.repeat(LACKING[:, None], 4, axis=1))) | {
    "None": lists(FRAME), "nan": lists(FRAME, np.nan), "NA": lists(FRAME, pd.NA), "NaT": lists(FRAME, pd.NaT),
    "nullable categorical": FRAME.convert_dtypes().mask(pd.Series(LACKING)).astype({"level": "category"}),
    "masked": {**lists(FRAME), "number": np.ma.array(TABLE["number"], mask=LACKING),
               "whole": np.ma.array(TABLE["whole"], mask=LACKING)}}
KINDS = (Column("number", "numeric"), Column("whole", "category"), Column("open", "boolean"), Column("level", "category"))


@pytest.fixture(scope="module")
def reference():
    return Reference.fit(TABLE, KINDS)


@pytest.mark.parametrize("form", WHOLE)
def test_every_form_of_a_table_is_fitted_and_counted_alike(reference, form):
    assert Reference.fit(WHOLE[form], KINDS).digest == reference.digest
    assert reference.profile(WHOLE[form]) == reference.profile(TABLE)


@pytest.mark.parametrize("form", GAPS)
def test_every_mark_of_a_missing_value_is_counted_as_missing(reference, form):
    counts = reference.profile(GAPS[form]).counts[:4]
    assert counts[:, 0].tolist() == [LACKING.sum()] * 4
    np.testing.assert_array_equal(counts, reference.profile(lists(FRAME)).counts[:4])


def test_proposals_are_the_same_for_every_form_of_a_table():
    expected = {proposal.column.name: proposal.column.kind for proposal in Reference.propose(TABLE)}
    assert expected == {"number": "numeric", "whole": "numeric", "open": "boolean", "level": "category"}
    for form in (*WHOLE.values(), *GAPS.values()):
        assert {proposal.column.name: proposal.column.kind for proposal in Reference.propose(form)} == expected


def test_whole_numbers_keep_their_level_when_a_missing_value_made_them_floats(reference):
    with_gaps = pd.DataFrame({"whole": [1, 2, None]})
    assert with_gaps["whole"].dtype == np.float64
    assert reference.profile(with_gaps) == reference.profile({"whole": ["1", "2", None]})


def test_zero_and_one_are_truth_values_where_those_are_expected(reference):
    assert reference.profile({"open": [0, 1, 1.0, np.True_, None]}) == reference.profile(
        {"open": ["false", "true", "true", "true", None]})


def test_a_categorical_of_numbers_is_a_category():
    frame = pd.DataFrame({"shop": pd.Categorical([3, 1, 3, None] * 300)})
    assert Reference.fit(frame).columns == (Column("shop", "category"),)
    assert Reference.fit(frame).bin_labels(0)[1:3] == ["3", "1"]


@pytest.mark.parametrize("times", [
    pd.Series(pd.date_range("2024-01-01", periods=N)), pd.Series(pd.date_range("2024-01-01", periods=N, tz="Europe/Berlin")),
    pd.Series([date(2024, 1, 1)] * N), pd.to_timedelta(pd.Series(range(N)), unit="s"), pa.array([date(2024, 1, 1)] * N),
    pa.array(pd.date_range("2024-01-01", periods=N, tz="UTC")), np.arange(N).astype("M8[s]"), [None, date(2024, 1, 1), np.nan]])
def test_times_are_proposed_as_ignored_with_the_reason(times):
    (proposal,) = Reference.propose({"when": times})
    assert (proposal.column.role, proposal.warning) == ("ignored", True)
    assert proposal.reason.startswith("times: ")


@pytest.mark.parametrize("values", [
    np.ones(N) * 1j, [{"a": 1}] * N, np.ones((N, 2, 2)), np.zeros(N, [("a", "f8")]), [{1, 2}] * N])
def test_what_cannot_be_watched_is_proposed_as_ignored_and_hinders_nothing(values):
    data = {"odd": values, "x": TABLE["number"]}
    (odd, _) = Reference.propose(data)
    assert (odd.column.role, odd.warning) == ("ignored", True)
    assert Reference.fit(data).columns == (Column("x", "numeric"),)


def test_decimals_and_numpys_own_numbers_are_numbers():
    values = [decimal.Decimal("1.5"), np.float32(2), np.int8(3), np.longdouble(4), decimal.Decimal("NaN"),
              decimal.Decimal("sNaN")]
    np.testing.assert_array_equal(columns_of({"x": values}, "here")["x"], [1.5, 2, 3, 4, None, None])


def test_vectors_come_as_matrix_lists_series_or_arrow_lists():
    matrix = RNG.standard_normal((N, 3))
    reference = Reference.fit({"e": matrix})
    forms = [matrix.tolist(), list(matrix), pd.Series(list(matrix)), pa.array(matrix.tolist()),
             pa.array(matrix.tolist(), pa.list_(pa.float64(), 3)), matrix.astype(object)]
    for form in forms:
        assert Reference.fit({"e": form}).digest == reference.digest
        assert reference.profile({"e": form}) == reference.profile({"e": matrix})
    assert reference.profile({"e": [None, None]}).counts[:, 0].tolist() == [2] * len(reference.rows)


@pytest.mark.parametrize(("values", "kind", "role"), [
    ([np.inf, -np.inf, np.inf], "numeric", "input"), ([1.7e308, -1.7e308, 1.7e308], "numeric", "input"),
    ([10**400, 1, -10**400], "numeric", "input"), ([[10**400, 1]], "embedding", "ignored")])
def test_numbers_beyond_float64_are_proposed_without_a_warning(values, kind, role):
    (proposal,) = Reference.propose({"x": values})
    assert (proposal.column.kind, proposal.column.role) == (kind, role)


def test_large_ids_beside_missing_ones_stay_apart_in_an_arrow_table():
    values = [2**60, 2**60 + 1, None]
    assert columns_of(pa.table({"id": values}), "here") == {"id": values}


def test_names_that_are_no_text_are_taken_as_they_are_written():
    frame = pd.DataFrame(RNG.standard_normal((N, 2)))
    reference = Reference.fit(frame)
    assert [column.name for column in reference.columns] == ["0", "1"]
    assert reference.profile(frame).events == N


def test_columns_that_the_reference_does_not_have_are_not_looked_at(reference):
    assert reference.profile({**TABLE, "other": object(), 5: "text"}) == reference.profile(TABLE)
    assert reference.profile(FRAME.assign(other=1j)) == reference.profile(TABLE)


def test_a_frame_that_is_counted_is_left_as_it_was(reference):
    frame = FRAME.copy()
    reference.profile(frame)
    pd.testing.assert_frame_equal(frame, FRAME)


def test_a_batch_in_counting_form_is_not_touched():
    columns = (Column("x", "numeric"), Column("c", "category"), Column("t", "text"), Column("e", "embedding"))
    ready = {"x": np.ones(2), "c": ["a", None], "t": ["a b", None], "e": np.ones((2, 3)), "other": 1}
    assert is_ready(ready, columns, None)
    assert is_ready(ready, columns, 2)
    assert is_ready({}, columns, 7)
    for name, value in (("x", [1.0, 2.0]), ("x", np.ones(3)), ("x", np.ones(2, np.float32)), ("x", np.ones((2, 1))),
                        ("c", ("a", "b")), ("c", np.array(["a", "b"])), ("t", [1, 2]), ("e", np.ones(2)), ("e", [[1.0], [2.0]])):
        assert not is_ready({**ready, name: value}, columns, None), name
    assert not is_ready(ready, columns, 3)
    batch, n = batch_of(ready, columns, None, "here")
    assert n == 2
    assert batch["x"] is ready["x"]
    assert batch["c"] == ready["c"]
