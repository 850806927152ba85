"""A real trainer behind tidemark's contract: captured events in, a challenger and the proof of its quality out.

In, by environment: TIDEMARK_LAUNCH_ID, TIDEMARK_MODEL, TIDEMARK_VERSION, TIDEMARK_REASON (JSON; the window of the
alarm says since when the world is another), TIDEMARK_COLUMNS (what the columns are for), TIDEMARK_DATA_URI (a folder of
Parquet files), TIDEMARK_OUTPUT_URI. Out, below the last: the files that `results` lists. While it works it writes one
line per epoch. TIDEMARK_NETWORK=image, or `--network image`, trains a convolutional network on pixels.

The invariant: a launch is trained once. A process that was killed resumes at its checkpoint, a launch that has its
result is left alone, and the same launch on the same events gives the same weights. Ends with 0, with 64 or 78 where a
second attempt cannot help (`contract`), with 1 otherwise; every error is one line.

Runs alone, under `torchrun` (DDP), by `--processes` on the GPUs of one machine, on CUDA with mixed precision. In this
order: contract.py, events.py, encode.py, network.py, loop.py, results.py.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

# This folder is no package: the script may be run by its path from anywhere.
sys.path.insert(0, str(Path(__file__).resolve().parent))

import events as captured
from contract import FAILED, Assignment, BadInput, BadUsage, Output, Roles, assignment, one_line, roles
from encode import Encoder, image
from events import CHECK, HELD, TRAIN, Events

if TYPE_CHECKING:
    import loop
    import network

#: Below this a data-loader worker can be killed by a bus error in the middle of the night: twice the container default.
SHARED_MEMORY_BYTES_MIN = 128 * 1024 * 1024
#: Batches that one worker keeps ready (2), the one it writes, and one that is being read.
BATCHES_PER_WORKER = 4
HOLDOUT_EVENTS_MIN = 50
CLASSES_MAX = 1_000
#: Between two lines that are left beside the output: a bucket is not for chatting.
PROGRESS_SECONDS = 10.0
NETWORKS = ("auto", "tabular", "image")


class Parser(argparse.ArgumentParser):
    """A command line whose errors are one line and exit code 64."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise BadUsage(f"options: {message}; see --help")


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    columns = parser.add_argument_group("columns (default: as TIDEMARK_COLUMNS says)")
    columns.add_argument("--label", default="", help="column with the truth")
    columns.add_argument("--prediction", default="", help="column with the champion's answer")
    columns.add_argument("--score", default="", help="column with the champion's score; the reference then has one too")
    columns.add_argument("--score-means", choices=["auto", "answer", "positive"], default="auto",
                         help="probability of the class that is answered, or of the second class (default: as the data shows)")
    columns.add_argument("--positive", default="", help="of two classes the one that scores are about, as retrain.positive_label "
                                                        "(default: the last in alphabetical order: 1, true, yes)")
    columns.add_argument("--path", action="append", default=[], help="category column for the reference only")
    columns.add_argument("--features", default="", help="input columns, separated by commas (default: all others)")
    columns.add_argument("--task", choices=["auto", "classification", "regression"], default="auto")
    model = parser.add_argument_group("network and training")
    model.add_argument("--network", choices=NETWORKS, default=os.environ.get("TIDEMARK_NETWORK") or "auto",
                       help="image: pixels through convolutions (default: TIDEMARK_NETWORK, else by the columns' shape)")
    model.add_argument("--image-shape", default="", help="28x28 or 3x32x32 (default: square)")
    model.add_argument("--hidden", default="128,64", help="sizes of the hidden layers")
    model.add_argument("--dropout", type=share(0.0, 0.9), default=0.1)
    model.add_argument("--epochs", type=whole(1), default=30)
    model.add_argument("--batch-size", type=whole(1), default=256, help="rows per step, over all processes together")
    model.add_argument("--learning-rate", type=share(0.0, 10.0), default=2e-3)
    model.add_argument("--patience", type=whole(1), default=4, help="epochs without improvement before it stops")
    model.add_argument("--precision", choices=["auto", "float32", "bfloat16", "float16"], default="auto",
                       help="of the forward pass (default: bfloat16 or float16 on CUDA, float32 without)")
    model.add_argument("--seed", type=whole(0), default=7)
    split = parser.add_argument_group("events")
    split.add_argument("--holdout-share", type=share(0.05, 0.8), default=0.3, help="of the events since the drift began")
    split.add_argument("--holdout", choices=["spread", "newest"], default="spread",
                       help="blocks of time spread over the events since the drift, or the newest ones")
    split.add_argument("--older-events", type=whole(0), default=50_000, help="at most, from before the drift")
    split.add_argument("--recent-weight", type=share(0.0, 1000.0), default=3.0,
                       help="of an event since the drift; an older has 1")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--processes", default="1", help="this many on this machine, or `gpus`: one for each GPU")
    machine.add_argument("--workers", type=whole(0), default=0, help="data-loader processes; need a large /dev/shm")
    machine.add_argument("--shared-memory", default="/dev/shm", help="where data-loader workers exchange batches")
    machine.add_argument("--checkpoints", default="", help="folder or bucket for checkpoint.pt (default: the output's)")
    machine.add_argument("--resume", choices=["auto", "require", "never"], default="auto",
                         help="a checkpoint that does not fit: start anew and say why, or refuse (require)")
    machine.add_argument("--new-version", default="", help="of the challenger (default: made from the launch)")
    machine.add_argument("--traceback", action="store_true", help="show where an unexpected error came from")
    chosen = parser.parse_args(arguments)
    if chosen.network not in NETWORKS:                   # argparse does not check defaults
        raise BadUsage(f"TIDEMARK_NETWORK: expected {', '.join(NETWORKS)}, got {chosen.network!r}; correct it or leave it out")
    if not all(size.isdigit() and int(size) > 0 for size in chosen.hidden.split(",")):
        parser.error(f"argument --hidden: expected sizes like 128,64, got {chosen.hidden!r}")
    if chosen.processes != "gpus" and not (chosen.processes.isdigit() and int(chosen.processes) > 0):
        parser.error(f"argument --processes: expected a whole number >= 1 or gpus, got {chosen.processes!r}")
    return chosen


