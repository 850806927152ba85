"""The trainer's contract without a framework: scikit-learn, one file, nothing clever.

Reads captured events from TIDEMARK_DATA_URI, trains a gradient-boosted classifier on all input columns, and leaves
model.pickle, reference.json, holdout.parquet and, last, result.json in TIDEMARK_OUTPUT_URI (a local folder here). Which
columns are inputs, prediction, score and label it learns from TIDEMARK_COLUMNS. Change `train` and it is yours. The
contract itself is explained in deploy/trainer/README.md.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pyarrow
from pyarrow import parquet
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OrdinalEncoder

from detectors.reference import Column, Reference

BLOCK_EVENTS = 50


def train(inputs: np.ndarray, labels: np.ndarray, categories: list[int]) -> Pipeline:
    """Your model here: inputs (n, columns), of which `categories` hold text or None."""
    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-1)
    encoded = make_column_transformer((codes, categories), remainder="passthrough")
    return make_pipeline(encoded, HistGradientBoostingClassifier(random_state=7)).fit(inputs, labels)


class BadInput(Exception):
    """What a second attempt cannot mend; one line."""


def column_roles() -> tuple[list[Column], str]:
    """The watched columns and the name of the label, from TIDEMARK_COLUMNS."""
    try:
        columns = [Column(**one) for one in json.loads(os.environ.get("TIDEMARK_COLUMNS", ""))]
    except (ValueError, TypeError) as error:
        raise BadInput(f"TIDEMARK_COLUMNS: expected JSON with name, kind and role of every column, got {error}; "
                       "start this through tidemark") from error
    labels = [column.name for column in columns if column.role == "label"]
    predictions = [column.name for column in columns if column.role == "prediction"]
    if len(labels) != 1 or len(predictions) != 1:
        raise BadInput(f"TIDEMARK_COLUMNS: expected one label and one prediction, got labels {labels} and predictions "
                       f"{predictions}; give the columns their roles")
    return [column for column in columns if column.role != "label"], labels[0]


def main() -> None:
    """The contract, step by step."""
    data, output = os.environ["TIDEMARK_DATA_URI"], Path(os.environ["TIDEMARK_OUTPUT_URI"])
    columns, label = column_roles()
    window = json.loads(os.environ.get("TIDEMARK_REASON") or "{}").get("window", {})
    table = parquet.read_table(data).sort_by("timestamp")
    absent = {label, *(column.name for column in columns)} - set(table.column_names)
    if absent:
        raise BadInput(f"{data}: expected the columns {sorted(absent)}, got {table.column_names}; check the schema")
    table = table.filter(pyarrow.compute.is_valid(table[label]))
    features = [column for column in columns if column.role in ("input", "path")]
    inputs = np.column_stack([np.array(table[column.name].to_pylist(), object if column.kind != "numeric" else float)
                              for column in features]).astype(object)
    labels = np.array(table[label].to_pylist())

    # Every third block of the events since the drift began is held out; everything else trains.
    recent = table["timestamp"].to_numpy() >= window.get("since", 0) * 1000
    held = recent & (np.cumsum(recent) // BLOCK_EVENTS % 3 == 2)
    if held.sum() < BLOCK_EVENTS:
        raise BadInput(f"{data}: expected more labelled events since the drift, got {recent.sum()}; wait for labels")
    print(f"training on {(~held).sum()} events", flush=True)     # the service shows the last line
    model = train(inputs[~held], labels[~held], [i for i, column in enumerate(features) if column.kind != "numeric"])
    answers, shares = model.predict(inputs[held]), model.predict_proba(inputs[held])

    output.mkdir(parents=True, exist_ok=True)
    (output / "model.pickle").write_bytes(pickle.dumps(model))
    rows = table.filter(pyarrow.array(held))
    prediction = next(column.name for column in columns if column.role == "prediction")
    parquet.write_table(pyarrow.table({
        "id": rows["id"], "label": rows[label], "champion_prediction": rows[prediction],
        "challenger_prediction": pyarrow.array(answers.tolist(), rows[label].type)}), output / "holdout.parquet")

    # What tidemark judges the new model by: held-out events with the new model's own answers, under the same schema.
    own = {"prediction": answers.tolist(), "score": shares[:, -1].tolist()}
    values = {column.name: own.get(column.role) or rows[column.name].to_pylist() for column in columns}
    for column in columns:
        if column.role == "prediction" and column.kind != "numeric":
            values[column.name] = [str(answer) for answer in answers.tolist()]
    version = f"{os.environ['TIDEMARK_VERSION']}-{os.environ['TIDEMARK_LAUNCH_ID'][:6]}"
    reference = Reference.fit(values, columns, model=os.environ["TIDEMARK_MODEL"], version=version)
    reference.save(output / "reference.json")

    result = {"model_uri": str(output / "model.pickle"), "reference_uri": str(output / "reference.json"),
              "version": version, "metrics": {"accuracy": float(np.mean(answers == labels[held]))}}
    (output / "result.json.part").write_text(json.dumps(result))
    (output / "result.json.part").rename(output / "result.json")     # last, and in one step


if __name__ == "__main__":
    try:
        main()
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)                                                  # a second attempt cannot help
