"""The launcher that trains in a subprocess of this machine: for laptops, the demo, and servers with their own GPU.

A launch lives in its output folder, not in this object, so that a service that was killed and started again finds it:

    launch.json   who runs it: written once by the companion process (`local_run`), exclusively; the claim
    log.txt       everything the trainer printed; its last non-empty line is the progress that people see
    exit.json     how it ended

`start` spawns a companion in a session of its own and waits until a claim is there (some 50 ms); started twice, the
second companion finds the claim and leaves: one training. `status` reads exit.json, else asks the kernel whether the
claimed process still is the same (number, start ticks, boot). A process that vanished without exit.json is `unknown`:
whether it left a result is for the challenger's judgement to find out. `cancel` ends the session's process group.

The trainer's environment is built from nothing: what programs need to run (KEPT), the configured `environment`, and
the contract's TIDEMARK_*; no variable of the service that might be a secret goes through. Every call is bounded by the
seconds below; reads are bounded by bytes. Nothing here is imported but by `launchers.launcher_for`.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from monitor.config import LocalLauncher
from monitor.errors import LaunchFailed
from monitor.flow import JobStatus, Launch
from monitor.retrain.launchers import local_run, trainer_environment

CLAIM_SECONDS = 10.0                      # a companion claims in 50 ms; a machine short of memory needs longer
GRACE_SECONDS = 5.0                       # torchrun needs a moment to end its workers, which lead their own sessions
LOG_BYTES = 8_192                         # the end of the log that progress and failure are taken from
LINE_CHARACTERS = 200

#: Variables of the service that a trainer keeps: where programs and libraries are, language, devices, threads.
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH",
        "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "OMP_NUM_THREADS")


class Local:
    """Runs `command` (an argument list; "{python}" stands for this interpreter) with the trainer's contract."""

    name = "local"

    def __init__(self, config: LocalLauncher, *, grace_seconds: float = GRACE_SECONDS) -> None:
        self.config = config
        self.grace_seconds = grace_seconds
        # Companions that this object started: polled so that ended ones do not stay as zombies.
        self._children: list[subprocess.Popen[bytes]] = []

    def start(self, launch: Launch) -> str:
        """Start the trainer, or find it started before; returns "process <number>". Raises LaunchFailed."""
        self._reap()
        folder = _folder(launch)
        claim = _claim(launch)
        if claim is None:
            command = [sys.executable if part == "{python}" else part for part in self.config.command]
            if not command:
                raise LaunchFailed("retrain.launcher.command: expected a command, got an empty list; name the trainer")
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with (folder / "log.txt").open("ab") as log:
                    child = subprocess.Popen(
                        [sys.executable, "-I", "-S", local_run.__file__, launch.id, str(folder), *command],
                        stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment(launch, folder),
                        start_new_session=True)
            except OSError as error:
                # A full disk or too many processes pass; a forbidden or impossible folder does not.
                passing = error.errno in (errno.ENOSPC, errno.EAGAIN, errno.ENOMEM, errno.EDQUOT, errno.EMFILE)
                raise LaunchFailed(f"{folder}: no training can start there: {error.strerror}", retry=passing) from None
            except ValueError as error:                       # a zero byte in the command or the environment
                raise LaunchFailed(f"retrain.launcher.command: expected plain text, got one that the system refuses: "
                                   f"{error}") from None
            self._children.append(child)
            claim = self._await_claim(launch, child)
        return f"process {claim['pid']}"

    def status(self, launch: Launch) -> JobStatus:
        """How the training stands, from the files and the kernel alone."""
        self._reap()
        claim = _claim(launch)
        progress = _last_line(launch)
        if claim is None:
            return JobStatus("unknown", "no launch.json in the output folder: it was never started, or removed")
        # In this order: a trainer that ends between the two looks has written exit.json before its companion goes.
        alive = _is_alive(claim)
        ended = _read_json(_folder(launch) / "exit.json")
        if ended is not None:
            return _ended(ended, progress)
        if alive:
            return JobStatus("running", progress=progress)
        return JobStatus("unknown", "the training's process is gone and did not say how it ended", progress)

    def cancel(self, launch: Launch) -> None:
        """End the training with everything in its process group; returns within `grace_seconds` and a moment."""
        claim = _claim(launch)
        if claim is None or not _is_alive(claim):
            return
        group = int(str(claim["pid"]))
        try:
            os.killpg(group, signal.SIGTERM)
            deadline = time.monotonic() + self.grace_seconds
            while time.monotonic() < deadline:
                self._reap()
                os.killpg(group, 0)                           # ends this loop when nobody is left
                time.sleep(0.02)
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            pass
        except PermissionError:
            raise LaunchFailed(f"process group {group}: not allowed to end it; end it by hand") from None

    def _environment(self, launch: Launch, folder: Path) -> dict[str, str]:
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        return kept | self.config.environment | trainer_environment(launch) | {"TIDEMARK_OUTPUT_URI": str(folder)}

    def _await_claim(self, launch: Launch, child: subprocess.Popen[bytes]) -> dict[str, object]:
        """The claim on this launch, ours or an earlier companion's, as soon as it is there."""
        deadline = time.monotonic() + CLAIM_SECONDS
        while True:
            ended = child.poll() is not None                  # looked at first: a claim precedes the end
            if claim := _claim(launch):
                return claim
            if ended or time.monotonic() > deadline:
                # Without the companion's claim nothing runs; one that is only slow will claim, and be found next time.
                raise LaunchFailed("the training's companion process did not start: "
                                   f"{_last_line(launch) or 'no answer'}", retry=True)
            time.sleep(0.005)

    def _reap(self) -> None:
        self._children = [child for child in self._children if child.poll() is None]


