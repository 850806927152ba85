"""The commands of docs/operations.md do what the page says: back-up of a running state, restore, another topic."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from monitor.config import parse
from monitor.errors import CheckpointRefused, SourceFailed
from monitor.flow import Batch
from monitor.ingest.source import MemorySource, records
from monitor.service import build
from monitor.state.store import Store
from tests.crash import world

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
#: Records of each partition before the copy is taken.
FIRST = 1_500


def commands(containing, folder):
    """The page's commands with this in them, on a folder of ours and with this interpreter."""
    (found,) = [block for block in BLOCKS if containing in block]
    return found.replace("/var/lib/tidemark", str(folder)).replace("python3", sys.executable)


def batches(topic="t", first=0, end=10**9, hours=0):
    parts = []
    for p, values in world.messages().items():
        some = values[first:end]
        some = [re.sub(rb'"ts": (\d+)', lambda found: b'"ts": %d' % (int(found[1]) + hours * 3_600_000), value) for value in some]
        parts.append(records(topic, p, some, first_offset=first, times=[0] * len(some)))
    return Batch(parts=tuple(parts), assigned=frozenset((topic, p) for p in range(world.PARTITIONS)))


def service(folder, batch, topic="t"):
    tree = yaml.safe_load(world.configuration(folder, "127.0.0.1:9", topic, promote=False).read_text())
    tree["monitors"][0]["retrain"]["collect_events"] = 10**9
    return build(parse(yaml.safe_dump(tree)), source=MemorySource([batch]), clock=lambda: 1.7e9 + 10**6)


def told(folder):
    found = world.state(folder)
    for decision in found["decisions"]:
        decision.pop("at", None)
    for launch in found["launches"]:
        launch.pop("steps", None)
    return found


def test_a_copy_taken_while_it_runs_is_whole_and_what_came_since_is_counted_again_once(tmp_path):
    service(tmp_path / "undisturbed", batches()).run()
    state = tmp_path / "state"
    running = service(state, Batch())
    first = batches(end=FIRST)
    running.panes.add(first, running._decode(first))
    running.commit(first, now=True)
    subprocess.run(commands(".backup(copy)", state), shell=True, check=True, timeout=60)         # the process still holds it
    checked = subprocess.run(commands("print('whole')", state), shell=True, check=True, timeout=60, capture_output=True,
                             text=True, cwd=ROOT)
    assert checked.stdout == "whole\n"
    later = batches(first=FIRST)
    running.panes.add(later, running._decode(later))
    running.commit(later, now=True)
    running.close()
    (state / "state.db").write_bytes(b"not a state")                 # and then the disk breaks
    with pytest.raises(CheckpointRefused, match=r"restore it from a copy"):
        Store(state / "state.db")
    subprocess.run(commands("rm -f", state), shell=True, check=True, timeout=60)
    again = service(state, batches())
    assert set(again.stored_offsets().values()) == {FIRST}
    again.run()
    again.close()
    assert told(state) == told(tmp_path / "undisturbed")


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="no sqlite3: its .backup is not tried")
def test_the_command_line_tool_makes_the_same_copy(tmp_path):
    one = service(tmp_path, batches())
    one.run()
    (command,) = re.findall(r"`(sqlite3 [^`]*)`", PAGE)
    subprocess.run(command.replace("/var/lib/tidemark", str(tmp_path)), shell=True, check=True, timeout=60)
    copy = Store(tmp_path / "backup.db", read_only=True)
    assert copy.history("alarms") == one.store.history("alarms")
    copy.close()
    one.close()


def test_on_another_topic_the_version_its_windows_and_its_alarms_go_on(tmp_path):
    before = service(tmp_path, batches())
    before.run()
    before.close()
    alarms, decided = len(world.state(tmp_path)["alarms"]), before.panes.streams["m"].decided_panes
    after = service(tmp_path, batches("elsewhere", hours=1), topic="elsewhere")
    assert after.judge.rings["m"].panes > 0
    after.run()
    stream = after.panes.streams["m"]
    after.close()
    assert stream.decided_panes > decided
    assert stream.outcomes["counted"] == 2 * before.panes.streams["m"].outcomes["counted"]
    assert len(world.state(tmp_path)["alarms"]) >= alarms > 0


def test_a_state_that_forgot_the_ids_goes_on_with_a_mirrored_topic_and_learns_its_id(tmp_path):
    def with_id(topic_id, **options):
        return service(tmp_path, replace(batches(**options), topic_ids={"t": topic_id}))

    first = with_id("old", end=FIRST)
    first.run()
    first.close()
    refused = with_id("mirrored")
    with pytest.raises(SourceFailed, match=r"expected the topic that model m was counted from \(old\), got another one"):
        refused.run()
    refused.close()
    subprocess.run(commands("forget_topic_ids", tmp_path), shell=True, check=True, timeout=60, cwd=ROOT)
    again = with_id("mirrored")
    assert set(again.stored_offsets().values()) == {FIRST}
    again.run()
    assert again.panes.streams["m"].topic_ids == {"t": "mirrored"}
    again.close()


def test_every_message_of_the_table_is_one_that_the_program_has():
    source = " ".join((ROOT / path).read_text(encoding="utf-8") for path in (
        "monitor/state/seal.py", "monitor/state/store.py", "monitor/service.py", "monitor/ingest/kafka.py", "monitor/sizing.py",
        "monitor/state/capture.py", "monitor/ingest/connection.py"))
    for words in ("expected a whole state file, got damage", "expected a state file, got an empty one",
                  "expected the rows that tidemark sealed, got others", "a newer tidemark wrote it",
                  "got one that another tidemark process holds", "expected a state file that can be written, got",
                  "expected to go on at offset", "was the topic made anew?", "Retention overtook us.",
                  "expected the topic that was read so far (",
                  "limits.memory_mb: expected at least", "Captured events dropped", "as they were counted"):
        assert words in PAGE, words
        assert words in source, words
