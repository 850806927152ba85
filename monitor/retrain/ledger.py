"""The ledger: the launches that something is still asked of, and the last thousand decisions, also the ones that said no.

It is the outbox's memory, and that of the audit trail: what people and programs asked. The trigger and `Retraining`
change it in memory; the store asks `changed()` for exactly what is new, writes that inside its own transaction together
with panes, offsets and alarm states, and says `clear_changed()` once the transaction stands. So a launch exists if and
only if the window, or the request, that asked for it is counted: a service that is killed before the commit reads the
window again and decides again; one that is killed after it never does.

Invariants: one launch per id, and the id is made from (model, version, episode), or the key of who asked, alone; a launch
is replaced, never removed; decisions are numbered from 1, rising, and only the last DECISIONS_MAX are kept, beside the
latest of each model, which an alarm that waits is asked by.

Memory: a launch is 2-4 kB. Of those in which nothing happens any more the latest of each kind are held (`KEPT`), at least
as many as the policy's own limits look back at; the store keeps all. Of those that are let go, what must stay known stays:
how many ended how, their failed calls, the highest episode that each version launched, and the store is asked for a key.
Neighbours: `trigger` decides, `launch` carries out, `monitor.pipeline` hands rows to the store.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TypeVar

import msgspec

from monitor.decisions import Decision, Entry, Reason
from monitor.documents import read_json
from monitor.errors import CheckpointRefused
from monitor.flow import FINAL_STATES, Launch
from monitor.metrics import DECISION_REASONS

__all__ = [
    "DECISIONS_MAX", "ENTRIES_MAX", "KEPT", "KEPT_REFERENCE", "REFUSALS", "Decision", "Entry", "Ledger", "Reason",
    "decision_from_json", "decision_to_json", "entry_from_json", "entry_to_json", "kept_of", "launch_from_json", "launch_id",
    "launch_to_json", "was_rejected"]

DECISIONS_MAX = 1_000                     # what `explain` can look back on; older ones are dropped

ENTRIES_MAX = 1_000                       # of the audit trail that are held to be shown; the store keeps them all

#: Launches of one model that are held after their end, the latest of each kind. Promoted ones are what a roll-back may go
#: back to; of the others, the breaker asks for `useless_max` and the budgets for `max_per_week`, which raise the number.
KEPT = {"promoted": 20, "rejected": 10, "ended": 30}
#: In place of a URI: a reference that the state holds, by its digest.
KEPT_REFERENCE = "state:"
#: Versions of one model whose highest launched episode is remembered: those that may still come back.
VERSIONS_KEPT = 100

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


def was_rejected(launch: Launch) -> bool:
    """Refused before anything was started, by a person or because nobody answered; a verdict's refusal comes later."""
    return launch.state == "refused" and all(state != "approved" for state, _ in launch.steps)


def kept_of(max_per_week: int = 0, useless_max: int | None = None) -> dict[str, int]:
    """How many ended launches of a model are held, by kind, where its policy looks back at so many."""
    asked = max(max_per_week, useless_max or 0)
    return {kind: count if kind == "rejected" else max(count, asked) for kind, count in KEPT.items()}


