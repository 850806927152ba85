"""How a process of the service is told to kill itself (SIGKILL) at a named step: `kill_at(STEP, CALL)` before it begins.

The steps are the boundaries of the pipeline's loop; nothing of the service knows about them. `STEP` is a name of STEPS
with `:before` or `:after`, `CALL` the number of the call, from 1.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from monitor.cutover import CutOver
from monitor.decide.policy import Judge, Policy
from monitor.ingest.deadletters import DeadLetters
from monitor.pipeline import Stages
from monitor.retrain.launchers.local import Local
from monitor.retrain.trigger import Trigger
from monitor.state.capture import Capture
from monitor.state.panes import Panes
from monitor.state.store import Store

STEPS: dict[str, tuple[Any, str]] = {
    "decode": (Stages, "_decode"), "add": (Panes, "add"), "close": (Panes, "_close"), "scan": (Judge, "__call__"),
    "policy": (Policy, "__call__"), "publish": (Stages, "publish"), "trigger": (Trigger, "__call__"),
    "commit": (Stages, "commit"), "letters": (DeadLetters, "flush"), "capture": (Capture, "write"),
    "save": (Store, "save_stream"), "forget": (Capture, "forget"), "advance": (Stages, "advance"),
    "snapshot": (Capture, "snapshot"), "start": (Local, "start"), "cutover": (CutOver, "begin"),
}


def kill_at(step: str, call: int) -> None:
    """Arrange for the process to die at that call."""
    name, _, when = step.partition(":")
    owner, attribute = STEPS[name]
    whole: Callable[..., Any] = getattr(owner, attribute)
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = whole(*args, **kwargs)
        if calls == call and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, attribute, counted)
