"""The trainer's contract without a framework: scikit-learn, one file, nothing clever.

Reads captured events from TIDEMARK_DATA_URI, trains a gradient-boosted model on all input columns, and leaves
model.pickle, reference.json, holdout.parquet and, last, result.json in TIDEMARK_OUTPUT_URI (a local folder here). Which
columns are inputs, prediction, score and label it learns from TIDEMARK_COLUMNS. Change `train` and it is yours. The
contract itself is explained in deploy/trainer/README.md.

Exit codes: 0 done, 64 not called by a launcher, 78 events that no second attempt can train on, anything else: try again.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import compute, dataset, parquet
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OrdinalEncoder

from detectors.reference import Column, Reference

USAGE, CONFIGURATION = 64, 78
NEEDED = ("TIDEMARK_LAUNCH_ID", "TIDEMARK_MODEL", "TIDEMARK_VERSION", "TIDEMARK_DATA_URI", "TIDEMARK_OUTPUT_URI")
BLOCK_EVENTS = 50


def train(inputs: np.ndarray, labels: np.ndarray, categories: list[int]) -> Pipeline:
    """Your model here: inputs (n, columns), of which `categories` hold text or None."""
    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-1)
    encoded = make_column_transformer((codes, categories), remainder="passthrough")
    return make_pipeline(encoded, HistGradientBoostingClassifier(random_state=7)).fit(inputs, labels)


class Refused(Exception):
    """What a second attempt cannot mend: one line and an exit code."""

    def __init__(self, line: str, code: int = CONFIGURATION) -> None:
        super().__init__(line)
        self.code = code


def column_roles() -> tuple[list[Column], str]:
    """The watched columns and the name of the label, from TIDEMARK_COLUMNS."""
    try:
        columns = [Column(**one) for one in json.loads(os.environ.get("TIDEMARK_COLUMNS", ""))]
    except (ValueError, TypeError) as error:
        raise Refused(f"TIDEMARK_COLUMNS: expected JSON with name, kind and role of every column, got {error}; "
                      "start this through tidemark", USAGE) from error
    labels = [column.name for column in columns if column.role == "label"]
    predictions = [column.name for column in columns if column.role == "prediction"]
    if len(labels) != 1 or len(predictions) != 1:
        raise Refused(f"TIDEMARK_COLUMNS: expected one label and one prediction, got labels {labels} and predictions "
                      f"{predictions}; give the columns their roles", USAGE)
    return [column for column in columns if column.role != "label"], labels[0]


def read(data: str, columns: list[Column], label: str) -> Any:
    """The labelled events in time order; files may lie in folders such as day=2025-11-22, which are no columns."""
    try:
        files = sorted(str(path) for path in Path(data.removeprefix("file://")).rglob("*.parquet"))
        table = dataset.dataset(files, format="parquet", partitioning=None).to_table() if files else None
    except (OSError, pyarrow.ArrowException) as error:
        raise Refused(f"{data}: expected Parquet files, got {str(error).splitlines()[0]}; remove what is damaged") from None
    if table is None:
        raise Refused(f"{data}: expected Parquet files, got none; raise retrain.collect_events")
    absent = {"id", "timestamp", label, *(column.name for column in columns)} - set(table.column_names)
    if absent:
        raise Refused(f"{data}: expected the columns {sorted(absent)}, got {table.column_names}; check the schema")
    return table.sort_by("timestamp").filter(compute.field(label).is_valid())


def matrix(table: Any, features: list[Column]) -> np.ndarray:
    """The inputs as an array of objects; what is not a finite number counts as missing."""
    parts = []
    for column in features:
        values = np.array(table[column.name].to_pylist(), object if column.kind != "numeric" else float)
        parts.append(values if column.kind != "numeric" else np.where(np.isfinite(values), values, np.nan))
    return np.column_stack(parts).astype(object)


def main() -> None:
    """The contract, step by step."""
    for name in NEEDED:
        if not os.environ.get(name):
            raise Refused(f"{name}: expected in the environment, got nothing; start this through tidemark", USAGE)
    data, output = os.environ["TIDEMARK_DATA_URI"], Path(os.environ["TIDEMARK_OUTPUT_URI"])
    columns, label = column_roles()
    since = json.loads(os.environ.get("TIDEMARK_REASON") or "{}").get("window", {}).get("since", 0)
    table = read(data, columns, label)
    features = [column for column in columns if column.role in ("input", "path") and column.kind not in ("embedding", "text")]
    inputs, labels = matrix(table, features), np.array(table[label].to_pylist())

    # Every third block of the events since the drift began is held out; everything else trains.
    recent = table["timestamp"].to_numpy() >= since * 1000
    held = recent & (np.cumsum(recent) // BLOCK_EVENTS % 3 == 2)
    if held.sum() < BLOCK_EVENTS:
        raise Refused(f"{data}: expected more labelled events since the drift, got {recent.sum()}; wait for labels")
    classes = np.unique(labels[~held])
    if len(classes) < 2:
        raise Refused(f"column {label}: expected at least two classes, got {classes.tolist()}; wait for other labels")
    print(f"training on {(~held).sum()} events", flush=True)     # the service shows the last line
    model = train(inputs[~held], labels[~held], [i for i, column in enumerate(features) if column.kind != "numeric"])
    answers, shares = model.predict(inputs[held]), model.predict_proba(inputs[held])

    output.mkdir(parents=True, exist_ok=True)
    (output / "model.pickle").write_bytes(pickle.dumps(model))
    rows = table.filter(pyarrow.array(held))
    prediction = next(column.name for column in columns if column.role == "prediction")
    compared = rows.append_column("challenger_prediction", pyarrow.array(answers.tolist(), rows[label].type))
    compared = compared.filter(compute.field(prediction).is_valid())
    parquet.write_table(pyarrow.table({
        "id": compared["id"], "label": compared[label], "champion_prediction": compared[prediction],
        "challenger_prediction": compared["challenger_prediction"]}), output / "holdout.parquet")

    parquet.write_table(table.filter(pyarrow.array(~held)).select(["id"]), output / "training_ids.parquet")

    # What tidemark judges the new model by: held-out events with the new model's own answers, under the same schema.
    own = {"prediction": answers.tolist(), "score": shares[:, -1].tolist()}
    values = {column.name: own.get(column.role) or rows[column.name].to_pylist() for column in columns}
    for column in columns:
        if column.role == "prediction" and column.kind != "numeric":
            values[column.name] = [str(answer) for answer in answers.tolist()]
    version = f"{os.environ['TIDEMARK_VERSION']}-{os.environ['TIDEMARK_LAUNCH_ID'][:6]}"
    reference = Reference.fit(values, columns, model=os.environ["TIDEMARK_MODEL"], version=version)
    reference.save(output / "reference.json")

    accuracy = float(np.mean(answers == labels[held]))
    result = {"model_uri": str(output / "model.pickle"), "reference_uri": str(output / "reference.json"),
              "training_ids_uri": str(output / "training_ids.parquet"), "version": version, "metrics": {"accuracy": accuracy}}
    (output / "result.json.part").write_text(json.dumps(result))
    (output / "result.json.part").rename(output / "result.json")     # last, and in one step
    print(f"done accuracy {accuracy:.4f}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.code)                                         # a second attempt cannot help
    except Exception as error:
        print(f"error: {type(error).__name__}: {' '.join(str(error).split())[:300]}", file=sys.stderr)
        sys.exit(1)
