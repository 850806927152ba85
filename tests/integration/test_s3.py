"""Captured events, references and a trainer's output on a real S3 protocol server (moto), as on Ceph."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from monitor.errors import ConfigError
from monitor.flow import Launch
from monitor.retrain.challenger import judge
from monitor.state.capture import Capture, filesystem, read_text
from tests.conftest import free_port
from tests.unit.state.streams import rows_at, small_reference


@pytest.fixture(scope="module")
def endpoint():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=free_port(), verbose=False)
    server.start()
    yield f"http://127.0.0.1:{server._port}"
    server.stop()


@pytest.fixture
def bucket(endpoint, monkeypatch):
    from pyarrow.fs import S3FileSystem

    for name, value in (("AWS_ENDPOINT_URL", endpoint), ("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s"),
                        ("AWS_REGION", "us-east-1")):
        monkeypatch.setenv(name, value)
    host = endpoint.removeprefix("http://")
    S3FileSystem(endpoint_override=host, scheme="http", allow_bucket_creation=True).create_dir("models")
    return "s3://models/tidemark"


def test_events_are_captured_merged_snapshotted_and_orphans_removed(bucket):
    one = Capture("m", bucket, ("x", "c"), ("c",), 1000)
    one.add(rows_at([1000, 2000]))
    one.write()
    one.add(rows_at([3000], first_offset=2))
    named, removed = one.write()
    one.forget(removed)
    data = one.snapshot("abc")
    assert data == f"{bucket}/m/launches/abc/data"
    fs, path = filesystem(data)
    assert pq.read_table(path, filesystem=fs)["timestamp"].to_pylist() == [1000, 2000, 3000]
    assert one.labelled_since(2000) == 2
    one.add(rows_at([4000], first_offset=3))
    one.write()                                     # written, but never named by a checkpoint
    again = Capture("m", bucket, ("x", "c"), ("c",), 1000)
    again.restore(named)
    fs, folder = filesystem(f"{bucket}/m/events")
    from pyarrow.fs import FileSelector
    assert [info.base_name for info in fs.get_file_info(FileSelector(folder))] == [named[0].file]


def test_a_reference_is_read_from_a_bucket_and_an_absent_one_is_one_line(bucket):
    fs, path = filesystem(f"{bucket}/reference.json")
    text = small_reference().to_json()
    with fs.open_output_stream(path) as stream:
        stream.write(text.encode())
    assert read_text(f"{bucket}/reference.json") == text
    with pytest.raises(ConfigError, match=r"none\.json.*cannot be read"):
        read_text(f"{bucket}/none.json")


def test_a_challenger_is_judged_from_a_bucket(bucket):
    output = f"{bucket}/m/launches/xyz/output"
    fs, path = filesystem(output)
    label = np.array(["a", "b"] * 300)
    champion = np.where(np.arange(600) % 3 == 0, "a", label)
    table = pa.table({"id": [str(n) for n in range(600)], "label": label, "champion_prediction": champion,
                      "challenger_prediction": label})
    pq.write_table(table, f"{path}/holdout.parquet", filesystem=fs)
    with fs.open_output_stream(f"{path}/result.json") as stream:
        stream.write(json.dumps({"model_uri": output, "metrics": {}, "reference_uri": f"{output}/reference.json"}).encode())
    launch = Launch("xyz", "m", "1", 1, "local", "succeeded", "{}", (("succeeded", 0.0),), output_uri=output)
    verdict, result = judge(launch, metric="accuracy", events_min=200)
    assert (verdict.verdict, verdict.events, result is not None) == ("better", 600, True)
