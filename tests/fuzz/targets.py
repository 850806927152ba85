"""What reads bytes from outside, each as one function of bytes: it returns, or the reader has a defect.

    TARGETS["decode"](data)        assert: whatever the bytes are, only what is promised happens

The promises. Events: every record is a row or a refusal under a known reason, good neighbours are untouched, and how
records are cut into batches changes nothing. Files, documents and bodies: accepted, or one of our errors in one line of
bounded length. HTTP: an answer below 500 (or a 503 with its reason) in JSON or in the route's own type, with every
security header. Nothing else is ever raised, and nothing runs out of memory or time.

Used three ways: by hypothesis in the normal run (`test_targets`), by atheris in a process of its own (`python -m
tests.fuzz.drive TARGET`, coverage-guided), and on every file of `corpus/TARGET`, which holds seeds and whatever was
found once. Cost: 0.1 to 5 ms per input. Neighbours: `drive` runs one target, `seeds` makes the first inputs.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from detectors import reference_file
from detectors.reference import Column, Reference
from monitor.config import FILE_BYTES, Limits, LocalLauncher, Schema, SchemaColumn, parse
from monitor.decide.policy import PolicyState
from monitor.decide.quality import QualityState
from monitor.errors import CheckpointRefused, LaunchFailed, ReferenceMismatch, SourceFailed, TidemarkError
from monitor.expose.api import application
from monitor.expose.exporter import Exporter
from monitor.expose.inbox import Inbox
from monitor.expose.page.routes import routes as page_routes
from monitor.expose.rates import Rates
from monitor.expose.report import routes as report_routes
from monitor.flow import REASONS, Alarm, Launch, Part
from monitor.ingest.arrow import ArrowDecoder
from monitor.ingest.deadletters import DeadLetters
from monitor.ingest.decode import Decoder
from monitor.ingest.files import FileSource
from monitor.ingest.schema import StreamSchema
from monitor.retrain.challenger import judge, read_progress
from monitor.retrain.launchers.local import Local
from monitor.retrain.ledger import decision_from_json, entry_from_json, launch_from_json
from monitor.retrain.promote import load_reference
from monitor.state.sample import from_bytes
from monitor.state.tables import Counters, stored, unpacked
from tests.fuzz import seeds

#: Longest line that an error may be: a person reads it in a terminal.
LINE_MAX = 1_500
TOKEN = "correct-horse-battery-staple"
NOW = 1_700_000_000.0

#: In memory where that can be had: a target writes and reads a file per input.
_SCRATCH = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def said_well(error: Exception) -> None:
    """The line that a person would be shown is one, and not endless."""
    text = str(error)
    assert text, type(error)
    assert len(text) <= LINE_MAX, f"{len(text)} characters: {text[:200]}"
    assert "\n" not in text, text[:200]


@contextmanager
def folder() -> Iterator[Path]:
    """An empty folder for one input."""
    made = Path(tempfile.mkdtemp(prefix="tidemark-fuzz-", dir=_SCRATCH))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


# -- events --------------------------------------------------------------------------------------------------------------

COLUMNS = [Column("age", "numeric", "input"), Column("sex", "category", "input"), Column("member", "boolean", "input"),
           Column("note", "text", "input"), Column("answer", "category", "prediction")]
SCHEMA = Schema(prefix="x", timestamp="ts", id="id", columns={
    "age": SchemaColumn(aliases=["years"]), "answer": SchemaColumn(path="answer"),
    "truth": SchemaColumn(path="truth", role="label")})
FLAT = Schema(timestamp="at", timestamp_unit="iso8601")


@functools.cache
def decoders() -> tuple[Decoder, ...]:
    """A nested schema with every kind, a flat one of numbers, one with a vector; small messages only."""
    limits = Limits(message_bytes=4_096)
    numbers = [Column(f"f{i}", "numeric", "input") for i in range(6)]
    vector = [Column("v", "embedding", "input"), Column("n", "numeric", "input")]
    return tuple(Decoder("m", schema, limits, clock=lambda: NOW + 3_600) for schema in (
        StreamSchema.resolve(SCHEMA, COLUMNS, "schema"), StreamSchema.resolve(Schema(timestamp="ts"), numbers, "schema"),
        StreamSchema.resolve(FLAT, COLUMNS, "schema"), StreamSchema.resolve(Schema(), vector, "schema", dimensions={"v": 3})))


def part_of(values: list[bytes | None]) -> Part:
    """The values as one part, all at one broker time."""
    n = len(values)
    return Part("topic", 3, values, np.arange(100, 100 + n), np.full(n, int(NOW * 1000)), 100 + n)


def decode(data: bytes) -> None:
    """Messages, one a line: alone, between good ones, and all in one batch."""
    bad: list[bytes | None] = [None if line == b"\x00" else line for line in data.split(b"\n")[:12]]
    for decoder in decoders():
        good = seeds.EVENT
        alone = [decoder.decode(part_of([value])) for value in bad]
        # Many good neighbours of one layout: a faster way that is taken for them must not be taken by what differs.
        mixed: list[bytes | None] = [good] * 8
        for value in bad:
            mixed += [value, good]
        together = decoder.decode(part_of(mixed))
        for rows in (*alone, together):
            assert len(rows) + len(rows.refusals) == rows.read
            assert {refusal.reason for refusal in rows.refusals} <= set(REASONS)
            assert all(len(refusal.detail) <= 200 for refusal in rows.refusals)
            for values in (*rows.columns.values(), *rows.others.values()):
                assert len(values) == len(rows)
                if isinstance(values, np.ndarray):
                    assert not np.isinf(values).any()
                else:
                    for value in values:
                        assert value is None or value.encode() is not None          # a lone surrogate raises
        refused = {refusal.offset - 100 for refusal in together.refusals}
        for i, rows in enumerate(alone):
            assert (8 + 2 * i in refused) == bool(rows.refusals), bad[i]
            if rows.refusals:
                continue
            at = int(np.searchsorted(together.offsets, 100 + 8 + 2 * i))
            assert together.times[at] == rows.times[0]
            for name in (*rows.columns, *rows.others):
                one, many = (where.columns[name] if name in where.columns else where.others[name] for where in (rows, together))
                assert same(one[0], many[at]), (name, one[0], many[at], bad[i])
        assert not {i for i, value in enumerate(mixed) if value is good} & refused


@functools.cache
def arrow_decoders() -> tuple[ArrowDecoder, ...]:
    """A flat schema with every kind, and a nested one with a vector."""
    limits = Limits(message_bytes=8_192, unpacked_bytes=65_536)
    vector = [Column("v", "embedding", "input"), Column("age", "numeric", "input"), Column("sex", "category", "input")]
    nested = Schema(columns={"age": SchemaColumn(path="x.age"), "sex": SchemaColumn(path="x.sex", aliases=["sex"])})
    return tuple(ArrowDecoder("m", schema, limits, clock=lambda: NOW + 3_600) for schema in (
        StreamSchema.resolve(Schema(timestamp="ts"), COLUMNS, "schema"),
        StreamSchema.resolve(nested, vector, "schema", dimensions={"v": 3})))


def arrow(data: bytes) -> None:
    """An Arrow message between good ones: a first byte of 255 and anything, else a good one of that kind with changed bytes."""
    if not data:
        return
    bad = data[1:] if data[0] == 255 else seeds.damaged(seeds.arrow(data[0]), data[1:])
    good = seeds.arrow(0)
    for decoder in arrow_decoders():
        alone = decoder.decode(part_of([bad]))
        together = decoder.decode(part_of([good, bad, seeds.arrow(1), bad, None, good]))
        for rows in (alone, together):
            assert len(rows) + sum(refusal.events for refusal in rows.refusals) == rows.read
            assert {refusal.reason for refusal in rows.refusals} <= set(REASONS)
            assert all(len(refusal.detail) <= 200 for refusal in rows.refusals)
            for values in (*rows.columns.values(), *rows.others.values()):
                assert len(values) == len(rows) == len(rows.offsets)
                assert not (isinstance(values, np.ndarray) and np.isinf(values).any())
        for place in (101, 103):                    # what it is does not depend on its neighbours
            own = together.offsets == place
            assert together.within[own].tolist() == alone.within.tolist()  # type: ignore[index, union-attr]
            assert together.times[own].tolist() == alone.times.tolist()
            for name, values in alone.columns.items():
                found = together.columns[name]
                picked = found[own] if isinstance(found, np.ndarray) else [found[i] for i in np.flatnonzero(own).tolist()]
                assert same(np.array(values), np.array(picked)) if isinstance(values, np.ndarray) else list(values) == picked
        for place in (100, 102, 105):
            assert (together.offsets == place).sum() == 4


def same(one: Any, other: Any) -> bool:
    """Whether two decoded values are the same, NaN included."""
    if isinstance(one, (np.ndarray, float)):
        return bool(np.array_equal(one, other, equal_nan=True))
    return bool(one == other)


def files(data: bytes) -> None:
    """A file of events by its first byte's format, read block by block."""
    if not data:
        return
    name = ("events.jsonl", "events.csv", "events.parquet", "events.jsonl.gz")[data[0] % 4]
    with folder() as place:
        (place / name).write_bytes(data[1:] if not name.endswith("parquet") else seeds.damaged(seeds.parquet(), data[1:]))
        try:
            source = FileSource([str(place / name)], "topic")
            for batch in source:
                for part in batch.parts:
                    for decoder in decoders():
                        rows = decoder.decode(part)
                        assert len(rows) + len(rows.refusals) == rows.read
        except SourceFailed as error:
            said_well(error)


