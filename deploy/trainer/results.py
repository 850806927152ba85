"""What a training leaves: the model, the proof of its quality, the reference of its own stream, and result.json last.

    model.safetensors, model.json   the weights, and what is needed to ask them (`network.restore`)
    reference.json                  held-out events with the new model's answers: what tidemark judges its stream by
    holdout.parquet                 id, label, both models' answers; with two classes both models' scores, too
    training_ids.parquet            the ids of the events that were trained on: none of them may be held out
    result.json                     where all that is; written last and in one step: whoever sees it finds the others whole

The invariant: the reference has the very columns, kinds and order of TIDEMARK_COLUMNS, and a score in it means what the
champion's score means; otherwise the new version would look like drift in its first hour. Nothing is written that is
not finite JSON, and no row of the holdout misses a value.

Neighbours: `train` calls it once, in the first process; tidemark's challenger reads holdout.parquet and counts again.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from contract import Assignment, Output, Roles, Watched
from encode import Encoder
from events import CHECK, HELD, TRAIN, Events, Values, missing, reference_rows
from network import Layout, Perceptron, answers, described, snapshot
from numpy.typing import NDArray

if TYPE_CHECKING:
    from detectors.rows import Kind, Role

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Trained:
    """A trained network with what is needed to ask it.

    score_means : "positive": the probability of the last of two classes; "answer": of the class that is answered
    """

    network: Perceptron
    layout: Layout
    encoder: Encoder
    task: str
    classes: tuple[str, ...]
    score_means: str

    def __call__(self, events: Events) -> tuple[Values, Floats]:
        """Answers (n,) and scores (n,), NaN for a regression."""
        numbers, shares = answers(self.network, self.encoder.matrix(events.features), self.task)
        if not self.classes:
            return numbers, np.full(len(numbers), np.nan)
        scores = shares[:, -1] if self.score_means == "positive" else shares.max(1)
        return np.array(self.classes, dtype=object)[numbers.astype(int)], scores


def meaning(events: Events, classes: Sequence[str], asked: str) -> str:
    """What the champion's score means, where it is not said: seen from the events that it answered with the first class.

    A probability of the second class is low there, one of the answer is high. With more than two classes, without a
    champion, or without scores it is the answer's.
    """
    if asked != "auto":
        return asked
    if len(classes) != 2 or events.champion is None or events.score is None:
        return "answer"
    scores = events.score[(events.champion == classes[0]) & np.isfinite(events.score)]
    return "positive" if len(scores) and float(np.mean(scores < 0.5)) > 0.5 else "answer"


def write(
    output: Output, task: Assignment, roles: Roles, events: Events, parts: NDArray[np.int8], trained: Trained,
    course: dict[str, Any], *, new_version: str,
) -> dict[str, float]:
    """All files of the contract, `result.json` last; returns both models' quality."""
    from safetensors.torch import save

    held = events.rows(comparable(events, parts))
    content, quality = holdout(held, trained)
    known = events.rows(reference_rows(events, parts, task.since_ms, task.at_ms))
    version = new_version or next_version(task.version, task.launch)
    weights = output.write("model.safetensors", save(snapshot(trained.network)))
    output.write("model.json", dumps({
        "format": 2, "model": task.model, "version": version, "launch_id": task.launch, "task": trained.task,
        "classes": list(trained.classes), "score_means": trained.score_means, "columns": trained.encoder.columns,
        "layout": described(trained.layout), "weights": weights}))
    reference_uri = output.write("reference.json", reference(known, trained, task, roles, version))
    output.write("holdout.parquet", content)
    ids_uri = output.write("training_ids.parquet", training_ids(events, parts))
    output.write("result.json", dumps({
        "launch_id": task.launch, "version": version, "model_uri": f"{output.uri}/model.json",
        "reference_uri": reference_uri, "training_ids_uri": ids_uri,
        "metrics": {**quality, **course, "train_events": int((parts == TRAIN).sum()), "holdout_events": len(held),
                    "reference_events": len(known)}}))
    return quality


def comparable(events: Events, parts: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Held-out rows that both models can be compared on: with id, label and the champion's answer, where it has any."""
    rows = (parts == HELD) & events.labelled & ~missing(events.ids)
    return rows if events.champion is None else rows & ~missing(events.champion)


def training_ids(events: Events, parts: NDArray[np.int8]) -> bytes:
    """The ids of all events that had a part in the training, so that tidemark can see that none of them is held out."""
    import pyarrow
    from pyarrow import parquet

    used = events.ids[((parts == TRAIN) | (parts == CHECK)) & ~missing(events.ids)]
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table({"id": pyarrow.array([str(name) for name in used.tolist()], pyarrow.string())}), sink)
    return bytes(sink.getvalue().to_pybytes())


