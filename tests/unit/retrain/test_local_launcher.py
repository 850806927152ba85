"""The local launcher with real processes: success, failure, cancelling, two starts, a restart of the service."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from monitor import config
from monitor.errors import LaunchFailed
from monitor.flow import JobStatus, Launch
from monitor.retrain.launchers import launcher_for, local_run
from monitor.retrain.launchers.local import Local

STUBBORN = ("import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True);"
            " time.sleep(600)")


def launch(folder: Path) -> Launch:
    return Launch("3f9c2a1b7d4e", "churn", "7", 1, "local", "submitted", '{"columns":["age"]}', (("submitted", 1.0),),
                  data_uri="/data", output_uri=str(folder / "output"))


def local(script: str, **changes: Any) -> Local:
    made = launcher_for(config.LocalLauncher(command=["{python}", "-c", script], **changes))
    assert isinstance(made, Local)
    made.grace_seconds = 0.5
    return made


def until(launcher: Local, job: Launch, wanted: Callable[[JobStatus], bool], seconds: float = 30) -> JobStatus:
    deadline = time.monotonic() + seconds
    while not wanted(status := launcher.status(job)):
        assert time.monotonic() < deadline, f"still {status}"
        time.sleep(0.01)
    return status


def living(group: int) -> list[int]:
    """The processes of a group that are more than zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of_group = stat.read_text(errors="replace").rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(of_group) == group and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def ended(status: JobStatus) -> bool:
    return status.state not in ("running", "queued")


def test_a_training_that_exits_with_zero_succeeded_and_its_last_line_is_the_progress(tmp_path: Path) -> None:
    job, launcher = launch(tmp_path), local(r"print('epoch 1'); print('epoch 2\repoch 3\n\n  ')")
    assert launcher.start(job).startswith("process ")
    assert until(launcher, job, ended) == JobStatus("succeeded", progress="epoch 3")


def test_the_trainer_gets_the_contract_and_none_of_our_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_PASSWORD", "hunter2")
    job = launch(tmp_path)
    script = "import os, json; json.dump(dict(os.environ), open(os.environ['TIDEMARK_OUTPUT_URI'] + '/env', 'w'))"
    launcher = local(script, environment={"EPOCHS": "3"})
    launcher.start(job)
    assert until(launcher, job, ended).state == "succeeded"
    seen = json.loads((tmp_path / "output" / "env").read_text())
    assert {"TIDEMARK_LAUNCH_ID": "3f9c2a1b7d4e", "TIDEMARK_MODEL": "churn", "TIDEMARK_VERSION": "7",
            "TIDEMARK_REASON": job.reason, "TIDEMARK_DATA_URI": "/data", "TIDEMARK_OUTPUT_URI": job.output_uri,
            "EPOCHS": "3"}.items() <= seen.items()
    assert seen["PATH"] == os.environ["PATH"]
    assert "hunter2" not in seen.values()


@pytest.mark.parametrize(("script", "detail"), [
    ("import sys; print('no data'); sys.exit(3)", "exit code 3; last line: no data"),
    ("import os; os.kill(os.getpid(), 9)", "ended by signal 9; the machine may be short of memory; last line: (none)"),
    ("raise ValueError('bad labels')", "exit code 1; last line: ValueError: bad labels"),
])
def test_a_training_that_fails_says_how(tmp_path: Path, script: str, detail: str) -> None:
    job, launcher = launch(tmp_path), local(script)
    launcher.start(job)
    status = until(launcher, job, ended)
    assert (status.state, status.detail) == ("failed", detail)


def test_a_command_that_does_not_exist_fails_with_its_name(tmp_path: Path) -> None:
    job, launcher = launch(tmp_path), Local(config.LocalLauncher(command=["no-such-trainer"]))
    launcher.start(job)
    assert until(launcher, job, ended).detail == "cannot run 'no-such-trainer': No such file or directory"


def test_started_twice_and_at_once_is_one_process(tmp_path: Path) -> None:
    job = launch(tmp_path)
    script = f"open({str(tmp_path / 'starts')!r}, 'a').write('x'); import time; time.sleep(600)"
    launchers, names, gate = [local(script) for _ in range(4)], [], threading.Barrier(4)

    def start(launcher: Local) -> None:
        gate.wait()
        names.append(launcher.start(job))

    threads = [threading.Thread(target=start, args=(launcher,)) for launcher in launchers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(names)) == 1
    until(launchers[0], job, lambda _: (tmp_path / "starts").exists())
    assert local(script).start(job) == names[0]
    for launcher in launchers:
        launcher.cancel(job)
    assert (tmp_path / "starts").read_text() == "x"


@pytest.mark.parametrize("script", ["import time; print('up', flush=True); time.sleep(600)", STUBBORN])
def test_cancel_ends_the_whole_group_also_a_deaf_trainer(tmp_path: Path, script: str) -> None:
    job, launcher = launch(tmp_path), local(script)
    name = launcher.start(job)
    until(launcher, job, lambda status: bool(status.progress))
    launcher.cancel(job)
    until(launcher, job, ended)
    until(launcher, job, lambda _: not living(int(name.removeprefix("process "))))
    launcher.cancel(job)                                    # nothing left to do, and nobody else is hit


