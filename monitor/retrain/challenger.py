"""The challenger's judgement: what a training job left behind, and how it compares with the champion.

A job that succeeded leaves `result.json` (model_uri, metrics, reference_uri, perhaps version, training_offsets,
training_ids_uri) and `holdout.parquet` (see `holdout`) in its output folder. The job's own metrics are never believed: both
models' quality is counted here, on the same events, and the *paired* difference gets a 95 % interval (`quality_metrics`,
`intervals`). Its sense is always "positive = the challenger is better".

`better` means that the whole interval lies above `min_improvement`, `worse` that it lies below 0; everything else is
`not yet known`, and so is any comparison on fewer than `holdout_events_min` events. A defect of the files (absent, too
large, wrong types, duplicated ids) is one line and the verdict `failed`; a store that does not answer is
LaunchFailed(retry=True). What is drawn at random is drawn by the launch's id: judged again, the verdict is the same.

Cost: one read of the files, a few passes over the events and at most one bootstrap; see `holdout` and `intervals`.
Neighbours: `launch` calls `judge`, `shadow` compares again on live events, `promote` reads the new reference.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from monitor.config_retrain import Interval, Metric
from monitor.documents import read_json
from monitor.errors import LaunchFailed
from monitor.flow import Launch
from monitor.retrain.holdout import line, read_holdout, read_output, refuse_trained_on
from monitor.retrain.intervals import CONFIDENCE
from monitor.retrain.outputs import ContractBroken, refuse_model, refuse_outside
from monitor.retrain.quality_metrics import Answers, NotComparable, measured

__all__ = ["RESULT_BYTES_MAX", "ContractBroken", "Metric", "Result", "Verdict", "compare", "judge", "new_version", "output_path",
           "read_output", "read_result", "roots", "seed_of"]

PROGRESS_BYTES_MAX = 1 << 16              # one line, or a short log
RESULT_BYTES_MAX = 1 << 20                # result.json names things; a megabyte of it is a mistake
VERSION_LENGTH_MAX = 63                   # a label value of Kubernetes, and config.Name

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_OUR_SUFFIX = re.compile(r"\.r[0-9a-f]{6}$")


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

    metrics          : the trainer's own figures, kept for people; no decision reads them
    training_offsets : "topic:partition" -> pairs [first, end) of the offsets that were trained on
    training_ids_uri : a Parquet file whose column `id` names the events that were trained on
    """

    model_uri: str
    reference_uri: str
    metrics: dict[str, Any] = msgspec.field(default_factory=dict)
    version: str | None = None
    training_offsets: dict[str, list[tuple[int, int]]] | None = None
    training_ids_uri: str | None = None


def output_path(output_uri: str, name: str) -> str:
    """`name` inside the output folder; a name that is absolute or has a scheme of its own stands for itself."""
    if "://" in name or name.startswith("/"):
        return name
    return f"{output_uri.rstrip('/')}/{name}"


def read_progress(launch: Launch) -> str:
    """The last progress line that the trainer left in `progress.txt`, printable, at most 200 characters; "" where none is.

    It is only for people to see, so nothing that is wrong with it is an error.
    """
    try:
        content = read_output(output_path(launch.output_uri, "progress.txt"), PROGRESS_BYTES_MAX, roots(launch)) or b""
    except (ContractBroken, LaunchFailed):
        return ""
    lines = content.decode(errors="replace").splitlines()
    last = next((line for line in reversed(lines) if line.strip()), "")
    return "".join(character for character in last.strip() if character.isprintable())[:200]


def roots(launch: Launch, result_uris: Sequence[str] = ()) -> tuple[str, ...]:
    """The folders that what the launch left may lie in: its own output folder, then those of `retrain.result_uris`."""
    return (launch.output_uri, *result_uris) if launch.output_uri else ()