def holdout(events: Events, trained: Trained) -> tuple[bytes, dict[str, float]]:
    """The contract's holdout.parquet, and the quality of both models on it."""
    import pyarrow
    from pyarrow import parquet

    challenger, own_scores = trained(events)
    kind = pyarrow.string() if trained.classes else pyarrow.float64()
    champion = events.champion
    columns = {
        "id": pyarrow.array([str(name) for name in events.ids.tolist()], pyarrow.string()),
        "label": pyarrow.array(events.labels.tolist(), kind),
        "champion_prediction": pyarrow.array([None] * len(events) if champion is None else champion.tolist(), kind),
        "challenger_prediction": pyarrow.array(challenger.tolist(), kind),
    }
    old = None if champion is None or events.score is None else positive(events.score, champion, trained)
    new = positive(own_scores, challenger, trained)
    if old is not None and new is not None:
        columns |= {"champion_score": pyarrow.array(old), "challenger_score": pyarrow.array(new)}
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table(columns), sink)
    measure = "accuracy" if trained.classes else "mean_absolute_error"
    quality = {measure: quality_of(events.labels, challenger)}
    if champion is not None:
        quality[f"champion_{measure}"] = quality_of(events.labels, champion)
    return sink.getvalue().to_pybytes(), quality


def positive(scores: Floats, answered: Values, trained: Trained) -> Floats | None:
    """Scores as probabilities of the last of two classes; None where there are not two, or where they are no probabilities."""
    if len(trained.classes) != 2 or not np.all((scores >= 0) & (scores <= 1)):
        return None
    if trained.score_means == "positive":
        return scores
    return np.where(answered == trained.classes[1], scores, 1.0 - scores)


def quality_of(labels: Values, answered: Values) -> float:
    """Accuracy, or mean absolute error."""
    if labels.dtype == object:
        return float(np.mean(labels == answered))
    return float(np.mean(np.abs(labels.astype(float) - answered.astype(float))))


def reference(events: Events, trained: Trained, task: Assignment, roles: Roles, version: str) -> bytes:
    """The file that tidemark judges the new model's stream by: these events, and its own answers to them."""
    from detectors.reference import Column, Reference

    predictions, scores = trained(events)
    watched, columns = [], {}
    for column in watched_columns(events, task, roles, predictions):
        values: Values = (predictions if column.name == roles.prediction else scores if column.name == roles.score
                          else (events.features | events.others)[column.name])  # type: ignore[operator]
        if column.kind == "numeric" and values.dtype == object:
            values = np.array([float(value) for value in values.tolist()])       # classes that are logged as numbers
        watched.append(Column(column.name, cast("Kind", column.kind), cast("Role", column.role)))
        columns[column.name] = values.tolist() if values.dtype == object else values
    span = float(events.times[0]) / 1000, float(events.times[-1]) / 1000
    fitted = Reference.fit(columns, watched, model=task.model, version=version, span=span)
    with tempfile.TemporaryDirectory() as folder:
        fitted.save(Path(folder) / "reference.json")
        return (Path(folder) / "reference.json").read_bytes()


def watched_columns(events: Events, task: Assignment, roles: Roles, predictions: Values) -> list[Watched]:
    """The columns of the new reference: what the monitor watches, in its order, or what the events have."""
    own = {roles.prediction: "prediction", roles.score: "score"}
    if task.columns:
        told = [column for column in task.columns if column.role not in ("label", "ignored") or column.name in own]
        described = [column for column in told
                     if column.name in own or column.name in events.features or column.name in events.others]
        return [Watched(column.name, column.kind, own.get(column.name, column.role)) for column in described]

    def kind(values: Values) -> str:
        return "category" if values.dtype == object else "numeric" if values.ndim == 1 else "embedding"

    found = [Watched(name, kind(values), "input") for name, values in events.features.items()]
    found.append(Watched(roles.prediction, kind(predictions), "prediction"))
    if roles.score:
        found.append(Watched(roles.score, "numeric", "score"))
    return found + [Watched(name, kind(values), "path") for name, values in events.others.items()]


def next_version(version: str, launch: str) -> str:
    """The challenger's version: the champion's, with the launch that made it in place of the one before."""
    return f"{re.sub(r'[.]r[0-9a-f]{6}$', '', version)[:54]}.r{launch[:6]}"


def dumps(content: dict[str, Any]) -> bytes:
    """JSON that every reader takes: what is not finite becomes null."""
    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: clean(inner) for name, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [clean(inner) for inner in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value
    return json.dumps(clean(content), indent=1).encode()
