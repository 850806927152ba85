"""A real trainer behind tidemark's contract: captured events in, a challenger and the proof of its quality out.

In, by environment: TIDEMARK_LAUNCH_ID, TIDEMARK_MODEL, TIDEMARK_VERSION, TIDEMARK_REASON (JSON; the window of the
alarm says since when the world is another), TIDEMARK_DATA_URI (a folder of Parquet files), TIDEMARK_OUTPUT_URI.
Out, below the last: `model.safetensors` and `model.json` (what is needed to serve it), `reference.json` (what the new
model's events look like), `holdout.parquet` (events it did not train on, with both models' answers) and, last and in
one step, `result.json`. While it works it writes one line per epoch.

The invariant: a launch is trained once. A process that was killed resumes at its checkpoint, a launch that has its
result is left alone, and the same launch on the same events gives the same weights. Ends with 0, with 2 where a second
attempt cannot help (wrong options or events), with 1 otherwise; every error is one line.

Runs alone, under `torchrun` (DDP), on CUDA with mixed precision where there is one. Neighbours: events.py, network.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

# This folder is no package: the script may be run by its path from anywhere.
sys.path.insert(0, str(Path(__file__).resolve().parent))

import events as captured
from events import CHECK, HELD, TRAIN, BadInput, Encoder, Events, Values

if TYPE_CHECKING:
    import network

    from detectors.rows import Role

REQUIRED = ("TIDEMARK_LAUNCH_ID", "TIDEMARK_MODEL", "TIDEMARK_VERSION", "TIDEMARK_DATA_URI", "TIDEMARK_OUTPUT_URI")
#: Below this a data-loader worker can be killed by a bus error in the middle of the night: twice the container default.
SHARED_MEMORY_BYTES_MIN = 128 * 1024 * 1024
#: Batches that one worker keeps ready (2), the one it writes, and one that is being read.
BATCHES_PER_WORKER = 4
HOLDOUT_EVENTS_MIN = 50


@dataclass(frozen=True)
class Assignment:
    """What the environment asks for."""

    launch: str
    model: str
    version: str
    data_uri: str
    output_uri: str
    since_ms: int | None                             # when the drift began
    at_ms: int | None                                # when it was certain


class Output:
    """The folder, local or in an object store, that the results go to; every file appears whole or not at all."""

    def __init__(self, uri: str) -> None:
        from pyarrow import fs

        self.uri = uri.rstrip("/")
        self.filesystem, self.path = fs.FileSystem.from_uri(self.uri)
        self.local = isinstance(self.filesystem, fs.LocalFileSystem)
        self.filesystem.create_dir(self.path, recursive=True)

    def write(self, name: str, content: bytes) -> str:
        """Write a file; returns its URI."""
        target = f"{self.path}/{name}"
        if not self.local:                           # an object store shows an object when its upload is complete
            with self.filesystem.open_output_stream(target) as stream:
                stream.write(content)
            return f"{self.uri}/{name}"
        with open(f"{target}.part", "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{target}.part", target)
        return f"{self.uri}/{name}"

    def read(self, name: str) -> bytes | None:
        """The file's bytes, or None where there is none."""
        try:
            with self.filesystem.open_input_stream(f"{self.path}/{name}") as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None


def say(line: str) -> None:
    """One progress line, at once: the service shows the last one."""
    if os.environ.get("RANK", "0") == "0":
        print(line, flush=True)


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--label", default="label", help="column with the truth")
    parser.add_argument("--prediction", default="prediction", help="column with the champion's answer")
    parser.add_argument("--score", default="", help="column with the champion's score; the reference then has one too")
    parser.add_argument("--path", action="append", default=[], help="category column for the reference only")
    parser.add_argument("--features", default="", help="input columns, separated by commas (default: all others)")
    parser.add_argument("--task", choices=["auto", "classification", "regression"], default="auto")
    parser.add_argument("--epochs", type=whole(1), default=30)
    parser.add_argument("--batch-size", type=whole(1), default=256, help="rows per step, over all processes together")
    parser.add_argument("--hidden", default="128,64", help="sizes of the hidden layers")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--patience", type=whole(1), default=4, help="epochs without improvement before it stops")
    parser.add_argument("--workers", type=whole(0), default=0, help="data-loader processes; need a large /dev/shm")
    parser.add_argument("--seed", type=whole(0), default=7)
    parser.add_argument("--holdout-share", type=float, default=0.3, help="of the events since the drift began")
    parser.add_argument("--older-events", type=whole(0), default=50_000, help="at most, from before the drift")
    parser.add_argument("--recent-weight", type=float, default=3.0, help="of an event since the drift; an older has 1")
    parser.add_argument("--shared-memory", default="/dev/shm", help="where data-loader workers exchange batches")
    parser.add_argument("--new-version", default="", help="of the challenger (default: made from the launch)")
    parser.add_argument("--traceback", action="store_true", help="show where an unexpected error came from")
    chosen = parser.parse_args(arguments)
    if not 0.05 <= chosen.holdout_share <= 0.8:
        parser.error(f"argument --holdout-share: expected 0.05 to 0.8, got {chosen.holdout_share}")
    if not all(size.isdigit() and int(size) > 0 for size in chosen.hidden.split(",")):
        parser.error(f"argument --hidden: expected sizes like 128,64, got {chosen.hidden!r}")
    return chosen


