"""A stream whose every tenth record is hostile, through `tidemark run`: all good ones count, all bad ones are kept with why."""

from __future__ import annotations

import base64
import json
import random
import zlib
from collections import Counter

import yaml

from monitor.flow import REASONS
from tests.conftest import Process, wait_until
from tests.crash import world

LIMIT = 65_536
GOOD = 18_000


def hostile(rng: random.Random, n: int) -> bytes | None:
    """One record that no reader of events can use, each kind as often as the others."""
    event = {"id": f"bad-{n}", "ts": world.START_MS, "x": 1.0, "c": "a", "y": "1"}
    return (
        lambda: None, lambda: b"", lambda: b"\x00" * rng.randint(1, 50), lambda: rng.randbytes(rng.randint(1, 200)) + b"{",
        lambda: b"{" * rng.randint(1_000, 5_000), lambda: b'{"x":' + b"[" * 20_000,
        lambda: b'{"q":' * 2_000 + b"1" + b"}" * 2_000,
        lambda: json.dumps(event).encode() * 2, lambda: json.dumps(event).encode()[:-1], lambda: json.dumps([event]).encode(),
        lambda: json.dumps(event | {"x": "1; DROP TABLE panes"}).encode(), lambda: json.dumps(event | {"x": {}}).encode(),
        lambda: json.dumps(event | {"ts": -1}).encode(), lambda: json.dumps(event | {"ts": 1e18}).encode(),
        lambda: json.dumps(event | {"ts": None}).encode(), lambda: json.dumps(event).replace("1.0", "1e999").encode(),
        lambda: json.dumps(event).replace("1.0", "Infinity").encode(), lambda: json.dumps(event).replace("1.0", "0x10").encode(),
        lambda: b"\xef\xbb\xbf" + json.dumps(event).encode(), lambda: json.dumps(event).encode("utf-16"),
        lambda: json.dumps(event | {"c": "\ud800"}).encode(), lambda: b'{"c": "\xff\xfe", "ts": 1700000000000}',
        lambda: json.dumps(event | {"junk": "A" * LIMIT}).encode(), lambda: zlib.compress(b"0" * 10_000_000, 9),
        lambda: b"PAR1" + rng.randbytes(30), lambda: b"\x80\x04\x95" + rng.randbytes(20),
    )[n % 26]()


def test_every_good_record_counts_and_every_hostile_one_is_kept_with_its_reason(tmp_path, kafka_broker, unique_name):
    rng = random.Random(11)
    topic = kafka_broker.create_topic(unique_name("topic"), 1)
    good = [json.dumps({"id": f"{i}", "ts": world.START_MS + i, "x": round(rng.gauss(0, 1), 6), "c": rng.choice("abc"),
                        "y": rng.choice("01"), "truth": "1"}).encode() for i in range(GOOD)]
    bad = [hostile(rng, n) for n in range(GOOD // 9)]
    values: list[bytes | None] = list(good)
    for record in bad:
        values.insert(rng.randrange(len(values)), record)
    kafka_broker.produce(topic, values, codec="gzip")
    path = world.configuration(tmp_path, kafka_broker.bootstrap_servers, topic, promote=False)
    tree = yaml.safe_load(path.read_text())
    tree["limits"] = {"message_bytes": LIMIT}
    del tree["monitors"][0]["retrain"]
    path.write_text(yaml.safe_dump(tree))
    process = Process(world.command(path), tmp_path / "log.txt")
    try:
        def is_read() -> bool:
            assert process.popen.poll() is None, (tmp_path / "log.txt").read_text()[-2_000:]
            found = world.state(tmp_path)
            return bool(found) and sum(position[1] for position in found["positions"]) >= len(values)

        wait_until(is_read, 120, "the whole topic being read")
        process.popen.terminate()
        assert process.popen.wait(30) == 0
    finally:
        process.stop()
    counted = world.state(tmp_path)["counters"][0]["outcomes"]
    letters = [json.loads(line) for line in (tmp_path / "dead.jsonl").read_text().splitlines()]
    assert counted["counted"] == GOOD
    assert len(letters) == len(bad)
    assert {letter["reason"] for letter in letters} == set(REASONS) - {"arrow"}
    assert {letter["offset"]: None if letter["value"] is None else base64.b64decode(letter["value"]) for letter in letters} == {
        offset: value for offset, value in enumerate(values) if value is None or value not in set(good)}
    assert Counter({name: count for name, count in counted.items() if name != "counted"}) == Counter(
        f"refused:{letter['reason']}" for letter in letters)
    assert (tmp_path / "dead.jsonl").stat().st_mode & 0o077 == 0
    assert (tmp_path / "state.db").stat().st_mode & 0o077 == 0
    assert "Traceback" not in (tmp_path / "log.txt").read_text()
