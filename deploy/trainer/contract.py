"""The trainer's side of tidemark's contract: what it is told, where it writes, and how it says no.

    Assignment   the environment's TIDEMARK_*, checked
    Roles        which column is label, prediction, score, input: of TIDEMARK_COLUMNS, options first
    Output       a folder or bucket in which every file appears whole or not at all

The invariant: whatever is wrong with options, environment or data is one line `where: expected ..., got ...; what to do`
and an exit code that says whether another attempt can help. 64 (EX_USAGE): wrong options or environment. 78 (EX_CONFIG):
events or shared memory that nobody can train with. 1: anything else, which may pass. tidemark's Kubernetes Job retries
after 1 and fails at once after 64 and 78.

Nothing here needs torch or numpy: wrong input is refused in a tenth of a second. Neighbours: everything else in this folder.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

USAGE, CONFIGURATION, FAILED = 64, 78, 1
REQUIRED = ("TIDEMARK_LAUNCH_ID", "TIDEMARK_MODEL", "TIDEMARK_VERSION", "TIDEMARK_DATA_URI", "TIDEMARK_OUTPUT_URI")
KINDS = ("numeric", "category", "boolean", "embedding", "text")
ROLES = ("input", "prediction", "score", "path", "label", "ignored")
#: Answers of an object store that will be the same next time.
LASTING = ("NO_SUCH_BUCKET", "ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH")
#: The time that one request to an object store may take before it is tried again, seconds.
STORE_SECONDS = 20.0


class BadInput(Exception):
    """What no second attempt can mend; one line that says where, expected, got and what to do."""

    code = CONFIGURATION


class BadUsage(BadInput):
    """Wrong options or environment variables."""

    code = USAGE


@dataclass(frozen=True)
class Watched:
    """A column that the monitor knows: the new reference must have it, of this kind and role."""

    name: str
    kind: str
    role: str


@dataclass(frozen=True)
class Assignment:
    """What the environment asks for.

    since_ms : when the drift began, milliseconds since 1970; None where there was none
    at_ms    : when that was certain           columns : every column that the monitor knows; empty where not told
    """

    launch: str
    model: str
    version: str
    data_uri: str
    output_uri: str
    since_ms: int | None
    at_ms: int | None
    columns: tuple[Watched, ...] = ()


@dataclass(frozen=True)
class Roles:
    """What the columns are for.

    inputs : columns to train on; empty means every column that has no other use
    paths  : category columns that only the reference describes
    kinds  : the kinds that are known; the others follow from the data
    kept   : watched columns that the reference must describe and that we neither train on nor answer
    """

    label: str
    prediction: str
    score: str
    inputs: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    kinds: Mapping[str, str] = field(default_factory=dict)
    kept: tuple[Watched, ...] = ()


def assignment(environment: Mapping[str, str]) -> Assignment:
    """The contract's environment, checked."""
    for name in REQUIRED:
        if not environment.get(name):
            raise BadUsage(f"{name}: expected in the environment, got nothing; the launcher of tidemark sets it")
    told = environment.get("TIDEMARK_REASON") or "{}"
    try:
        reason = json.loads(told)
        window = reason.get("window") or {}
        since, at = window.get("since", reason.get("since")), window.get("at", reason.get("at"))
        since_ms, at_ms = (None if moment is None else int(float(moment) * 1000) for moment in (since, at))
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise BadUsage(f"TIDEMARK_REASON: expected JSON with window.since in seconds since 1970, "
                       f"got {told[:80]!r}; the launcher of tidemark sets it") from error
    launch, model, version, data, output = (environment[name] for name in REQUIRED)
    return Assignment(launch, model, version, absolute(data), absolute(output), since_ms, at_ms,
                      watched(environment.get("TIDEMARK_COLUMNS") or "[]"))


def watched(told: str) -> tuple[Watched, ...]:
    """TIDEMARK_COLUMNS, checked."""
    problem = ""
    try:
        columns = tuple(Watched(str(one["name"]), str(one["kind"]), str(one["role"])) for one in json.loads(told))
    except (ValueError, TypeError, KeyError) as error:
        columns, problem = (), f"{type(error).__name__}: {error}"
    for column in columns:
        if column.kind not in KINDS or column.role not in ROLES:
            problem = f"kind {column.kind!r} and role {column.role!r} of column {column.name!r}"
    if problem:
        raise BadUsage(f"TIDEMARK_COLUMNS: expected a JSON list with name, kind ({', '.join(KINDS)}) and role "
                       f"({', '.join(ROLES)}) of every column, got {problem[:160]}; the launcher of tidemark sets it")
    return columns