def read_result(launch: Launch, result_uris: Sequence[str] = ()) -> Result | None:
    """The job's result.json, checked; None where the job left none. Raises ContractBroken, LaunchFailed(retry=True).

    result_uris : further folders that it may name files of, see `outputs`
    """
    uri = output_path(launch.output_uri, "result.json")
    content = read_output(uri, RESULT_BYTES_MAX, roots(launch))
    if content is None:
        return None
    try:
        result = read_json(content, Result)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ContractBroken(f"{uri}: expected JSON with model_uri, reference_uri and metrics, got: {line(error)}; "
                             "see the trainer's contract") from None
    for name, value in (("model_uri", result.model_uri), ("reference_uri", result.reference_uri)):
        if not value or len(value) > 2_000:
            raise ContractBroken(f"{uri}: {name}: expected 1 to 2,000 characters, got {len(value)}; name the file")
    known = roots(launch, result_uris)
    refuse_model(output_path(launch.output_uri, result.model_uri), f"{uri}: model_uri", known)
    refuse_outside(output_path(launch.output_uri, result.reference_uri), f"{uri}: reference_uri", known)
    if result.training_ids_uri:
        refuse_outside(output_path(launch.output_uri, result.training_ids_uri), f"{uri}: training_ids_uri", known)
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


def judge(launch: Launch, *, metric: Metric, events_min: int, min_improvement: float = 0.0,
          positive_label: str | None = None, interval: Interval = "auto",
          result_uris: Sequence[str] = ()) -> tuple[Verdict, Result | None]:
    """Read what the job left and compare champion and challenger.

    events_min : rows below which nothing is known. Defects give the verdict `failed`, with no Result.
    Raises LaunchFailed(retry=True) when the output cannot be reached.
    """
    uri = output_path(launch.output_uri, "holdout.parquet")
    try:
        result = read_result(launch, result_uris)
        if result is None:
            raise ContractBroken(f"{output_path(launch.output_uri, 'result.json')}: expected the trainer's result, "
                                 "got nothing; let the trainer write it as its last step")
        answers, ids = read_holdout(uri, metric, roots(launch))
        refuse_trained_on(ids, uri, result.training_offsets,
                          result.training_ids_uri and output_path(launch.output_uri, result.training_ids_uri),
                          roots(launch, result_uris))
        verdict = compare(answers, metric=metric, events_min=events_min, min_improvement=min_improvement,
                          positive_label=positive_label, seed=seed_of(launch), interval=interval)
    except ContractBroken as broken:
        return Verdict(metric, None, None, None, None, None, 0, "failed", str(broken)), None
    except NotComparable as broken:
        return Verdict(metric, None, None, None, None, None, 0, "failed", f"{uri}: {broken}"), None
    except UnicodeError as broken:                  # texts of a Parquet file are bytes that nobody has looked at
        return Verdict(metric, None, None, None, None, None, 0, "failed",
                       f"{uri}: expected texts in UTF-8, got other bytes: {line(broken)}"), None
    return verdict, result


def seed_of(launch: Launch) -> int:
    """The seed of everything that is drawn for a launch: its id's digest, so that repeating is the same."""
    return int.from_bytes(hashlib.sha256(launch.id.encode()).digest()[:8], "big")


def compare(answers: Answers, *, metric: Metric, events_min: int, min_improvement: float = 0.0,
            positive_label: str | None = None, seed: int = 0, confidence: float = CONFIDENCE, interval: Interval = "auto",
            setting: str = "retrain.holdout_events_min") -> Verdict:
    """The verdict on the answers of both models to the same events; NotComparable where they do not fit the metric.

    min_improvement : in the metric's unit; what is surely better, but not surely by so much, is not yet known
    setting         : the key that `events_min` comes from, for people
    """
    events = len(answers)
    found = measured(answers, metric, positive_label=positive_label, seed=seed, confidence=confidence,
                     interval=interval)
    old, new, difference, lower, upper, basis = found
    if not all(map(math.isfinite, (old, new, difference))):
        return Verdict(metric, None, None, None, None, None, events, "failed",
                       "holdout.parquet: expected values whose differences are finite, got an overflow; mend the units")
    known = f"{metric} of {old:.6g} (champion) and {new:.6g} (challenger) on {events:,} events; {basis}"
    low, high = (lower, upper) if math.isfinite(upper - lower) else (None, None)
    if events < events_min:
        return Verdict(metric, old, new, difference, low, high, events, "not yet known",
                       f"{events:,} labelled events, fewer than the {events_min:,} of {setting}")
    if low is None:
        return Verdict(metric, old, new, difference, None, None, events, "not yet known",
                       f"{known}; too few events of a kind for an interval")
    outcome: Literal["better", "worse", "not yet known"] = (
        "better" if lower > min_improvement else "worse" if upper < 0 else "not yet known")
    if outcome == "not yet known" and lower > 0:
        known += f"; better, but not surely by more than the {min_improvement:g} of retrain.min_improvement"
    return Verdict(metric, old, new, difference, lower, upper, events, outcome, known)
