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
from detectors.profile import ReferenceMismatch
from detectors.rows import KINDS, ROLES, Column, Kind, Role, Row

FORMAT = "tidemark reference"
FORMAT_VERSION = 1
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


def encode(content: Content) -> dict[str, Any]:
    """The document without its digest, ready for JSON."""
    return {
        "format": FORMAT, "format_version": FORMAT_VERSION,
        "model": content.model, "version": content.version, "events": content.events, "ordered": content.ordered,
        "span": None if content.span is None else list(content.span),
        "columns": [{"name": column.name, "kind": column.kind, "role": column.role} for column in content.columns],
        "rows": [_encode_row(row) for row in content.rows],
    }


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
    names, expected = [row.name for row in rows[: len(columns)]], [column.name for column in columns]
    if not columns or names != expected:
        _refuse(where, f"rows of the columns {expected}", f"rows {names}", _REFIT)
    span = document["span"]
    return Content(str(document["model"]), str(document["version"]), int(document["events"]), bool(document["ordered"]),
                   None if span is None else (float(span[0]), float(span[1])), columns, rows)


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
    return row


def _number(value: float) -> float | str:
    """A float as JSON has it; JSON knows no infinity and no NaN, so they are written as text."""
    return float(value) if np.isfinite(value) else repr(float(value))


def _numbers(values: NDArray[np.float64]) -> list[float | str]:
    return [_number(value) for value in values.tolist()]


def _floats(values: Sequence[float | str]) -> NDArray[np.float64]:
    return np.array([float(value) for value in values], dtype=np.float64)
