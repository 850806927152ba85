"""The trigger: decides whether a severe alarm deserves a retraining, and writes each answer down, also every no.

    severe alarm -> configured? -> drift, not a data fault? -> reference adequate? -> a column of retrain.roles?
                 -> episode not launched yet? -> nothing in flight? -> cooldown over? -> weekly budget left? -> launch

The first question that is answered with no is the decision's reason, from a closed list. All times here are *event
time* (the alarm's `at`): read again after a crash, or replayed from a file in seconds, the same alarms give the same
decisions. Wall-clock time only labels a launch's steps for people.

Invariants, held by the ledger that is stored in the same transaction as the offsets: an episode launches at most once
for ever; a model has at most one launch in flight; launches are at least `cooldown_hours` apart and as far from the
last cut-over; in any 7 days at most `max_per_week` are decided. A proposal that somebody rejected trained nothing: it
does not use up the budget, but it does start a cooldown, so that people are not asked again at once.

Cost: nothing on the hot path; a severe alarm is rare and looks at its model's launches once. Neighbours: the policy
makes alarms, `launch.Retraining` carries approved launches out, `ledger` remembers.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence

import msgspec

from monitor import config
from monitor.errors import TidemarkError
from monitor.flow import FINAL_STATES, Alarm, Clock, Launch, LaunchState, Mover, TopicPartition
from monitor.retrain.ledger import Decision, Ledger, Reason, launch_id

__all__ = ["Decision", "Ledger", "Trigger", "launch_id"]

WEEK_SECONDS = 7 * 86_400.0
#: Movers that a broken producer makes: they must be repaired, not learned.
QUALITY = ("missing", "unseen", "below", "above", "out of range")
#: Answers that time may change: while the alarm stays severe, it is asked again.
WAITING: frozenset[Reason] = frozenset({"cooldown", "budget", "in_flight"})
#: Columns named to the trainer: enough to act on, and an environment variable stays far below the kernel's limit.
REASON_COLUMNS_MAX = 20


class Trigger:
    """Turns severe alarms into launches in the ledger, one model's policy at a time.

    An alarm that stays severe through a cooldown or a spent budget is offered again, pane by pane (`is_waiting`), so
    that a lasting drift is not forgotten; the same answer is noted once.
    """

    def __init__(self, policies: Mapping[str, config.Retrain], ledger: Ledger, *, clock: Clock = time.time) -> None:
        self.policies = policies
        self.ledger = ledger
        self.clock = clock

    def __call__(self, alarms: Sequence[Alarm], offsets: Mapping[TopicPartition, int]) -> None:
        """Decide on each severe alarm; other alarms never start anything and are no decision.

        offsets : next offset per partition, up to which a training may read
        """
        for alarm in alarms:
            if alarm.state != "severe":
                continue
            reason = self._refusal(alarm)
            if not reason:
                self.ledger.put(self._launch(alarm, offsets))
            self.ledger.decide(Decision(alarm.model, alarm.version, alarm.episode, alarm.at,
                                        "no" if reason else "launch", reason))

    def is_waiting(self, model: str, version: str, episode: int) -> bool:
        """Whether the episode's last answer was a no that time may change."""
        for decision in reversed(self.ledger.decisions):
            if (decision.model, decision.version, decision.episode) == (model, version, episode):
                return decision.reason in WAITING
        return False

    def approve(self, launch: str) -> Launch:
        """Let a proposed launch go on; TidemarkError when there is none. Approving twice is approving once."""
        found = self._proposed(launch, "approved")
        return found if found.state != "proposed" else self._move(found, "approved")

    def reject(self, launch: str) -> Launch:
        """End a proposed launch; its episode will not launch again."""
        found = self._proposed(launch, "refused")
        return found if found.state != "proposed" else self._move(found, "refused", "rejected by hand")

    def budget_remaining(self, model: str, at: float) -> int:
        """Launches that the model may still get in the 7 days of event time that end at `at`."""
        policy = self.policies.get(model)
        if policy is None:
            return 0
        used = sum(1 for launch in self.ledger.of_model(model)
                   if launch.decided_at > at - WEEK_SECONDS and not _was_rejected(launch))
        return max(0, policy.max_per_week - used)

    def _refusal(self, alarm: Alarm) -> Reason:
        """Why this alarm gets no launch; empty when it gets one. The order is the one that people can act on."""
        policy = self.policies.get(alarm.model)
        if policy is None:
            return "not_configured"
        if alarm.kind != "drift":
            return "quality"
        if not alarm.reference_adequate:
            return "reference_inadequate"
        if not _worthwhile(alarm, policy):
            return "roles"
        launches = self.ledger.of_model(alarm.model)
        if launch_id(alarm.model, alarm.version, alarm.episode) in self.ledger.launches:
            return "episode_done"
        # A promoted launch stays in flight until the monitor has cut over: before that, the old reference still judges.
        if any(launch.state not in FINAL_STATES or (launch.state == "promoted" and not launch.cut_over_at)
               for launch in launches):
            return "in_flight"
        latest = max((max(launch.decided_at, launch.cut_over_at) for launch in launches), default=None)
        if latest is not None and alarm.at - latest < policy.cooldown_hours * 3600:
            return "cooldown"
        return "" if self.budget_remaining(alarm.model, alarm.at) > 0 else "budget"

    def _launch(self, alarm: Alarm, offsets: Mapping[TopicPartition, int]) -> Launch:
        policy = self.policies[alarm.model]
        now = self.clock()
        steps: tuple[tuple[LaunchState, float], ...] = (("proposed", now),)
        if policy.approval == "automatic":
            steps = (*steps, ("approved", now))
        return Launch(
            id=launch_id(alarm.model, alarm.version, alarm.episode), model=alarm.model, version=alarm.version,
            episode=alarm.episode, launcher=str(policy.launcher.__struct_config__.tag), state=steps[-1][0],
            reason=reason_json(alarm), steps=steps, decided_at=alarm.at,
            offsets={f"{topic}:{partition}": offset for (topic, partition), offset in sorted(offsets.items())})

    def _proposed(self, launch: str, wanted: LaunchState) -> Launch:
        """The launch of this id, when it waits for an answer or has just got the same one."""
        found = self.ledger.launches.get(launch)
        if found is None:
            waiting = [known.id for known in self.ledger.unfinished() if known.state == "proposed"]
            raise TidemarkError(f"launch {launch[:40]!r}: expected one that is proposed, got an unknown id; "
                                f"proposed now: {', '.join(waiting[:10]) or 'none'}")
        if found.state not in ("proposed", wanted) or (wanted == "refused" and found.state == wanted
                                                       and not _was_rejected(found)):
            raise TidemarkError(f"launch {launch}: expected one that is proposed, got one that is {found.state}; "
                                "it can no longer be approved or rejected")
        return found

    def _move(self, launch: Launch, state: LaunchState, detail: str = "") -> Launch:
        moved = dataclasses.replace(launch, state=state, steps=(*launch.steps, (state, self.clock())), detail=detail)
        self.ledger.put(moved)
        return moved