def dead_letters(data: bytes) -> None:
    """Whatever was refused stands in the file as one JSON line, with its bytes."""
    import base64

    decoder = decoders()[0]
    rows = decoder.decode(part_of([data, *data.split(b"\n")[:5]]))
    with folder() as place:
        path = place / "dead.jsonl"
        letters = DeadLetters(f"file:{path}", Limits(), Any)  # type: ignore[arg-type]
        letters.write(rows.refusals)
        letters.close()
        lines = path.read_bytes().splitlines() if path.exists() else []
        kept = [json.loads(line) for line in lines]
    assert [line["reason"] for line in kept] == [refusal.reason for refusal in rows.refusals]
    assert [base64.b64decode(line["value"]) for line in kept] == [refusal.value for refusal in rows.refusals]


# -- configuration and references ----------------------------------------------------------------------------------------

def config(data: bytes) -> None:
    """A configuration's text."""
    text = data[:FILE_BYTES].decode("utf-8", "replace")
    try:
        parse(text, "tidemark.yaml")
    except TidemarkError as error:
        said_well(error)


def reference(data: bytes) -> None:
    """A reference's text; a JSON object gets the digest that it claims, so that what is behind the digest is reached.

    Behind a first byte of 1: a good one in which three bytes each name a value and what stands in its place.
    """
    text = seeds.edited(seeds.reference(), data[1:]) if data[:1] == b"\x01" else data.decode("utf-8", "replace")
    for candidate in (text, _signed(text)):
        try:
            found = Reference.from_json(candidate, "reference.json")
        except ReferenceMismatch as error:
            said_well(error)
            continue
        # What is accepted can be judged by: no later step meets what this one let through.
        assert found.rows
        assert all(np.isfinite(row.c0).all() and (row.c0 >= 0).all() for row in found.records)
        values = {column.name: np.ones(3) if column.kind == "numeric" else ["a", "b", None] for column in found.columns
                  if column.kind not in ("embedding", "text")}
        if len(values) == len(found.columns):
            assert found.profile(values, 3).events == 3


