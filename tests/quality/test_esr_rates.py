"""The bound of e-SR on false alarms, by seeded simulation; each test states what chance alone may do to it."""

import numpy as np
import pytest

from detectors.esr import ESR
from detectors.reference import Reference
from detectors.synthetic import MIXED, RARE, Stream


def false_alarms(stream, *, panes, panes_per_false_alarm, events=100, rows=5_000):
    """Alarms of a stream without drift; after each the fortunes begin anew."""
    reference = Reference.fit(stream.rows(rows), stream.columns, model="m", version="1")
    esr = ESR(reference, tolerance=0.0, panes_per_false_alarm=panes_per_false_alarm)
    fortunes, alarms = esr.begin(), 0
    block = stream.rows(panes * events)
    for pane in range(panes):
        at = slice(pane * events, (pane + 1) * events)
        if esr.update(fortunes, reference.profile({name: values[at] for name, values in block.items()})).alarm:
            alarms += 1
            fortunes.clear()
    return alarms


@pytest.mark.parametrize(("quantities", "asked"), [(MIXED, 5), (MIXED, 20), (RARE, 20)], ids=["mixed", "mixed", "rare"])
def test_alarms_come_no_sooner_than_asked_on_average(quantities, asked):
    """Over 6 references of 100 panes each: at most the asked number, which the mean must not pass, and 3 s.d. of chance."""
    panes = 100
    alarms = sum(false_alarms(Stream(seed, quantities), panes=panes, panes_per_false_alarm=asked) for seed in range(6))
    expected = 6 * panes / asked
    assert alarms <= expected + 3 * np.sqrt(expected)


def test_panes_of_three_events_are_within_the_bound():
    """Where no normal tail could be assumed: 12 references, 300 panes of 3 events; at most 36 expected, P(> 54) < 0.003."""
    alarms = sum(false_alarms(Stream(seed, MIXED[8:14]), panes=300, panes_per_false_alarm=100, events=3) for seed in range(12))
    assert alarms <= 54
