"""Real streams: what must be found and what must not, with one false alarm per 4,000 panes asked.

The reference is the first fifth of the rows. Scores go through the alarm machines of the service, so that what stands
here is what a user would have been told, pane by pane.
"""

from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from detectors.reference import Column, Reference
from detectors.scan import Scan
from monitor.config import Budget
from monitor.decide.policy import Judge, Knobs, Policy, PolicyState
from monitor.flow import Window


def read(path, left_out, order=None):
    """Columns of a Parquet file as the detectors take them: numbers, or text."""
    table = pq.read_table(path)
    if order:
        table = table.sort_by(order)
    columns, data = [], {}
    for name in table.column_names:
        if name in left_out:
            continue
        values = table[name].to_numpy(zero_copy_only=False)
        numeric = values.dtype.kind in "iuf" and name != "prediction"
        columns.append(Column(name, "numeric" if numeric else "category"))
        data[name] = values.astype(float) if numeric else [None if v is None else str(v) for v in values.tolist()]
    return columns, data


def watch(columns, data, *, reference_rows, pane_rows, ignore_below=0.1):
    """Reference, and all alarms as (last row of the pane, alarm), in order, and whether it fires at the end."""
    reference = Reference.fit({name: values[:reference_rows] for name, values in data.items()}, columns, model="m", version="1")
    budget = Budget(1, 4000.0, None)
    judge = Judge({"m": Knobs(budget, 1.0, ignore_below, 0.3, frozenset({"input"}))})
    judge.begin("m", reference, PolicyState())
    policy, found = Policy(judge), []
    total = len(next(iter(data.values())))
    for pane, start in enumerate(range(reference_rows, total - pane_rows + 1, pane_rows)):
        end = start + pane_rows
        profile = reference.profile({name: values[start:end] for name, values in data.items()})
        window = Window("m", "1", "", pane, float(pane), pane + 1.0, profile)
        severe = judge.states["m"].severe.firing
        found += [(end - 1, alarm.state, alarm) for alarm in policy(window, judge(window))]
        if severe and not judge.states["m"].severe.firing:
            found.append((end - 1, "severe over", None))
    return SimpleNamespace(reference=reference, alarms=found, firing=judge.states["m"].alarm.firing)


def rows_of(run, state, kind=None):
    return [row for row, state_, alarm in run.alarms if state_ == state and (kind is None or alarm.kind == kind)]


NOT_WATCHED = {"row", "shuffled_row", "year", "employed"}


@pytest.fixture(scope="module")
def census(shared_data):
    def run(order, **options):
        left_out = NOT_WATCHED | options.pop("left_out", set())
        columns, data = read(shared_data / "census_employment_ma.parquet", left_out, order)
        return watch(columns, data, reference_rows=55_535, pane_rows=250, **options)
    return run


def test_the_census_in_its_own_order_alarms_once_the_mix_changes_and_is_severe_once(census):
    run = census("row")
    assert run.reference.inadequate == ""
    row, state, alarm = run.alarms[0]
    assert state == "raised"
    assert 137_911 <= row <= 139_500
    assert "relationship" in [mover.column for mover in alarm.movers]
    (row, severe), = [(row, alarm) for row, state, alarm in run.alarms if state == "severe"]
    assert 202_404 <= row <= 202_404 + 2 * 250
    assert severe.movers[0].column == "relationship"
    assert severe.kind == "drift"
    assert severe.reference_adequate
    (over,) = rows_of(run, "severe over")
    assert over <= 216_000


def test_the_census_shuffled_inside_years_tells_of_a_value_out_of_range_and_is_never_severe(census):
    run = census("shuffled_row")
    row, state, alarm = run.alarms[0]
    assert (state, alarm.kind) == ("raised", "quality")
    assert 137_911 <= row <= 137_911 + 10 * 250
    assert [(mover.column, mover.what) for mover in alarm.movers] == [("age", "above 94")]
    assert rows_of(run, "severe") == []


def test_the_shuffled_census_without_age_is_certain_of_changes_of_no_weight(census):
    assert census("shuffled_row", left_out={"age"}).alarms == []
    strict = census("shuffled_row", left_out={"age"}, ignore_below=0.0)
    row, _, alarm = strict.alarms[0]
    assert alarm.movers[0].column == "ancestry"
    assert 55_535 + 10_000 <= row <= 55_535 + 35_000
    assert rows_of(strict, "severe") == []


def test_the_insects_alarm_when_the_temperature_changes_under_a_reference_too_dependent_to_retrain_on(shared_data):
    columns, data = read(shared_data / "insects_gradual_balanced.parquet", {"row", "insect_class"})
    run = watch(columns, data, reference_rows=4830, pane_rows=50)
    assert "too dependent or too short" in run.reference.inadequate
    assert run.reference.m_eff < 50
    raised, severe = rows_of(run, "raised", "drift"), rows_of(run, "severe")
    assert 10_500 <= raised[0] <= 11_700
    assert severe[0] <= 11_700
    assert len(raised) == 1
    assert run.firing
    assert not any(alarm.reference_adequate for _, _, alarm in run.alarms if alarm)


def test_the_bicycles_reference_of_one_spring_is_inadequate(shared_data):
    columns, data = read(shared_data / "bike_sharing_hourly.parquet", {"timestamp"})
    run = watch(columns, data, reference_rows=3475, pane_rows=24)
    assert "too dependent or too short" in run.reference.inadequate
    assert run.reference.m_eff < 5
    assert not any(alarm.reference_adequate for _, _, alarm in run.alarms if alarm)


def test_the_threshold_of_the_census_counts_every_comparison(census, shared_data):
    columns, data = read(shared_data / "census_employment_ma.parquet", NOT_WATCHED, "row")
    reference = Reference.fit({name: values[:55_535] for name, values in data.items()}, columns, model="m", version="1")
    bins = sum(row.binning.scan_bins for row in reference.records)
    scan = Scan(reference, panes_per_false_alarm=4000)
    assert len(reference.rows) == 18 + 13
    assert scan.tests == 16 * (4 * 31 + bins)
    assert np.isclose(scan.alpha * scan.tests * 4000, 1)
