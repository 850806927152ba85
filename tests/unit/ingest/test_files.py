"""Files give the same rows in every format, from any offset, and say clearly what is broken."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from detectors.reference import Column
from monitor import config
from monitor.errors import SourceFailed
from monitor.ingest import files
from monitor.ingest.decode import Decoder
from monitor.ingest.files import FileSource
from monitor.ingest.schema import StreamSchema

N = 25
EVENTS = [{"ts": 1_700_000_000_000 + i, "age": i / 2 if i % 7 else None, "sex": "fm"[i % 2]} for i in range(N)]
SCHEMA = StreamSchema.resolve(config.Schema(timestamp="ts"), [Column("age", "numeric"), Column("sex", "category")])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(files, "BLOCK_ROWS", 4)


def write(folder, suffix, events=EVENTS):
    path = folder / f"events{suffix}"
    table = pa.Table.from_pylist(events)
    if suffix == ".parquet":
        pq.write_table(table, path, row_group_size=10)
    elif suffix.startswith(".csv"):
        with pa.CompressedOutputStream(str(path), "gzip") if suffix.endswith("gz") else pa.OSFile(str(path), "wb") as out:
            pacsv.write_csv(table, out)
    else:
        text = "\n\n".join(map(json.dumps, events)).encode()        # blank lines are no rows
        path.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    return str(path)


def read(paths, start=0):
    source = FileSource(paths, "topic")
    source.seek({("topic", 0): start})
    batches = list(source)
    assert [batch.ended for batch in batches] == [False] * (len(batches) - 1) + [True]
    decoder = Decoder("m", SCHEMA, config.Limits())
    rows = [decoder.decode(part) for batch in batches for part in batch.parts]
    assert all(len(r) <= 4 for r in rows)
    return rows


def flat(rows):
    return ([o for r in rows for o in r.offsets.tolist()], [t for r in rows for t in r.times.tolist()],
            [a for r in rows for a in np.nan_to_num(r.columns["age"], nan=-1).tolist()],
            [s for r in rows for s in r.columns["sex"]])


@pytest.mark.parametrize("start", [0, 3, 4, 11, 24, 25, 26, 49, 50])
@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz"])
def test_every_format_gives_the_same_rows_from_any_offset(tmp_path, suffix, start):
    path = write(tmp_path, suffix)
    offsets, times, ages, sexes = flat(read([path, path], start))
    twice = [*EVENTS, *EVENTS][start:]
    assert offsets == list(range(start, 2 * N))
    assert times == [e["ts"] for e in twice]
    assert ages == [-1 if e["age"] is None else e["age"] for e in twice]
    assert sexes == [e["sex"] for e in twice]


def test_a_bad_row_is_refused_and_the_rest_is_read(tmp_path):
    path = tmp_path / "e.jsonl"
    path.write_bytes(b'{"ts": 1700000000000}\n{"ts": \n{"ts": 1700000000001, "age": NaN}\n')
    (rows,) = read([str(path)])
    assert [(r.offset, r.reason) for r in rows.refusals] == [(1, "json")]
    assert rows.offsets.tolist() == [0, 2]


def test_events_without_a_time_have_their_file_s(tmp_path):
    path = write(tmp_path, ".jsonl")
    (first, *_) = FileSource([path], "topic")
    assert first.parts[0].times.tolist() == [(tmp_path / "events.jsonl").stat().st_mtime_ns // 1_000_000] * 4


@pytest.mark.parametrize(("name", "content", "words"), [
    ("e.parquet", b"not parquet", "Parquet"),
    ("e.jsonl.gz", gzip.compress(b'{"ts": 1}\n' * 1000)[:-20], "after line "),
    ("e.jsonl.gz", b"plain", "after line 0"),
    ("e.csv", b"ts,age\n1,2\n1\n", "Expected 2 columns"),
    ("e.txt", b"", "expected a file named .parquet"),
])
def test_a_broken_file_is_one_line_with_its_name(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceFailed) as error:
        list(FileSource([str(tmp_path / name)], "topic"))
    assert str(tmp_path / name) in str(error.value)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_an_absent_file_fails_before_anything_is_read(tmp_path):
    with pytest.raises(SourceFailed, match="expected a file, found none"):
        FileSource([str(tmp_path / "no.csv")], "topic")


def test_an_empty_file_ends_at_once(tmp_path):
    (tmp_path / "e.jsonl").write_bytes(b"")
    assert read([str(tmp_path / "e.jsonl")]) == []
