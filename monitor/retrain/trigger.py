"""The trigger: decides whether a severe alarm deserves a retraining, and writes each answer down, also every no.

    severe alarm -> configured? -> drift, not a data fault? -> reference adequate? -> a column of retrain.roles?
                 -> episode not launched yet? -> severe for long enough? -> no limit of the policy holds? -> launch

The first question that is answered with no is the decision's reason, from a closed list (`metrics.DECISION_REASONS`).
All times here are *event time* (the alarm's `at`): read again after a crash, or replayed from a file in seconds, the same
alarms give the same decisions. Wall-clock time labels a launch's steps and the audit trail for people. A proposal that
nobody answered ends in its own time (`deadline.own_time`): a clock that is set meanwhile neither ends nor keeps it.

Somebody may ask without an alarm: a person at once, so that patience (cooldown, learning) is not asked of them, and a
program (Alertmanager) as an alarm does. Both meet the limits; a person may set them aside, except that a model has one
launch in flight. What they ask and answer is a line of the audit trail, stored with what it changed.

Invariants, held by the ledger that is stored in the same transaction as the offsets: an episode launches at most once
for ever, and so does the key of who asked; a model has at most one launch in flight; launches of alarms are at least
`cooldown_hours` apart and as far from the last cut-over; in any 7 days at most `max_per_week` are decided. A proposal that
was rejected or expired trained nothing: it does not use up the budget, but it does start a cooldown, so that people are
not asked again at once.

Cost: nothing on the hot path; a severe alarm is rare and looks at its model's launches once. Neighbours: the policy
makes alarms, `limits` has the limits, `launch.Retraining` carries approved launches out, `ledger` remembers.
"""

from __future__ import annotations

import dataclasses
import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from monitor import config
from monitor.config_retrain import gpus
from monitor.decisions import ALERTMANAGER, NOBODY, Action, Entry, Limit, PolicyStatus, Reason
from monitor.errors import TidemarkError
from monitor.flow import Alarm, Clock, Launch, LaunchState, Mover, TopicPartition
from monitor.metrics import DECISION_REASONS, WAITING_REASONS
from monitor.retrain.deadline import own_time
from monitor.retrain.ledger import Decision, Ledger, launch_id, was_rejected
from monitor.retrain.limits import (
    REPLAYED,
    Limits,
    Moment,
    budget_remaining,
    first_that_holds,
    gpu_hours_remaining,
    useless_row,
)

__all__ = ["Decision", "Fired", "Ledger", "Standing", "Trigger", "launch_id"]

#: Movers that a broken producer makes: they must be repaired, not learned.
QUALITY = ("missing", "unseen", "below", "above", "out of range")
#: Limits that ask for patience, which a person who asks has had.
PATIENCE: frozenset[Reason] = frozenset({"learning", "cooldown"})
#: Columns named to the trainer: enough to act on, and an environment variable stays far below the kernel's limit.
REASON_COLUMNS_MAX = 20
#: Characters that are kept of somebody's words, and of their name or key.
WORDS_MAX, NAME_MAX = 1_000, 200


@dataclass(frozen=True, slots=True)
class Standing:
    """How a model stands when somebody asks for a launch.

    at    : event time, seconds since 1970: the end of the last pane that was decided
    judged_seconds : event time for which the version has been judged        offsets : where reading goes on
    alarm : the alarm of drift that is open; None where there is none        faulty : whether the data are broken now
    adequate : whether the reference can be judged by
    """

    version: str
    at: float
    judged_seconds: float
    offsets: Mapping[TopicPartition, int]
    alarm: Alarm | None = None
    faulty: bool = False
    adequate: bool = True


@dataclass(frozen=True, slots=True)
class Fired:
    """What somebody who asked for a launch is told: the decision, the launch where there is one, how the limits stand."""

    decision: Decision
    launch: Launch | None
    words: str
    limits: tuple[Limit, ...] = ()