def _folder(launch: Launch) -> Path:
    """The output folder as an absolute path; raises LaunchFailed for anything that is no folder of this machine."""
    place = launch.output_uri.removeprefix("file://")
    if not place or "://" in place:
        raise LaunchFailed(f"retrain.capture_uri: expected a folder of this machine for the local launcher, "
                           f"got {launch.output_uri!r}; use a path")
    return Path(place).absolute()


def _claim(launch: Launch) -> dict[str, object] | None:
    """launch.json, when somebody has claimed this launch; raises LaunchFailed when the folder is another launch's."""
    path = _folder(launch) / "launch.json"
    claim = _read_json(path)
    if claim is not None and claim.get("id") != launch.id:
        raise LaunchFailed(f"{path}: expected the launch {launch.id}, got {str(claim.get('id'))[:20]!r}; "
                           "give every launch its own output folder")
    return claim


def _read_json(path: Path) -> dict[str, object] | None:
    """A small JSON object written whole; None where there is none. A damaged one is an error, not an absence."""
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(LOG_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise LaunchFailed(f"{path}: expected a small JSON object of ours, got: {str(error)[:100]}; "
                           "remove the folder to give the launch up") from None
    if not isinstance(content, dict):
        raise LaunchFailed(f"{path}: expected a JSON object, got {type(content).__name__}; "
                           "remove the folder to give the launch up")
    return content


def _is_alive(claim: dict[str, object]) -> bool:
    """Whether the process that claimed is still there, and is the same one."""
    pid, ticks = claim.get("pid"), claim.get("ticks")
    return (isinstance(pid, int) and ticks is not None and claim.get("boot") == local_run.boot_id()
            and local_run.start_ticks(pid) == ticks)


def _ended(ended: dict[str, object], progress: str) -> JobStatus:
    """The status that exit.json tells."""
    code = ended.get("code")
    if code == 0:
        return JobStatus("succeeded", progress=progress)
    if "error" in ended:
        return JobStatus("failed", str(ended["error"])[:300], progress)
    if isinstance(code, int) and code < 0:
        hint = "; the machine may be short of memory" if -code == signal.SIGKILL else ""
        return JobStatus("failed", f"ended by signal {-code}{hint}; last line: {progress or '(none)'}", progress)
    return JobStatus("failed", f"exit code {code}; last line: {progress or '(none)'}", progress)


def _last_line(launch: Launch) -> str:
    """The log's last non-empty line, printable, at most LINE_CHARACTERS; a progress bar's carriage return ends one."""
    try:
        with (_folder(launch) / "log.txt").open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_BYTES))
            end = log.read(LOG_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
    lines = (line.strip() for line in reversed(end.replace("\r", "\n").split("\n")))
    last = next((line for line in lines if line), "")
    return "".join(character for character in last if character.isprintable())[:LINE_CHARACTERS]
