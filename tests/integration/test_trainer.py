"""The trainer as it runs in production: killed, in several processes, on a bucket, short of memory, behind a launcher."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet
from safetensors.numpy import load_file

from detectors.reference import Column, Reference
from monitor.config import LocalLauncher
from monitor.flow import Launch
from monitor.retrain.challenger import judge
from monitor.retrain.launchers.local import Local
from tests.conftest import free_port, missing, wait_until
from tests.unit.trainer.conftest import ROOT, TRAINER, captured, environment, watched

#: Small batches make an epoch slow enough to be killed in.
EPOCHS = ("--epochs", "5", "--patience", "5", "--batch-size", "32", "--dropout", "0")
#: Far more than a training here takes (20 s, of which torch's import is most), for a machine that is shared by many.
SECONDS = 500
pytestmark = pytest.mark.timeout(600)
SKLEARN = ROOT / "examples" / "sklearn_trainer" / "train.py"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trainer") / "data"
    captured(folder)
    return folder


def run(data: Path | str, output: Path | str, *arguments: str, before: tuple[str, ...] = (),
        **changes: str) -> subprocess.CompletedProcess[str]:
    """Run the trainer as a launcher would; a training that hangs is ended with all its processes."""
    command = [*before, sys.executable, str(TRAINER), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                          env=environment(data, output, **changes)) as process:  # type: ignore[arg-type]
        try:
            out, err = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """One undisturbed training of one process: this one, where torch is loaded once."""
    return trained_here(data, tmp_path_factory.mktemp("undisturbed") / "output", *EPOCHS)


def trained_here(data: Path, output: Path, *arguments: str) -> Path:
    import train as trainer
    from torch import use_deterministic_algorithms

    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(data, output).items():
            patch.setenv(name, value)
        assert trainer.main(arguments) == 0
    use_deterministic_algorithms(False)
    return output


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PYTHONPATH as in the trainer's image: `detectors` is there, the service cannot be imported."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "detectors", folder / "detectors", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "monitor.py").write_text("raise ImportError('the trainer may not import the service')\n")
    return str(folder)


def launch_of(output: Path | str, data: Path | str = "", launcher: str = "local") -> Launch:
    reason = environment(Path("/"), Path("/"))["TIDEMARK_REASON"]
    return Launch("0123456789ab", "m", "7", 1, launcher, "succeeded", reason, (("succeeded", 0.0),),
                  data_uri=str(data), output_uri=str(output), columns=watched())


def killed_after(epoch: int, data: Path, output: Path, *arguments: str) -> None:
    """A training that is killed as soon as it has told of an epoch's end."""
    victim = subprocess.Popen([sys.executable, str(TRAINER), *EPOCHS, *arguments], text=True, env=environment(data, output),
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert victim.stdout is not None
    with victim.stdout as lines:
        next(line for line in lines if line.startswith(f"epoch {epoch}/"))
        victim.send_signal(signal.SIGKILL)
    assert victim.wait(30) == -signal.SIGKILL
    assert not (output / "result.json").exists()


def test_a_training_that_is_killed_at_a_random_epoch_ends_with_the_very_weights_of_an_undisturbed_one(
    undisturbed: Path, data: Path, tmp_path: Path,
) -> None:
    epoch, output, kept = random.randrange(1, 5), tmp_path / "output", tmp_path / "checkpoints"
    killed_after(epoch, data, output, "--checkpoints", str(kept))
    done = run(data, output, *EPOCHS, "--checkpoints", str(kept), "--resume", "require")
    # The kill may fall into the next epoch, whose checkpoint may be whole already.
    resumed = [line for line in done.stdout.splitlines() if line in (f"resumed after epoch {epoch}",
                                                                     f"resumed after epoch {epoch + 1}")]
    assert (done.returncode, len(resumed)) == (0, 1), (epoch, done.stderr)
    expected, got = (load_file(folder / "model.safetensors") for folder in (undisturbed, output))
    assert expected.keys() == got.keys()
    assert all(np.array_equal(expected[name], got[name]) for name in expected), epoch
    assert (undisturbed / "holdout.parquet").read_bytes() == (output / "holdout.parquet").read_bytes()
    assert list(kept.iterdir()) == []


def test_a_checkpoint_of_other_code_or_columns_is_refused_in_one_line(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    killed_after(1, data, output)
    for name in TRAINER.parent.glob("*.py"):
        shutil.copy(name, tmp_path)
    with (tmp_path / "network.py").open("a") as code:
        code.write("\n# Changed since.\n")
    told = json.dumps([column for column in json.loads(watched()) if column["name"] != "noise"])
    done = subprocess.run([sys.executable, str(tmp_path / "train.py"), *EPOCHS, "--resume", "require"], capture_output=True,
                          text=True, timeout=SECONDS, check=False, env=environment(data, output, TIDEMARK_COLUMNS=told))
    assert (done.returncode, done.stderr) == (78, "error: checkpoint.pt: expected a checkpoint of this training, got one of "
                                              "other code, columns, options, events; remove it, or leave out --resume require\n")


def test_two_processes_over_gloo_end_with_the_model_of_one_and_need_nothing_of_tidemark_but_detectors(
    data: Path, tmp_path: Path, site: str,
) -> None:
    options = ("--epochs", "2", "--batch-size", "256", "--dropout", "0")
    done = run(data, tmp_path / "two", *options, "--processes", "2", PYTHONPATH=site)
    assert (done.returncode, done.stdout.count("epoch 1/2")) == (0, 1), done.stderr[-2000:]
    one = trained_here(data, tmp_path / "one", *options)
    alone, together = (load_file(folder / "model.safetensors") for folder in (one, tmp_path / "two"))
    assert all(np.allclose(alone[name], together[name], atol=1e-4) for name in alone)
    metrics, other = (json.loads((folder / "result.json").read_text())["metrics"] for folder in (one, tmp_path / "two"))
    assert (metrics["processes"], other["processes"]) == (1, 2)
    assert other["check_loss"] == pytest.approx(metrics["check_loss"], abs=1e-4)
    assert other["accuracy"] == pytest.approx(metrics["accuracy"], abs=0.002)
    verdict, _ = judge(launch_of(tmp_path / "two"), metric="accuracy", events_min=200)
    assert verdict.verdict == "better"


def test_several_processes_refuse_with_the_code_of_one_before_torchrun_hides_it(data: Path, tmp_path: Path) -> None:
    done = run(data, tmp_path, "--processes", "2", "--label", "truth")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (78, "", 1)


def test_workers_are_refused_on_the_64_mb_of_shared_memory_that_a_container_gets(data: Path, tmp_path: Path) -> None:
    mount = ("unshare", "--map-root-user", "--mount", "sh", "-c", 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"', "sh")
    if subprocess.run([*mount, "true"], capture_output=True, check=False).returncode:
        missing("unshare", "no right to mount a small /dev/shm; that a too small one is refused is only tested by its size")
    done = run(data, tmp_path, "--workers", "2", before=mount)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (78, "", 1)
    assert done.stderr.startswith("error: /dev/shm: expected at least 134 MB free for 2 data-loader workers, got 67 MB; mount an "
                                  "emptyDir with medium Memory there")


@pytest.mark.parametrize(("script", "progress"), [(TRAINER, "epoch 1/3 loss "), (SKLEARN, "training on ")])
def test_the_local_launcher_runs_a_trainer_shows_its_progress_and_tidemark_judges_it(
    data: Path, tmp_path: Path, script: Path, progress: str,
) -> None:
    command = ["{python}", str(script), *(("--epochs", "3") if script == TRAINER else ())]
    launcher = Local(LocalLauncher(command=command, environment={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}))
    launch = dataclasses.replace(launch_of(tmp_path / "output", data), state="submitted")
    launcher.start(launch)
    seen: list[str] = []

    def ended() -> bool:
        status = launcher.status(launch)
        if not seen or seen[-1] != status.progress:
            seen.append(status.progress)
        return status.state != "running"

    wait_until(ended, SECONDS, "the training's end")
    status = launcher.status(launch)
    assert status.state == "succeeded", status
    assert seen[-1].startswith("done accuracy 0.9")
    assert progress in (tmp_path / "output" / "log.txt").read_text()
    verdict, result = judge(launch, metric="accuracy", events_min=200)
    assert (verdict.verdict, result is not None) == ("better", True)
    assert result is not None
    columns = [Column(**told) for told in json.loads(watched()) if told["role"] != "label"]
    Reference.load(result.reference_uri).require(columns)        # what promotion asks of it


def test_a_refusal_is_what_the_launcher_shows(data: Path, tmp_path: Path) -> None:
    launcher = Local(LocalLauncher(command=["{python}", str(TRAINER), "--label", "truth"],
                                   environment={"PYTHONPATH": str(ROOT)}))
    launch = dataclasses.replace(launch_of(tmp_path / "output", data), state="submitted")
    launcher.start(launch)
    wait_until(lambda: launcher.status(launch).state != "running", SECONDS, "the training's end")
    status = launcher.status(launch)
    assert status.state == "failed"
    assert status.detail.startswith(f"exit code 78; last line: error: {data}: expected a column 'truth', got ")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=free_port(), verbose=False)
    server.start()
    yield f"http://127.0.0.1:{server._port}"
    server.stop()


def test_a_training_on_a_bucket_leaves_there_what_one_on_a_folder_leaves(
    endpoint: str, data: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Captured by day on S3: data, checkpoint and results all lie in the bucket."""
    from pyarrow.fs import FileSelector, S3FileSystem

    keys = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "us-east-1"}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    bucket = S3FileSystem(endpoint_override=endpoint.removeprefix("http://"), scheme="http", allow_bucket_creation=True)
    bucket.create_dir("captures")
    table = parquet.read_table(data).sort_by("timestamp")
    for place, day in enumerate(("2023-11-14", "2023-11-15")):
        folder = f"captures/m/launches/abc/data/day={day}"
        bucket.create_dir(folder)
        parquet.write_table(table.slice(place * 3_000, 3_000), f"{folder}/{place}.parquet", filesystem=bucket)
    base = "s3://captures/m/launches/abc"
    done = subprocess.run([sys.executable, str(TRAINER), *EPOCHS], capture_output=True, text=True, timeout=SECONDS, check=False,
                          env=environment(Path("/"), Path("/")) | keys | {
                              "TIDEMARK_DATA_URI": f"{base}/data", "TIDEMARK_OUTPUT_URI": f"{base}/output"})
    assert done.returncode == 0, done.stderr
    names = {info.base_name for info in bucket.get_file_info(FileSelector("captures/m/launches/abc/output"))} - {"progress.txt"}
    assert names == {"holdout.parquet", "model.json", "model.safetensors", "reference.json", "result.json",
                     "training_ids.parquet"}
    with bucket.open_input_stream("captures/m/launches/abc/output/model.safetensors") as stream:
        assert stream.read() == (undisturbed / "model.safetensors").read_bytes()
    verdict, result = judge(launch_of(f"{base}/output"), metric="accuracy", events_min=200)
    assert (verdict.verdict, result is not None and result.model_uri) == ("better", f"{base}/output/model.json")


def test_a_bucket_that_is_not_there_is_no_reason_to_try_again_but_a_server_that_is_not_there_is(
    endpoint: str, tmp_path: Path,
) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "us-east-1"}
    absent = run("s3://nobody/data", tmp_path, AWS_ENDPOINT_URL=endpoint, TIDEMARK_DATA_URI="s3://nobody/data", **keys)
    assert (absent.returncode, len(absent.stderr.splitlines())) == (78, 1), absent.stderr
    down = run("s3://nobody/data", tmp_path, AWS_ENDPOINT_URL=f"http://127.0.0.1:{free_port()}",
               TIDEMARK_DATA_URI="s3://nobody/data", **keys)
    assert (down.returncode, len(down.stderr.splitlines())) == (1, 1), down.stderr