def roles(
    columns: tuple[Watched, ...], *, label: str, prediction: str, score: str, features: str, paths: list[str],
) -> Roles:
    """The columns' uses: options where given, else what TIDEMARK_COLUMNS says, else the names `label` and `prediction`."""
    def only(role: str, option: str, otherwise: str) -> str:
        names = [column.name for column in columns if column.role == role]
        if option or len(names) < 2:
            return option or (names[0] if names else otherwise)
        raise BadUsage(f"TIDEMARK_COLUMNS: expected one column of role {role}, got {', '.join(names)}; "
                       f"choose one by --{role}")

    label, prediction, score = (only("label", label, "label"), only("prediction", prediction, "prediction"),
                                only("score", score, ""))
    inputs = tuple(name.strip() for name in features.split(",") if name.strip())
    own = {label, prediction, score}
    if not inputs:
        inputs = tuple(column.name for column in columns if column.role == "input" and column.name not in own)
    routes = tuple(dict.fromkeys([*paths, *(column.name for column in columns if column.role == "path")]))
    routes = tuple(name for name in routes if name not in own and name not in inputs)
    used = own | {*inputs, *routes}
    kept = tuple(column for column in columns if column.role not in ("label", "ignored") and column.name not in used)
    return Roles(label, prediction, score, inputs, routes, {column.name: column.kind for column in columns}, kept)


def absolute(uri: str) -> str:
    """A URI, or the absolute path of a local folder."""
    return uri if "://" in uri else str(Path(uri).resolve())


def store(uri: str, where: str) -> tuple[Any, str]:
    """The file system of a path or URI, and the path in it; AWS_ENDPOINT_URL names another S3 than Amazon's."""
    import pyarrow
    from pyarrow import fs

    try:
        if "://" not in uri:
            return fs.LocalFileSystem(), os.path.abspath(uri)
        endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
        if uri.startswith("s3://") and endpoint and "endpoint_override" not in uri:
            scheme, _, host = endpoint.rpartition("://")
            return fs.S3FileSystem(endpoint_override=host.rstrip("/"), scheme=scheme or "https",
                                   connect_timeout=STORE_SECONDS, request_timeout=STORE_SECONDS), uri[5:].strip("/")
        found, path = fs.FileSystem.from_uri(uri)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
        raise BadUsage(f"{where}: expected a path, file:// or s3://bucket/folder, got {uri!r} "
                       f"({one_line(error)[:120]}); correct it") from None
    return found, path.rstrip("/")


def lasting(error: OSError, uri: str, where: str) -> Exception:
    """A store's error as what it means for a second attempt: BadInput where the answer will be the same, else itself."""
    if any(code in str(error) for code in LASTING):
        return BadInput(f"{where}: expected a bucket that can be used, got for {uri}: {one_line(error)[:160]}; check its name "
                        "and the job's credentials")
    return error


class Output:
    """The folder, local or in an object store, that the results go to; every file appears whole or not at all."""

    def __init__(self, uri: str, where: str = "TIDEMARK_OUTPUT_URI") -> None:
        from pyarrow import fs

        self.uri = uri.rstrip("/")
        self.filesystem, self.path = store(self.uri, where)
        self.local = isinstance(self.filesystem, fs.LocalFileSystem)
        try:
            self.filesystem.create_dir(self.path, recursive=True)
        except OSError as error:
            raise lasting(error, self.uri, where) from None

    def write(self, name: str, content: bytes) -> str:
        """Write a file; returns its URI."""
        target = f"{self.path}/{name}"
        if not self.local:                           # an object store shows an object when its upload is complete
            with self.filesystem.open_output_stream(target) as stream:
                stream.write(content)
            return f"{self.uri}/{name}"
        with open(f"{target}.part", "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{target}.part", target)
        return f"{self.uri}/{name}"

    def read(self, name: str) -> bytes | None:
        """The file's bytes, or None where there is none."""
        try:
            with self.filesystem.open_input_stream(f"{self.path}/{name}") as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        try:
            self.filesystem.delete_file(f"{self.path}/{name}")
        except FileNotFoundError:
            return


def one_line(error: BaseException) -> str:
    """An outside error's text as one line of bounded length."""
    return " ".join(str(error).split())[:300]


def duration(seconds: float) -> str:
    """A time to go, as people read it: 42 s, 7 min, 3.2 h.

    >>> [duration(seconds) for seconds in (0.2, 42, 420, 11_500)]
    ['0 s', '42 s', '7 min', '3.2 h']
    """
    if not math.isfinite(seconds) or seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5_400 else f"{seconds / 3600:.1f} h"
