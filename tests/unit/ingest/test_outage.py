"""What is said of brokers that are away, and how often something is tried again."""

import logging
import threading

import pytest

from monitor.errors import SourceFailed
from monitor.ingest.outage import GRACE_SECONDS, Opening, Outage, Pauses


class Clock:
    def __init__(self):
        self.now = 1_000.0

    def __call__(self):
        return self.now


def test_a_short_absence_is_not_mentioned(caplog):
    caplog.set_level(logging.INFO, "tidemark")
    clock = Clock()
    outage = Outage(clock)
    outage.missed("gone")
    clock.now += GRACE_SECONDS / 2
    outage.missed("gone")
    outage.reached()
    clock.now += GRACE_SECONDS                      # the next one begins anew
    outage.missed("gone")
    assert (outage.away, caplog.records) == ("", [])


def test_a_night_without_brokers_is_a_dozen_lines(caplog):
    caplog.set_level(logging.INFO, "tidemark")
    clock = Clock()
    outage = Outage(clock)
    for _ in range(8 * 3600):
        outage.missed("gone")
        clock.now += 1
    outage.reached()
    said = [record.getMessage() for record in caplog.records]
    assert said == ["Kafka does not answer; trying again.", *["Kafka still does not answer."] * (len(said) - 2),
                    "Kafka answers again."]
    assert 8 <= len(said) <= 16
    assert caplog.records[-1].seconds == 8 * 3600
    assert outage.away == ""


def test_what_will_not_mend_itself_is_said_at_once(caplog):
    outage = Outage(Clock())
    outage.missed("refused", at_once=True)
    assert (outage.away, [record.error for record in caplog.records]) == ("refused", ["refused"])


def test_the_sure_cause_is_said_once_when_it_is_found_and_not_at_the_next_reminder(caplog):
    clock = Clock()
    outage = Outage(clock)
    for turn in range(40):                          # below the first reminder
        if turn % 4 == 3:
            outage.missed("wrong password", at_once=True)
        else:
            outage.missed("disconnected")
        clock.now += 1
    assert [record.error for record in caplog.records] == ["wrong password"]
    outage = Outage(clock)
    caplog.clear()
    for why, is_sure in [*[("disconnected", False)] * 5, *[("wrong password", True)] * 30]:
        outage.missed(why, at_once=is_sure)
        clock.now += 1
    assert [record.error for record in caplog.records] == ["disconnected", "wrong password"]


def test_pauses_grow_to_half_a_minute_and_begin_anew_after_a_sound_while():
    clock, taken = Clock(), []
    pauses = Pauses(clock)
    for _ in range(9):
        taken.append(pauses.take())
        clock.now += taken[-1] + 5
    assert taken == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    clock.now += 120
    assert pauses.take() == 0.5


def never(_result):
    raise AssertionError("nothing was to be discarded")


class NoPauses(Pauses):
    def take(self):
        return 0.0


def test_opening_tries_until_it_succeeds_and_keeps_the_last_reason():
    answers = iter([SourceFailed("away"), SourceFailed("refused"), "client"])

    def make():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    opening = Opening(make, never, NoPauses())
    assert opening.take(30) == "client"
    assert opening.error == "refused"


def test_a_client_that_nobody_wants_any_more_is_discarded():
    begun, go_on, discarded = threading.Event(), threading.Event(), threading.Event()

    def make():
        begun.set()
        go_on.wait(30)
        return "client"

    opening = Opening(make, lambda client: discarded.set(), NoPauses())
    assert begun.wait(30)
    opening.give_up()
    go_on.set()
    assert discarded.wait(30)
    assert opening.take(0) is None


def test_a_defect_of_ours_is_raised_where_it_is_seen():
    def make():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Opening(make, never, NoPauses()).take(30)
