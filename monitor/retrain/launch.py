"""Carries launches out: from approved to promoted or refused, one small step per turn of the loop.

    approved -> submitted -> running -> succeeded -> judged -> promoted | refused
        `-----------`-----------`-> failed, timed_out

Every step follows one pattern, which makes a kill at any instruction harmless: *save the intention, act, save the
outcome*, where each act can be repeated.

 1. approved   enough labelled events since the alarm? `snapshot` writes the training data (same launch, same file);
               `submitted` is saved with data_uri and output_uri, before anything is started
 2. submitted  `launcher.start`, which finds what it started before under this id; then `running` is saved
 3. running    `launcher.status`, at most every `poll_seconds`; past the deadline, or too long in the launcher's queue, the
               intention to cancel is saved with its reason, then the job is cancelled, then `timed_out` is saved
 4. succeeded  the challenger is judged (`challenger`); `judged` is saved with the figures
 5. judged     promotion (`promote`), which the same launch repeats without effect; then `promoted` or `refused`

A call that fails for now (LaunchFailed with retry) is tried again after 5 s, doubling to 5 min, each time a random part
shorter so that many services do not knock together; one that fails for good ends the launch with its reason. A job that
the launcher no longer knows is judged by what it left, or failed: never taken for a success by itself. What the other side
stores of a launch after it has ended, because a request to start hung somewhere, is ended by `strays`.

Every time here is the launch's own (`deadline.own_time`), which does not jump when the machine's clock is set: polls,
backoff, patience, deadlines, the weeks of `collect_events`, a shadow's hours, a canary's and a confirmation's.

Cost: nothing while no launch is open. The calls block the loop, so each has its own time limit in its launcher, and
only one step per launch is taken per turn. Neighbours: `trigger` makes launches, the pipeline calls `advance`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from detectors.reference import Column, Reference, ReferenceMismatch
from monitor import config
from monitor.errors import CheckpointRefused, LaunchFailed, TidemarkError
from monitor.flow import FINAL_STATES, Launch, Launcher, LaunchState
from monitor.retrain import challenger
from monitor.retrain.deadline import over, own_time, with_wait
from monitor.retrain.ledger import Ledger
from monitor.retrain.promote import (
    ROLLBACK,
    ChallengerUnfit,
    Kept,
    Promotion,
    PromotionRefused,
    PromotionWaits,
    checked_reference,
    load_reference,
    promote,
    promotion_for,
    rolled_back,
)
from monitor.retrain.shadow import Shadows
from monitor.retrain.strays import Strays

log = logging.getLogger(__name__)

BACKOFF_SECONDS_MIN = 5.0
BACKOFF_SECONDS_MAX = 300.0
#: How long a call may go on failing, beyond the launcher's own deadline, before the launch is given up.
PATIENCE_SECONDS = 24 * 3600.0
#: How long we wait for `collect_events`: labels that have not come in two weeks are not coming.
COLLECT_SECONDS = 14 * 86_400.0
#: A local process is asked for nothing; an API server that many services poll is asked four times a minute.
POLL_SECONDS = {"local": 2.0, "kubernetes": 15.0, "airflow": 15.0, "kfp": 15.0, "webhook": 15.0}
#: How often a promotion that is under way is looked at: a canary takes hours, a new revision minutes.
PROMOTION_SECONDS = 15.0
#: A store is asked for a progress line much less often than a launcher: nothing waits for it.
LEFT_PROGRESS_SECONDS = 60.0
CANCELLING = "deadline passed, cancelling"
RETRYING = "will be tried again: "

Save = Callable[[Launch], None]
Snapshot = Callable[[Launch], str]
Captured = Callable[[Launch], int]


class Retraining:
    """The open launches of all models, each taken on by its own launcher."""

    def __init__(self, policies: Mapping[str, config.Retrain], ledger: Ledger, launchers: Mapping[str, Launcher], *,
                 save: Save, snapshot: Snapshot, reference: Callable[[str], Reference],
                 labels: Mapping[str, Sequence[Column]] | None = None,
                 promotions: Mapping[str, Promotion | None] | None = None,
                 version: Callable[[str], str] | None = None, kept: Kept | None = None, shadows: Shadows | None = None,
                 poll_seconds: float | None = None, rng: random.Random | None = None) -> None:
        """Put the parts together; nothing is called yet.

        launchers : by model            save : one transaction that stores this launch alone
        snapshot  : keeps the captured events for this launch and returns their folder, .../<launch id>/data;
                    repeating it is harmless
        reference : the reference that a model is judged by now      labels : by model, the columns of its labels
        promotions: by model, as configured where none are given     version : the champion's version of a model now
        kept      : gives a reference that the state holds, by its digest
        shadows   : of the models whose challengers answer in shadow first
        """
        self.policies = policies
        self.ledger = ledger
        self.launchers = launchers
        self._store = save
        self._snapshot = snapshot
        self._reference = reference
        self._labels = labels or {}
        self._promotions = promotions if promotions is not None else {
            model: promotion_for(policy.promote) for model, policy in policies.items()}
        self._version = version
        self._kept = kept
        self._shadows = shadows or Shadows({}, lambda *_: None, lambda _: -1)
        self._strays = Strays(ledger)
        self._poll_seconds = poll_seconds
        self._rng = rng or random.Random()
        self._polled: dict[str, float] = {}                 # launch id -> when we last asked; forgotten at a restart
        self._looked: dict[str, float] = {}                 # launch id -> when its progress.txt was last looked at
        self._misses: dict[str, tuple[int, float]] = {}     # launch id -> failed calls in a row, and since when
        self._references: dict[str, Reference] = {}         # promoted here, not yet taken by the pipeline
        self._reference_at: dict[str, float] = {}           # promoted launch -> when to try its reference again
        self._now = 0.0                                     # of the latest `advance`

    def advance(self, now: float, captured: Captured) -> list[Launch]:
        """Take every open launch on by at most one step; returns those that changed, as they are now.

        now      : seconds since 1970 without what the clock was set by (`SetClock.steady`)
        captured : labelled events kept since the launch's alarm began
        Called after the checkpoint was committed, so that a launch in hand is a launch that is stored.
        """
        self._now = steady = now
        moved = []
        for launch in self.ledger.unfinished():
            if launch.state == "proposed" or launch.model not in self.policies:
                continue                                    # waits for a person, or for its monitor to come back
            now = own_time(launch, steady)
            # The upper bound forgives a clock that was set back while we were off.
            if 0 < launch.retry_at - now <= BACKOFF_SECONDS_MAX:
                continue
            try:
                self._step(launch, now, captured)
            except LaunchFailed as error:
                self._set_back(self.ledger.launches[launch.id], error, now)
            after = self.ledger.launches[launch.id]
            if after != launch:
                moved.append(after)
            if after.state in FINAL_STATES:
                self._polled.pop(launch.id, None)
                self._looked.pop(launch.id, None)
                self._misses.pop(launch.id, None)
        self._strays.end(self.launchers, steady)
        return moved

    def take_reference(self, launch: Launch) -> Reference | None:
        """The reference of a promoted launch, to cut over to: as it was checked, or read again after a restart.

        None while it cannot be had, which is logged and tried again every BACKOFF_SECONDS_MAX: the old one judges on.
        """
        if launch.id in self._references:
            return self._references.pop(launch.id)
        if 0 < self._reference_at.get(launch.id, 0.0) - self._now <= BACKOFF_SECONDS_MAX:
            return None
        try:
            reference = load_reference(launch.reference_uri, self._kept, challenger.roots(
                launch, policy.result_uris if (policy := self.policies.get(launch.model)) else ()))
            reference.require(self._reference(launch.model).columns)
        except (LaunchFailed, ReferenceMismatch, challenger.ContractBroken, CheckpointRefused) as error:
            self._reference_at[launch.id] = self._now + BACKOFF_SECONDS_MAX
            log.error("New reference not readable.", extra={"launch": launch.id, "model": launch.model,
                                                            "error": str(error)})
            return None
        self._reference_at.pop(launch.id, None)
        return reference

    def _step(self, launch: Launch, now: float, captured: Captured) -> None:
        policy = self.policies[launch.model]
        if launch.state == "approved":
            self._submit(launch, policy, now, captured)
        elif launch.state in ("submitted", "running"):
            launcher = self.launchers[launch.model]
            if launcher.name != launch.launcher:
                raise LaunchFailed(f"retrain.launcher.type: expected {launch.launcher}, which has this launch, "
                                   f"got {launcher.name}; its job may still run there: end it by hand")
            if launch.state == "submitted":
                self._move(launch, "running", now, external=launcher.start(launch))
            else:
                self._follow(launch, policy, launcher, now)
        elif launch.state == "succeeded":
            self._judge(launch, policy, now)
        elif launch.state == "judged":
            self._promote(launch, policy, now)

    def _submit(self, launch: Launch, policy: config.Retrain, now: float, captured: Captured) -> None:
        """Step 1: wait for events, write them down for the trainer, save where everything will be."""
        if not self._is_due(launch, now):
            return
        events = captured(launch)
        if events < policy.collect_events and policy.data_uri is None:
            waiting = f"{events:,} of {policy.collect_events:,} labelled events since the alarm began"
            if now - launch.steps[-1][1] > COLLECT_SECONDS:
                raise LaunchFailed(f"only {waiting}, after {COLLECT_SECONDS / 86_400:.0f} days; send labels, "
                                   "or lower retrain.collect_events")
            self.ledger.put(dataclasses.replace(launch, progress=waiting))
            return
        try:
            kept = self._snapshot(launch).rstrip("/")       # an empty folder, where the trainer brings its own data
        except OSError as error:
            raise LaunchFailed(f"retrain.capture_uri: training data cannot be written: {error}", retry=True) from None
        columns = [*self._reference(launch.model).columns, *self._labels.get(launch.model, ())]
        told = json.dumps([{"name": column.name, "kind": column.kind, "role": column.role} for column in columns])
        self._move(launch, "submitted", now, data_uri=policy.data_uri or kept, output_uri=output_beside(kept), columns=told,
                   progress="")

    def _follow(self, launch: Launch, policy: config.Retrain, launcher: Launcher, now: float) -> None:
        """Step 3: ask how the job stands; end it when its time is over."""
        if not self._is_due(launch, now):
            return
        status = launcher.status(launch)
        self._misses.pop(launch.id, None)
        if status.output_uri and status.output_uri != launch.output_uri:
            launch = dataclasses.replace(launch, output_uri=status.output_uri)
            self._save(launch)                              # before the job can be gone: nothing else says where its output is
        is_cancelling = launch.detail.startswith(CANCELLING)
        told = status.progress or self._left_progress(launch, status.state, now)
        if told and told != launch.progress:
            launch = dataclasses.replace(launch, progress=told)
            self.ledger.put(launch)                         # stored with the next checkpoint: only for people to see
        if (counted := with_wait(launch, status, now)) != launch:
            launch = counted
            self.ledger.put(launch)                         # stored with the next checkpoint: the wait outlives a restart
        late = launch.detail.removeprefix(f"{CANCELLING}: ") if is_cancelling else over(launch, policy, now)
        if status.state == "succeeded":
            self._move(launch, "succeeded", now)
        elif status.state == "unknown":
            self._vanished(launch, status.detail, now)
        elif status.state == "failed":
            # A job that fails because we ended it, seen after a restart, has timed out.
            state: LaunchState = "timed_out" if is_cancelling else "failed"
            self._move(launch, state, now, detail=late if is_cancelling else status.detail or "the job failed")
        elif late:
            intended = dataclasses.replace(launch, detail=f"{CANCELLING}: {late}")
            self._save(intended)
            launcher.cancel(intended)
            self._move(intended, "timed_out", now, detail=late)
        elif launch.retry_at or launch.detail:
            self.ledger.put(dataclasses.replace(launch, retry_at=0.0, detail=""))

    def _left_progress(self, launch: Launch, state: str, now: float) -> str:
        """The line that the trainer left beside its output, where its launcher cannot tell; looked at once a minute."""
        since = now - self._looked.get(launch.id, -LEFT_PROGRESS_SECONDS)
        if state != "running" or not launch.output_uri or 0 <= since < LEFT_PROGRESS_SECONDS:
            return ""
        self._looked[launch.id] = now
        return challenger.read_progress(launch)

    def _vanished(self, launch: Launch, detail: str, now: float) -> None:
        """The launcher does not know the job any more: what it left decides; a result in disorder is for the judge."""
        try:
            has_result = challenger.read_result(launch) is not None
        except challenger.ContractBroken:
            has_result = True
        if has_result:
            self._move(launch, "succeeded", now)
        elif launch.detail.startswith(CANCELLING):
            self._move(launch, "timed_out", now, detail=launch.detail.removeprefix(f"{CANCELLING}: "))
        else:
            self._move(launch, "failed", now, detail=f"the job is gone and left no result.json: {detail}")

    def _judge(self, launch: Launch, policy: config.Retrain, now: float) -> None:
        """Step 4: champion against challenger."""
        verdict, result = challenger.judge(
            launch, metric=policy.metric, events_min=policy.holdout_events_min, min_improvement=policy.min_improvement,
            positive_label=policy.positive_label, interval=policy.metric_interval, result_uris=policy.result_uris)
        if result is None or verdict.verdict == "failed":
            self._move(launch, "failed", now, detail=verdict.detail)
            return
        self._move(launch, "judged", now, detail=verdict.detail, verdict=verdict.verdict, champion=verdict.champion,
                   challenger=verdict.challenger, difference=verdict.difference, difference_lower=verdict.lower,
                   difference_upper=verdict.upper, new_version=challenger.new_version(launch, result),
                   model_uri=challenger.output_path(launch.output_uri, result.model_uri),
                   reference_uri=challenger.output_path(launch.output_uri, result.reference_uri))

    def _promote(self, launch: Launch, policy: config.Retrain, now: float) -> None:
        """Step 5: promote what is better, refuse the rest; a promotion under way is looked at now and then."""
        if not self._is_due(launch, now) or self._is_behind(launch):
            return
        current = self._reference(launch.model)
        try:
            self._refuse_overtaken(launch)
            if self._is_in_shadow(launch, policy, current, now):
                return
            done = promote(self._promotions.get(launch.model), launch, current=current, now=now, kept=self._kept,
                           result_uris=policy.result_uris)
        except PromotionWaits as waits:
            self._misses.pop(launch.id, None)
            self.ledger.put(dataclasses.replace(launch, progress=str(waits), retry_at=0.0))
            return
        except (PromotionRefused, CheckpointRefused) as refusal:
            self._shadows.ends(launch, self._promotions.get(launch.model))
            state: LaunchState = "failed" if isinstance(refusal, ChallengerUnfit) else "refused"
            self._move(launch, state, now, detail=str(refusal), progress="")
            return
        self._references[launch.id] = done.reference
        self._move(launch, "promoted", now, detail=launch.detail, progress="", previous_digest=current.digest,
                   previous_model_uri=done.previous_model_uri)

    def roll_back(self, model: str, version: str, to: str, *, by: str, why: str, at: float, now: float,
                  uris: Callable[[str], str], clock_set: float = 0.0) -> Launch:
        """Note that a model goes back to an earlier version; the next turns carry it out, as they do a promotion.

        version : the champion now      to : where to, "" for the one before it       at : event time, seconds since 1970
        uris    : where the model of a version is, "" where that is not known         now : wall-clock seconds since 1970
        clock_set : what the clock has been set by until then
        Asking for the same again while it is under way changes nothing. Raises TidemarkError when it cannot be.
        """
        policy = self.policies.get(model)
        if policy is None or policy.promote is None or self._kept is None:
            raise TidemarkError(f"{model}: expected a monitor with retrain.promote, got one without; deploy the earlier model by "
                                "hand and set the monitor's version and reference")
        launch = rolled_back(self.ledger.of_model(model), model, version, to, by=by, why=why, at=at, now=now,
                             uris=uris, kept=self._kept)
        if launch.id not in self.ledger.launches:
            launch = dataclasses.replace(launch, clock_set=clock_set)
        self.ledger.put(launch)
        return launch

    def _is_in_shadow(self, launch: Launch, policy: config.Retrain, current: Reference, now: float) -> bool:
        """One turn of a challenger that must first answer beside the champion; PromotionWaits while that goes on."""
        target = self._promotions.get(launch.model)
        if target is None or launch.launcher == ROLLBACK:
            return False
        begun = self._shadows.begins(launch, now)
        if begun is not None:
            # A day of answers is not spent on a model that cannot be judged.
            checked_reference(launch, current, self._kept, policy.result_uris)
            self._save(begun)
            return True
        judged = self._shadows.look(launch, policy, target, now)
        if judged is not None:
            self._save(judged)
        return judged is not None

    def _is_behind(self, launch: Launch) -> bool:
        """Whether another promotion of the model is under way, which must end first: two would undo one another."""
        return any(other.id != launch.id and (
            (other.state == "promoted" and not other.cut_over_at)
            or (other.state == "judged" and other.launcher == ROLLBACK)) for other in self.ledger.of_model(launch.model))

    def _refuse_overtaken(self, launch: Launch) -> None:
        """Refuse what was compared with a model that is no longer the champion: rolled back, or configured anew."""
        if self._version is not None and self._version(launch.model) != launch.version:
            raise PromotionRefused(f"it was made to replace version {launch.version}, but the champion is version "
                                   f"{self._version(launch.model)} now")

    def _is_due(self, launch: Launch, now: float) -> bool:
        """Whether this launch may be asked about again; notes that it is."""
        every = PROMOTION_SECONDS if launch.state == "judged" else POLL_SECONDS.get(launch.launcher, 15.0)
        every = every if self._poll_seconds is None else self._poll_seconds
        last = self._polled.get(launch.id)
        if last is not None and 0 <= now - last < every:
            return False
        self._polled[launch.id] = now
        return True

    def _set_back(self, launch: Launch, error: LaunchFailed, now: float) -> None:
        """A call failed: try it again later, or give the launch up. `attempts` counts over the whole launch."""
        attempts = launch.attempts + 1
        patience = self.policies[launch.model].launcher.deadline_hours * 3600 + PATIENCE_SECONDS
        if not error.retry:
            self._move(launch, "failed", now, detail=str(error), attempts=attempts)
            return
        misses, since = self._misses.get(launch.id, (0, now))
        if now - since > patience:
            self._move(launch, "failed", now, detail=f"given up after {attempts} failed calls: {error}",
                       attempts=attempts)
            return
        self._misses[launch.id] = misses + 1, since
        longest = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN * 2.0 ** min(misses + 1, 10))
        wait = self._rng.uniform(max(BACKOFF_SECONDS_MIN, longest / 2), longest)
        retry_at = now + max(wait, min(error.after, BACKOFF_SECONDS_MAX))
        # Where `detail` holds something that is still needed (the verdict, the intention), people read it as progress.
        keep = launch.state == "judged" or launch.detail.startswith(CANCELLING)
        words = f"{RETRYING}{error}"
        self._save(dataclasses.replace(launch, attempts=attempts, retry_at=retry_at,
                                       detail=launch.detail if keep else words,
                                       progress=words if keep else launch.progress))
        log.warning("Launch set back.", extra={"launch": launch.id, "model": launch.model, "state": launch.state,
                                               "attempt": attempts, "error": str(error)})

    def _move(self, launch: Launch, state: LaunchState, now: float, **changes: Any) -> None:
        """Save the launch in its next state; what is not said about `detail` and `retry_at` is forgotten."""
        progress = "" if launch.progress.startswith(RETRYING) else launch.progress
        changes = {"detail": "", "retry_at": 0.0, "progress": progress, **changes}
        self._save(dataclasses.replace(launch, state=state, steps=(*launch.steps, (state, now)), **changes))
        self._misses.pop(launch.id, None)
        self._polled.pop(launch.id, None)
        log.info("Launch moved on.", extra={"launch": launch.id, "model": launch.model, "state": state})

    def _save(self, launch: Launch) -> None:
        self.ledger.put(launch)
        self._store(launch)
        self.ledger.clear_changed(launch)


def output_beside(data_uri: str) -> str:
    """The launch's output folder: beside its data folder, so that one volume or bucket holds both.

    >>> output_beside("s3://captures/churn/launches/3f9c2a1b7d4e/data")
    's3://captures/churn/launches/3f9c2a1b7d4e/output'
    """
    return f"{data_uri.rpartition('/')[0]}/output"
