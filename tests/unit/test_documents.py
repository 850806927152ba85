"""Types are looked up one after the other, however many threads read documents."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import msgspec
import pytest

from monitor import documents
from monitor.documents import read_json, read_msgpack


class Plain(msgspec.Struct):
    number: int


def test_documents_are_what_they_say():
    assert read_json(b'{"number": 3}', Plain) == read_json('{"number": 3}', Plain) == Plain(3)
    assert read_msgpack(msgspec.msgpack.encode({"number": 4}), Plain) == Plain(4)
    with pytest.raises(msgspec.ValidationError, match=r"Expected `int`, got `str` - at `\$.number`"):
        read_json(b'{"number": "3"}', Plain)
    with pytest.raises(msgspec.DecodeError):
        read_msgpack(b"\xc1", Plain)


def test_two_threads_never_look_a_type_up_at_once(monkeypatch):
    looking, most, real = [0], [0], msgspec.json.Decoder

    def slow(kind):
        looking[0] += 1
        most[0] = max(most[0], looking[0])
        time.sleep(0.05)
        looking[0] -= 1
        return real(kind)

    monkeypatch.setattr(documents.msgspec.json, "Decoder", slow)
    kinds = [msgspec.defstruct(f"Kind{i}", [("number", int)]) for i in range(3)]
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.extend(read_json(b'{"number": 5}', kind).number for kind in kinds))
               for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [5] * 12
    assert most == [1]


PROVOKED = """
import sys, threading
from monitor.decide.policy import PolicyState
from monitor.errors import TidemarkError
from monitor.retrain.ledger import Decision, Entry, Launch
from monitor.state.tables import stored
sys.setswitchinterval(1e-6)
together = threading.Barrier(4)
def restore():
    together.wait()
    for kind in (PolicyState, Launch, Decision, Entry):
        try:
            stored(b"{}", kind)
        except TidemarkError:
            pass
threads = [threading.Thread(target=restore) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def test_owners_that_restore_their_models_at_once_do_not_end_the_process():
    for _ in range(5):
        ended = subprocess.run([sys.executable, "-c", PROVOKED], capture_output=True, text=True, timeout=120)
        assert (ended.returncode, ended.stderr) == (0, "")
