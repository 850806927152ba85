"""The challenger's judgement: what a training job left behind, read carefully, and compared by us with the champion.

A job that succeeded leaves `result.json` (model_uri, metrics, reference_uri, perhaps version) and `holdout.parquet`
(id, label, champion_prediction, challenger_prediction on events that it did not train on) in its output folder. The
job's own metrics are never believed: both models' quality is counted here, on the same events, and the *paired*
difference gets a 95 % interval. Its sense is always "positive = the challenger is better".

    accuracy              Tango's score interval for paired proportions (1998); right where few pairs disagree
    mean_absolute_error   Student's t on the paired differences |champion - label| - |challenger - label|

`better` means that the whole interval lies above 0, `worse` below; everything else is `not yet known`, and so is any
comparison on fewer than `holdout_events_min` events. A defect of the files (absent, too large, wrong types, duplicated
ids) is one line and the verdict `failed`; a store that does not answer is LaunchFailed(retry=True).

Cost: one read of at most HOLDOUT_BYTES_MAX bytes and a few passes over at most HOLDOUT_EVENTS_MAX rows (0.3 s for a
million). Neighbours: `launch` calls `judge`, `promote` reads the new reference through `read_output`. pyarrow is
imported in this one module of the stage, late, because a service that never retrains need not load it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from monitor.errors import LaunchFailed, TidemarkError
from monitor.flow import Launch

RESULT_BYTES_MAX = 1 << 20                # result.json names things; a megabyte of it is a mistake
HOLDOUT_BYTES_MAX = 256 << 20             # read into memory whole
HOLDOUT_EVENTS_MAX = 5_000_000            # the interval is far below any effect that matters long before
VERSION_LENGTH_MAX = 63                   # a label value of Kubernetes, and config.Name
CONFIDENCE = 0.95

HOLDOUT_COLUMNS = ("id", "label", "champion_prediction", "challenger_prediction")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_OUR_SUFFIX = re.compile(r"\.r[0-9a-f]{6}$")

Metric = Literal["accuracy", "mean_absolute_error"]


class ContractBroken(TidemarkError):
    """What a trainer left is not what the trainer's contract says; the text is the one line for its author."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Champion against challenger on the same held-back events.

    champion, challenger     : each one's quality in the metric's own sense (for an error, smaller is better)
    difference, lower, upper : paired, positive = the challenger is better; lower and upper are a 95 % interval
    detail                   : one sentence that says what the verdict rests on, or the defect
    None stands where nothing could be computed.
    """

    metric: Metric
    champion: float | None
    challenger: float | None
    difference: float | None
    lower: float | None
    upper: float | None
    events: int
    verdict: Literal["better", "worse", "not yet known", "failed"]
    detail: str


class Result(msgspec.Struct, frozen=True):
    """`result.json`: where the new model and its reference are; unknown keys are let through for newer trainers.

    metrics : the trainer's own figures, kept for people; no decision reads them
    """

    model_uri: str
    reference_uri: str
    metrics: dict[str, Any] = msgspec.field(default_factory=dict)
    version: str | None = None


def output_path(output_uri: str, name: str) -> str:
    """`name` inside the output folder; a name that is absolute or has a scheme of its own stands for itself."""
    if "://" in name or name.startswith("/"):
        return name
    return f"{output_uri.rstrip('/')}/{name}"


def read_output(uri: str, bytes_max: int) -> bytes | None:
    """The bytes at a path or URI (file, s3 and what else pyarrow reaches); None where nothing is.

    Raises ContractBroken when there is more than `bytes_max` or no file, LaunchFailed(retry=True) when the store fails.
    The S3 client of pyarrow gives up by itself after its own time limits (3 s a request, three tries).
    """
    import pyarrow as pa
    from pyarrow import fs

    try:
        if "://" in uri:
            filesystem, path = fs.FileSystem.from_uri(uri)
        else:
            filesystem, path = fs.LocalFileSystem(), os.path.abspath(uri)
        found = filesystem.get_file_info(path)
        if found.type == fs.FileType.NotFound:
            return None
        if found.type != fs.FileType.File:
            raise ContractBroken(f"{uri}: expected a file, got a folder; let the trainer write a file of that name")
        # Read one byte more than allowed instead of trusting the size: a file may still grow.
        with filesystem.open_input_stream(path) as stream:
            content: bytes = stream.read(bytes_max + 1)
    except pa.ArrowInvalid as error:
        raise ContractBroken(f"{uri}: expected a path or a URI that can be read, got: {_line(error)}") from None
    except OSError as error:
        raise LaunchFailed(f"{uri}: cannot be read now: {_line(error)}", retry=True) from None
    if len(content) > bytes_max:
        raise ContractBroken(f"{uri}: expected at most {bytes_max:,} bytes, got more; write a smaller file")
    return content


def read_result(launch: Launch) -> Result | None:
    """The job's result.json, checked; None where the job left none. Raises ContractBroken, LaunchFailed(retry=True)."""
    uri = output_path(launch.output_uri, "result.json")
    content = read_output(uri, RESULT_BYTES_MAX)
    if content is None:
        return None
    try:
        result = msgspec.json.decode(content, type=Result)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ContractBroken(f"{uri}: expected JSON with model_uri, reference_uri and metrics, got: {_line(error)}; "
                             "see the trainer's contract") from None
    for name, value in (("model_uri", result.model_uri), ("reference_uri", result.reference_uri)):
        if not value or len(value) > 2_000:
            raise ContractBroken(f"{uri}: {name}: expected 1 to 2,000 characters, got {len(value)}; name the file")
    if result.version is not None and (not _VERSION.fullmatch(result.version) or result.version == launch.version):
        raise ContractBroken(f"{uri}: version: expected letters, digits, . _ - (at most {VERSION_LENGTH_MAX}) and not "
                             f"the old {launch.version!r}, got {result.version[:80]!r}; or leave it out")
    return result


