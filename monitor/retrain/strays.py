"""Strays: jobs of a launch whose training is over, which a request to start brought about when nobody waited for it any more.

A request to start can be cut off here and lie in a proxy's or a server's queue there. We ask again, the launch goes its way
and ends; then the first request is carried out. Nobody would follow that job, and a GPU would be busy for nothing. So for a
day after a training has ended, its launcher is asked now and then how it stands, and what still waits or runs is ended.

What such a job leaves is never judged: a launch's verdict is of the job that it followed, in that job's own folder.

Only launchers that keep jobs on another machine and can be asked are looked at. A webhook's receiver knows an event by its
id and takes it once; a local process is started by us, without a request that could hang.

Cost: one status call per ended launch of the last day, every minute in the first hour and every ten minutes after it; none
more in a round of a launcher that failed to answer.
Neighbour: `launch`, which calls `end` once per turn.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from monitor.errors import LaunchFailed
from monitor.flow import FINAL_STATES, Launch, Launcher
from monitor.retrain.deadline import own_time
from monitor.retrain.ledger import Ledger

log = logging.getLogger(__name__)

#: How often a launch that has ended is looked at, in the first hour and later; the first time so long after its end.
LOOK_SECONDS_MIN, LOOK_SECONDS_MAX = 60.0, 600.0
RECENT_SECONDS = 3600.0
#: For how long: no server keeps a request for longer before it carries it out.
WATCHED_SECONDS = 86_400.0
REMOTE = frozenset({"kubernetes", "airflow", "kfp"})


class Strays:
    """Ends what runs of launches whose training is over."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._round = -LOOK_SECONDS_MIN
        self._looked: dict[str, float] = {}         # launch id -> when; forgotten at a restart, which looks at once

    def end(self, launchers: Mapping[str, Launcher], now: float) -> None:
        """Look at the launches of the last day whose turn it is; a call that fails is made again in the next round."""
        if 0 <= now - self._round < LOOK_SECONDS_MIN:
            return
        self._round = now
        watched = [launch for launch in self._ledger.launches.values() if _is_watched(launch, now)]
        self._looked = {launch.id: self._looked[launch.id] for launch in watched if launch.id in self._looked}
        away: set[int] = set()
        for launch in watched:
            launcher = launchers.get(launch.model)
            if launcher is None or launcher.name != launch.launcher or id(launcher) in away or not self._is_due(launch, now):
                continue
            try:
                if launcher.status(launch).state in ("queued", "running"):
                    launcher.cancel(launch)
                    log.warning("Job of an ended launch is being ended.", extra={"launch": launch.id, "model": launch.model,
                                                                                "launcher": launcher.name})
            except LaunchFailed as error:
                away.add(id(launcher))
                log.info("Jobs of ended launches not looked at.", extra={"launcher": launcher.name, "error": str(error)})
            self._looked[launch.id] = now

    def _is_due(self, launch: Launch, now: float) -> bool:
        ended = own_time(launch, now) - launch.steps[-1][1]
        if 0 <= ended < LOOK_SECONDS_MIN:
            return False                            # what was cancelled in this turn is given its time to end
        every = LOOK_SECONDS_MIN if 0 <= ended < RECENT_SECONDS else LOOK_SECONDS_MAX
        return not 0 <= now - self._looked.get(launch.id, -LOOK_SECONDS_MAX) < every


def _is_watched(launch: Launch, now: float) -> bool:
    """Whether something was asked for, nobody follows it any more, and that is not long ago."""
    is_over = launch.state in FINAL_STATES or launch.state in ("succeeded", "judged")
    was_asked = any(state == "submitted" for state, _ in launch.steps)
    since = own_time(launch, now) - launch.steps[-1][1]
    return launch.launcher in REMOTE and is_over and was_asked and abs(since) < WATCHED_SECONDS