def whole(least: int) -> Any:
    """A reader of whole numbers of at least `least`, for argparse."""
    def number(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number >= {least}, got {text!r}")
        return int(text)
    return number


def share(least: float, most: float) -> Any:
    """A reader of numbers in [least, most], for argparse."""
    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"expected a number from {least:g} to {most:g}, got {text!r}")
        return value
    return number


def check_shared_memory(path: str, users: int, batch_bytes: int, what: str = "data-loader workers") -> None:
    """Refuse data-loader workers on a file system that is too small for them.

    Containers get 64 MB at /dev/shm. A full one kills workers with bus errors or makes them wait for one another: a
    training of 49 minutes once took 73 hours.
    """
    if users == 0:
        return
    needed = max(SHARED_MEMORY_BYTES_MIN, users * BATCHES_PER_WORKER * batch_bytes)
    try:
        place = os.statvfs(path)
        free = place.f_bavail * place.f_frsize
    except OSError as error:
        raise BadInput(f"{path}: expected shared memory for {users} {what}, got {error.strerror}; "
                       "use --workers 0") from error
    if free < needed:
        raise BadInput(
            f"{path}: expected at least {needed / 1e6:.0f} MB free for {users} {what}, got "
            f"{free / 1e6:.0f} MB; mount an emptyDir with medium Memory there (Kubernetes; `shared_memory: 8Gi` of "
            "tidemark's launcher), start the container with --shm-size=8g, or use --workers 0")


