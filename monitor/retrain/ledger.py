"""The ledger: every launch that was decided and the last thousand decisions, also the ones that said no.

It is the outbox's memory, and that of the audit trail: what people and programs asked. The trigger and `Retraining`
change it in memory; the store asks `changed()` for exactly what is new, writes that inside its own transaction together
with panes, offsets and alarm states, and says `clear_changed()` once the transaction stands. So a launch exists if and
only if the window, or the request, that asked for it is counted: a service that is killed before the commit reads the
window again and decides again; one that is killed after it never does.

Invariants: one launch per id, and the id is made from (model, version, episode), or the key of who asked, alone; a launch
is replaced, never removed; decisions are numbered from 1, rising, and only the last DECISIONS_MAX are kept, beside the
latest of each model, which an alarm that waits is asked by.

Memory: a launch is 2-4 kB, and a model gets about `max_per_week` of them: 100 models at 2 a week are 30 MB after a
year at the very most. Neighbours: `trigger` decides, `launch` carries out, `monitor.pipeline` hands rows to the store.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TypeVar

import msgspec

from monitor.decisions import Decision, Entry, Reason
from monitor.errors import CheckpointRefused
from monitor.flow import FINAL_STATES, Launch
from monitor.metrics import DECISION_REASONS

__all__ = ["DECISIONS_MAX", "ENTRIES_MAX", "REFUSALS", "Decision", "Entry", "Ledger", "Reason", "decision_from_json",
           "decision_to_json", "entry_from_json", "entry_to_json", "launch_from_json", "launch_id", "launch_to_json"]

DECISIONS_MAX = 1_000                     # what `explain` can look back on; older ones are dropped

ENTRIES_MAX = 1_000                       # of the audit trail that are held to be shown; the store keeps them all

#: What the trigger's reasons for `no` mean.
REFUSALS = DECISION_REASONS


_Row = TypeVar("_Row", Launch, Decision, Entry)


def launch_id(model: str, version: str, episode: int, key: str = "") -> str:
    r"""The launch's id: the first 12 hex digits of sha256 over model, version and episode, or the key of who asked.

    A zero byte, which no name may hold, stands between them, so that ("a", "11") and ("a1", "1") differ.

    >>> launch_id("churn", "7", 1) == launch_id("churn", "7", 1) != launch_id("churn", "71", 1)
    True
    >>> launch_id("churn", "7", 1, "a") == launch_id("churn", "7", 2, "a") != launch_id("churn", "7", 1)
    True
    """
    named = f"{model}\0{version}\0" + (f"asked\0{key}" if key else str(episode))
    return hashlib.sha256(named.encode()).hexdigest()[:12]


class Ledger:
    """Launches by id in the order they were decided, the latest decisions, and what people asked.

    counts : (model, outcome, reason) -> decisions since this process began
    """

    def __init__(self, launches: Iterable[Launch] = (), decisions: Iterable[Decision] = (),
                 entries: Iterable[Entry] = ()) -> None:
        self._launches = {launch.id: launch for launch in launches}
        self._of_model: dict[str, list[str]] = {}
        for launch in self._launches.values():
            self._of_model.setdefault(launch.model, []).append(launch.id)
        given = sorted(decisions, key=lambda decision: decision.number)
        self._decisions = deque(given, maxlen=DECISIONS_MAX)
        self._next_number = self._decisions[-1].number + 1 if self._decisions else 1
        self._changed_launches: dict[str, None] = {}
        self._stored_number = self._next_number - 1
        self._latest = {decision.model: decision for decision in given if not decision.key}
        self._entries = deque(entries, maxlen=ENTRIES_MAX)
        self._new_entries: list[Entry] = []
        self.counts: Counter[tuple[str, str, str]] = Counter()

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The last ENTRIES_MAX lines of the audit trail, oldest first."""
        return tuple(self._entries)

    @property
    def launches(self) -> Mapping[str, Launch]:
        """Every launch by its id; a view, not to be kept over a change."""
        return MappingProxyType(self._launches)

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """The last DECISIONS_MAX decisions, oldest first."""
        return tuple(self._decisions)

    @property
    def last_number(self) -> int:
        """The number of the last decision; 0 before the first."""
        return self._next_number - 1

    def latest(self, model: str) -> Decision | None:
        """The latest answer to an alarm of a model, however many others came since; None before the first."""
        return self._latest.get(model)

    def of_model(self, model: str) -> list[Launch]:
        """The launches of one model, oldest first."""
        return [self._launches[name] for name in self._of_model.get(model, ())]

    def unfinished(self) -> list[Launch]:
        """The launches in which something may still happen, oldest first."""
        return [launch for launch in self._launches.values() if launch.state not in FINAL_STATES]

    def awaiting_cut_over(self) -> list[Launch]:
        """Promoted launches whose new reference does not judge yet, oldest first; also after a restart in between."""
        return [launch for launch in self._launches.values()
                if launch.state == "promoted" and not launch.cut_over_at]

    def promoted(self, model: str) -> Launch | None:
        """The launch whose challenger is the model's champion now, when one was promoted and cut over."""
        done = [launch for launch in self.of_model(model) if launch.state == "promoted" and launch.cut_over_at]
        return max(done, key=lambda launch: launch.cut_over_at, default=None)

    def put(self, launch: Launch) -> None:
        """Add a launch, or replace the one of the same id."""
        known = self._launches.get(launch.id)
        if known != launch:
            if known is None:
                self._of_model.setdefault(launch.model, []).append(launch.id)
            self._launches[launch.id] = launch
            self._changed_launches[launch.id] = None

    def cut_over(self, launch: Launch, at: float) -> Launch:
        """Note that from event time `at` the promoted launch's reference judges; goes with the next transaction."""
        moved = dataclasses.replace(self._launches[launch.id], cut_over_at=at)
        self.put(moved)
        return moved

    def decide(self, decision: Decision) -> Decision:
        """Append a decision; returns it with its number.

        The same answer to the same episode once more is not noted again, so that an alarm that is repeated every pane
        does not push everything else out.
        """
        for earlier in reversed(self._decisions):
            if (earlier.model, earlier.version, earlier.episode, earlier.key) == (
                    decision.model, decision.version, decision.episode, decision.key):
                # An alarm that became severe anew is waited for anew, though the answer has the same word.
                is_same = decision.reason != "persistence" or earlier.until == decision.until
                if (earlier.outcome, earlier.reason) == (decision.outcome, decision.reason) and is_same:
                    return earlier
                break
        numbered = dataclasses.replace(decision, number=self._next_number)
        self._next_number += 1
        self._decisions.append(numbered)
        if not decision.key:
            self._latest[decision.model] = numbered
        self.counts[decision.model, decision.outcome, decision.reason] += 1
        return numbered

    def note(self, entry: Entry) -> None:
        """Add a line to the audit trail; it goes with the next transaction."""
        self._entries.append(entry)
        self._new_entries.append(entry)

    def new_entries(self) -> list[Entry]:
        """What the store does not have yet of the audit trail."""
        return list(self._new_entries)

    def changed(self) -> tuple[list[Launch], list[Decision]]:
        """What the store does not have yet: launches to upsert by id, decisions to append by number."""
        return ([self._launches[name] for name in self._changed_launches],
                [decision for decision in self._decisions if decision.number > self._stored_number])

    def clear_changed(self, launch: Launch | None = None) -> None:
        """The store has everything that `changed()` told; or, with `launch`, this one launch."""
        if launch is not None:
            self._changed_launches.pop(launch.id, None)
            return
        self._changed_launches.clear()
        self._new_entries.clear()
        self._stored_number = self._next_number - 1


