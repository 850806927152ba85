"""`tidemark selftest`: what its figures rest on, what it prints, and its exit codes."""

import json

import numpy as np
import pytest

from detectors.law import Law
from detectors.reference import Column, Reference
from detectors.synthetic import MIXED, Stream
from monitor.cli import main
from monitor.commands.selftest import lasting
from monitor.commands.simulation import Delay, Rate, Simulation, kinds
from monitor.config import Budget
from monitor.decide.policy import Knobs

KNOBS = Knobs(Budget(1, 30 * 86400.0, None), 60.0, 0.1, 0.3, frozenset({"input"}))


@pytest.fixture(scope="module")
def reference():
    stream = Stream(31, (*MIXED[:3], MIXED[15]))
    return Reference.fit(stream.rows(2_000), stream.columns, model="m", version="1")


@pytest.fixture
def configuration(tmp_path, reference):
    reference.save(tmp_path / "reference.json")
    path = tmp_path / "tidemark.yaml"
    path.write_text(f"files: {{paths: [{tmp_path}/events.jsonl]}}\n"
                    f"service: {{state: 'sqlite:///{tmp_path}/state.db'}}\n"
                    f"monitors: [{{model: m, topic: t, reference: '{tmp_path}/reference.json'}}]\n")
    return path


def once(reference, seed=0, runs=1):
    """A simulation of so many runs, however long they take."""
    simulation = Simulation(reference, KNOBS, events_per_pane=100, seed=seed)
    simulation.quiet_panes = 40
    simulation.kinds = [kind for kind in simulation.kinds if kind.words.endswith((" 0.25 s.d.", " 1 s.d."))
                        or "independent" in kind.words]
    simulation.delays = [Delay(kind.words) for kind in simulation.kinds]
    simulation.run(clock=lambda: 0.0, until=1.0, runs=runs)
    return simulation


@pytest.fixture(scope="module")
def measured(reference):
    return once(reference)


def test_a_run_depends_on_its_seed_alone(reference, measured):
    again, other = once(reference), once(reference, seed=1)
    assert [delay.panes for delay in measured.delays] == [delay.panes for delay in again.delays]
    assert [rate.counts for rate in measured.rates] == [rate.counts for rate in again.rates]
    assert [delay.panes for delay in measured.delays] != [delay.panes for delay in other.delays]


def test_a_large_shift_is_found_sooner_than_a_small_one(measured):
    delays = {delay.kind: delay.median for delay in measured.delays}
    assert delays["mean of one column up by 1 s.d."] <= 3
    assert delays["mean of one column up by 1 s.d."] <= delays["mean of one column up by 0.25 s.d."]
    assert any("independent of the others" in kind for kind in delays)


def test_a_drift_goes_where_it_is_one():
    """Missing values into complete columns, zeros into columns without, levels into categories."""
    stream = Stream(33, (MIXED[0], MIXED[12], MIXED[15], MIXED[18]))        # normal, zero-inflated, ten levels, 5 % missing
    law = Law.of(Reference.fit(stream.rows(2_000), stream.columns))
    places = {kind.words: kind.places for kind in kinds(law)}
    assert places["3 % of one column missing"] == (0, 1, 2)
    assert places["the value 0 in 10 % of one column"] == (0, 3)
    assert places["a new level in 2 % of one column"] == (2,)
    assert places["spread of one column times 1.3"] == (0, 1, 3)
    assert kinds(Law.of(Reference.fit({"v": np.eye(4)[np.arange(400) % 4]}, [Column("v", "embedding")]))) == []


def test_every_rate_is_asked_for_over_the_same_panes(measured):
    assert [(rate.asked, rate.ignore_below) for rate in measured.rates] == [(50, 0.1), (500, 0.1), (100, 0.0)]
    assert {rate.panes for rate in measured.rates} == {40}


def test_time_ends_a_measurement_without_counting_it(reference):
    """A clock that is past its end after the first panes: no delay is noted, and the panes seen are."""
    ticks = iter(np.linspace(0, 1_000, 10_000))
    simulation = Simulation(reference, KNOBS, events_per_pane=100)
    simulation.run(clock=lambda: next(ticks), until=1.0)
    assert simulation.runs == 1
    assert 0 < simulation.rates[0].panes < 30
    assert all(not delay.panes for delay in simulation.delays)