class Trigger:
    """Turns severe alarms and requests into launches in the ledger, one model's policy at a time.

    An alarm that stays severe through a cooldown or a spent budget is offered again, pane by pane (`is_waiting`), so
    that a lasting drift is not forgotten; the same answer is noted once.
    """

    def __init__(self, policies: Mapping[str, config.Retrain], ledger: Ledger, *, clock: Clock = time.time,
                 launches_max: int = config.Limits().launches, set_by: Callable[[], float] = lambda: 0.0) -> None:
        """Put the parts together; `set_by` says what the clock has been set by until it was last asked."""
        self.policies = policies
        self.ledger = ledger
        self.clock, self._set_by = clock, set_by
        self.limits = Limits(policies, ledger, launches_max)
        self._waiting: dict[str, Decision] = {}     # model -> its latest answer to an alarm, when that was a no for now

    # -- alarms --------------------------------------------------------------------------------------------------------

    def __call__(self, alarms: Sequence[Alarm], offsets: Mapping[TopicPartition, int], *, is_standing: bool = False,
                 judged_seconds: float = math.inf) -> None:
        """Decide on each severe alarm; other alarms never start anything and are no decision.

        offsets        : next offset per partition, up to which a training may read
        is_standing    : these alarms became severe at an earlier pane, and are offered again
        judged_seconds : event time for which the alarms' version has been judged
        """
        for alarm in alarms:
            if alarm.state != "severe":
                continue
            reason, until = self._refusal(alarm, is_standing, judged_seconds)
            launch = None if reason else self._launch(alarm.model, alarm.version, alarm.at, alarm, offsets)
            decision = Decision(alarm.model, alarm.version, alarm.episode, alarm.at, "no" if reason else "launch", reason,
                                until=until, launch=launch.id if launch else "")
            self.ledger.decide(decision)
            if reason in WAITING_REASONS:
                self._waiting[alarm.model] = decision
            else:
                self._waiting.pop(alarm.model, None)

    def waiting(self, model: str, version: str, episode: int) -> Decision | None:
        """The latest answer to an episode's alarm, when it was a no that time or a person may change; else None."""
        decision = self._waiting.get(model) or self.ledger.latest(model)
        if decision is None or decision.reason not in WAITING_REASONS:
            return None
        return decision if (decision.version, decision.episode) == (version, episode) else None

    def is_waiting(self, model: str, version: str, episode: int) -> bool:
        """Whether the episode's last answer was a no that time may change."""
        return self.waiting(model, version, episode) is not None

    def budget_remaining(self, model: str, at: float) -> int:
        """Launches that the model may still get in the 7 days of event time that end at `at`."""
        policy = self.policies.get(model)
        return 0 if policy is None else budget_remaining(policy, self.ledger.of_model(model), at)

    def gpu_hours_remaining(self, model: str, at: float) -> float | None:
        """GPU hours that the model may still use in the 7 days that end at `at`; None where they are not bounded."""
        policy = self.policies.get(model)
        return None if policy is None else gpu_hours_remaining(policy, self.ledger.of_model(model), at)

    def status(self, moment: Moment, episode: int | None) -> PolicyStatus | None:
        """How a model's policy stands; None where it is not retrained.

        episode : of the severe alarm that is open; None where there is none
        """
        policy = self.policies.get(moment.model)
        if policy is None:
            return None
        launches, model = self.ledger.of_model(moment.model), moment.model
        return PolicyStatus(
            budget_remaining(policy, launches, moment.at), gpu_hours_remaining(policy, launches, moment.at),
            len(useless_row(launches, moment.version)),
            None if episode is None else self.waiting(model, moment.version, episode), self.limits(moment),
            {(outcome, reason or "none"): count for (of, outcome, reason), count in self.ledger.counts.items() if of == model})

    def _refusal(self, alarm: Alarm, is_standing: bool, judged_seconds: float) -> tuple[Reason, float]:
        """Why this alarm gets no launch, and until when; empty when it gets one. The order is the one that people can act on."""
        policy = self.policies.get(alarm.model)
        if policy is None:
            return "not_configured", 0.0
        if alarm.kind != "drift":
            return "quality", 0.0
        if not alarm.reference_adequate:
            return "reference_inadequate", 0.0
        if not _worthwhile(alarm, policy):
            return "roles", 0.0
        if policy.launch_on == "request":
            return "on_request", 0.0
        if self._had_its_own(alarm.model, alarm.version, alarm.episode):
            return "episode_done", 0.0
        until = self._persisting_until(alarm, policy, is_standing)
        if alarm.at < until:
            return "persistence", until
        held = first_that_holds(self.limits(Moment(alarm.model, alarm.version, alarm.at, judged_seconds)))
        return (held.reason, held.until) if held else ("", 0.0)

    def _had_its_own(self, model: str, version: str, episode: int) -> bool:
        return self.ledger.has_launched(model, version, episode)

    def _persisting_until(self, alarm: Alarm, policy: config.Retrain, is_standing: bool) -> float:
        """The event time at which an alarm has been severe for `persist_panes` in a row: from its own pane on where it
        became severe just now, and as it was said then where it stands."""
        if not is_standing:
            return alarm.at + (policy.persist_panes - 1) * alarm.at / (alarm.pane + 1)      # a pane's length in seconds
        earlier = self.waiting(alarm.model, alarm.version, alarm.episode)
        return earlier.until if earlier is not None and earlier.reason == "persistence" else alarm.at

    # -- requests and answers ------------------------------------------------------------------------------------------

    def fire(self, model: str, standing: Standing, *, by: str, why: str = "", key: str = "", force: bool = False,
             dry_run: bool = False) -> Fired:
        """Decide on a launch that somebody asks for; the same `key` launches once for ever, and each call without one may.

        by      : ALERTMANAGER is answered as an alarm is, and anybody else as a person
        force   : a person sets the limits aside        dry_run : only say what the answer would be; nothing is written
        """
        key = (key or secrets.token_hex(8))[:NAME_MAX]
        before = self.ledger.asked_by(model, key)
        alarm, person = standing.alarm, by != ALERTMANAGER
        episode = alarm.episode if alarm else 0
        limits = self._limits_of(model, standing)
        if before is not None:
            answer = Decision(model, before.version, before.episode, before.decided_at, "launch", "", by=before.by, key=key,
                              launch=before.id)
            return Fired(answer, before, f"launch {before.id} was decided for this request before; it is {_said(before)}", limits)
        reason, until = self._refusal_of_request(model, standing, limits, person, force)
        decision = Decision(model, standing.version, episode, standing.at, "no" if reason else "launch", reason,
                            until=until, by=by[:NAME_MAX], key=key)
        words = self._no(reason, limits) if reason else ""
        if dry_run:
            return Fired(decision, None, words or "a launch would be decided", limits)
        launch = None
        if not reason:
            launch = self._launch(model, standing.version, standing.at, alarm, standing.offsets, by[:NAME_MAX], why[:WORDS_MAX],
                                  key, person)
            words = f"launch {launch.id} of {model} is {_said(launch)}"
        decision = dataclasses.replace(decision, launch=launch.id if launch else "")
        number, noted = self.ledger.last_number, self.ledger.decide(decision)
        if noted.number > number or person:         # a program repeats itself: the same no is one line
            self._audit(Entry(self.clock(), "fire", by, model, decision.launch, why, key, not reason,
                              words + (" (limits set aside)" if force and launch else "")))
        return Fired(noted, launch, words, limits)

    def approve(self, launch: str, *, by: str = "", why: str = "") -> Launch:
        """Let a proposed launch go on; TidemarkError when there is none. Approving twice is approving once."""
        found = self._proposed(launch, "approved")
        if found.state != "proposed":
            return found
        full = self.limits.all_in_flight()
        if full.holds:
            raise TidemarkError(f"launch {launch}: expected a free place, got that {full.words}; approve it when one has ended")
        return self._answered(found, "approved", "approve", by, why)

    def reject(self, launch: str, *, by: str = "", why: str = "") -> Launch:
        """End a proposed launch; its episode will not launch again."""
        found = self._proposed(launch, "refused")
        if found.state != "proposed":
            return found
        return self._answered(found, "refused", "reject", by, why, f"rejected by hand{_because(why)}")

    def expire(self) -> list[Launch]:
        """End the proposals that nobody has answered in time, which is their own; returns them as they are now."""
        ended = []
        for launch in self.ledger.unfinished():
            policy = self.policies.get(launch.model)
            if launch.state != "proposed" or policy is None:
                continue
            if self._own_time(launch) - launch.steps[0][1] >= policy.approval_hours * 3600:
                words = f"expired: nobody answered within {policy.approval_hours:g} hours (retrain.approval_hours)"
                ended.append(self._answered(launch, "refused", "expire", NOBODY, "", words))
        return ended

    def reset(self, model: str, version: str, *, by: str, why: str = "") -> list[Launch]:
        """Forgive the launches in a row that brought nothing, so that the breaker lets the next one through."""
        if model not in self.policies:
            raise TidemarkError(f"{model[:80]}: expected a model with `retrain`, got one without; there is no breaker")
        row = useless_row(self.ledger.of_model(model), version)
        if not row:
            raise TidemarkError(f"{model}: expected launches in a row that brought nothing, got none; the breaker is closed")
        forgiven = [dataclasses.replace(launch, forgiven=True) for launch in row]
        for launch in forgiven:
            self.ledger.put(launch)
        self._audit(Entry(self.clock(), "reset", by, model, why=why,
                          words=f"{len(row)} launches that brought nothing no longer count: " + ", ".join(one.id for one in row)))
        return forgiven

    def refuse(self, entry: Entry) -> None:
        """Note in the audit trail what somebody asked and could not be done."""
        self._audit(entry)

    def end_replayed(self, at: float) -> None:
        """End every open launch of a replay, in which nothing is launched, so that cooldown and budget go on."""
        for launch in self.ledger.unfinished():
            approved = launch if launch.state != "proposed" else dataclasses.replace(
                launch, steps=(*launch.steps, ("approved", at)))
            self.ledger.put(dataclasses.replace(approved, state="refused", steps=(*approved.steps, ("refused", at)),
                                                detail=REPLAYED))

    def _limits_of(self, model: str, standing: Standing) -> tuple[Limit, ...]:
        if model not in self.policies:
            return ()
        return self.limits(Moment(model, standing.version, standing.at, standing.judged_seconds))

    def _refusal_of_request(self, model: str, standing: Standing, limits: Sequence[Limit], person: bool,
                            force: bool) -> tuple[Reason, float]:
        """Why a request gets no launch, and until when; what a person asks has no need of an alarm or of patience."""
        if not limits:
            return "not_configured", 0.0
        if force and person:
            held = first_that_holds([limit for limit in limits if limit.reason == "in_flight"])
            return (held.reason, held.until) if held else ("", 0.0)
        if standing.faulty:
            return "quality", 0.0
        if not standing.adequate:
            return "reference_inadequate", 0.0
        alarm = standing.alarm
        if not person and alarm is not None and self._had_its_own(model, standing.version, alarm.episode):
            return "episode_done", 0.0
        held = first_that_holds(limits, PATIENCE if person else frozenset())
        return (held.reason, held.until) if held else ("", 0.0)

    @staticmethod
    def _no(reason: Reason, limits: Sequence[Limit]) -> str:
        """The words of a no to somebody who asked."""
        words = next((limit.words for limit in limits if limit.reason == reason), DECISION_REASONS[reason])
        return f"no launch ({reason}): {words.split('; asked again')[0]}"

    def _launch(self, model: str, version: str, at: float, alarm: Alarm | None, offsets: Mapping[TopicPartition, int],
                by: str = "", why: str = "", key: str = "", person: bool = False) -> Launch:
        """A new launch, in the ledger: approved where the policy or the person who asked says so, else proposed."""
        policy = self.policies[model]
        now, episode = self.clock(), alarm.episode if alarm else 0
        steps: tuple[tuple[LaunchState, float], ...] = (("proposed", now),)
        if policy.approval == "automatic" or person:
            steps = (*steps, ("approved", now))
        launch = Launch(
            id=launch_id(model, version, episode, key), model=model, version=version, episode=episode,
            launcher=str(policy.launcher.__struct_config__.tag), state=steps[-1][0],
            reason=reason_json(alarm, at, by, why), steps=steps, decided_at=at, key=key, by=by, why=why,
            gpus=gpus(policy.launcher), deadline_hours=policy.launcher.deadline_hours, clock_set=self._set_by(),
            offsets={f"{topic}:{partition}": offset for (topic, partition), offset in sorted(offsets.items())})
        self.ledger.put(launch)
        return launch

    def _proposed(self, launch: str, wanted: LaunchState) -> Launch:
        """The launch of this id, when it waits for an answer or has just got the same one."""
        found = self.ledger.launches.get(launch)
        if found is None:
            waiting = [known.id for known in self.ledger.unfinished() if known.state == "proposed"]
            raise TidemarkError(f"launch {launch[:40]!r}: expected one that is proposed, got an unknown id; "
                                f"proposed now: {', '.join(waiting[:10]) or 'none'}")
        if found.state not in ("proposed", wanted) or (wanted == "refused" and found.state == wanted
                                                       and not was_rejected(found)):
            raise TidemarkError(f"launch {launch}: expected one that is proposed, got one that is {found.state}; "
                                "it can no longer be approved or rejected")
        return found

    def _answered(self, launch: Launch, state: LaunchState, action: Action, by: str, why: str, detail: str = "") -> Launch:
        """A proposal that somebody, or time, has answered; with its line of the audit trail."""
        moved = dataclasses.replace(launch, state=state, steps=(*launch.steps, (state, self._own_time(launch))), detail=detail)
        self.ledger.put(moved)
        self._audit(Entry(self.clock(), action, by, launch.model, launch.id, why,
                          words=f"launch {launch.id} is {_said(moved)}"))
        return moved

    def _own_time(self, launch: Launch) -> float:
        now = self.clock()
        return own_time(launch, now - self._set_by())

    def _audit(self, entry: Entry) -> None:
        self.ledger.note(dataclasses.replace(entry, by=entry.by[:NAME_MAX], why=entry.why[:WORDS_MAX], key=entry.key[:NAME_MAX],
                                             model=entry.model[:NAME_MAX], launch=entry.launch[:NAME_MAX]))