def new_version(launch: Launch, result: Result) -> str:
    """The version that the challenger will carry.

    The trainer's own, when result.json names one; else the old version with `.r` and the launch id's first six digits.
    An earlier such ending is replaced, not added to, so that versions do not grow: 7 -> 7.r3f9c2a -> 7.r91ab02; a long
    old version is cut so that the whole stays within 63 characters, which Kubernetes allows a label.
    """
    if result.version is not None:
        return result.version
    ending = f".r{launch.id[:6]}"
    return _OUR_SUFFIX.sub("", launch.version)[:VERSION_LENGTH_MAX - len(ending)] + ending


def judge(launch: Launch, *, metric: Metric, events_min: int) -> tuple[Verdict, Result | None]:
    """Read what the job left and compare champion and challenger.

    events_min : rows below which nothing is known. Defects give the verdict `failed`, with no Result.
    Raises LaunchFailed(retry=True) when the output cannot be reached.
    """
    try:
        result = read_result(launch)
        if result is None:
            raise ContractBroken(f"{output_path(launch.output_uri, 'result.json')}: expected the trainer's result, "
                                 "got nothing; let the trainer write it as its last step")
        label, champion, challenger = _holdout(output_path(launch.output_uri, "holdout.parquet"), metric)
    except ContractBroken as broken:
        return Verdict(metric, None, None, None, None, None, 0, "failed", str(broken)), None
    return compare(label, champion, challenger, metric=metric, events_min=events_min), result


