"""Reports of alarms: when one is asked for, and what it is made of.

    note     an alarm was raised or deepened: the counts of its window are read while the ring still holds them
    keep     the checkpoint has it: our half is written, the sampled rows of its panes go to evidently's process
    restore  after a start: an open alarm without a report gets one, from the panes that the store kept

Rows. The stored sample of each pane (`state.sample`) is the bounded reservoir: `reports.rows` a pane, fewer where columns are
many, of the panes that the longest window spans. They are drawn only where evidently can be given them: not where
reports are off, where evidently is not installed, or where the reference keeps no rows (then nothing raw is kept at all).

The invariant: nothing here decides anything, and nothing that goes wrong here ends the service. Cost: none per event but
the sampling's; at an alarm 2 ms for 20 columns, and one read of at most 128 stored panes. Neighbours: `pipeline` owns it,
`expose.report_maker` runs the process, `commands.report` makes one by hand from the same parts.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from detectors.profile import Profile
from detectors.reference import Reference
from detectors.scan import Scan
from monitor.config import Config, Reports, state_path
from monitor.decide.plan import Plan
from monitor.decide.policy import Judge
from monitor.errors import ConfigError, one_line
from monitor.expose.report_facts import Facts, episode_of, facts_of, opens, report_name, told
from monitor.expose.report_maker import Maker
from monitor.flow import Alarm
from monitor.state.sample import Sampling, from_bytes, in_time_order
from monitor.state.store import Store

log = logging.getLogger("tidemark")

#: Kinds of columns that evidently is shown; embeddings and texts are seen by their rows' histograms, in our half.
KINDS = frozenset({"numeric", "category", "boolean"})
#: Columns that evidently is shown, those that the alarm names first: each takes it a tenth of a second and a screen.
COLUMNS = 24
#: Panes whose rows are kept: the longest window's, and some that are decided before the report is asked for.
PANES = Scan.windows[-1] + 8
#: Values of one pane that are kept at most: with many columns fewer rows, but some.
VALUES, ROWS_MIN = 20_000, 4

Values = NDArray[np.float64] | Sequence[str | None]


class Packed(msgspec.Struct, frozen=True):
    """What evidently is given.

    kinds  : columns in the order in which they are shown, and their kinds
    before : the reference's rows, in time order: float64 bytes, or levels         panes : stored samples, oldest first
    """

    kinds: dict[str, str]
    before: dict[str, bytes | list[str | None]]
    panes: list[bytes]


def why_none(reports: Reports, reference: Reference | None = None) -> str:
    """Why evidently is given no rows; empty where it is."""
    if reports.enabled is False:
        return "reports.enabled is false"
    if find_spec("evidently") is None:
        return "evidently is not installed (pip install 'tidemark[report]')"
    if reference is not None and not reference.sample:
        return "the reference keeps no rows, so none are kept of the stream"
    return ""


def refuse_impossible(config: Config) -> None:
    """ConfigError where reports are asked for that cannot be made."""
    for index, monitor in enumerate(config.monitors):
        if config.reports.enabled and monitor.histograms_only:
            raise ConfigError(f"reports.enabled: expected none beside monitors[{index}].histograms_only, got true; leave it out, "
                              "and the other monitors still have theirs")
    if config.reports.enabled and (why := why_none(config.reports)):
        raise ConfigError("reports.enabled: expected evidently to be installed for true, got none; "
                          f"{why.partition('(')[2].rstrip(')')}, or leave it out")


def folder_of(config: Config, state: Path | str | None = None) -> Path | None:
    """Where reports are kept: as configured, or beside the state; None for a state that is only in memory."""
    if config.reports.folder is not None:
        return Path(config.reports.folder)
    place = state if state is not None else state_path(config.service.state)
    return None if str(place) == ":memory:" else Path(f"{place}.reports")


def sampling_of(plan: Plan | None, reference: Reference, reports: Reports | None) -> Sampling | None:
    """The rows that are kept of each pane, for further detectors and for reports; None where nobody needs any.

    plan : of the further detectors, where there are any          reports : None where no report is made of this run
    """
    asked = Sampling(plan.rows, plan.panes, plan.names) if plan is not None and plan.rows else None
    names = tuple(column.name for column in reference.columns if column.kind in KINDS)
    if reports is None or not names or why_none(reports, reference):
        return asked
    rows = max(ROWS_MIN, min(reports.rows, VALUES // len(names)))
    if asked is None:
        return Sampling(rows, PANES, names)
    return Sampling(max(rows, asked.rows), max(PANES, asked.panes), tuple(dict.fromkeys((*asked.names, *names))))


@dataclass(slots=True)
class Reporting:
    """The reports of one running service; `service` builds it, `pipeline` calls it."""

    reports: Reports
    maker: Maker
    store: Store
    judge: Judge
    bare: frozenset[str] = frozenset()              # models of which no row may be kept
    _changes: dict[str, tuple[Alarm, ...]] = field(default_factory=dict)        # of the open alarms, by report
    _noted: list[Facts] = field(default_factory=list)               # not yet committed

    @property
    def folder(self) -> Path:
        """Where the reports are."""
        return self.maker.shelf.folder

    def rows_of(self, model: str) -> Reports | None:
        """What says how many rows of a model are kept; None where none may be."""
        return None if model in self.bare else self.reports

    def note(self, alarms: Iterable[Alarm]) -> None:
        """Take an alarm's facts while its window is in the ring; nothing is written before the checkpoint has it."""
        for alarm in alarms:
            name = report_name(alarm)
            changes = self._changes[name] = (*self._changes.get(name, ()), alarm)
            if not opens(alarm):
                del self._changes[name]
            facts = replace(facts_of(alarm, None, None, 0), changes=changes)
            with self._harmless(facts):
                facts = replace(self._seen(alarm), changes=changes)
            same = [one for one in self._noted if one.name == name]
            if same and not opens(alarm):           # raised and cleared between two checkpoints: the first is told
                facts = replace(same[0], changes=changes)
            self._noted = [one for one in self._noted if one.name != name] + [facts]

    def first_pane(self, model: str) -> int | None:
        """The first pane whose rows an alarm needs that is not yet kept; None where none does."""
        return min((facts.alarm.pane - facts.alarm.window_panes + 1 for facts in self._noted
                    if facts.alarm.model == model and not facts.alarm.cause), default=None)

    def keep(self) -> None:
        """After the checkpoint: keep what was noted, and have the reports made."""
        noted, self._noted = self._noted, []
        for facts in noted:
            before = self.maker.shelf.facts(facts.name)
            with self._harmless(facts):
                if before is not None:
                    facts = replace(facts, changes=_joined(before.changes, facts.changes))
                if before is not None and not opens(facts.alarm):
                    self.maker.update(replace(before, changes=facts.changes))
                else:
                    self._offer(facts)

    def advance(self) -> None:
        """One look at the process that makes reports."""
        self.maker.advance()

    def restore(self, alarms: Sequence[Alarm], *, resume: bool = True) -> None:
        """Go on after a start: what waited is made (`resume`), and open alarms without a report get one.

        alarms : the stored ones, of all models or of one after the other
        """
        for facts in self.maker.shelf.all() if resume else ():
            if facts.state == "waiting":
                self.maker.resume(facts)
        names = dict.fromkeys(report_name(alarm) for alarm in alarms if alarm.model in self.judge.states)
        for name in names:
            changes = episode_of(alarms, name)
            alarm = told(changes)
            if alarm is None or changes[-1].state == "cleared":
                continue
            self._changes[name] = changes
            if self.maker.shelf.facts(name) is None:
                with self._harmless(replace(facts_of(alarm, None, None, 0), changes=changes)):
                    self._offer(stored_facts(self.store, alarm, changes))

    def close(self) -> None:
        """End the process that runs; its report is made after the next start."""
        self.maker.close()

    def _seen(self, alarm: Alarm) -> Facts:
        """What the ring says of an alarm that was decided just now."""
        ring, counts, events = self.judge.rings[alarm.model], None, 0
        if opens(alarm) and not alarm.cause and ring.panes:
            counts, events = ring.window(min(alarm.window_panes, ring.panes))
        return facts_of(alarm, self.judge.scans[alarm.model].reference, counts, events)

    def _offer(self, facts: Facts) -> None:
        """Have one made, with the rows of its panes where there are any."""
        rows, why = packed(self.store, facts, self.reports)
        if rows is None and facts.digest and facts.alarm.model in self.bare:
            why = "the monitor is histograms_only"
        self.maker.offer(replace(facts, why=why), rows)

    @contextlib.contextmanager
    def _harmless(self, facts: Facts) -> Iterator[None]:
        """What goes wrong with a report, whatever it is, costs that report and never the decisions beside it."""
        try:
            yield
        except Exception as error:
            self.maker.fail(facts.name, facts.alarm.model, one_line(f"{type(error).__name__}: {error}")[:300])


