"""A topic with broken events costs no more than a clean one, and every broken event is counted with its reason.

The peer is our own decoder on clean events. The broken ones are of every kind that the decoder's tests pin, but for NaN
literals, which are no defect and cost a second reading. They stand evenly among the good ones, which come in parts of a
thousand, about what a poll brings of one partition. Each kind alone, at a tenth of the stream, is told below: a kind that
is much longer than an event costs its bytes.
"""

from __future__ import annotations

import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence

from benchmarks.events import MODEL, messages, stream_schema
from benchmarks.measure import Bench, cpu_of, ratio_of
from monitor.config import Kafka, Limits
from monitor.flow import Part, Rows
from monitor.ingest.columns_json import scan_of
from monitor.ingest.decode import Decoder
from monitor.ingest.source import records

EVENTS = 10_000
SHARES = (0.0001, 0.01, 0.1)
AT_MOST = 1.15
PART_EVENTS = 1_000


def poison(good: bytes) -> list[tuple[str, bytes | None, str]]:
    """One broken event of every kind with its name, and the reason it must be refused for."""
    number = good[good.index(b'"n00": ') + 7:good.index(b', "n01"')]

    def with_number(text: bytes) -> bytes:
        return good.replace(b'"n00": ' + number, b'"n00": ' + text, 1)

    time = good[good.index(b'"ts": ') + 6:good.index(b', "model"')]
    return [
        ("cut short", good[:-20], "json"), ("Infinity", with_number(b"Infinity"), "json"),
        ("1e400", with_number(b"1e400"), "json"), ("two documents", good + good, "json"),
        ("true for a number", with_number(b"true"), "type"), ("text for a number", with_number(b'"3"'), "type"),
        ("null", b"null", "type"), ("tombstone", None, "tombstone"),
        ("no UTF-8", good.replace(b"level-", b"level\xff", 1), "encoding"),
        ("byte order mark", b"\xef\xbb\xbf" + good, "encoding"),
        ("lone surrogate", good.replace(b"level-", b"\\ud800", 1), "encoding"),
        ("time of 23 digits", good.replace(time, b"17000000000000000000000", 1), "timestamp"),
        ("no time", good.replace(time, b"null", 1), "timestamp"),
        ("1,500 brackets", good[:-1] + b', "deep": ' + b"[" * 1_500 + b"]" * 1_500 + b"}", "depth"),
    ]


def hostile(good: bytes) -> list[tuple[str, bytes | None, str]]:
    """Kinds that are made to be dear; told alone only, since they are longer than events."""
    escapes = b"\\ud800" * 1_000
    return [
        ("20,000 open brackets", b'{"x":' + b"[" * 20_000, "depth"),
        ("1,000 lone surrogates", good[:-1] + b', "x": "' + escapes + b'"}', "encoding"),
        ("2 MiB, above the limit", good[:-1] + b', "x": "' + b"A" * (2 << 20) + b'"}', "too_large"),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("decode_poison: ours with broken events / ours on clean ones", argv, repeat=31)
    clean = list(messages(20, bench.sized(EVENTS, 100)))
    decoder = Decoder(MODEL, stream_schema(20), Limits())
    compiled = Decoder(MODEL, stream_schema(20), Limits(), scan=scan_of(Kafka(decoder="columns")))
    good = next(value for value in clean if b'"n00": null' not in value and b"level-" in value)
    kinds = poison(good)
    clean_parts = parts_of(clean)
    for share in SHARES:
        bad = max(1, round(len(clean) * share))
        values: list[bytes | None] = list(clean)
        expected: Counter[str] = Counter()
        for i in range(bad):
            _, value, reason = kinds[i % len(kinds)]
            values[i * len(values) // bad] = value
            expected[reason] += 1
        parts = parts_of(values)

        def counted(_: object, found: list[Rows], expected: Counter[str] = expected, events: int = len(values)) -> bool:
            return (Counter(refusal.reason for rows in found for refusal in rows.refusals) == expected
                    and sum(map(len, found)) + expected.total() == events)

        bench.compare_at_most(f"{bad} of {len(clean)} broken, columns / msgspec on clean ones",
                              easy=lambda: [decoder.decode(part) for part in clean_parts],
                              hard=lambda parts=parts: compiled.decode_all(parts),  # type: ignore[misc]
                              at_most=1.0, equal=counted, names=("clean", "broken"))
        bench.compare_at_most(f"{bad} of {len(clean)} broken", easy=lambda: [decoder.decode(part) for part in clean_parts],
                              hard=lambda parts=parts: [decoder.decode(part) for part in parts],  # type: ignore[misc]
                              at_most=AT_MOST, equal=counted, names=("clean", "broken"))
    for name, value, reason in (*kinds, *hostile(good)):
        alone(bench, name, value, reason, clean[:max(100, len(clean) // 5)], {"msgspec": decoder, "columns": compiled})
    return bench.finish()


def alone(bench: Bench, name: str, value: bytes | None, reason: str, clean: Sequence[bytes],
          decoders: Mapping[str, Decoder]) -> None:
    """What a tenth of one kind costs by each decoder, as a share of its own clean stream."""
    bad = len(clean) // 10
    values = [value if i % 10 == 0 else one for i, one in enumerate(clean)]
    clean_parts, parts = parts_of(clean), parts_of(values)
    for which, decoder in decoders.items():
        found = [refusal.reason for rows in decoder.decode_all(parts) for refusal in rows.refusals]
        if found != [reason] * bad:
            bench.bound(f"{name}, {which}", float("nan"), at_most=AT_MOST, detail="results differ")
            continue
        turns = [(cpu_of(lambda: decoder.decode_all(parts)), cpu_of(lambda: decoder.decode_all(clean_parts)))  # noqa: B023
                 for _ in range(min(bench.repeat, 7))]
        ratio, words = ratio_of(turns)
        each = max(0.0, statistics.median(hard - 0.9 * easy for hard, easy in turns)) / bad * 1e6
        bench.fact(f"a tenth: {name}, {which}", ratio, "x", f"{each:.1f} us each, {words}")


def parts_of(values: Sequence[bytes | None]) -> list[Part]:
    """The values as a source brings them."""
    return [records("t", 0, values[i:i + PART_EVENTS], first_offset=i) for i in range(0, len(values), PART_EVENTS)]


if __name__ == "__main__":
    sys.exit(main())
