"""The limits of a retraining policy: how each stands at one moment of event time, and until when it holds.

    all_in_flight   launches under way over all models        limits.launches
    learning        how long the version has been judged      retrain.learning_hours
    breaker         launches in a row that brought nothing    retrain.useless_max
    cooldown        since the last launch, or cut-over        retrain.cooldown_hours
    budget          launches decided in 7 days                retrain.max_per_week
    gpu_hours       GPU hours of those launches               retrain.gpu_hours_per_week
    blackout        hours of the week                         retrain.blackout

before all of which stands `in_flight`: one launch of a model at a time. The trigger takes the first that holds as the
reason of its no; a dry run and `tidemark explain` show them all, so that both say what the trigger would say.

Everything is computed from the launches in the ledger, never counted beside them, and in event time, so that a replay
gives the same answers. Two of them know the wall clock through a launch's steps, because what they bound happens there:
what is in flight, and the GPU hours of a training that has ended. One that has not ended counts its whole deadline. Steps of
one launch are in its own time (`deadline`), so their differences are hours that passed, however the clock was set.

Cost: one look at a model's launches per question. Neighbours: `trigger` asks, `monitor.blackout` knows the hours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import gmtime, strftime

from monitor import blackout, config
from monitor.config_retrain import gpus
from monitor.decisions import Limit, Reason
from monitor.flow import FINAL_STATES, Launch
from monitor.retrain.ledger import Ledger, was_rejected
from monitor.retrain.promotions import ROLLBACK

HOUR_SECONDS, WEEK_SECONDS = 3600.0, 7 * 86_400.0
#: What a replay says of its launches, which ran nowhere: how they would have ended is not known.
REPLAYED = "replayed: nothing was launched"


@dataclass(frozen=True, slots=True)
class Moment:
    """What the limits are asked of: a version of a model at one moment of event time.

    at      : seconds since 1970        judged_seconds : event time for which the version has been judged
    """

    model: str
    version: str
    at: float
    judged_seconds: float


@dataclass(slots=True)
class Limits:
    """The limits of every model's policy, over one ledger.

    launches_max : `limits.launches`, over all models        blackouts : by model, the periods of its policy
    """

    policies: Mapping[str, config.Retrain]
    ledger: Ledger
    launches_max: int = config.Limits().launches
    blackouts: dict[str, tuple[blackout.Period, ...]] = field(init=False)

    def __post_init__(self) -> None:
        self.blackouts = {model: blackout.periods(policy.blackout, f"retrain.blackout of {model}")
                          for model, policy in self.policies.items()}

    def __call__(self, moment: Moment) -> tuple[Limit, ...]:
        """Every limit of a configured model, in the order in which the trigger asks."""
        policy, launches = self.policies[moment.model], self.ledger.of_model(moment.model)
        return (self.in_flight(moment.model), self.all_in_flight(), _learning(policy, moment), _breaker(policy, launches, moment),
                _cooldown(policy, launches, moment), _budget(policy, launches, moment), _gpu_hours(policy, launches, moment),
                self._blackout(moment))

    def in_flight(self, model: str) -> Limit:
        """One launch of a model at a time. A promoted one is in flight until the monitor has cut over: before that, the
        old reference still judges."""
        for launch in self.ledger.of_model(model):
            if launch.state not in FINAL_STATES or (launch.state == "promoted" and not launch.cut_over_at):
                return Limit("in_flight", True, f"launch {launch.id} is {launch.state.replace('_', ' ')}")
        return Limit("in_flight", False, "no launch of the model is under way")

    def all_in_flight(self) -> Limit:
        """Trainings under way over all models; a proposal that waits for a person takes no place."""
        working = sum(launch.state != "proposed" for launch in self.ledger.unfinished())
        return Limit("all_in_flight", working >= self.launches_max,
                     f"{working} of {self.launches_max} launches are under way over all models (limits.launches)")

    def _blackout(self, moment: Moment) -> Limit:
        periods = self.blackouts[moment.model]
        if not blackout.is_within(periods, moment.at):
            return Limit("blackout", False, "it is no hour of retrain.blackout" if periods else "no retrain.blackout")
        until = blackout.ends(periods, moment.at) or 0.0
        return Limit("blackout", True, f"it is an hour of retrain.blackout{_until(until)}", until)


def useless_row(launches: Sequence[Launch], version: str) -> list[Launch]:
    """The launches of this version that brought nothing, newest first, back to the last one that did or was forgiven.

    What failed, timed out, was judged and not found better, or was promoted and rolled back brought nothing. A proposal that
    a person rejected, or that nobody answered, trained nothing and says nothing; neither does one of a replay, nor one that
    was to replace a version which is rolled back by now.
    """
    undone = rolled_back(launches)
    gone = {launch.new_version for launch in undone.values()}
    row: list[Launch] = []
    for launch in reversed(launches):
        if launch.launcher == ROLLBACK or (launch.version in gone and launch.version != version and launch.id not in undone):
            continue
        is_undone = launch.id in undone
        if launch.forgiven or (not is_undone and (launch.version != version or launch.state == "promoted")):
            break
        if is_undone or launch.state in ("failed", "timed_out") or (
                launch.state == "refused" and launch.verdict not in ("", "better")):
            row.append(launch)
    return row


def rolled_back(launches: Sequence[Launch]) -> dict[str, Launch]:
    """The promoted launches of one model whose challenger is champion no longer because a person went back behind it, by id.

    One that was gone back to again is none of them.
    """
    line: list[Launch] = []                         # the promotions that led to the champion, oldest first
    undone: dict[str, Launch] = {}
    for launch in launches:
        if launch.state != "promoted":
            continue
        if launch.launcher != ROLLBACK:
            line.append(launch)
            continue
        again = next((one for one in undone.values() if one.new_version == launch.new_version), None)
        # Back to the version that the first of them replaced, or forward to one of those that were undone.
        behind = next((at for at, one in enumerate(line) if one.version == launch.new_version), len(line))
        undone |= {one.id: one for one in line[behind:]}
        del line[behind:]
        if again is not None:
            line.append(undone.pop(again.id))
    return undone


def gpu_hours(launch: Launch) -> float:
    """GPU hours that a launch has taken; while it has not ended, those that it may take at most.

    From the submission to the end of the training; what never was submitted took none. Of a replayed one, which ran
    nowhere, the most is taken.
    """
    times = dict(launch.steps)
    ended = next((at for state, at in launch.steps if state in ("succeeded", "failed", "timed_out")), None)
    if launch.state in FINAL_STATES and "submitted" not in times:
        return launch.gpus * launch.deadline_hours if launch.detail == REPLAYED else 0.0
    if ended is None:
        return launch.gpus * launch.deadline_hours
    return launch.gpus * max(0.0, ended - times.get("submitted", ended)) / HOUR_SECONDS


def _learning(policy: config.Retrain, moment: Moment) -> Limit:
    lacking = policy.learning_hours * HOUR_SECONDS - moment.judged_seconds
    if lacking <= 0:
        return Limit("learning", False, f"version {moment.version} is judged for retrain.learning_hours"
                                        f" ({policy.learning_hours:g})")
    until = moment.at + lacking
    return Limit("learning", True, f"version {moment.version} is judged for {moment.judged_seconds / HOUR_SECONDS:.2g} of "
                                   f"{policy.learning_hours:g} hours (retrain.learning_hours){_until(until)}", until)


def _breaker(policy: config.Retrain, launches: Sequence[Launch], moment: Moment) -> Limit:
    if policy.useless_max is None:
        return Limit("breaker", False, "no retrain.useless_max")
    useless = useless_row(launches, moment.version)
    row, back = len(useless), sum(launch.state == "promoted" for launch in useless)
    words = (f"{row} of {policy.useless_max} launches in a row brought nothing (retrain.useless_max)"
             + (f", {back} of them promoted and rolled back" if back else ""))
    return Limit("breaker", row >= policy.useless_max, words + (
        f"; `tidemark triggers reset {moment.model}` once the cause is found" if row >= policy.useless_max else ""))


def _cooldown(policy: config.Retrain, launches: Sequence[Launch], moment: Moment) -> Limit:
    latest = max((max(launch.decided_at, launch.cut_over_at) for launch in launches), default=None)
    if latest is None:
        return Limit("cooldown", False, "no launch or cut-over yet")
    until = latest + policy.cooldown_hours * HOUR_SECONDS
    since = f"{policy.cooldown_hours:g} hours since {_time(latest)} (retrain.cooldown_hours)"
    if moment.at - latest < policy.cooldown_hours * HOUR_SECONDS:
        return Limit("cooldown", True, f"{since} are not over{_until(until)}", until)
    return Limit("cooldown", False, f"{since} are over")


def counted(launches: Sequence[Launch], at: float) -> list[Launch]:
    """The launches of one model that use up its budgets in the 7 days that end at event time `at`, oldest first.

    Not among them: proposals that were never approved, and roll-backs, which train nothing.
    """
    found = [launch for launch in launches
             if launch.decided_at > at - WEEK_SECONDS and not was_rejected(launch) and launch.launcher != ROLLBACK]
    return sorted(found, key=lambda launch: launch.decided_at)


def _budget(policy: config.Retrain, launches: Sequence[Launch], moment: Moment) -> Limit:
    used, most = counted(launches, moment.at), policy.max_per_week
    words = f"{len(used)} of {most} launches in 7 days are used (retrain.max_per_week)"
    if len(used) < most:
        return Limit("budget", False, words)
    until = used[len(used) - most].decided_at + WEEK_SECONDS if most else 0.0
    return Limit("budget", True, words + _until(until), until)


def _gpu_hours(policy: config.Retrain, launches: Sequence[Launch], moment: Moment) -> Limit:
    most = policy.gpu_hours_per_week
    if most is None:
        return Limit("gpu_hours", False, "no retrain.gpu_hours_per_week")
    needed = gpus(policy.launcher) * policy.launcher.deadline_hours
    used = counted(launches, moment.at)
    left = most - sum(map(gpu_hours, used))
    words = (f"{most - left:.3g} of {most:g} GPU hours in 7 days are used (retrain.gpu_hours_per_week), and one launch may take "
             f"{needed:g}")
    if needed <= left:
        return Limit("gpu_hours", False, words)
    until = 0.0
    for launch in used:                             # oldest first, until enough have left the window
        left += gpu_hours(launch)
        if needed <= left:
            until = launch.decided_at + WEEK_SECONDS
            break
    return Limit("gpu_hours", True, words + _until(until), until)


def budget_remaining(policy: config.Retrain, launches: Sequence[Launch], at: float) -> int:
    """Launches that `retrain.max_per_week` leaves in the 7 days that end at `at`."""
    return max(0, policy.max_per_week - len(counted(launches, at)))


def gpu_hours_remaining(policy: config.Retrain, launches: Sequence[Launch], at: float) -> float | None:
    """GPU hours that `retrain.gpu_hours_per_week` leaves in the 7 days that end at `at`; None where it is not set."""
    if policy.gpu_hours_per_week is None:
        return None
    return max(0.0, policy.gpu_hours_per_week - sum(map(gpu_hours, counted(launches, at))))


def first_that_holds(limits: Sequence[Limit], leave_out: frozenset[Reason] = frozenset()) -> Limit | None:
    """The limit that is the reason of a no; None where none holds."""
    return next((limit for limit in limits if limit.holds and limit.reason not in leave_out), None)


def _until(at: float) -> str:
    return f", until {_time(at)}" if at else ""


def _time(at: float) -> str:
    return strftime("%Y-%m-%dT%H:%M:%SZ", gmtime(at))