class Ledger:
    """Launches by id in the order they were decided, the latest decisions, and what people asked.

    launches, decisions, entries : what the store has, oldest first; read once, one by one
    kept    : model -> how many ended launches of each kind are held (`kept_of`); KEPT where a model is not in it
    earlier : gives every stored launch of a model, oldest first; asked for a key where launches were let go
    counts  : (model, outcome, reason) -> decisions since this process began
    """

    def __init__(self, launches: Iterable[Launch] = (), decisions: Iterable[Decision] = (), entries: Iterable[Entry] = (), *,
                 kept: Mapping[str, Mapping[str, int]] | None = None,
                 earlier: Callable[[str], Iterable[Launch]] | None = None) -> None:
        self._kept, self._earlier = kept or {}, earlier
        self._launches: dict[str, Launch] = {}
        self._of_model: dict[str, dict[str, None]] = {}
        self._let_go: dict[str, Counter[tuple[str, str]]] = {}
        self._failed_calls: dict[str, Counter[str]] = {}
        self._episodes: dict[str, dict[str, int]] = {}      # of launches that were let go: model -> version -> the highest
        self._changed_launches: dict[str, None] = {}
        self._moved: set[str] = set()                       # models of which a launch came or moved on
        for launch in launches:
            self._launches[launch.id] = launch
            self._of_model.setdefault(launch.model, {})[launch.id] = None
            self._let_go_of(launch.model)
        self._decisions: deque[Decision] = deque(maxlen=DECISIONS_MAX)
        self._latest: dict[str, Decision] = {}
        for decision in decisions:
            self._decisions.append(decision)
            if not decision.key:
                self._latest[decision.model] = decision
        self._next_number = max((decision.number for decision in self._decisions), default=0) + 1
        self._stored_number = self._next_number - 1
        self._entries = deque(entries, maxlen=ENTRIES_MAX)
        self._new_entries: list[Entry] = []
        self.counts: Counter[tuple[str, str, str]] = Counter()

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The last ENTRIES_MAX lines of the audit trail, oldest first."""
        return tuple(self._entries)

    @property
    def launches(self) -> Mapping[str, Launch]:
        """The launches that are held, by id, oldest first; a view, not to be kept over a change."""
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
        """The launches of one model that are held, oldest first: the open ones, and the latest that ended."""
        return [self._launches[name] for name in self._of_model.get(model, ())]

    def ended_before(self, model: str) -> Mapping[tuple[str, str], int]:
        """(launcher, state) -> launches of a model that have ended and are no longer held."""
        return self._let_go.get(model, {})

    def calls_failed_before(self, model: str) -> Mapping[str, int]:
        """Launcher -> calls that failed, of those launches."""
        return self._failed_calls.get(model, {})

    def has_launched(self, model: str, version: str, episode: int) -> bool:
        """Whether an episode has had a launch. Episodes rise, so of those that were let go the highest tells."""
        return 0 < episode <= self._episodes.get(model, {}).get(version, 0) or any(
            (launch.version, launch.episode) == (version, episode) for launch in self.of_model(model))

    def asked_by(self, model: str, key: str) -> Launch | None:
        """The launch that was decided for this key, held or only stored; None where there is none."""
        found = next((launch for launch in self.of_model(model) if launch.key == key), None)
        if found is not None or self._earlier is None or model not in self._let_go:
            return found
        return next((launch for launch in self._earlier(model) if launch.key == key), None)

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

    def digests(self) -> set[str]:
        """The references that held launches name in the state: what a promotion replaced, what a roll-back goes to."""
        named = {launch.previous_digest for launch in self._launches.values()}
        return named | {launch.reference_uri.removeprefix(KEPT_REFERENCE) for launch in self._launches.values()
                        if launch.reference_uri.startswith(KEPT_REFERENCE)}

    def put(self, launch: Launch) -> None:
        """Add a launch, or replace the one of the same id."""
        known = self._launches.get(launch.id)
        if known != launch:
            if known is None:
                self._of_model.setdefault(launch.model, {})[launch.id] = None
            self._launches[launch.id] = launch
            self._changed_launches[launch.id] = None
            self._moved.add(launch.model)

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
        for model in self._moved:
            self._let_go_of(model)
        self._moved.clear()

    def _let_go_of(self, model: str) -> None:
        """Hold of the ended launches of a model only the latest of each kind; what is not stored yet, stays."""
        names, kept = self._of_model[model], self._kept.get(model, KEPT)
        if len(names) <= min(kept.values()):
            return
        held: Counter[str] = Counter()
        for name in reversed(list(names)):
            launch = self._launches[name]
            kind = _kind(launch)
            if not kind:
                continue
            held[kind] += 1
            if held[kind] <= kept[kind] or name in self._changed_launches:
                continue
            del self._launches[name], names[name]
            self._let_go.setdefault(model, Counter())[launch.launcher, launch.state] += 1
            self._failed_calls.setdefault(model, Counter())[launch.launcher] += launch.attempts
            self._note_episode(launch)

    def _note_episode(self, launch: Launch) -> None:
        versions = self._episodes.setdefault(launch.model, {})
        versions[launch.version] = max(launch.episode, versions.pop(launch.version, 0))
        if len(versions) > VERSIONS_KEPT:
            del versions[next(iter(versions))]


def _kind(launch: Launch) -> str:
    """The key of KEPT that an ended launch belongs to; empty while something may still happen."""
    if launch.state not in FINAL_STATES or (launch.state == "promoted" and not launch.cut_over_at):
        return ""
    return "promoted" if launch.state == "promoted" else "rejected" if was_rejected(launch) else "ended"


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
        row = read_json(text, kind)
        keys = read_json(text, dict[str, msgspec.Raw]).keys()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointRefused(f"stored {what}: expected the fields of a {what}, got: {error}; "
                                "restore the state from a backup") from None
    # A dataclass lets unknown keys through; here they mean a newer program, whose states we do not know.
    unknown = sorted(keys - {entry.name for entry in dataclasses.fields(kind)})
    if unknown:
        raise CheckpointRefused(f"stored {what}: expected only known fields, got {', '.join(unknown)[:200]}; "
                                "it was written by a newer tidemark: run that one")
    return row