def reason_json(alarm: Alarm) -> str:
    """What the trainer and people are told of the alarm: JSON with columns, effects, window, scores and kind.

    Columns are ordered by evidence and cut at REASON_COLUMNS_MAX; `columns_total` says how many there were. A number
    that is not finite stands as null, so that every JSON parser reads it.
    """
    movers = sorted(alarm.movers, key=lambda mover: -mover.evidence)
    named = movers[:REASON_COLUMNS_MAX]
    return msgspec.json.encode({
        "columns": [mover.column for mover in named],
        "columns_total": len(movers),
        "effects": [{"column": mover.column, "role": mover.role, "what": mover.what, "value": mover.effect,
                     "lower": mover.lower, "upper": mover.upper, "unit": mover.unit} for mover in named],
        "window": {"since": alarm.since, "at": alarm.at, "panes": alarm.window_panes, "events": alarm.window_events},
        "scores": {"alarm": alarm.score, "severe": alarm.severe_score},
        "kind": alarm.kind,
        "segment": alarm.segment,
    }).decode()


def _worthwhile(alarm: Alarm, policy: config.Retrain) -> bool:
    """Whether a column of an allowed role drifted, other than by values that a broken producer makes."""
    return any(mover.role in policy.roles and not _is_quality(mover) for mover in alarm.movers)


def _is_quality(mover: Mover) -> bool:
    return mover.what.startswith(QUALITY)


def _was_rejected(launch: Launch) -> bool:
    """Refused by a person before anything was started; a challenger's refusal comes after `judged`."""
    return launch.state == "refused" and all(state != "approved" for state, _ in launch.steps)