def compare(label: NDArray[Any], champion: NDArray[Any], challenger: NDArray[Any], *, metric: Metric,
            events_min: int) -> Verdict:
    """The verdict on three arrays of one length >= 1: labels and both models' predictions, without missing values."""
    events = len(label)
    if metric == "accuracy":
        champion_right, challenger_right = champion == label, challenger == label
        old, new = float(np.mean(champion_right)), float(np.mean(challenger_right))
        gained = int(np.count_nonzero(challenger_right & ~champion_right))
        lost = int(np.count_nonzero(champion_right & ~challenger_right))
        difference = (gained - lost) / events
        lower, upper = paired_proportion_interval(gained, lost, events)
        basis = f"right where the other was wrong: challenger {gained:,}, champion {lost:,}"
    else:
        with np.errstate(over="ignore", invalid="ignore"):      # absurd units are told below, as the defect they are
            champion_error, challenger_error = np.abs(champion - label), np.abs(challenger - label)
            old, new = float(np.mean(champion_error)), float(np.mean(challenger_error))
            difference = old - new
            lower, upper = paired_mean_interval(champion_error - challenger_error)
        basis = "positive is the error that the challenger saves"
    if not all(map(math.isfinite, (old, new, difference))):
        return Verdict(metric, None, None, None, None, None, events, "failed",
                       "holdout.parquet: expected values whose differences are finite, got an overflow; mend the units")
    known = f"{metric} of {old:.6g} (champion) and {new:.6g} (challenger) on {events:,} events; {basis}"
    if events < events_min or not math.isfinite(upper - lower):
        low, high = (lower, upper) if math.isfinite(upper - lower) else (None, None)
        return Verdict(metric, old, new, difference, low, high, events, "not yet known",
                       f"{events:,} held-back events, fewer than the {events_min:,} of retrain.holdout_events_min")
    outcome: Literal["better", "worse", "not yet known"] = (
        "better" if lower > 0 else "worse" if upper < 0 else "not yet known")
    return Verdict(metric, old, new, difference, lower, upper, events, outcome, known)