def reason_json(alarm: Alarm | None, at: float = 0.0, by: str = "", why: str = "") -> str:
    """What the trainer and people are told of the alarm: JSON with columns, effects, window, scores and kind.

    Columns are ordered by evidence and cut at REASON_COLUMNS_MAX; `columns_total` says how many there were. A number
    that is not finite stands as null, so that every JSON parser reads it. Where somebody asked, `asked` has who and why;
    without an alarm nothing moved, the window is everything that is kept (`since` 0), and the kind is `asked`.
    """
    asked = {"asked": {"by": by, "why": why}} if by else {}
    if alarm is None:
        return msgspec.json.encode({
            "columns": [], "columns_total": 0, "effects": [], "window": {"since": 0.0, "at": at, "panes": 0, "events": 0},
            "scores": {"alarm": None, "severe": None}, "kind": "asked", "segment": "all", **asked}).decode()
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
        **asked,
    }).decode()


def _said(launch: Launch) -> str:
    words = launch.state.replace("_", " ")
    return f"{words} ({launch.detail})" if launch.detail else words


def _because(why: str) -> str:
    return f": {why[:WORDS_MAX]}" if why else ""


def _worthwhile(alarm: Alarm, policy: config.Retrain) -> bool:
    """Whether a column of an allowed role drifted, other than by values that a broken producer makes."""
    return any(mover.role in policy.roles and not _is_quality(mover) for mover in alarm.movers)


def _is_quality(mover: Mover) -> bool:
    return mover.what.startswith(QUALITY)