def prepare(
    chosen: argparse.Namespace, task: Assignment, uses: Roles,
) -> tuple[Events, NDArray[np.int8], tuple[str, ...]]:
    """Events, the part of each row, and the classes (empty for a regression); everything that can be refused early."""
    events = captured.read(task.data_uri, uses, task=chosen.task)
    parts = captured.split(events, task.since_ms, holdout_share=chosen.holdout_share, check_share=0.1,
                           older_events=chosen.older_events, rule=chosen.holdout)
    held = (parts == HELD) & events.labelled
    if held.sum() < HOLDOUT_EVENTS_MIN or not (parts == TRAIN).any() or not (parts == CHECK).any():
        raise BadInput(f"{task.data_uri}: expected at least {HOLDOUT_EVENTS_MIN} labelled events to hold out and more "
                       f"to train on, got {held.sum()} of {len(events)}; raise retrain.collect_events or wait for labels")
    if task.columns and (events.champion is None or captured.missing(events.champion[held]).all()):
        raise BadInput(f"column {uses.prediction}: expected the champion's answers, which the new model is compared "
                       f"with, got none on {held.sum()} held-out events; choose the column by --prediction")
    if events.labels.dtype != object:
        return events, parts, ()
    classes = tuple(sorted(set(events.labels[events.labelled & (parts != HELD)].tolist())))
    if len(classes) < 2:
        raise BadInput(f"column {uses.label}: expected at least two classes, got only {classes[0]!r}; "
                       "wait for labels of other classes")
    if len(classes) > CLASSES_MAX:
        raise BadInput(f"column {uses.label}: expected at most {CLASSES_MAX:,} classes, got {len(classes):,}; "
                       "is it a number? then use --task regression")
    if chosen.positive and chosen.positive not in classes:
        raise BadInput(f"--positive: expected a class of {uses.label} ({', '.join(classes[:4])}), got {chosen.positive!r}; "
                       "give the class that scores are about")
    classes = tuple(sorted(classes, key=lambda name: name == chosen.positive))       # stable: the positive one goes last
    if events.champion is not None:
        answered = {value for value in events.champion.tolist() if value is not None}
        if answered and answered.isdisjoint(set(events.labels.tolist())):
            raise BadInput(f"column {uses.prediction}: expected answers that are classes of {uses.label} "
                           f"({', '.join(classes[:4])}), got {', '.join(sorted(answered)[:4])}; log both in the same words, "
                           "or choose the columns by --prediction and --label")
    return events, parts, classes


def rows_of(events: Events, part: Any, encoder: Encoder, classes: Sequence[str], weights: Any,
            centre: tuple[float, float]) -> loop.Rows:
    """One part's rows as tensors."""
    import loop
    import torch

    chosen = events.rows(part)
    if classes:
        places = {name: i for i, name in enumerate(classes)}
        targets = torch.tensor([places[value] for value in chosen.labels.tolist()], dtype=torch.long)
    else:
        targets = torch.from_numpy(((chosen.labels.astype(np.float64) - centre[0]) / centre[1]).astype(np.float32))
    weight = weights[part]
    return loop.Rows(torch.from_numpy(encoder.matrix(chosen.features)), targets,
                     torch.from_numpy(weight / max(1e-9, weight.mean())))


class Progress:
    """Progress lines: printed at once, and now and then left in `progress.txt`, where the service finds the last one whatever
    runs the training. A line that cannot be left is no reason to fail."""

    def __init__(self, output: Output) -> None:
        self._output, self._left_at = output, -math.inf

    def __call__(self, line: str) -> None:
        """Say one line."""
        if os.environ.get("RANK", "0") != "0":
            return
        print(line, flush=True)
        if time.monotonic() - self._left_at >= PROGRESS_SECONDS:
            self._left_at = time.monotonic()
            with contextlib.suppress(OSError):
                self._output.write("progress.txt", f"{line}\n".encode())


def run(chosen: argparse.Namespace, task: Assignment) -> None:
    """Train one launch, or find that it is trained already."""
    started = time.monotonic()
    output = Output(task.output_uri)
    say = Progress(output)
    if is_done(output, task.launch):
        say(f"launch {task.launch} has its result already")
        return
    uses = roles(task.columns, label=chosen.label, prediction=chosen.prediction, score=chosen.score,
                 features=chosen.features, paths=chosen.path)
    events, parts, classes = prepare(chosen, task, uses)
    pixels, shape = image(events, chosen.network, chosen.image_shape)
    training = events.rows(parts == TRAIN).features
    encoder = Encoder.fit(training, pixels=pixels, texts=[name for name in training if uses.kinds.get(name) == "text"])
    check_shared_memory(chosen.shared_memory, chosen.workers, chosen.batch_size * (encoder.width() * 4 + 12))
    start_processes(chosen.processes)
    say(f"{len(events)} events: {(parts == TRAIN).sum()} to train on, {(parts == CHECK).sum()} to stop by, "
        f"{(parts == HELD).sum()} held out")

    # These imports take seconds; everything that can be refused has been.
    import loop
    import network
    import results
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")      # without it CUDA's matrix products may differ
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(threads())
    if torch.cuda.is_available() and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        check_shared_memory(chosen.shared_memory, int(os.environ["LOCAL_WORLD_SIZE"]), 0, "processes with a GPU each")
    truth = events.labels[parts == TRAIN]
    centre = (0.0, 1.0) if classes else (float(np.mean(truth)), float(np.std(truth)) or 1.0)
    weights = captured.weights(events, task.since_ms, chosen.recent_weight)
    rows, check = (rows_of(events, parts == part, encoder, classes, weights, centre) for part in (TRAIN, CHECK))
    layout = network.Layout(encoder.width(), len(classes) or 1, tuple(map(int, chosen.hidden.split(","))), shape,
                            chosen.dropout)
    plan = loop.Plan(
        task="classification" if classes else "regression", epochs=chosen.epochs, batch_size=chosen.batch_size,
        learning_rate=chosen.learning_rate, patience=chosen.patience, workers=chosen.workers, seed=chosen.seed,
        precision=chosen.precision)
    kept = Output(chosen.checkpoints, "--checkpoints") if chosen.checkpoints else output
    trained, course = loop.train(
        layout, plan, rows, check, resume=chosen.resume, belongs=belongs(task, layout, plan, rows, encoder),
        load=lambda: kept.read("checkpoint.pt"), save=lambda point: keep(kept, point), progress=say)
    if os.environ.get("RANK", "0") == "0":
        network.rescale(trained, *centre)
        course["seconds"] = round(time.monotonic() - started, 3)
        model = results.Trained(trained, layout, encoder, plan.task, classes,
                                results.meaning(events, classes, chosen.score_means))
        quality = results.write(output, task, uses, events, parts, model, course, new_version=chosen.new_version)
        kept.remove("checkpoint.pt")
        say(" ".join(["done", *(f"{name} {value:.4f}" for name, value in quality.items())]))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()                  # nobody leaves while the first process still writes
        torch.distributed.destroy_process_group()


