"""The trainer's contract without a framework: scikit-learn, one file, nothing clever.

Reads captured events from TIDEMARK_DATA_URI, trains a gradient-boosted classifier on numeric columns, and leaves
model.pickle, reference.json, holdout.parquet and, last, result.json in TIDEMARK_OUTPUT_URI (a local folder here). Change
`train` and `FEATURES` and it is yours. The contract itself is explained in deploy/trainer/README.md.
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
from sklearn.ensemble import HistGradientBoostingClassifier

from detectors.reference import Column, Reference

LABEL, PREDICTION = "label", "prediction"
#: Input columns; empty means every numeric column.
FEATURES: list[str] = []
BLOCK_EVENTS = 50


def train(inputs: np.ndarray, labels: np.ndarray) -> HistGradientBoostingClassifier:
    """Your model here."""
    return HistGradientBoostingClassifier(random_state=7).fit(inputs, labels)


def main() -> int:
    """The contract, step by step."""
    data, output = os.environ["TIDEMARK_DATA_URI"], Path(os.environ["TIDEMARK_OUTPUT_URI"])
    window = json.loads(os.environ.get("TIDEMARK_REASON") or "{}").get("window", {})
    table = parquet.read_table(data).sort_by("timestamp")
    table = table.filter(pyarrow.compute.is_valid(table[LABEL]))
    features = FEATURES or [name for name, kind in zip(table.column_names, table.schema.types, strict=True)
                            if pyarrow.types.is_floating(kind) and name not in (LABEL, PREDICTION)]
    inputs = np.column_stack([table[name].to_numpy() for name in features])
    labels = np.array(table[LABEL].to_pylist())

    # Every third block of the events since the drift began is held out; everything else trains.
    recent = table["timestamp"].to_numpy() >= window.get("since", 0) * 1000
    held = recent & (np.cumsum(recent) // BLOCK_EVENTS % 3 == 2)
    if held.sum() < BLOCK_EVENTS:
        print(f"error: {data}: expected more labelled events since the drift, got {recent.sum()}", file=sys.stderr)
        return 2                                     # a second attempt cannot help
    print(f"training on {(~held).sum()} events", flush=True)     # the service shows the last line
    model = train(inputs[~held], labels[~held])
    answers = model.predict(inputs[held])

    output.mkdir(parents=True, exist_ok=True)
    (output / "model.pickle").write_bytes(pickle.dumps(model))
    rows = table.filter(pyarrow.array(held))
    parquet.write_table(pyarrow.table({
        "id": rows["id"], "label": rows[LABEL], "champion_prediction": rows[PREDICTION],
        "challenger_prediction": pyarrow.array(answers.tolist(), rows[LABEL].type)}), output / "holdout.parquet")

    # What tidemark judges the new model by: held-out inputs with the new model's own answers.
    version = f"{os.environ['TIDEMARK_VERSION']}-{os.environ['TIDEMARK_LAUNCH_ID'][:6]}"
    columns = [*(Column(name, "numeric", "input") for name in features), Column(PREDICTION, "category", "prediction")]
    reference = Reference.fit(
        {**dict(zip(features, inputs[held].T, strict=True)), PREDICTION: [str(answer) for answer in answers]},
        columns, model=os.environ["TIDEMARK_MODEL"], version=version)
    reference.save(output / "reference.json")

    result = {"model_uri": str(output / "model.pickle"), "reference_uri": str(output / "reference.json"),
              "version": version, "metrics": {"accuracy": float(np.mean(answers == labels[held]))}}
    (output / "result.json.part").write_text(json.dumps(result))
    (output / "result.json.part").rename(output / "result.json")     # last, and in one step
    return 0


if __name__ == "__main__":
    sys.exit(main())