def test_a_cancelled_training_that_listens_is_written_down(tmp_path: Path) -> None:
    job, launcher = launch(tmp_path), local("import time; print('up', flush=True); time.sleep(600)")
    launcher.start(job)
    until(launcher, job, lambda status: bool(status.progress))
    launcher.cancel(job)
    assert until(launcher, job, ended).detail == "ended by signal 15; last line: up"


SERVICE = """
import sys
from pathlib import Path
from monitor.flow import Launch
from monitor.config import LocalLauncher
from monitor.retrain.launchers.local import Local
job = Launch("3f9c2a1b7d4e", "churn", "7", 1, "local", "submitted", "{}", (("submitted", 1.0),), output_uri=sys.argv[1])
print(Local(LocalLauncher(command=["{python}", "-c", sys.argv[2]])).start(job), flush=True)
import time; time.sleep(600)
"""


def test_a_training_survives_the_service_and_a_new_one_follows_it_to_its_end(tmp_path: Path) -> None:
    """The service is a real process in a group of its own, killed with SIGKILL while the trainer waits for a file."""
    job = launch(tmp_path)
    script = (f"import os, time\nprint('waiting', flush=True)\nwhile not os.path.exists({str(tmp_path / 'go')!r}):"
              " time.sleep(0.01)\nprint('done')")
    service = subprocess.Popen([sys.executable, "-c", SERVICE, job.output_uri, script], stdout=subprocess.PIPE,
                               start_new_session=True, cwd=Path(__file__).parents[3])
    assert service.stdout is not None
    name = service.stdout.readline().decode().strip()
    os.killpg(service.pid, signal.SIGKILL)
    service.wait()
    service.stdout.close()
    again = local(script)
    assert until(again, job, lambda status: bool(status.progress)) == JobStatus("running", progress="waiting")
    assert again.start(job) == name
    (tmp_path / "go").touch()
    assert until(again, job, ended) == JobStatus("succeeded", progress="done")
    assert again.start(job) == name                         # also when it is long over: the claim stays


def test_the_trainer_dies_with_its_companion_and_is_unknown_then(tmp_path: Path) -> None:
    job, launcher = launch(tmp_path), local("import os, time; print(os.getpid(), flush=True); time.sleep(600)")
    companion = int(launcher.start(job).removeprefix("process "))
    trainer = int(until(launcher, job, lambda status: bool(status.progress)).progress)
    os.kill(companion, signal.SIGKILL)
    assert until(launcher, job, ended).state == "unknown"
    until(launcher, job, lambda _: local_run.start_ticks(trainer) is None)


def test_a_later_process_of_the_same_number_is_not_taken_for_the_training(tmp_path: Path) -> None:
    job, launcher = launch(tmp_path), local("pass")
    claim = {"id": job.id, "pid": os.getpid(), "ticks": 1, "boot": local_run.boot_id(), "started": 1.0}
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "launch.json").write_text(json.dumps(claim))
    assert launcher.status(job).state == "unknown"
    launcher.cancel(job)                                    # must not end this test


def test_a_zombie_is_not_alive() -> None:
    with subprocess.Popen(["true"]) as process:
        deadline = time.monotonic() + 30
        while local_run.start_ticks(process.pid) is not None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert Path(f"/proc/{process.pid}").exists(), "nobody has reaped it yet"


def test_a_folder_of_another_launch_is_refused(tmp_path: Path) -> None:
    job, launcher = launch(tmp_path), local("pass")
    launcher.start(job)
    for call in (launcher.start, launcher.status, launcher.cancel):
        with pytest.raises(LaunchFailed, match="expected the launch 000000000000, got '3f9c2a1b7d4e'"):
            call(replace(job, id="000000000000"))


@pytest.mark.parametrize("uri", ["", "s3://bucket/output"])
def test_only_a_folder_of_this_machine_will_do(tmp_path: Path, uri: str) -> None:
    with pytest.raises(LaunchFailed, match="expected a folder of this machine") as raised:
        local("pass").start(replace(launch(tmp_path), output_uri=uri))
    assert not raised.value.retry


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("a file is in the way")
    with pytest.raises(LaunchFailed, match=r"Not a directory|File exists"):
        local("pass").start(launch(tmp_path))


def test_the_progress_reads_only_the_end_of_a_long_log(tmp_path: Path) -> None:
    job = launch(tmp_path)
    launcher = local(r"import sys; sys.stdout.write('x' * 5_000_000 + '\n' + 'last \x1b[1mline\x00 ' + 'y' * 500)")
    launcher.start(job)
    progress = until(launcher, job, ended).progress
    assert progress.startswith("last [1mline yyy")
    assert len(progress) == 200


def test_never_started_is_unknown(tmp_path: Path) -> None:
    assert local("pass").status(launch(tmp_path)).state == "unknown"
