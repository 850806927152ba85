"""The reference's file: one JSON document, a format version, and a digest over everything else in it.

Idea: a reference decides what counts as drift for months, so its file must be readable by a person, exact to the last
bit (floats are written so that they read back equal) and unable to be wrong silently: the digest is recomputed at every
load, and every defect, from a cut file to a bin count that does not fit, is one ReferenceMismatch with file, expected,
got and what to do.

Invariant: the digest is a function of the content alone: load and save give the same bytes and the same digest.

Cost: about 20 bytes a number, 30 kB a column; 100 columns load in about 0.2 s.

Neighbours: `rows` holds what is written, `reference` calls `encode` and `decode`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from detectors.binning import CategoryBinning, NumericBinning
from detectors.dependence import DesignEffect
from detectors.derived import Joint, score_of_bins
from detectors.expansions import EXPANDED, Expansion, decode_expansions, encode_expansions
from detectors.profile import ReferenceMismatch
from detectors.rows import KINDS, ROLES, Column, Kind, Role, Row

FORMAT = "tidemark reference"
FORMAT_VERSION = 2
_REFIT = "fit the reference again, or restore the file"


@dataclass(frozen=True, slots=True)
class Content:
    """Everything that a reference file says, besides its digest."""

    model: str
    version: str
    events: int
    ordered: bool
    span: tuple[float, float] | None
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    joint: Joint | None
    expansions: Mapping[str, Expansion]
    sample: Mapping[str, NDArray[np.float64] | list[str | None]] | None
    cycles: float | None = None


def encode(content: Content) -> dict[str, Any]:
    """The document without its digest, ready for JSON."""
    return {
        "format": FORMAT, "format_version": FORMAT_VERSION,
        "model": content.model, "version": content.version, "events": content.events, "ordered": content.ordered,
        "span": None if content.span is None else list(content.span), "cycles": content.cycles,
        "columns": [{"name": column.name, "kind": column.kind, "role": column.role} for column in content.columns],
        "rows": [_encode_row(row) for row in content.rows],
        "joint": content.joint and {"components": encode_matrix(content.joint.components),
                                    "whitening": encode_matrix(content.joint.whitening)},
        "expansions": encode_expansions(content.expansions, _kinds(content.columns)),
        "sample": None if content.sample is None else {
            name: encode_matrix(values) if isinstance(values, np.ndarray) else values
            for name, values in content.sample.items()},
    }


def _kinds(columns: Sequence[Column]) -> dict[str, str]:
    return {column.name: column.kind for column in columns}


def digest_of(document: Mapping[str, Any]) -> str:
    """Sha256 over the document's content in one canonical spelling, 64 hex digits."""
    content = {key: value for key, value in document.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def decode(text: str, where: str) -> tuple[Content, str]:
    """Content and verified digest of a file's text; ReferenceMismatch, one line, for every defect."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        _refuse(where, "one JSON document", f"{type(error).__name__}: {error}", _REFIT)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        _refuse(where, f"a file of format {FORMAT!r}", "another document", "give the file that `tidemark fit` wrote")
    if document.get("format_version") != FORMAT_VERSION:
        _refuse(where, f"format version {FORMAT_VERSION}", repr(document.get("format_version")),
                "fit the reference again with this version of tidemark")
    digest = digest_of(document)
    if document.get("digest") != digest:
        _refuse(where, f"digest {document.get('digest')!s:.64}", f"content with digest {digest}",
                "the file was changed after it was fitted: " + _REFIT)
    try:
        return _decode(document, where), digest
    except ReferenceMismatch:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        _refuse(where, "a complete reference", f"{type(error).__name__}: {error}", _REFIT)


def _refuse(where: str, expected: str, got: str, mend: str) -> NoReturn:
    got = " ".join(got.split())[:300]                # one line, whatever the file holds
    raise ReferenceMismatch(f"{where}: expected {expected}, got {got}; {mend}")


def _decode(document: Mapping[str, Any], where: str) -> Content:
    columns = tuple(_decode_column(item, f"{where}: columns[{i}]") for i, item in enumerate(document["columns"]))
    rows = tuple(_decode_row(item, f"{where}: rows[{i}]") for i, item in enumerate(document["rows"]))
    kinds = _kinds(columns)
    expansions = decode_expansions(document["expansions"], kinds)
    unlike = [row.name for row in rows if row.name in kinds and kinds[row.name] not in EXPANDED
              and row.is_numeric != (kinds[row.name] == "numeric")]
    if unlike:
        _refuse(where, f"bins of the kind of column {unlike[0]!r} ({kinds[unlike[0]]})", "others", _REFIT)
    plain = [row for row in rows if row.name in kinds and kinds[row.name] not in EXPANDED]
    joint = _decode_joint(document["joint"], plain[: len(columns)], where)
    expected = [name for column in columns for name in (
        [f"{column.name}[{suffix}]" for suffix in expansions[column.name].names] if column.name in expansions
        else [column.name])]
    names = [row.name for row in rows]
    of_columns, behind = names[: len(expected)], names[len(expected):]
    if not columns or of_columns != expected or len(set(names)) < len(names):
        _refuse(where, f"rows of the columns {expected}", f"rows {of_columns}", _REFIT)
    if len(behind) != (0 if joint is None else joint.rows):
        _refuse(where, f"{0 if joint is None else joint.rows} joint rows", f"{len(behind)}", _REFIT)
    span = document["span"]
    return Content(str(document["model"]), str(document["version"]), int(document["events"]), bool(document["ordered"]),
                   None if span is None else (float(span[0]), float(span[1])), columns, rows, joint, expansions,
                   _decode_sample(document["sample"], columns, where),
                   None if document["cycles"] is None else float(document["cycles"]))


def _decode_joint(item: Mapping[str, Any] | None, members: Sequence[Row], where: str) -> Joint | None:
    if item is None:
        return None
    components, whitening = decode_matrix(item["components"]), decode_matrix(item["whitening"])
    shapes = components.shape[:1], whitening.shape[:1], components.ndim, whitening.ndim
    if shapes != ((len(members),), (len(members),), 2, 2):
        _refuse(where, f"joint weights of {len(members)} columns", f"shapes {components.shape} and {whitening.shape}", _REFIT)
    return Joint(tuple(score_of_bins(row) for row in members), components, whitening)


def _decode_sample(item: Mapping[str, Any] | None, columns: Sequence[Column],
                   where: str) -> dict[str, NDArray[np.float64] | list[str | None]] | None:
    if item is None:
        return None
    sample: dict[str, NDArray[np.float64] | list[str | None]] = {
        name: decode_matrix(values) if isinstance(values, dict) else [None if v is None else str(v) for v in values]
        for name, values in item.items()}
    if list(sample) != [column.name for column in columns] or len({len(values) for values in sample.values()}) != 1:
        _refuse(where, "a sample with every column, all of one length", f"columns {list(sample)}", _REFIT)
    return sample


#: Far more events than anybody fits a reference on; sums of squares of them are exact enough.
_EVENTS_MAX = 1e15


def _decode_column(item: Mapping[str, str], where: str) -> Column:
    if item["kind"] not in KINDS or item["role"] not in ROLES:
        _refuse(where, f"a kind of {', '.join(KINDS)} and a role of {', '.join(ROLES)}",
                f"{item['kind']} and {item['role']}", _REFIT)
    return Column(str(item["name"]), cast(Kind, item["kind"]), cast(Role, item["role"]))


def _encode_row(row: Row) -> dict[str, Any]:
    binning: dict[str, Any]
    if isinstance(row.binning, NumericBinning):
        binning = {"edges": _numbers(row.binning.edges), "scan_edges": _numbers(row.binning.scan_edges)}
    else:
        seen = np.array(sorted(row.binning.seen), dtype="<u8").tobytes()
        binning = {"levels": list(row.binning.levels), "scan_levels": row.binning.scan_levels,
                   "seen": base64.b64encode(seen).decode()}
    effect = row.effect
    return {
        "name": row.name, **binning,
        "counts": row.counts.tolist(), "positions": _numbers(row.positions),
        "sd": _number(row.sd), "minimum": _number(row.minimum), "maximum": _number(row.maximum),
        "nulls": {name: list(null) for name, null in row.nulls.items()},
        "c0": _numbers(row.c0), "weights": [_numbers(weights) for weights in row.weights.T],
        "centre": _numbers(row.centre),
        "g_directions": _numbers(effect.g_directions), "g_bins": _numbers(effect.g_bins),
        "nu_directions": _numbers(effect.nu_directions), "nu_bins": _numbers(effect.nu_bins),
    }


def _decode_row(item: Mapping[str, Any], where: str) -> Row:
    binning: NumericBinning | CategoryBinning
    if "edges" in item:
        binning = NumericBinning(_floats(item["edges"]), _floats(item["scan_edges"]))
        sound = (len(binning.scan_edges) > 1 and bool(np.all(np.diff(binning.edges) > 0))
                 and bool(np.isin(binning.scan_edges, binning.edges).all()))
    else:
        seen = np.frombuffer(base64.b64decode(item["seen"], validate=True), dtype="<u8")
        binning = CategoryBinning(tuple(map(str, item["levels"])), int(item["scan_levels"]), frozenset(seen.tolist()))
        sound = 0 <= binning.scan_levels <= len(binning.levels)
    if not sound:
        _refuse(where, "rising edges that hold the scan's, or levels that do", "others", _REFIT)
    row = Row(
        name=str(item["name"]), binning=binning, counts=np.array(item["counts"], dtype=np.int64),
        positions=_floats(item["positions"]), sd=float(item["sd"]), minimum=float(item["minimum"]),
        maximum=float(item["maximum"]),
        nulls={name: (float(mean), float(high)) for name, (mean, high) in item["nulls"].items()},
        c0=_floats(item["c0"]), weights=np.stack([_floats(weights) for weights in item["weights"]], axis=1),
        centre=_floats(item["centre"]),
        effect=DesignEffect(_floats(item["g_directions"]), _floats(item["g_bins"]),
                            _floats(item["nu_directions"]), _floats(item["nu_bins"])))
    fine, scan = binning.bins, binning.scan_bins
    shapes = tuple(array.shape for array in (
        row.counts, row.c0, row.weights, row.centre, row.effect.g_bins, row.effect.nu_bins, row.effect.g_directions,
        row.effect.nu_directions, row.positions))
    expected = ((fine,), (scan,), (scan, 4), (4,), (scan,), (scan,), (4,), (4,), (fine if row.is_numeric else 0,))
    if shapes != expected:
        _refuse(where, f"arrays of shapes {expected}", f"{shapes}", _REFIT)
    # The digest says that nobody changed the file, not that its author can count: a trainer's is somebody else's work.
    counted = np.concatenate([row.counts.astype(np.float64), row.c0])
    effects = np.concatenate([row.effect.g_bins, row.effect.nu_bins, row.effect.g_directions, row.effect.nu_directions])
    if not (np.isfinite(counted).all() and (counted >= 0).all()) or counted.sum() > _EVENTS_MAX or row.c0.sum() <= 0:
        _refuse(where, "counts that are finite, not negative and not all zero", "others", _REFIT)
    if not np.isfinite(np.concatenate([row.weights.ravel(), row.centre])).all() or not (effects >= 0).all() or row.sd < 0:
        _refuse(where, "weights that are finite and effects that are not negative", "others", _REFIT)
    return row


def _number(value: float) -> float | str:
    """A float as JSON has it; JSON knows no infinity and no NaN, so they are written as text."""
    return float(value) if np.isfinite(value) else repr(float(value))


def _numbers(values: NDArray[np.float64]) -> list[float | str]:
    return [_number(value) for value in values.tolist()]


def _floats(values: Sequence[float | str]) -> NDArray[np.float64]:
    return np.array([float(value) for value in values], dtype=np.float64)


def encode_matrix(values: NDArray[np.float64]) -> dict[str, Any]:
    """An array as its shape and the base64 of its little-endian float64: exact, and a third of the length of digits."""
    return {"shape": list(values.shape), "float64": base64.b64encode(values.astype("<f8").tobytes()).decode()}


def decode_matrix(item: Mapping[str, Any]) -> NDArray[np.float64]:
    """The array that `encode_matrix` wrote; ValueError where length and shape disagree."""
    flat = np.frombuffer(base64.b64decode(item["float64"], validate=True), dtype="<f8")
    return flat.reshape([int(size) for size in item["shape"]]).astype(np.float64)
