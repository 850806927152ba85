"""A folder on this machine or in a bucket: what the capture writes to, and where references are read from.

    s3://bucket/prefix     credentials as pyarrow finds them in the environment (AWS_ACCESS_KEY_ID ..., a web identity)
    /data/captured         a folder; a file appears whole, by a rename after it was flushed to disk

The invariant: a reader sees a file as it was or as it is, never half. A bucket gives that by itself, because an object
appears at the end of its upload. What is not there is None and no error, since a bucket's own lifecycle rule or a person
may have removed it.

Cost: one open, one flush to disk and one rename per file; one request or two in a bucket. pyarrow's S3 client gives up by
itself (connect 1 s, answer 3 s, three tries). Neighbours: `capture` keeps events here, `service` reads references.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from monitor.errors import ConfigError

log = logging.getLogger("tidemark")

#: Of an error of the storage, so many characters are told.
WORDS = 160


@dataclass(slots=True)
class Place:
    """A folder by its URI; names below it are relative, with slashes."""

    uri: str
    _fs: pafs.FileSystem = field(init=False)
    _root: str = field(init=False)

    def __post_init__(self) -> None:
        if "?" in self.uri and "://" in self.uri:
            raise ConfigError(f"{self.uri.partition('?')[0]!r}: expected a URI without options behind `?`, which a trainer would "
                              "not be told; name another S3 in AWS_ENDPOINT_URL, a region in AWS_REGION")
        self._fs, self._root = filesystem(self.uri)

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return isinstance(self._fs, pafs.LocalFileSystem)

    def make(self, folder: str) -> None:
        """Make a folder, where it is not there; OSError where it cannot be."""
        self._fs.create_dir(f"{self._root}/{folder}", recursive=True)

    def files(self, folder: str) -> list[str]:
        """The names of all files below a folder, in order."""
        found = self._fs.get_file_info(pafs.FileSelector(f"{self._root}/{folder}", recursive=True, allow_not_found=True))
        return sorted(info.path[len(self._root) + 1:] for info in found if info.type == pafs.FileType.File)

    def write(self, name: str, table: pa.Table) -> None:
        """Put a table there as Parquet, in one step, in place of what was there."""
        path = f"{self._root}/{name}"
        if not self.is_local:
            pq.write_table(table, path, filesystem=self._fs, compression="zstd")
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            with open(f"{path}.tmp", "wb") as file:
                pq.write_table(table, file, compression="zstd")
                file.flush()
                os.fsync(file.fileno())             # the transaction that names it must not outlive it
            os.replace(f"{path}.tmp", path)
        except OSError:
            with contextlib.suppress(OSError):      # half a file takes room that a full disk does not have
                os.unlink(f"{path}.tmp")
            raise

    def read(self, name: str, columns: list[str] | None = None) -> pa.Table | None:
        """The table of a file, or some of its columns; None where it is gone or damaged, which is logged."""
        try:
            # As one file: a folder's `day=` is no column of what is written back.
            with pq.ParquetFile(f"{self._root}/{name}", filesystem=self._fs) as file:
                return file.read(columns)
        except (FileNotFoundError, pa.ArrowInvalid) as error:
            log.warning("Captured file not readable.", extra={"file": self.outside(name), "error": str(error)[:WORDS]})
            return None

    def rows(self, name: str) -> int | None:
        """How many rows a file holds; None where it is gone or damaged."""
        try:
            with pq.ParquetFile(f"{self._root}/{name}", filesystem=self._fs) as file:
                return int(file.metadata.num_rows)
        except (FileNotFoundError, pa.ArrowInvalid):
            return None

    def delete(self, name: str) -> None:
        """Remove a file; one that is gone is no error. An empty folder goes with it."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.delete_file(f"{self._root}/{name}")
        if self.is_local:
            with contextlib.suppress(OSError):      # other files are in it
                os.rmdir(os.path.dirname(f"{self._root}/{name}"))

    def delete_folder(self, folder: str) -> None:
        """Remove a folder with all that is in it; one that is gone is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.delete_dir(f"{self._root}/{folder}")

    def folders(self, folder: str) -> list[str]:
        """The names of the folders directly in a folder."""
        found = self._fs.get_file_info(pafs.FileSelector(f"{self._root}/{folder}", allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == pafs.FileType.Directory)

    def same(self, source: str, target: str) -> bool:
        """Let a second name stand for a file's content as it is now, whatever happens to the first; False: it is gone."""
        path, other = f"{self._root}/{source}", f"{self._root}/{target}"
        try:
            if not self.is_local:
                self._fs.copy_file(path, other)
                return True
            with contextlib.suppress(FileNotFoundError):
                os.unlink(other)
            try:
                os.link(path, other)                # no second copy on disk
            except FileNotFoundError:
                return False
            except OSError:                         # a file system without hard links
                self._fs.copy_file(path, other)
        except FileNotFoundError:
            return False
        return True

    def outside(self, name: str) -> str:
        """A path as somebody outside this process names it."""
        path = f"{self._root}/{name}"
        return os.path.abspath(path) if self.is_local else f"{self.uri.split('://')[0]}://{path}"


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system and path of a folder name or an s3:// URI; AWS_ENDPOINT_URL names another S3 than Amazon's."""
    if "://" not in uri:
        return pafs.LocalFileSystem(), os.path.abspath(uri)
    if re.match(r"[A-Za-z0-9+.-]+://[^/]*@", uri):
        raise ConfigError(f"{uri.split('://')[0]}://...: expected a URI without credentials, got some before an @; "
                          "give them by the environment (AWS_ACCESS_KEY_ID and others)")
    try:
        if uri.startswith("s3://") and os.environ.get("AWS_ENDPOINT_URL") and "endpoint_override" not in uri:
            endpoint = os.environ["AWS_ENDPOINT_URL"]
            scheme, _, host = endpoint.partition("://")
            bucket = uri.removeprefix("s3://").rstrip("/")
            return pafs.S3FileSystem(endpoint_override=host.rstrip("/"), scheme=scheme), bucket
        fs, path = pafs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(f"{uri!r}: expected a folder, a file or s3://bucket/path, got {str(error)[:WORDS]}") from None
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
