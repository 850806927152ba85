"""How long a job may take: its wait in the launcher's queue and its training, each with a limit of its own.

A job that waits (suspended by Kueue, pending without a GPU, a run of a paused DAG) never reaches the deadline of the system
that holds it back, so the wait is counted here: `queued_since` while it lasts, `queued_seconds` for all earlier waits. Both
are stored with the launch, so a restart forgets nothing. Where the launcher has a `queue_hours`, the deadline does not count
the wait; where it has none (a local process), there is no queue.

Pure functions of the launch and of its own time (`own_time`): the wall clock as it was set when the launch began, which goes
on evenly however often the machine's clock is set meanwhile. Neighbour: `launch`, which ends a job whose time is over.
"""

from __future__ import annotations

import dataclasses

from monitor import config
from monitor.flow import JobStatus, Launch, LaunchState

QUEUED = "queued"


def own_time(launch: Launch, steady: float) -> float:
    """Now in the launch's own time, in which its steps, waits and limits are; `steady` leaves out what the clock was set by."""
    return steady + launch.clock_set


def with_wait(launch: Launch, status: JobStatus, now: float) -> Launch:
    """The launch with its wait in the launcher's queue counted, and shown as its progress while it lasts."""
    if status.state == "queued":
        words = f"{QUEUED}: {status.detail}" if status.detail else QUEUED
        return dataclasses.replace(launch, queued_since=launch.queued_since or now, progress=status.progress or words)
    if not launch.queued_since:
        return launch
    waited = launch.queued_seconds + max(0.0, now - launch.queued_since)
    progress = "" if launch.progress.startswith(QUEUED) else launch.progress
    return dataclasses.replace(launch, queued_since=0.0, queued_seconds=waited, progress=progress)


def over(launch: Launch, policy: config.Retrain, now: float) -> str:
    """Why the job's time is over; empty while it is not. Where the queue has its own limit, the deadline does not count it."""
    hours, queue_hours = policy.launcher.deadline_hours, getattr(policy.launcher, "queue_hours", None)
    waits = now - launch.queued_since if launch.queued_since else 0.0
    spent = now - time_of(launch, "submitted")
    if queue_hours is not None:
        if waits > queue_hours * 3600:
            return (f"waited in the queue for more than {queue_hours:g} hours (retrain.launcher.queue_hours); was ended"
                    + (f"; {launch.progress}" if launch.progress.startswith(f"{QUEUED}: ") else ""))
        spent -= launch.queued_seconds + waits
    if spent > hours * 3600:
        return f"did not end within {hours:g} hours (retrain.launcher.deadline_hours); was ended"
    return ""


def time_of(launch: Launch, state: LaunchState) -> float:
    """When the launch came into a state; its last step's time, where it never was in it."""
    return next((at for name, at in launch.steps if name == state), launch.steps[-1][1])
