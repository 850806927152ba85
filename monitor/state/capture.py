"""Captured events: what a retraining learns from, as Parquet files beside the counts.

Rows that were counted since the last checkpoint become one file, written under its final name before the checkpoint's
transaction names it; a file that no checkpoint names is the leaving of a crash and is removed at start. So the captured
events are exactly those that were counted, each once. Small files are merged into the last one until it holds
`MERGE_ROWS`; the oldest files go when more than `capture_events` rows are kept.

Columns: every watched column and label by its own name, `timestamp` in milliseconds, and `id`: the schema's, else the
event's place as topic:partition:offset.
Memory: the rows since the last checkpoint. Neighbours: `panes.kept` brings the rows, `store` names the files, a launch
takes a `snapshot` that later captures do not change. This is the one module of the stage that knows pyarrow.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from monitor.errors import ConfigError
from monitor.flow import Rows
from monitor.state.store import Captured

#: Files grow to this by merging; until then the last one is read and written again at every checkpoint (30 ms at 70 columns).
MERGE_ROWS = 5_000


@dataclass(slots=True)
class Capture:
    """The captured events of one model.

    names  : columns that are kept        labels : those of them that must be there for a row to count as labelled
    uri    : a folder, or s3://bucket/prefix; credentials as pyarrow finds them in the environment
    """

    model: str
    uri: str
    names: tuple[str, ...]
    labels: tuple[str, ...]
    events_max: int
    files: list[Captured] = field(default_factory=list)
    _rows: list[Rows] = field(default_factory=list)
    _fs: pafs.FileSystem = field(init=False)
    _root: str = field(init=False)

    def __post_init__(self) -> None:
        self._fs, self._root = filesystem(self.uri)
        self._root = f"{self._root}/{self.model}"
        try:
            self._fs.create_dir(f"{self._root}/events", recursive=True)
        except OSError as error:
            raise ConfigError(
                f"retrain.capture_uri: expected a place that can be written, got {self.uri} ({str(error)[:160]})"
            ) from None

    def restore(self, files: Sequence[Captured]) -> None:
        """Go on with the files that the store names; remove those that it does not."""
        self.files = list(files)
        named = {captured.file for captured in files}
        for info in self._fs.get_file_info(pafs.FileSelector(f"{self._root}/events")):
            if info.base_name not in named and info.type == pafs.FileType.File:
                self._fs.delete_file(info.path)

    def add(self, rows: Rows) -> None:
        """Keep counted rows for the next checkpoint."""
        self._rows.append(rows)

    def write(self) -> tuple[list[Captured], list[Captured]]:
        """Step 2 of a checkpoint: the rows as a file. Returns (files added, files no longer needed)."""
        if not self._rows:
            return [], []
        table = pa.concat_tables([self._table(rows) for rows in self._rows])
        self._rows = []
        removed: list[Captured] = []
        if self.files and self.files[-1].rows + table.num_rows <= MERGE_ROWS:
            last = self.files[-1]
            table = pa.concat_tables([self._read(last, None), table], promote_options="default")
            removed.append(last)
        number = 1 + max((int(captured.file.split("-")[0]) for captured in self.files), default=0)
        times = table.column("timestamp").to_numpy()
        name = f"{number:010d}-{int(times.min())}.parquet"
        self._store(table, f"{self._root}/events/{name}")
        added = Captured(self.model, name, table.num_rows, int(times.min()), int(times.max()), self._labelled(table))
        kept = [captured for captured in self.files if captured not in removed] + [added]
        while len(kept) > 1 and sum(captured.rows for captured in kept[1:]) >= self.events_max:
            removed.append(kept.pop(0))
        self.files = kept
        return [added], removed

    def forget(self, removed: Iterable[Captured]) -> None:
        """Delete files after the transaction that no longer names them."""
        for captured in removed:
            try:
                self._fs.delete_file(f"{self._root}/events/{captured.file}")
            except FileNotFoundError:
                continue

    def labelled_since(self, since_ms: int) -> int:
        """Captured events with a label from an event time on."""
        count = 0
        for captured in self.files:
            if captured.first_time >= since_ms:
                count += captured.labelled
            elif captured.last_time >= since_ms:
                table = self._read(captured, ["timestamp", *self.labels])
                count += self._labelled(table.filter(pc.greater_equal(table["timestamp"], since_ms)))
        return count

    def snapshot(self, launch_id: str) -> str:
        """Keep what is captured now for one launch, whatever is dropped later; returns its folder. Repeating is harmless."""
        base = f"{self._root}/launches/{launch_id}"
        self._fs.create_dir(f"{base}/data", recursive=True)
        for captured in self.files:
            source, target = f"{self._root}/events/{captured.file}", f"{base}/data/{captured.file}"
            if self._fs.get_file_info(target).type == pafs.FileType.File:
                continue
            if isinstance(self._fs, pafs.LocalFileSystem):
                os.link(source, target)             # no second copy on disk; the events folder may drop its name
            else:
                self._fs.copy_file(source, target)
        return self._outside(f"{base}/data")

    def _outside(self, path: str) -> str:
        """A path as somebody outside this process names it."""
        if isinstance(self._fs, pafs.LocalFileSystem):
            return os.path.abspath(path)
        return f"{self.uri.split('://')[0]}://{path}"

    def _table(self, rows: Rows) -> pa.Table:
        merged = {**rows.columns, **rows.others}
        arrays: dict[str, pa.Array] = {}
        for name in self.names:
            values = merged.get(name)
            if isinstance(values, np.ndarray):
                arrays[name] = _numbers(values)
            else:
                arrays[name] = pa.array(values if values is not None else [None] * len(rows), pa.string())
        if "id" not in arrays:
            place = f"{rows.topic}:{rows.partition}:"
            arrays["id"] = pa.array([f"{place}{offset}" for offset in rows.offsets.tolist()], pa.string())
        arrays["timestamp"] = pa.array(rows.times, pa.int64())
        return pa.table(arrays)

    def _labelled(self, table: pa.Table) -> int:
        if not self.labels or not table.num_rows:
            return int(table.num_rows)
        present = np.ones(table.num_rows, bool)
        for name in self.labels:
            present &= table.column(name).is_valid().to_numpy()
        return int(present.sum())

    def _read(self, captured: Captured, columns: list[str] | None) -> pa.Table:
        return pq.read_table(f"{self._root}/events/{captured.file}", filesystem=self._fs, columns=columns)

    def _store(self, table: pa.Table, path: str) -> None:
        if not isinstance(self._fs, pafs.LocalFileSystem):
            pq.write_table(table, path, filesystem=self._fs, compression="zstd")
            return                                  # an object appears whole, at close
        with open(f"{path}.tmp", "wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())                 # the transaction that names it must not outlive it
        os.replace(f"{path}.tmp", path)


def _numbers(values: np.ndarray[Any, np.dtype[np.float64]]) -> pa.Array:
    """Numbers, or vectors as lists of one length; NaN, or a vector of NaN throughout, is missing."""
    if values.ndim == 1:
        return pa.array(values, pa.float64(), from_pandas=True)
    missing = np.isnan(values).all(axis=1)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1], mask=pa.array(missing))


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system and path of a folder name or an s3:// URI; AWS_ENDPOINT_URL names another S3 than Amazon's."""
    if "://" not in uri:
        return pafs.LocalFileSystem(), os.path.abspath(uri)
    try:
        if uri.startswith("s3://") and os.environ.get("AWS_ENDPOINT_URL") and "endpoint_override" not in uri:
            endpoint = os.environ["AWS_ENDPOINT_URL"]
            scheme, _, host = endpoint.partition("://")
            bucket = uri.removeprefix("s3://").rstrip("/")
            return pafs.S3FileSystem(endpoint_override=host.rstrip("/"), scheme=scheme), bucket
        fs, path = pafs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(f"{uri!r}: expected a folder, a file or s3://bucket/path, got {str(error)[:160]}") from None
    return fs, path.rstrip("/")



def read_text(uri: str, bytes_max: int = 256 << 20) -> str:
    """A small text file from a folder or a bucket; ConfigError when it cannot be read."""
    try:
        fs, path = filesystem(uri)
        with fs.open_input_stream(path) as stream:
            content: bytes = stream.read(bytes_max + 1)
        if len(content) > bytes_max:
            raise ConfigError(f"{uri}: expected at most {bytes_max >> 20} MiB, got more")
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{uri}: expected UTF-8 text, got other bytes") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise ConfigError(f"{uri}: cannot be read: {str(error)[:200]}; check the path and the rights") from None