def whole(least: int) -> Any:
    """A reader of whole numbers of at least `least`, for argparse."""
    def number(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number >= {least}, got {text!r}")
        return int(text)
    return number


def assignment(environment: dict[str, str]) -> Assignment:
    """The contract's environment, checked."""
    for name in REQUIRED:
        if not environment.get(name):
            raise BadInput(f"{name}: expected in the environment, got nothing; the launcher of tidemark sets it")
    try:
        reason = json.loads(environment.get("TIDEMARK_REASON") or "{}")
        window = reason.get("window") or {}
        since, at = window.get("since", reason.get("since")), window.get("at", reason.get("at"))
        since_ms, at_ms = (None if moment is None else int(float(moment) * 1000) for moment in (since, at))
    except (ValueError, TypeError, AttributeError) as error:
        raise BadInput(f"TIDEMARK_REASON: expected JSON with window.since in seconds since 1970, "
                       f"got {environment['TIDEMARK_REASON'][:80]!r}") from error
    launch, model, version, data, output = (environment[name] for name in REQUIRED)
    return Assignment(launch, model, version, absolute(data), absolute(output), since_ms, at_ms)


def absolute(uri: str) -> str:
    """A URI, or the absolute path of a local folder."""
    return uri if "://" in uri else str(Path(uri).resolve())


def check_shared_memory(path: str, workers: int, batch_bytes: int) -> None:
    """Refuse data-loader workers on a file system that is too small for them.

    Containers get 64 MB at /dev/shm. A full one kills workers with bus errors or makes them wait for one another: a
    training of 49 minutes once took 73 hours.
    """
    if workers == 0:
        return
    needed = max(SHARED_MEMORY_BYTES_MIN, workers * BATCHES_PER_WORKER * batch_bytes)
    try:
        place = os.statvfs(path)
        free = place.f_bavail * place.f_frsize
    except OSError as error:
        raise BadInput(f"{path}: expected shared memory for {workers} data-loader workers, got {error.strerror}; "
                       "use --workers 0") from error
    if free < needed:
        raise BadInput(
            f"{path}: expected at least {needed / 1e6:.0f} MB free for {workers} data-loader workers, got "
            f"{free / 1e6:.0f} MB; mount an emptyDir with medium Memory there (Kubernetes; `shared_memory: 8Gi` of "
            "tidemark's launcher), start the container with --shm-size=8g, or use --workers 0")


def prepare(chosen: argparse.Namespace, task: Assignment) -> tuple[Events, NDArray[np.int8], list[str]]:
    """Events, the role of each row, and the classes (empty for a regression); everything that can be refused early."""
    features = [name.strip() for name in chosen.features.split(",") if name.strip()]
    events = captured.read(task.data_uri, label=chosen.label, prediction=chosen.prediction, score=chosen.score,
                           paths=chosen.path, features=features, task=chosen.task)
    roles = captured.split(events, task.since_ms, holdout_share=chosen.holdout_share, check_share=0.1,
                           older_events=chosen.older_events)
    held = int(((roles == HELD) & events.labelled).sum())
    if held < HOLDOUT_EVENTS_MIN or not (roles == TRAIN).any() or not (roles == CHECK).any():
        raise BadInput(f"{task.data_uri}: expected at least {HOLDOUT_EVENTS_MIN} labelled events to hold out and more "
                       f"to train on, got {held} of {len(events)}; raise retrain.collect_events or wait for labels")
    classes: list[str] = []
    if events.labels.dtype == object:
        known = events.labelled & (roles != HELD)
        classes = sorted(set(events.labels[known].tolist()))
        if len(classes) < 2:
            raise BadInput(f"column {chosen.label}: expected at least two classes, got only {classes[0]!r}")
        if len(classes) > 1000:
            raise BadInput(f"column {chosen.label}: expected at most 1,000 classes, got {len(classes)}; "
                           "is it a number? then use --task regression")
    return events, roles, classes


def rows_of(events: Events, role: Any, encoder: Encoder, classes: Sequence[str], weights: Any,
            centre: tuple[float, float]) -> network.Rows:
    """One role's rows as tensors."""
    import network
    import torch

    part = events.rows(role)
    if classes:
        places = {name: i for i, name in enumerate(classes)}
        targets = torch.tensor([places[value] for value in part.labels.tolist()], dtype=torch.long)
    else:
        targets = torch.from_numpy(((part.labels.astype(np.float64) - centre[0]) / centre[1]).astype(np.float32))
    chosen = weights[role]
    return network.Rows(torch.from_numpy(encoder.matrix(part.features)), targets,
                        torch.from_numpy(chosen / max(1e-9, chosen.mean())))


def quality(labels: Values, answers: Values, classes: Sequence[str]) -> float:
    """Accuracy, or mean absolute error; an answer that is missing is wrong, or left out of the error."""
    if classes:
        return float(np.mean(labels == answers))
    return float(np.nanmean(np.abs(labels.astype(float) - answers.astype(float))))


def holdout(events: Events, challenger: Values, classes: Sequence[str]) -> tuple[bytes, dict[str, float]]:
    """The contract's holdout.parquet, and the quality of both models on it."""
    import pyarrow
    from pyarrow import parquet

    champion = events.champion
    kind = pyarrow.string() if classes else pyarrow.float64()
    answers = [None] * len(events) if champion is None else champion.tolist()
    table = pyarrow.table({
        "id": pyarrow.array([None if i is None else str(i) for i in events.ids], pyarrow.string()),
        "label": pyarrow.array(events.labels.tolist(), kind),
        "champion_prediction": pyarrow.array(answers, kind),
        "challenger_prediction": pyarrow.array(challenger.tolist(), kind),
    })
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(table, sink)
    measure = "accuracy" if classes else "mean_absolute_error"
    metrics = {measure: quality(events.labels, challenger, classes)}
    if champion is not None:
        metrics[f"champion_{measure}"] = quality(events.labels, champion, classes)
    return sink.getvalue().to_pybytes(), metrics


def reference(
    events: Events, predictions: Values, scores: Any, chosen: argparse.Namespace, *, model: str, version: str,
) -> bytes:
    """The file that tidemark judges the new model's stream by: these inputs, and its own answers to them."""
    from detectors.reference import Column, Reference

    watched, columns = [], {}
    roles: dict[Role, Mapping[str, Values]] = {
        "input": events.features, "prediction": {chosen.prediction: predictions},
        "score": {chosen.score: scores} if chosen.score else {}, "path": events.paths}
    for role, named in roles.items():
        for name, values in named.items():
            watched.append(Column(name, "category" if values.dtype == object else "numeric", role))
            columns[name] = values.tolist() if values.dtype == object else values
    span = float(events.times[0]) / 1000, float(events.times[-1]) / 1000
    fitted = Reference.fit(columns, watched, model=model, version=version, span=span)
    with tempfile.TemporaryDirectory() as folder:
        fitted.save(Path(folder) / "reference.json")
        return (Path(folder) / "reference.json").read_bytes()


def new_version(version: str, launch: str) -> str:
    """The challenger's version: the champion's, with the launch that made it in place of the one before."""
    return f"{re.sub(r'[.]r[0-9a-f]{6}$', '', version)[:54]}.r{launch[:6]}"


def run(chosen: argparse.Namespace, task: Assignment) -> None:
    """Train one launch, or find that it is trained already."""
    started = time.monotonic()
    output = Output(task.output_uri)
    stored = output.read("result.json")
    if stored is not None and json.loads(stored).get("launch_id") == task.launch:
        say(f"launch {task.launch} has its result already")
        return
    events, roles, classes = prepare(chosen, task)
    encoder = Encoder.fit(events.rows(roles == TRAIN).features)
    check_shared_memory(chosen.shared_memory, chosen.workers, chosen.batch_size * (encoder.width() * 4 + 12))
    say(f"{len(events)} events: {(roles == TRAIN).sum()} to train on, {(roles == CHECK).sum()} to stop by, "
        f"{(roles == HELD).sum()} held out")

    # These imports take seconds; everything that can be refused has been.
    import network
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    truth = events.labels[(roles == TRAIN)]
    centre = (0.0, 1.0) if classes else (float(np.mean(truth)), float(np.std(truth)) or 1.0)
    weights = captured.weights(events, task.since_ms, chosen.recent_weight)
    rows = rows_of(events, roles == TRAIN, encoder, classes, weights, centre)
    check = rows_of(events, roles == CHECK, encoder, classes, weights, centre)
    plan = network.Plan(
        task="classification" if classes else "regression", outputs=len(classes) or 1,
        hidden=tuple(int(size) for size in chosen.hidden.split(",")), epochs=chosen.epochs,
        batch_size=chosen.batch_size, learning_rate=chosen.learning_rate, patience=chosen.patience,
        workers=chosen.workers, seed=chosen.seed)
    trained, course = network.train(
        plan, rows, check, fingerprint=fingerprint(plan, rows, task.launch), load=lambda: output.read("checkpoint.pt"),
        save=lambda point: cast(None, output.write("checkpoint.pt", point)), progress=say)
    if os.environ.get("RANK", "0") == "0":
        network.rescale(trained, *centre)
        course["seconds"] = round(time.monotonic() - started, 3)
        write_results(output, task, chosen, events, roles, classes, encoder, plan, trained, course)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()                  # nobody leaves while the first process still writes
        torch.distributed.destroy_process_group()


def fingerprint(plan: network.Plan, rows: network.Rows, launch: str) -> str:
    """What a checkpoint belongs to: launch, plan, number of processes and training rows."""
    digest = hashlib.sha256(json.dumps([launch, asdict(plan), os.environ.get("WORLD_SIZE", "1")]).encode())
    for part in (rows.inputs, rows.targets, rows.weights):
        digest.update(part.numpy().tobytes())
    return digest.hexdigest()


def write_results(
    output: Output, task: Assignment, chosen: argparse.Namespace, events: Events, roles: Any, classes: Sequence[str],
    encoder: Encoder, plan: network.Plan, trained: network.Network, course: dict[str, float],
) -> None:
    """All files of the contract, `result.json` last: whoever sees it finds the others whole."""
    import network
    from safetensors.torch import save

    def answer(part: Events) -> tuple[Values, Any]:
        numbers, scores = network.answers(trained, encoder.matrix(part.features), plan.task)
        if not classes:
            return numbers, scores
        return np.array(classes, dtype=object)[numbers.astype(int)], scores

    # A row without an id or the champion's answer cannot be compared, and the contract has no missing values.
    comparable = (roles == HELD) & events.labelled & ~captured.missing(events.ids)
    if events.champion is not None:
        comparable &= ~captured.missing(events.champion)
    held = events.rows(comparable)
    content, metrics = holdout(held, answer(held)[0], classes)
    described = events.rows(captured.reference_rows(events, roles, task.since_ms, task.at_ms))
    version = chosen.new_version or new_version(task.version, task.launch)
    network_uri = output.write("model.safetensors", save(network.snapshot(trained)))
    output.write("model.json", json.dumps({
        "format": 1, "model": task.model, "version": version, "launch_id": task.launch, "task": plan.task,
        "classes": list(classes), "columns": encoder.columns, "hidden": list(plan.hidden), "weights": network_uri,
    }, indent=1).encode())
    reference_uri = output.write("reference.json", reference(
        described, *answer(described), chosen, model=task.model, version=version))
    output.write("holdout.parquet", content)
    output.write("result.json", json.dumps({
        "launch_id": task.launch, "version": version, "model_uri": f"{output.uri}/model.json",
        "reference_uri": reference_uri,
        "metrics": {**metrics, **course, "train_events": int((roles == TRAIN).sum()), "holdout_events": len(held),
                    "reference_events": len(described)},
    }, indent=1).encode())
    say(" ".join(["done", *(f"{name} {value:.4f}" for name, value in metrics.items())]))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    chosen = options(arguments)
    try:
        run(chosen, assignment(dict(os.environ)))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except Exception as error:
        if chosen.traceback:
            raise
        line = " ".join(str(error).split())[:300]
        print(f"error: {type(error).__name__}: {line}; --traceback shows where", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