def _signed(text: str) -> str:
    try:
        document = json.loads(text)
        return json.dumps({**document, "digest": reference_file.digest_of(document)})
    except (ValueError, TypeError, RecursionError, AttributeError):
        return text


# -- what a trainer leaves -----------------------------------------------------------------------------------------------

def launch_of(place: Path) -> Launch:
    """A launch whose output folder this is."""
    return Launch("3f9c2a1b7d4e", "churn", "7", 1, "local", "succeeded", "{}", (("succeeded", 1.0),), output_uri=str(place))


def result(data: bytes) -> None:
    """result.json, and progress.txt with the same bytes."""
    with folder() as place:
        (place / "result.json").write_bytes(data)
        (place / "progress.txt").write_bytes(data)
        (place / "holdout.parquet").write_bytes(seeds.parquet())
        (place / "reference.json").write_text(seeds.reference())
        launch = launch_of(place)
        words = read_progress(launch)
        assert words.isprintable()
        assert len(words) <= 200
        verdict, found = judge(launch, metric="accuracy", events_min=1)
        said_well(Exception(verdict.detail))
        assert (found is None) == (verdict.verdict == "failed")
        if found is not None:
            try:
                load_reference(found.reference_uri)
            except TidemarkError as error:
                said_well(error)


def holdout(data: bytes) -> None:
    """holdout.parquet: a good one with some bytes changed, or anything."""
    if not data:
        return
    with folder() as place:
        (place / "result.json").write_text('{"model_uri": "model.pt", "reference_uri": "reference.json"}')
        (place / "holdout.parquet").write_bytes(data[1:] if data[0] == 0 else seeds.damaged(seeds.parquet(), data[1:]))
        for metric in ("accuracy", "log_loss", "mean_absolute_error"):
            verdict, _ = judge(launch_of(place), metric=metric, events_min=10)  # type: ignore[arg-type]
            said_well(Exception(verdict.detail))


