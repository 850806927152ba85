"""A reference in no order: how dependent events are is learnt from the stream, once, and kept over a restart."""

import msgspec
import numpy as np
import pytest

from detectors.reference import Reference
from detectors.synthetic import Quantity, Stream
from monitor.config import Budget
from monitor.decide.policy import LEARNING_PANES, Judge, Knobs, Policy, PolicyState
from monitor.flow import Window

PANE = 200


def shuffled(ar, rows=20_000):
    """A stream, and a reference of earlier rows of it that somebody shuffled."""
    stream = Stream(41, (Quantity(),) * 4, ar=ar)
    data = stream.rows(rows)
    order = np.random.default_rng(1).permutation(rows)
    reference = Reference.fit({name: values[order] for name, values in data.items()}, stream.columns, ordered=False)
    return stream, reference


def judged(reference, state=None):
    judge = Judge({"m": Knobs(Budget(1, 60.0 * 400, None), 60.0, 0.0, 0.3, frozenset({"input"}))})
    judge.begin("m", reference, state or PolicyState())
    return judge, Policy(judge)


def fed(judge, policy, stream, reference, panes):
    words, alarms = [], []
    for pane in panes:
        window = Window("m", "1", "all", pane, pane * 60.0, pane * 60.0 + 60, reference.profile(stream.rows(PANE)))
        scores = judge(window)
        alarms += policy(window, scores)
        words.append(policy.state_name("m", scores))
    return words, alarms


@pytest.mark.parametrize(("ar", "least", "most"), [(0.0, 1.0, 2.0), (0.8, 4.0, 20.0)])
def test_dependence_is_learnt_from_the_stream_and_frozen(ar, least, most):
    stream, reference = shuffled(ar)
    assert reference.deff.tolist() == [1.0] * len(reference.rows)
    judge, policy = judged(reference)
    words, _ = fed(judge, policy, stream, reference, range(LEARNING_PANES + 40))
    learned = judge.scans["m"].reference
    assert ar or words[0] == "learning"                 # taken as independent, the dependent one cries wolf at once
    assert words[-1] != "learning"
    assert least <= float(np.median(learned.deff[:4])) <= most
    assert learned.digest == reference.digest
    frozen = learned.deff.tolist()
    fed(judge, policy, stream, reference, range(LEARNING_PANES + 40, LEARNING_PANES + 80))
    assert judge.scans["m"].reference.deff.tolist() == frozen
    assert learned.inadequate == "" if ar == 0 else True


def test_alarms_while_learning_say_that_the_reference_does_not_do():
    stream, reference = shuffled(0.0)
    judge, policy = judged(reference)
    stream.start(mean=1.0)
    _, alarms = fed(judge, policy, stream, reference, range(5))
    assert [alarm.state for alarm in alarms] == ["raised", "severe"]
    assert not any(alarm.reference_adequate for alarm in alarms)


def test_after_learning_a_dependent_stream_alarms_no_more_than_asked():
    """Asked one per 400 panes: 240 panes after the learning expect 0.6."""
    stream, reference = shuffled(0.8)
    judge, policy = judged(reference)
    _, before = fed(judge, policy, stream, reference, range(LEARNING_PANES))
    judge.clear("m")
    state = judge.states["m"]
    for machine in (state.alarm, state.severe, state.quality):
        machine.firing, machine.origin = False, LEARNING_PANES
    _, after = fed(judge, policy, stream, reference, range(LEARNING_PANES + 1, LEARNING_PANES + 241))
    assert sum(alarm.state == "raised" for alarm in before) >= 1        # taken as independent, it cries wolf
    assert sum(alarm.state == "raised" for alarm in after) <= 3


def test_what_was_learnt_is_the_same_after_a_restart():
    stream, reference = shuffled(0.8)
    judge, policy = judged(reference)
    fed(judge, policy, stream, reference, range(LEARNING_PANES))
    stored = msgspec.json.decode(msgspec.json.encode(judge.states["m"]), type=PolicyState)
    again, _ = judged(reference, stored)
    mine, theirs = again.scans["m"].reference, judge.scans["m"].reference
    for name in ("g_directions", "g_bins", "nu_directions", "nu_bins"):
        np.testing.assert_array_equal(getattr(mine.arrays, name), getattr(theirs.arrays, name))
