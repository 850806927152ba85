"""A trainer for crash tests: the contract in a few lines, no framework. It notes each start, so that two would be seen."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from detectors.reference import Column, Reference


def main() -> None:
    launch, output = os.environ["TIDEMARK_LAUNCH_ID"], Path(os.environ["TIDEMARK_OUTPUT_URI"])
    with (output.parent / "starts.txt").open("a", encoding="utf-8") as starts:
        starts.write(f"{launch}\n")
    since = json.loads(os.environ["TIDEMARK_REASON"])["window"]["since"] * 1000
    table = pq.read_table(os.environ["TIDEMARK_DATA_URI"])
    table = table.filter(pc.and_(pc.greater_equal(table["timestamp"], since), pc.is_valid(table["truth"])))
    columns = (Column("x", "numeric", "input"), Column("c", "category", "input"), Column("y", "category", "prediction"))
    data = {"x": table["x"].to_numpy(), "c": table["c"].to_pylist(), "y": table["truth"].to_pylist()}
    new = f"{os.environ['TIDEMARK_VERSION']}.new"
    Reference.fit(data, columns, model=os.environ["TIDEMARK_MODEL"], version=new).save(output / "reference.json")
    truth = np.array(table["truth"].to_pylist())
    pq.write_table(pa.table({
        "id": table["id"], "label": truth, "champion_prediction": table["y"], "challenger_prediction": truth,
    }), output / "holdout.parquet")
    (output / "result.json").write_text(json.dumps({
        "model_uri": str(output), "metrics": {}, "version": new, "reference_uri": str(output / "reference.json")}))


if __name__ == "__main__":
    main()