def launch_to_json(launch: Launch) -> str:
    """The launch as one JSON document, every field by its name."""
    return msgspec.json.encode(launch).decode()


def launch_from_json(text: str | bytes) -> Launch:
    """The launch that `launch_to_json` wrote; CheckpointRefused for anything else, unknown and missing keys too."""
    launch = _from_json(text, Launch)
    if not launch.steps or launch.steps[-1][0] != launch.state:
        last = launch.steps[-1][0] if launch.steps else "no step"
        raise CheckpointRefused(f"launch {launch.id}: expected the state {launch.state!r} as its last step, "
                                f"got {last!r}; restore the state from a backup")
    return launch


def decision_to_json(decision: Decision) -> str:
    """The decision as one JSON document."""
    return msgspec.json.encode(decision).decode()


def decision_from_json(text: str | bytes) -> Decision:
    """The decision that `decision_to_json` wrote; CheckpointRefused for anything else."""
    return _from_json(text, Decision)


def entry_to_json(entry: Entry) -> str:
    """The line of the audit trail as one JSON document."""
    return msgspec.json.encode(entry).decode()


def entry_from_json(text: str | bytes) -> Entry:
    """The line that `entry_to_json` wrote; CheckpointRefused for anything else."""
    return _from_json(text, Entry)


def _from_json(text: str | bytes, kind: type[_Row]) -> _Row:
    what = kind.__name__.lower()
    try:
        row = msgspec.json.decode(text, type=kind)
        keys = msgspec.json.decode(text, type=dict[str, msgspec.Raw]).keys()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointRefused(f"stored {what}: expected the fields of a {what}, got: {error}; "
                                "restore the state from a backup") from None
    # A dataclass lets unknown keys through; here they mean a newer program, whose states we do not know.
    unknown = sorted(keys - {entry.name for entry in dataclasses.fields(kind)})
    if unknown:
        raise CheckpointRefused(f"stored {what}: expected only known fields, got {', '.join(unknown)[:200]}; "
                                "it was written by a newer tidemark: run that one")
    return row
