"""The ledger: every launch that was decided and the last thousand decisions, also the ones that said no.

It is the outbox's memory. The trigger and `Retraining` change it in memory; the store asks `changed()` for exactly what
is new, writes that inside its own transaction together with panes, offsets and alarm states, and says `clear_changed()`
once the transaction stands. So a launch exists if and only if the window that asked for it is counted: a service that
is killed before the commit reads the window again and decides again; one that is killed after it never does.

Invariants: one launch per id, and the id is made from (model, version, episode) alone; a launch is replaced, never
removed; decisions are numbered from 1, rising, and only the last DECISIONS_MAX are kept.

Memory: a launch is 2-4 kB, and a model gets at most `max_per_week` of them: 100 models at 2 a week are 30 MB after a
year at the very most. Neighbours: `trigger` decides, `launch` carries out, `monitor.pipeline` hands rows to the store.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeVar

import msgspec

from monitor.errors import CheckpointRefused
from monitor.flow import FINAL_STATES, Launch

DECISIONS_MAX = 1_000                     # what `explain` can look back on; older ones are dropped

Reason = Literal["", "quality", "reference_inadequate", "roles", "cooldown", "budget", "in_flight", "episode_done",
                 "not_configured"]


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether one severe alarm got a retraining, and if not, why not.

    at     : event time of the alarm, seconds since 1970
    reason : empty when the outcome is "launch", else one of a closed list
    number : the place in the order of all decisions, from 1
    """

    model: str
    version: str
    episode: int
    at: float
    outcome: Literal["launch", "no"]
    reason: Reason
    number: int = 0


_Row = TypeVar("_Row", Launch, Decision)


def launch_id(model: str, version: str, episode: int) -> str:
    r"""The launch's id: the first 12 hex digits of sha256 over model, version and episode.

    A zero byte, which no name may hold, stands between them, so that ("a", "11") and ("a1", "1") differ.

    >>> launch_id("churn", "7", 1) == launch_id("churn", "7", 1) != launch_id("churn", "71", 1)
    True
    """
    return hashlib.sha256(f"{model}\0{version}\0{episode}".encode()).hexdigest()[:12]


class Ledger:
    """Launches by id in the order they were decided, and the latest decisions."""

    def __init__(self, launches: Iterable[Launch] = (), decisions: Iterable[Decision] = ()) -> None:
        self._launches = {launch.id: launch for launch in launches}
        self._decisions = deque(sorted(decisions, key=lambda decision: decision.number), maxlen=DECISIONS_MAX)
        self._next_number = self._decisions[-1].number + 1 if self._decisions else 1
        self._changed_launches: dict[str, None] = {}
        self._stored_number = self._next_number - 1

    @property
    def launches(self) -> Mapping[str, Launch]:
        """Every launch by its id; a view, not to be kept over a change."""
        return MappingProxyType(self._launches)

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """The last DECISIONS_MAX decisions, oldest first."""
        return tuple(self._decisions)

    def of_model(self, model: str) -> list[Launch]:
        """The launches of one model, oldest first."""
        return [launch for launch in self._launches.values() if launch.model == model]

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
        if self._launches.get(launch.id) != launch:
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
            if (earlier.model, earlier.version, earlier.episode) == (decision.model, decision.version,
                                                                     decision.episode):
                if (earlier.outcome, earlier.reason) == (decision.outcome, decision.reason):
                    return earlier
                break
        numbered = dataclasses.replace(decision, number=self._next_number)
        self._next_number += 1
        self._decisions.append(numbered)
        return numbered

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