def stored_facts(store: Store, alarm: Alarm, changes: Sequence[Alarm]) -> Facts:
    """Our half of a report from the panes that the store kept; without columns where they are gone."""
    panes = [] if alarm.cause else store.window(alarm.model, alarm.version, alarm.pane - alarm.window_panes + 1, alarm.pane)
    if not panes:
        return replace(facts_of(alarm, None, None, 0), changes=tuple(changes))
    reference = store.reference(panes[0].reference_digest)
    whole: Profile = panes[0]
    for profile in panes[1:]:                       # turns: panes of the window, 128 at most
        whole = whole + profile
    return replace(facts_of(alarm, reference, whole.counts, whole.events), changes=tuple(changes))


def packed(store: Store, facts: Facts, reports: Reports) -> tuple[bytes | None, str]:
    """What evidently is given for an alarm; None, and why, where there is nothing to give."""
    alarm = facts.alarm
    if alarm.cause:
        return None, "this alarm rests on no column"
    if why := why_none(reports):
        return None, why
    if not facts.digest:
        return None, "the panes of its window are no longer kept"
    reference = store.reference(facts.digest)
    if why := why_none(reports, reference):
        return None, why
    panes = store.samples(alarm.model, alarm.version, alarm.pane - alarm.window_panes + 1, alarm.pane)
    if not panes:
        return None, "no rows of its window are kept"
    assert reference.sample is not None
    place = {column.column: rank for rank, column in enumerate(facts.columns)}
    chosen = sorted((column for column in reference.columns if column.kind in KINDS and column.name in reference.sample),
                    key=lambda column: place.get(column.name, len(place)))[:COLUMNS]
    before = {column.name: _stored(reference.sample[column.name]) for column in chosen}
    return msgspec.msgpack.encode(Packed({column.name: column.kind for column in chosen}, before, panes)), ""


