"""The last line that a training's pod has printed, where our ServiceAccount may read it: progress for people to see.

A trainer that leaves `progress.txt` in its output needs none of this. For one that only prints, the end of its pod's log is
read through the API server: of the first pod that runs, by its index in the Job, then by name; of the container `trainer`, or
the first one. Reading logs is a right of its own (deploy/kubernetes/training/kinds/logs.yaml), because a log may hold what the
Role beside it keeps from us; without it everything else works, and nobody is asked again for FORBIDDEN_SECONDS. Whatever goes
wrong here (no right, a container that has not begun, a node that does not answer) is no error, and no line.

Cost: one request of at most LOG_BYTES per running launch a minute. Neighbours: `kubernetes` asks, `kubernetes_client` sends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from monitor.errors import LaunchFailed
from monitor.retrain.launchers.kubernetes_client import Cluster, Refused
from monitor.retrain.launchers.kubernetes_pod import CONTAINER

LOOK_SECONDS = 60.0
FORBIDDEN_SECONDS = 3600.0
#: The end of a log: enough for a line after a progress bar's many.
LOG_LINES, LOG_BYTES = 20, 1 << 14
LINE_CHARACTERS = 200
#: By which the pods of an Indexed Job, of a JobSet and of a PyTorchJob are numbered.
INDEXES = ("batch.kubernetes.io/job-completion-index", "training.kubeflow.org/replica-index")


class LogTails:
    """The last lines of running launches; `clock` gives monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lines: dict[str, tuple[float, str]] = {}      # launch id -> when it was read, and the line
        self._allowed_at: dict[str, float] = {}             # namespace -> when to ask again for what was forbidden

    def line(self, cluster: Cluster, launch: str, pods: Sequence[Mapping[str, Any]]) -> str:
        """The last line of a launch that runs, read at most once a minute; "" where there is none to be had."""
        now = self._clock()
        when, line = self._lines.get(launch, (-LOOK_SECONDS, ""))
        running = [pod for pod in pods if (pod.get("status") or {}).get("phase") == "Running"]
        if now - when < LOOK_SECONDS or not running or now < self._allowed_at.get(cluster.namespace, -1.0):
            return line
        pod = min(running, key=_place)
        try:
            line = last_line(cluster.log(_name(pod), _container(pod), lines=LOG_LINES, limit=LOG_BYTES)) or line
        except Refused as error:
            if error.status in (401, 403):
                self._allowed_at[cluster.namespace] = now + FORBIDDEN_SECONDS
        except LaunchFailed:
            pass
        self._lines = {known: entry for known, entry in self._lines.items() if now - entry[0] < FORBIDDEN_SECONDS}
        self._lines[launch] = now, line
        return line


def last_line(log: bytes) -> str:
    r"""The last line that is not empty, printable, cut; a progress bar's carriage return ends one.

    >>> last_line(b"epoch 1\rstep 7 of 9\r\n \n")
    'step 7 of 9'
    """
    lines = (line.strip() for line in reversed(log.decode("utf-8", "replace").replace("\r", "\n").split("\n")))
    last = next((line for line in lines if line), "")
    return "".join(character for character in last if character.isprintable())[:LINE_CHARACTERS]


def _name(pod: Mapping[str, Any]) -> str:
    return str((pod.get("metadata") or {}).get("name") or "")


def _place(pod: Mapping[str, Any]) -> tuple[int, str]:
    labels = (pod.get("metadata") or {}).get("labels") or {}
    index = next((str(labels[key]) for key in INDEXES if key in labels), "0")
    return int(index) if index.isascii() and index.isdigit() else 0, _name(pod)


def _container(pod: Mapping[str, Any]) -> str:
    names = [str(each.get("name")) for each in (pod.get("spec") or {}).get("containers") or () if each.get("name")]
    return CONTAINER if CONTAINER in names or not names else names[0]