def keep(output: Output, point: bytes) -> None:
    """Write a checkpoint in place of the last."""
    output.write("checkpoint.pt", point)


def is_done(output: Output, launch: str) -> bool:
    """Whether this launch has its result; half a file or another launch's is no result."""
    try:
        stored = json.loads(output.read("result.json") or b"{}")
    except ValueError:
        return False
    return isinstance(stored, dict) and stored.get("launch_id") == launch


def start_processes(asked: str) -> None:
    """Become torchrun with so many processes of this very command; returns where one process is enough, or in each of them.

    Called when everything that can be refused has been: torchrun ends with 1 whatever its processes end with.
    """
    if "RANK" in os.environ:
        return
    if asked == "gpus":
        import torch

        asked = str(torch.cuda.device_count() or 1)
    if int(asked) > 1:
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", asked,
                                  *sys.argv])


def threads() -> int:
    """Threads of this process: OMP_NUM_THREADS, else its part of the processors that it may use."""
    if told := os.environ.get("OMP_NUM_THREADS", ""):
        return int(told) if told.isdigit() and int(told) else 1
    processors = len(os.sched_getaffinity(0))
    try:                                             # a container's limit; a pod of 2 CPUs sees all 64 of its node
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        processors = min(processors, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass                                         # no limit, or an older kernel
    return max(1, processors // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def belongs(
    task: Assignment, layout: network.Layout, plan: loop.Plan, rows: loop.Rows, encoder: Encoder,
) -> dict[str, str]:
    """What a checkpoint belongs to, by name: a digest of each, so that a refusal can say what differs."""
    def digest(*parts: bytes) -> str:
        return hashlib.sha256(b"\0".join(parts)).hexdigest()

    def plain(content: Any) -> bytes:
        return json.dumps(content).encode()

    folder = Path(__file__).resolve().parent
    code = [(folder / name).read_bytes() for name in ("encode.py", "events.py", "loop.py", "network.py", "train.py")]
    return {
        "launch": task.launch, "code": digest(*code), "columns": digest(plain(encoder.columns)),
        "options": digest(plain([asdict(layout), asdict(plan) | {"workers": 0}])),
        "events": digest(*(part.numpy().tobytes() for part in (rows.inputs, rows.targets, rows.weights))),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    first = os.environ.get("RANK", "0") == "0"
    trace = False
    try:
        chosen = options(arguments)
        trace = chosen.traceback
        run(chosen, assignment(dict(os.environ)))
    except BadInput as error:                            # every process finds the same: one of them says it
        if first:
            print(f"error: {error}", file=sys.stderr, flush=True)
        return error.code
    except Exception as error:
        if trace:
            raise
        who = "" if first else f"process {os.environ['RANK']}: "
        print(f"error: {who}{type(error).__name__}: {one_line(error)}; --traceback shows where", file=sys.stderr, flush=True)
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