@pytest.mark.parametrize(("counts", "panes", "asked", "low", "high", "is_too_high"), [
    ([0, 0], 1_000, 50, 0.0, 0.003689, False),                  # chi-square limits: 3.689 of 0 seen
    ([10, 10, 10], 1_000, 50, 0.020241, 0.042827, False),
    ([20, 20, 20], 1_000, 50, 0.045785, 0.077232, True),
    ([0, 60, 0], 1_000, 50, 0.001519, 0.334299, False),               # one unlucky reference is no broken knob
    ([200], 1_000, 50, 0.173234, 0.229723, False),
    ([100, 100], 1_000, 50, 0.173234, 0.229723, True),
])
def test_the_interval_is_poissons_and_wider_where_runs_differ(counts, panes, asked, low, high, is_too_high):
    rate = Rate(asked, 0.1, panes=panes, counts=counts)
    assert rate.interval() == pytest.approx((low, high), abs=1e-4)
    assert rate.is_too_high is is_too_high


def test_the_command_says_what_it_simulated_and_found(configuration, capsys):
    code = main(["selftest", "-c", str(configuration), "--seconds", "4", "--runs", "1", "--events-per-pane", "50"])
    said = capsys.readouterr().out
    assert code == 0
    for expected in ("m version 1: asked for one false alarm in 43,200 panes of 60 seconds", "1 run, each with a new reference",
                     "50 events", "False alarms, in panes without drift", "Delay at the asked rate", "Smallest shift",
                     "No more false alarms than asked for",
                     "whatever the reference does not show"):
        assert expected in said


def test_the_command_answers_programs(configuration, capsys):
    assert main(["selftest", "-c", str(configuration), "--runs", "1", "--seconds", "2", "--json"]) == 0
    answer, = json.loads(capsys.readouterr().out)
    assert answer["events_per_pane"] == 250                     # neither state nor span knows better
    assert answer["panes_per_false_alarm"] == 43_200
    assert [rate["asked_panes_per_alarm"] for rate in answer["false_alarms"]] == [50, 500, 100]
    assert {item["column"] for item in answer["smallest_visible_shift"] if not item["joint"]} == {"c0", "c1", "c2", "c3"}


def test_more_false_alarms_than_asked_for_end_in_code_3(configuration, capsys, monkeypatch):
    monkeypatch.setattr(Rate, "is_too_high", True)
    assert main(["selftest", "-c", str(configuration), "--runs", "1", "--seconds", "1"]) == 3
    assert "More false alarms than asked for" in capsys.readouterr().out


@pytest.mark.parametrize(("flags", "expected"), [
    (("--seconds", "0"), "--seconds: expected a number of at least 1, got 0"),
    (("--runs", "0"), "--runs: expected a number of at least 1, got 0"),
    (("--events-per-pane", "-3"), "--events-per-pane: expected a number of at least 1, got -3"),
    (("--events-per-pane", "nan"), "--events-per-pane: expected a number of at least 1, got nan"),
    (("--model", "other"), "--model: expected one of m, got 'other'"),
])
def test_a_mistake_is_one_line(configuration, capsys, flags, expected):
    assert main(["selftest", "-c", str(configuration), *flags]) == 2
    assert capsys.readouterr().err.strip() == f"tidemark selftest: {expected}"


def test_a_reference_too_small_for_decisions_is_refused(configuration, tmp_path, capsys):
    stream = Stream(32, MIXED[:2])
    Reference.fit(stream.rows(150), stream.columns, model="m", version="1").save(tmp_path / "reference.json")
    assert main(["selftest", "-c", str(configuration)]) == 2
    assert "monitors[0].reference: expected rows enough for a decision, got 150" in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "expected"), [(45, "45 s"), (600, "10 min"), (7 * 3600, "7.0 h"), (3 * 86400, "3.0 days")])
def test_a_length_of_time_is_said_in_its_largest_fitting_unit(seconds, expected):
    assert lasting(seconds) == expected