def local_run(data: bytes) -> None:
    """launch.json, exit.json and log.txt of a local training, in a folder that the trainer may write to."""
    claim, _, rest = data.partition(b"\x00")
    ended, _, log = rest.partition(b"\x00")
    with folder() as place:
        for name, content in (("launch.json", claim), ("exit.json", ended), ("log.txt", log)):
            if content:
                (place / name).write_bytes(content)
        try:
            status = Local(LocalLauncher(command=["x"])).status(launch_of(place))
        except LaunchFailed as error:
            said_well(error)
            return
        assert len(status.progress) <= 200
        assert "\n" not in status.detail
        assert len(status.detail) <= LINE_MAX


# -- the state -----------------------------------------------------------------------------------------------------------

READERS: tuple[Callable[[bytes], object], ...] = (
    launch_from_json, decision_from_json, entry_from_json, unpacked, from_bytes,
    *(functools.partial(stored, kind=kind) for kind in (QualityState, PolicyState, Counters, Alarm)),
)


def documents(data: bytes) -> None:
    """Documents of the state as they are read back, the reader by the first byte."""
    if not data:
        return
    try:
        READERS[data[0] % len(READERS)](data[1:])
    except CheckpointRefused as error:
        said_well(error)


def state(data: bytes) -> None:
    """A state file with some bytes changed, and a service that starts on it."""
    with folder() as place:
        path = place / "state.db"
        path.write_bytes(seeds.damaged(seeds.state(), data))
        try:
            seeds.start(path)
        except (TidemarkError, ReferenceMismatch) as error:
            said_well(error)


# -- HTTP ----------------------------------------------------------------------------------------------------------------

PATHS = ("/", "/metrics", "/-/healthy", "/-/ready", "/openapi.json", "/style.css", "/models/loans", "/reports",
         "/reports/loans-1-drift-1", "/api/v1/monitors", "/api/v1/monitors/loans", "/api/v1/alarms", "/api/v1/triggers",
         "/api/v1/triggers/0123456789ab/approve", "/api/v1/monitors/loans/breaker/reset", "/api/v1/monitors/loans/rollback",
         "/api/v1/decisions", "/api/v1/audit", "/api/v1/alertmanager")
METHODS = ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS")
SECURED = ("cache-control", "content-security-policy", "referrer-policy", "x-content-type-options", "x-frame-options")


