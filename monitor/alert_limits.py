"""The few numbers that alerts depend on, for Prometheus' rules and for the alerts that the service sends itself.

The decision of an alarm has its own threshold and patience, in the policy; what stands here is only about how long a
silence is too long, when a training is overdue and for how long its end is news. What depends on a monitor is its
`Limits`. Neighbours: `dashboards.rules` makes recorded series of them, `monitor.expose.alert_desk` compares with them.
"""

from __future__ import annotations

from dataclasses import dataclass

from monitor.config import Monitor

#: A stream that was not judged for so long tells nothing of now; in panes where a configuration says how long they are.
STALE_SECONDS, STALE_PANES = 900, 3
#: The launcher ends a training at its deadline; what is not over an hour later hangs.
DEADLINE_HOURS, OVERDUE_HOURS = 6.0, 1.0
#: What became of a launch is news for a day.
NEWS_SECONDS = 86_400
#: Labelled events are collected for up to two weeks; after a day somebody should see that they come.
COLLECTING_SECONDS_MAX = 86_400
#: A proposal that nobody answered for so long was overlooked.
PROPOSED_SECONDS_MAX = 900
#: Metrics of quality of which less is better.
LOWER_IS_BETTER = ("mean_absolute_error", "root_mean_squared_error", "log_loss")
#: Launches in one of these states are under way.
IN_FLIGHT = ("proposed", "approved", "submitted", "running", "succeeded", "judged")
#: Of those, the ones that wait for a job, which is overdue some time after its deadline.
TRAINING = ("submitted", "running", "succeeded", "judged")


@dataclass(frozen=True, slots=True)
class Limits:
    """What the alerts of one model depend on.

    stale_seconds    : without a judgement for so long, nothing that was judged is news
    overdue_seconds  : a launch that is so long in one state of its training hangs
    """

    model: str
    stale_seconds: int = STALE_SECONDS
    overdue_seconds: int = int((DEADLINE_HOURS + OVERDUE_HOURS) * 3600)

    @classmethod
    def of(cls, monitor: Monitor) -> Limits:
        """Those of a configured monitor."""
        pane = monitor.pane
        stale = max(STALE_SECONDS, STALE_PANES * pane.seconds + pane.lateness_seconds)
        hours = DEADLINE_HOURS
        if monitor.retrain is not None:             # a launch that waits in its launcher's queue is not overdue
            hours = monitor.retrain.launcher.deadline_hours + getattr(monitor.retrain.launcher, "queue_hours", 0.0)
        return cls(monitor.model, stale, int((hours + OVERDUE_HOURS) * 3600))
