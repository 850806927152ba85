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
from monitor.state.place import Place
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


def names(uri):
    from pyarrow.fs import FileSelector, FileType

    fs, path = filesystem(uri)
    found = fs.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
    return [info.path.removeprefix(f"{path}/") for info in found if info.type == FileType.File]


def times(uri):
    fs, path = filesystem(uri)
    return sorted(pq.read_table(path, filesystem=fs)["timestamp"].to_pylist())


def test_events_are_captured_in_days_grown_snapshotted_and_what_a_crash_left_is_undone(bucket):
    uri = f"{bucket}/first"
    one = Capture("m", uri, ("x", "c"), ("c",), 1000)
    one.add(rows_at([1000, 2000]))
    one.write(whole=True)
    one.add(rows_at([3000, 86_400_000], first_offset=2))
    one.write(whole=True)
    named = list(one.files)
    one.add(rows_at([86_401_000], first_offset=4))
    step = one.write()
    data = one.snapshot("abc")
    assert data == f"{uri}/m/launches/abc/data"
    assert times(data) == [1000, 2000, 3000, 86_400_000, 86_401_000]
    assert one.labelled_since(2000) == 3
    one.write(whole=True)                           # written, but never named by a checkpoint
    one.add(rows_at([5 * 86_400_000], first_offset=5))
    one.write(whole=True)
    assert len(times(f"{uri}/events/model=m")) == 6
    again = Capture("m", uri, ("x", "c"), ("c",), 1000)
    again.restore(named, [step.pending])
    assert times(f"{uri}/events/model=m") == [1000, 2000, 3000, 86_400_000]
    assert sorted(names(uri)) == sorted([
        "events/model=m/day=1970-01-01/t-0-000000000000-000000001000.parquet",
        "events/model=m/day=1970-01-02/t-0-000000000000-000000001000.parquet",
        *(f"m/launches/abc/data/{name}" for name in (
            "1970-01-01-t-0-000000000000-000000001000.parquet", "1970-01-02-t-0-000000000000-000000001000.parquet",
            "waiting.parquet"))])
    again.write(whole=True)
    assert times(f"{uri}/events/model=m") == [1000, 2000, 3000, 86_400_000, 86_401_000]


def test_objects_that_a_lifecycle_rule_removed_are_forgotten_and_old_launches_give_their_data_back(bucket, caplog):
    uri, now = f"{bucket}/second", [0.0]
    one = Capture("m", uri, ("x", "c"), ("c",), 1000, file_rows=2, clock=lambda: now[0])
    one.add(rows_at([1000, 2000, 3000]))
    one.write(whole=True)
    one.snapshot("abc")
    fs, path = filesystem(f"{uri}/{one.files[0].file}")
    fs.delete_file(path)
    again = Capture("m", uri, ("x", "c"), ("c",), 1000, file_rows=2, clock=lambda: now[0])
    again.restore(one.files)
    assert ("are gone" in caplog.text, [captured.rows for captured in again.files]) == (True, [1])
    assert again.events_since(0, ["x"])["timestamp"].to_pylist() == [3000]
    assert times(again.snapshot("def")) == [3000]
    now[0] = 31 * 86_400.0
    assert again.release({"abc": 0.0}) == ["abc"]
    assert [name for name in names(f"{uri}/m/launches") if name.startswith("abc/")] == []
    assert times(f"{uri}/m/launches/def/data") == [3000]


def test_while_a_bucket_cannot_be_written_events_wait_and_are_written_later(bucket, monkeypatch, caplog):
    uri, now = f"{bucket}/third", [0.0]
    one = Capture("m", uri, ("x", "c"), ("c",), 1000, clock=lambda: now[0])
    place, one._place = one._place, Place("s3://no-such-bucket/third")
    one.add(rows_at([1000, 2000]))
    step = one.write(whole=True)
    assert (one.waiting, one.files, step.pending is not None) == (2, [], True)
    assert "they wait in the state" in caplog.text
    one._place, now[0] = place, 60.0
    assert [captured.rows for captured in one.write(whole=True).added] == [2]
    assert times(f"{uri}/events/model=m") == [1000, 2000]


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