@functools.cache
def served() -> tuple[Any, Any, Inbox]:
    """The application with a token and without, over a small judged world, and the first one's inbox."""
    from tests.unit.expose.shown import World, alarm, launch, snapshot

    exporter, inbox = Exporter(1_000), Inbox(0.0)
    World(4).show(exporter, 2.0)
    exporter.service(snapshot(launches=(launch("proposed"),), alarms=(alarm(),)))
    rates = Rates({"changes": 10**9, "failures": 10**9})       # one input must not depend on those before it
    more = [*page_routes(exporter, reports=True), *report_routes(exporter)]
    return application(exporter, TOKEN, inbox=inbox, more=more, rates=rates), application(exporter, more=more, rates=rates), inbox


def http(data: bytes) -> None:
    """A request by its first three bytes (method, path, token), then target and headers a line each, a blank line, a body."""
    if len(data) < 3:
        return
    method, path = METHODS[data[0] % len(METHODS)], PATHS[data[1] % len(PATHS)].encode()
    head, _, body = data[3:].partition(b"\n\n")
    lines = head.split(b"\n")
    extra, _, query = lines[0].partition(b"?")
    headers = [(name.strip().lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines[1:20]) if name]
    if data[2] % 2:
        headers.append((b"authorization", f"Bearer {TOKEN}".encode()))
    path += b"".join(b"%%%02x" % byte if not 33 <= byte < 127 or byte in b"?#%" else bytes([byte]) for byte in extra)
    with_token, without, inbox = served()
    for app in (with_token, without):
        status, answered, content = asyncio.run(asked(app, method, path, query, headers, body))
        busy = status == 503 and (method == "HEAD" or b"eady" in content or b"wait" in content)
        assert 200 <= status < 500 or busy, (status, method, path, headers, body, content[:300])
        assert set(SECURED) <= answered.keys(), answered
        if status >= 400 and answered.get("content-type") == "application/json" and method != "HEAD":
            assert set(json.loads(content)) >= {"error", "known"} or "action" in json.loads(content)
    inbox.take()


async def asked(app: Any, method: str, path: bytes, query: bytes, headers: list[tuple[bytes, bytes]],
                body: bytes) -> tuple[int, dict[str, str], bytes]:
    """One request to an ASGI application: status, headers, body."""
    from urllib.parse import unquote_to_bytes

    names = {name for name, _ in headers}
    headers = [*headers, *([(b"host", b"127.0.0.1:8080")] if b"host" not in names else [])]
    if b"content-length" not in names and body:
        headers.append((b"content-length", str(len(body)).encode()))
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
             "path": unquote_to_bytes(path).decode("utf-8", "replace"), "raw_path": path, "query_string": query,
             "headers": headers, "client": ("127.0.0.1", 50_000), "server": ("127.0.0.1", 8_080), "root_path": ""}
    sent: list[Any] = []
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        return waiting.pop() if waiting else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    answered = {name.decode("latin-1"): value.decode("latin-1") for name, value in sent[0]["headers"]}
    return sent[0]["status"], answered, b"".join(message.get("body", b"") for message in sent[1:])


def alertmanager(data: bytes) -> None:
    """The body of an Alertmanager's message, with the token."""
    with_token, _, inbox = served()
    status, _, content = asyncio.run(asked(with_token, "POST", b"/api/v1/alertmanager", b"", [
        (b"authorization", f"Bearer {TOKEN}".encode()), (b"content-type", b"application/json")], data))
    assert status in (200, 400, 413), (status, content[:300])
    noted = inbox.take()
    assert all(len(one.why) <= 300 and one.model == "loans" for one in noted)
    assert len(noted) <= 1
    json.loads(content)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "decode": decode, "arrow": arrow, "files": files, "dead_letters": dead_letters, "config": config, "reference": reference,
    "result": result, "holdout": holdout, "local_run": local_run, "documents": documents, "state": state, "http": http,
    "alertmanager": alertmanager,
}
