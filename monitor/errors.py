"""The errors that tidemark raises on purpose, each one line that says where, expected, got and what to do.

Wrong *input* (an event) never raises: it is refused, counted and set aside. Wrong *configuration*, a broken contract
or a server that answers nonsense raises one of these at start or at the step that met it; `monitor.cli` prints the one
line and exits non-zero. Anything else that is raised is a defect of ours.
"""

from __future__ import annotations

from detectors.reference import ReferenceMismatch

__all__ = ["CheckpointFailed", "CheckpointRefused", "ConfigError", "LaunchFailed", "ReferenceMismatch", "SourceFailed",
           "StateInUse", "TidemarkError", "one_line"]


class TidemarkError(Exception):
    """Something that the user can mend; its text is one complete line."""


class ConfigError(TidemarkError):
    """A configuration, a flag or a file that is not what it must be: `path: expected, got; what to do`."""


class SourceFailed(TidemarkError):
    """The source of events cannot be read: broker unreachable, refused, topic absent, file broken."""


class CheckpointRefused(TidemarkError):
    """The stored state cannot be used: corrupted, of another format, or of another configuration."""


class CheckpointFailed(CheckpointRefused):
    """The state cannot be written now: the disk is full, read-only or gone. What was stored before is whole."""


class StateInUse(CheckpointRefused):
    """Another process holds the state file."""


class LaunchFailed(TidemarkError):
    """A launcher could not start, follow or stop a training job.

    retry : whether the same call may succeed later (server away), or never will (forbidden, invalid)
    after : seconds that the other side asks us to wait before; 0 where it does not say
    """

    def __init__(self, message: str, *, retry: bool = False, after: float = 0.0) -> None:
        super().__init__(message)
        self.retry = retry
        self.after = after


def one_line(text: str) -> str:
    r"""Text as it may stand on one line of a terminal or a log: what is not printable is written as `\x1b`.

    Names and values come from data, and a terminal would obey what is hidden in them.
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
