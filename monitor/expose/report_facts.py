"""What a report says of one alarm, as values: taken from the counts when the alarm is raised, kept beside the state.

A report has two halves. The first is ours, and there for every alarm: what moved, how far and how sure, since when, the
columns' histograms in the reference and in the alarm's window, and what came of it. It needs counts alone, so it is
`Facts`, made in a millisecond. The second is evidently's, made of sampled rows in a process of its own, and may be absent.

The invariant: `Facts` is a function of the alarm, its reference and the counts of its window, so the one that is made at
the alarm, the one after a restart and the one by hand are equal. Which columns are named is what the alarm named; others
are shown behind them, the farthest first. Bounded: HISTOGRAMS columns with bins, COLUMNS with distances, whatever the model.

A report is called as the links in alerts and dashboards say: MODEL-VERSION-WORD-EPISODE, where the word is the alarm's
cause, or its kind where it rests on columns. Neighbours: `report_shelf` keeps it, `report_page` words it, `monitor.reporting`
asks for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from detectors.comparison import display
from detectors.reference import Reference
from monitor.expose.judged import Frame
from monitor.flow import Alarm

#: Columns whose histograms are shown, and whose distances are listed: what a person reads, whatever the model's width.
HISTOGRAMS, COLUMNS = 16, 200
#: How a report's name ends: what the alarm is of, and its episode.
ENDING = re.compile(r"-(drift|quality|wrong_type|volume)-([0-9]{1,12}|latest)$")

#: none: there is only our half, `why` says the reason · waiting · made · failed: `why` has the words
State = Literal["none", "waiting", "made", "failed"]


class ColumnFacts(msgspec.Struct, frozen=True):
    """One row of the reference in the alarm's window.

    named     : the alarm names it        distances : detector -> value; those that do not exist are left out
    bins      : in words, or none where no histogram is kept      reference, window : share of events in each, 0 to 1
    """

    column: str
    role: str
    named: bool
    distances: dict[str, float]
    bins: tuple[str, ...] = ()
    reference: tuple[float, ...] = ()
    window: tuple[float, ...] = ()


class Facts(msgspec.Struct, frozen=True):
    """Our half of a report.

    alarm    : the change of decision that it is about       changes : all of its episode that are known, oldest first
    events   : in the alarm's window                         columns_total : rows of the reference, listed here or not
    state    : how the half of evidently stands              why     : the reason where there is none
    rows     : sampled rows of the window and of the reference that evidently was given
    """

    name: str
    alarm: Alarm
    changes: tuple[Alarm, ...]
    events: int = 0
    reference_events: int = 0
    digest: str = ""
    columns: tuple[ColumnFacts, ...] = ()
    columns_total: int = 0
    state: State = "none"
    why: str = ""
    rows: tuple[int, int] = (0, 0)


def report_name(alarm: Alarm) -> str:
    """What an alarm's report is called, the same for all changes of its episode."""
    return f"{alarm.model}-{alarm.version}-{alarm.cause or alarm.kind}-{alarm.episode}"


def opens(alarm: Alarm) -> bool:
    """Whether this change begins or deepens an alarm: such a one has a report made."""
    return alarm.state in ("raised", "severe")


def episode_of(alarms: Iterable[Alarm], name: str) -> tuple[Alarm, ...]:
    """The changes of one alarm among all."""
    return tuple(alarm for alarm in alarms if report_name(alarm) == name)


def told(changes: Iterable[Alarm]) -> Alarm | None:
    """The change that a report is about: the last one that opened the alarm, or deepened it."""
    return next((alarm for alarm in reversed(tuple(changes)) if opens(alarm)), None)


def facts_of(alarm: Alarm, reference: Reference | None, counts: NDArray[np.int64] | None, events: int) -> Facts:
    """Our half of an alarm's report.

    counts : of its window, shape (J, fine bins); None where the alarm rests on no column, or nothing was kept
    """
    bare = Facts(report_name(alarm), alarm, (alarm,))
    if reference is None or counts is None or alarm.cause or not events:
        return bare
    with np.errstate(all="ignore"):
        distances = display(reference, counts, events)
    frame = Frame(reference)
    named = {mover.column: place for place, mover in enumerate(alarm.movers)}
    far = np.nan_to_num(distances["psi"], nan=-1.0)
    far = np.concatenate([far, np.full(len(reference.rows) - len(far), -1.0)])
    order = sorted(range(len(reference.rows)), key=lambda row: (named.get(reference.rows[row], len(named)), -far[row]))
    columns = []
    for place, row in enumerate(order[:COLUMNS]):               # turns: columns, 200 at most
        values = {name: float(found[row]) for name, found in distances.items() if row < len(found) and np.isfinite(found[row])}
        told_of = ColumnFacts(frame.columns[row], frame.roles[row], reference.rows[row] in named, values)
        if place < HISTOGRAMS:
            told_of = msgspec.structs.replace(
                told_of, bins=frame.bins[row], reference=tuple(frame.shares(row, reference.arrays.counts).tolist()),
                window=tuple(frame.shares(row, counts).tolist()))
        columns.append(told_of)
    return msgspec.structs.replace(
        bare, events=events, reference_events=reference.events, digest=reference.digest, columns=tuple(columns),
        columns_total=len(reference.rows))
