"""The shift of all columns together: its law without drift, its tolerance, and what it finds that single columns cannot."""

import numpy as np
import pytest

from detectors.reference import Reference
from detectors.ring import Ring
from detectors.scan import Scan
from detectors.shift import CommonShift
from detectors.synthetic import Quantity, Stream

NORMAL = (Quantity(),) * 20


def scores_of(stream, reference, panes, **options):
    scan, ring = Scan(reference, panes_per_false_alarm=1200.0, **options), Ring(reference)
    for _ in range(panes):
        ring.push(reference.profile(stream.rows(250)))
        yield scan(ring)


@pytest.mark.parametrize("options", [{}, {"ar": 0.5}])
def test_the_squared_length_of_no_shift_is_what_its_law_says(options):
    """200 windows of 1,000 events against one reference of 20,000: mean and spread of T over its expectation."""
    stream = Stream(31, NORMAL, **options)
    reference = Reference.fit(stream.rows(20_000), stream.columns)
    test, scan = CommonShift.of(reference), Scan(reference)
    ratios = []
    for _ in range(200):
        ring = Ring(reference)
        ring.push(reference.profile(stream.rows(1000)))
        n = scan._fold(ring.windows(np.array([1]))[0])
        length, error = test.length(test.means(n, n.sum(axis=2)), n.sum(axis=2)[:, 0])
        ratios.append(float(length[0] / error[0]) ** 2 / test.g)
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.25)
    assert np.quantile(ratios, 0.95) < 2.3


def test_a_tenth_of_a_standard_deviation_in_every_column_is_found_in_a_few_panes_and_named_as_one_shift():
    stream = Stream(32, NORMAL)
    reference = Reference.fit(stream.rows(10_000), stream.columns)
    stream.start(mean=0.1, everywhere=True)
    together = list(scores_of(stream, reference, 4, tolerance=0.0, common_shift=True))
    assert together[-1].score > 1
    spread = together[-1]
    assert spread.what[-1].startswith("joint shift of c")
    assert spread.unit[-1] == "sd"
    assert spread.effect_lower[-1] < 0.1 * np.sqrt(20) * 0.9 < spread.effect_upper[-1]
    alone = list(scores_of(stream, reference, 4, tolerance=0.0))
    assert alone[-1].z[-1].max() < together[-1].z[-1].max() / 2


def test_a_shift_within_the_tolerance_in_the_mean_square_raises_nothing_however_certain():
    stream = Stream(33, NORMAL)
    reference = Reference.fit(stream.rows(20_000), stream.columns)
    stream.start(mean=0.08, everywhere=True)
    quiet = list(scores_of(stream, reference, 60, tolerance=0.1, common_shift=True))
    assert max(one.z[-1].max() for one in quiet) < 3
    certain = list(scores_of(stream, reference, 60, tolerance=0.0, common_shift=True))
    assert certain[-1].score > 1
    assert certain[-1].severe < 1                       # a common shift never makes an alarm severe


def test_one_shift_that_all_columns_share_by_the_season_is_not_taken_for_independent_evidence():
    """The wave is in every column: its component is as dependent as it is, and few windows can tell."""
    stream = Stream(34, NORMAL, season=0.7, day_rows=5000)
    reference = Reference.fit(stream.rows(20_000), stream.columns)
    found = list(scores_of(stream, reference, 40, tolerance=0.0, common_shift=True))
    assert max(one.z[-1].max() for one in found) < found[0].threshold


@pytest.mark.parametrize("columns", [1, 2])
def test_too_few_columns_or_too_short_a_reference_have_no_such_test(columns):
    stream = Stream(35, NORMAL[:columns])
    assert CommonShift.of(Reference.fit(stream.rows(150), stream.columns)) is None


def test_nearly_equal_columns_do_not_make_their_difference_a_common_shift():
    stream = Stream(36, NORMAL[:6])
    data = stream.rows(5000)
    data["copy"] = np.round(data["c0"], 2)
    columns = (*stream.columns, type(stream.columns[0])("copy", "numeric"))
    reference = Reference.fit(data, columns)
    test = CommonShift.of(reference)
    assert test is not None
    assert test.whitening.shape[1] == 6
