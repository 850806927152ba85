"""Events from files, under the same contract as Kafka: Parquet, CSV and JSON lines, the latter two also gzipped.

The files together are one partition of one topic; an event's offset is its row number over the list of files, so the
stored state says where to go on as it does for Kafka. JSON lines go through the JSON decoder as bytes, byte for byte as
they would from a topic; Parquet and CSV as tables of `BLOCK_ROWS` rows. CSV cells are read as text and become numbers
in the decoder, by the schema and not by a guess. An event without a time of its own has its file's modification time.

Memory: one block, which is shorter where rows are wide, or one Parquet row group's pages. A file that is broken ends
the source with its name and line; a bad *row* does not, it is refused by the decoder. Neighbours: `tables` reads whole
files for `tidemark fit`.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from monitor.errors import SourceFailed
from monitor.flow import Batch, Part, TopicPartition
from monitor.ingest.columnar import TEXT_CELLS

BLOCK_ROWS = 10_000
#: A block ends here, too: rows with vectors or texts may take some 10 kB each, and more once they are decoded.
BLOCK_BYTES = 16 << 20
_CSV_BLOCK_BYTES = 1 << 20
_LINE_BYTES = 64 << 20                              # longer ones are no lines: probably not JSON lines at all

_FORMATS = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".jsonl": "lines", ".ndjson": "lines", ".json": "lines"}


def file_format(path: Path) -> str:
    """`parquet`, `csv` or `lines`, by the file's name; a `.gz` behind it does not matter."""
    name = path.name.lower().removesuffix(".gz")
    for suffix, kind in _FORMATS.items():
        if name.endswith(suffix):
            return kind
    raise SourceFailed(f"{path}: expected a file named .parquet, .csv, .jsonl or .ndjson (the last three also .gz), "
                       f"got {path.name!r}; rename or convert it")


class FileSource:
    """Batches from a list of files, in order; the last one says `ended`.

    paths : read one after the other      topic : the name under which the rows are delivered, partition 0
    """

    def __init__(self, paths: Sequence[str], topic: str) -> None:
        self._files = [(Path(path), file_format(Path(path))) for path in paths]
        for path, _ in self._files:
            if not path.is_file():
                raise SourceFailed(f"{path}: expected a file, found none; mend the path")
        self._topic = topic
        self._start = 0
        self._closed = False

    def __iter__(self) -> Iterator[Batch]:
        mine = frozenset({(self._topic, 0)})
        first = 0                                   # offset of the file's first row
        for path, kind in self._files:
            read = {"parquet": _parquet, "csv": _csv, "lines": _lines}[kind]
            stamp = path.stat().st_mtime_ns // 1_000_000
            for row, values in _explained(path, read(path, self._start - first)):
                if self._closed:
                    return
                n = len(values)
                offset = first + row
                if n and offset + n > self._start:
                    skip = max(0, self._start - offset)
                    yield Batch(parts=(self._part(values[skip:], offset + skip, stamp),), assigned=mine)
            first += row + n
        yield Batch(assigned=mine, caught_up=mine, ended=True)

    def _part(self, values: Any, offset: int, stamp: int) -> Part:
        n = len(values)
        offsets = np.arange(offset, offset + n, dtype=np.int64)
        return Part(self._topic, 0, values, offsets, np.full(n, stamp, np.int64), offset + n)

    def seek(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Go on at this row over all files."""
        self._start = offsets.get((self._topic, 0), 0)

    def hold(self, partitions: Collection[TopicPartition]) -> None:
        """Nothing: what is read is there already."""

    def committed(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Nobody outside wants to know."""

    def lag(self) -> Mapping[TopicPartition, int]:
        """Unknown without reading the files twice: nothing."""
        return {}

    def close(self) -> None:
        """End the iteration at its next block."""
        self._closed = True


# Each reader yields (row number in the file, values) in order and ends with an empty block at the number of rows. Whole
# blocks before `start` may be left out.
Blocks = Iterator[tuple[int, Any]]


def _explained(path: Path, blocks: Blocks) -> Blocks:
    """The blocks; whatever the readers raise becomes one line with the file's name."""
    try:
        yield from blocks
    except (pa.ArrowException, OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        words = " ".join(str(error).split())[:300]
        raise SourceFailed(f"{path}: {words}; mend or remove the file") from None


def _parquet(path: Path, start: int) -> Blocks:
    row = 0
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            rows, size = file.metadata.row_group(group).num_rows, file.metadata.row_group(group).total_byte_size
            if row + rows <= start:
                row += rows
                continue
            block_rows = max(1, min(BLOCK_ROWS, BLOCK_BYTES * rows // max(size, 1)))
            for batch in file.iter_batches(batch_size=block_rows, row_groups=[group]):
                yield row, pa.Table.from_batches([batch])
                row += len(batch)
    yield row, ()


def _csv(path: Path, start: int) -> Blocks:
    def reader(**convert: Any) -> Any:
        options = pacsv.ConvertOptions(strings_can_be_null=True, null_values=[""], quoted_strings_can_be_null=False, **convert)
        return pacsv.open_csv(pa.input_stream(str(path), compression="detect"), convert_options=options,
                              read_options=pacsv.ReadOptions(block_size=_CSV_BLOCK_BYTES))

    with reader() as header:
        names = header.schema.names
    row = 0
    with reader(column_types=dict.fromkeys(names, pa.string())) as batches:
        for batch in batches:
            table = pa.Table.from_batches([batch]).replace_schema_metadata({TEXT_CELLS: b""})
            for cut in range(0, len(table), BLOCK_ROWS):
                block = table.slice(cut, BLOCK_ROWS)
                yield row, block
                row += len(block)
    yield row, ()


def _lines(path: Path, start: int) -> Blocks:
    row, line, size = 0, 0, 0
    block: list[bytes] = []
    with gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb") as file:
        try:
            while text := file.readline(_LINE_BYTES):
                line += 1
                if len(text) == _LINE_BYTES:
                    raise OSError(f"expected lines below {_LINE_BYTES >> 20} MiB, got a longer one")
                if not (text := text.strip()):
                    continue
                block.append(text)
                size += len(text)
                if len(block) == BLOCK_ROWS or size > BLOCK_BYTES:
                    yield row, block
                    row, block, size = row + len(block), [], 0
        except (OSError, EOFError, zlib.error) as error:
            raise OSError(f"after line {line}: {error}") from None
    if block:
        yield row, block
        row += len(block)
    yield row, ()
