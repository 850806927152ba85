"""What was decided about retraining, by the trigger and by people: the records that are stored, shown and counted.

    Decision   the trigger's answer to an alarm or to somebody who asked: a launch, or no and why not
    Entry      what somebody asked or answered, through which door, with which words: the audit trail
    Limit      how one limit of the policy stands now, in words and in numbers
    PolicyStatus   all of it at one moment, as it is shown

A decision's reason comes from the closed list of `metrics.DECISION_REASONS`, which says what each means; so it is a
label, a word of the API and a line of docs/retraining.md alike. The trigger makes these values, the ledger keeps them,
the store writes them in the transaction of what they changed, and the API, the metrics and the commands show them.

Invariant: all three are frozen, and every field that a later version adds has a default, so that what was stored before
is read again. Cost: a few hundred bytes each; the ledger bounds how many are held. Neighbours: `retrain.trigger` and
`retrain.limits` make them, `retrain.ledger` keeps them, `expose` and `commands` show them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

#: The keys of `metrics.DECISION_REASONS`, and "" where a launch was decided.
Reason = Literal[
    "", "not_configured", "quality", "reference_inadequate", "roles", "on_request", "episode_done", "persistence",
    "learning", "in_flight", "all_in_flight", "breaker", "cooldown", "budget", "gpu_hours", "blackout"]
#: What people, and the programs that ask in their place, can do.
Action = Literal["approve", "reject", "fire", "reset", "expire", "rollback"]
#: Who asked where no person did.
ALERTMANAGER, NOBODY = "alertmanager", "tidemark"


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether one severe alarm, or somebody who asked, got a retraining, and if not, why not.

    episode : number of the alarm; 0 where somebody asked and no severe alarm was open
    at      : event time, seconds since 1970
    reason  : empty when the outcome is "launch", else one of a closed list
    number  : the place in the order of all decisions, from 1
    until   : event time from which the answer may be another, as far as it is known; 0 where it is not
    by, key : of who asked; empty where the alarm did
    launch  : id of the launch that was decided
    """

    model: str
    version: str
    episode: int
    at: float
    outcome: Literal["launch", "no"]
    reason: Reason
    number: int = 0
    until: float = 0.0
    by: str = ""
    key: str = ""
    launch: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the audit trail: what somebody asked of the trigger, and what came of it.

    at    : wall-clock seconds since 1970        by : who asked, as far as is known: `token`, `alertmanager`, `tidemark`
    why   : the words that came with it           key : asking again with the same key is asking once
    taken : whether it was done                   words : what was answered
    """

    at: float
    action: Action
    by: str
    model: str = ""
    launch: str = ""
    why: str = ""
    key: str = ""
    taken: bool = True
    words: str = ""


@dataclass(frozen=True, slots=True)
class Limit:
    """How one limit of a model's retraining policy stands at one moment of event time.

    holds : whether it holds a launch back now        until : event time at which it ends, where that is known, else 0
    words : how it stands, in one sentence without a full stop
    """

    reason: Reason
    holds: bool
    words: str
    until: float = 0.0


@dataclass(frozen=True, slots=True)
class PolicyStatus:
    """How a model's retraining policy stands now.

    budget_remaining, gpu_hours_remaining : what the week leaves; None where GPU hours are not bounded
    useless : launches of the version in a row that brought nothing
    waiting : the latest answer to the severe alarm that is open, when it was a no for now
    limits  : every limit, in the order in which the trigger asks
    counts  : (outcome, reason) -> decisions since the service started; the reason of a launch is `none`
    """

    budget_remaining: int
    gpu_hours_remaining: float | None
    useless: int
    waiting: Decision | None
    limits: tuple[Limit, ...]
    counts: Mapping[tuple[str, str], int]