def unpacked(given: Packed, rows_max: int) -> tuple[dict[str, Values], dict[str, Values], dict[str, str]]:
    """(rows of the reference, rows of the window in time order, kinds); of many rows evenly chosen ones."""
    samples = [sample for sample in (in_time_order(from_bytes(blob)) for blob in given.panes)
               if given.kinds.keys() <= sample.columns.keys()]
    window: dict[str, Values] = {}
    for name, kind in given.kinds.items():          # turns: columns, 24 at most
        parts = [sample.columns[name] for sample in samples]
        window[name] = _chosen(np.concatenate(parts) if kind == "numeric" and parts  # type: ignore[arg-type]
                               else [value for part in parts for value in part], rows_max)
    before = {name: _chosen(np.frombuffer(values, "<f8") if isinstance(values, bytes) else values, rows_max)
              for name, values in given.before.items()}
    return before, window, given.kinds


def _chosen(values: Values, most: int) -> Values:
    if len(values) <= most:
        return values
    places = np.linspace(0, len(values) - 1, most).astype(int)
    return values[places] if isinstance(values, np.ndarray) else [values[place] for place in places.tolist()]


def _stored(values: Values) -> bytes | list[str | None]:
    return values.astype("<f8").tobytes() if isinstance(values, np.ndarray) else list(values)


def _joined(before: Iterable[Alarm], later: Iterable[Alarm]) -> tuple[Alarm, ...]:
    """The changes of one alarm, each once, in the order of time."""
    found: list[Alarm] = []
    for alarm in (*before, *later):
        if (alarm.state, alarm.at) not in [(one.state, one.at) for one in found]:
            found.append(alarm)
    return tuple(found)