def paired_proportion_interval(gained: int, lost: int, pairs: int,
                               confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Tango's score interval for (gained - lost) / pairs, the difference of two proportions on the same pairs.

    gained, lost : pairs that only the second, only the first got right; gained + lost <= pairs, pairs >= 1
    returns      : lower and upper bound in [-1, 1]

    Tango, Statistics in Medicine 17 (1998) 891-908: the values D that the score test does not reject,
    |gained - lost - n D| <= z sqrt(n (2 q + D (1 - D))), where q is the probability of `lost` that is most likely given
    D, the root of 2 n q^2 + (-(b + c) + (2 n - b + c) D) q - c D (1 - D) = 0 with b = gained, c = lost. Unlike the
    simple normal interval it keeps its level where few or no pairs disagree.

    >>> [round(bound, 3) for bound in paired_proportion_interval(1, 7, 21)]
    [-0.517, -0.026]
    """
    z = float(-special.ndtri((1 - confidence) / 2))
    observed = (gained - lost) / pairs

    def score(difference: float) -> float:
        """The score statistic; it falls as the assumed difference rises."""
        linear = -(gained + lost) + (2 * pairs - gained + lost) * difference
        constant = -lost * difference * (1 - difference)
        q = (math.sqrt(max(linear * linear - 8 * pairs * constant, 0.0)) - linear) / (4 * pairs)
        variance = pairs * (2 * q + difference * (1 - difference))
        distance = gained - lost - pairs * difference
        return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)

    def bound(edge: float, level: float) -> float:
        """Where the score passes `level` between the observed difference and the edge of the possible ones."""
        inner = observed + math.copysign(1e-12, edge)
        if not -1 < inner < 1 or (score(edge * (1 - 1e-12)) - level) * (score(inner) - level) > 0:
            return edge
        return float(optimize.brentq(lambda at: float(np.clip(score(at) - level, -1e9, 1e9)),
                                     inner, edge * (1 - 1e-12), xtol=1e-12))

    return bound(-1.0, z), bound(1.0, -z)


def paired_mean_interval(differences: NDArray[np.float64], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Student's t interval for the mean of paired differences, in their unit; infinite for fewer than two of them."""
    n = len(differences)
    if n < 2:
        return -math.inf, math.inf
    mean = float(np.mean(differences))
    margin = float(-special.stdtrit(n - 1, (1 - confidence) / 2) * np.std(differences, ddof=1) / math.sqrt(n))
    return mean - margin, mean + margin


def _holdout(uri: str, metric: Metric) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Labels and both predictions of holdout.parquet, checked; raises ContractBroken with the defect."""
    import pyarrow as pa
    from pyarrow import compute, parquet

    content = read_output(uri, HOLDOUT_BYTES_MAX)
    if content is None:
        raise ContractBroken(f"{uri}: expected the held-back events, got nothing; let the trainer write them")
    try:
        file = parquet.ParquetFile(pa.BufferReader(content))
        rows = file.metadata.num_rows
        missing = [name for name in HOLDOUT_COLUMNS if name not in file.schema_arrow.names]
        if missing:
            raise ContractBroken(f"{uri}: expected the columns {', '.join(HOLDOUT_COLUMNS)}, "
                                 f"got {', '.join(file.schema_arrow.names[:20])}; add {', '.join(missing)}")
        if not 1 <= rows <= HOLDOUT_EVENTS_MAX:
            raise ContractBroken(f"{uri}: expected 1 to {HOLDOUT_EVENTS_MAX:,} rows, got {rows:,}; "
                                 "hold back a part of the captured events")
        table = file.read(columns=list(HOLDOUT_COLUMNS))
        distinct = compute.count_distinct(table["id"], mode="all").as_py()
        for name in HOLDOUT_COLUMNS:
            if table[name].null_count:
                raise ContractBroken(f"{uri}: column {name}: expected a value in every row, "
                                     f"got {table[name].null_count:,} missing; leave such events out")
        if distinct != rows:
            raise ContractBroken(f"{uri}: column id: expected every id once, got {rows - distinct:,} repeated; "
                                 "hold every event back once, or the interval is too narrow")
        columns = {name: _values(table[name], f"{uri}: column {name}") for name in HOLDOUT_COLUMNS[1:]}
    except (pa.ArrowException, OSError) as error:
        raise ContractBroken(f"{uri}: expected a Parquet file, got: {_line(error)}; write it with pyarrow or "
                             "pandas") from None
    _same_kind(columns, uri, metric)
    return columns["label"], columns["champion_prediction"], columns["challenger_prediction"]


def _values(column: Any, where: str) -> NDArray[Any]:
    """A column as float64, or as an object array of str; raises ContractBroken on another type or a NaN."""
    import pyarrow as pa

    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        values = column.cast(kind).cast(pa.float64(), safe=False).to_numpy()
        if not np.isfinite(values).all():
            raise ContractBroken(f"{where}: expected finite numbers, got {int((~np.isfinite(values)).sum()):,} that "
                                 "are not; leave such events out")
        return np.asarray(values, dtype=np.float64)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return np.array(column.cast(pa.large_string()).to_pylist(), dtype=object)
    raise ContractBroken(f"{where}: expected numbers, booleans or strings, got {column.type}; write one of these")


def _same_kind(columns: Mapping[str, NDArray[Any]], uri: str, metric: Metric) -> None:
    """Refuse to compare strings with numbers: every pair would look wrong, and equally so for both models."""
    kinds = {name: "numbers" if values.dtype == np.float64 else "strings" for name, values in columns.items()}
    got = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
    if metric == "mean_absolute_error" and "strings" in kinds.values():
        raise ContractBroken(f"{uri}: expected numbers for {metric}, got {got}; or set retrain.metric to accuracy")
    if len(set(kinds.values())) > 1:
        raise ContractBroken(f"{uri}: expected label and predictions of one kind, got {got}; write them alike")


def _line(error: Exception) -> str:
    """An outside error's text as one line of bounded length."""
    return " ".join(str(error).split())[:300]
