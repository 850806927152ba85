"""The loop as a whole in memory: what people answer, when a promotion cuts over, what is shown and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from detectors.reference import Reference
from monitor.cli import main
from monitor.config import parse
from monitor.expose.api import Server, application
from monitor.expose.inbox import Asked
from monitor.flow import Batch
from monitor.ingest.source import MemorySource, records
from monitor.service import build
from tests.catalogue import differences
from tests.crash import world

TOPIC = "t"


class Memory(MemorySource):
    """A memory source that says how much is left, as a broker would."""

    left = 0

    def lag(self):
        return {(TOPIC, partition): self.left for partition in range(world.PARTITIONS)}


def configuration(folder, detectors=(), **retrain):
    tree = yaml.safe_load(world.configuration(folder, "127.0.0.1:9", TOPIC, promote=True).read_text())
    tree["service"]["dead_letters"] = "none"
    tree["reports"] = {"enabled": False}            # rows are sampled for further detectors alone
    tree["monitors"][0]["retrain"] |= {"collect_events": 10**9, **retrain}
    tree["monitors"][0]["detectors"] = list(detectors)
    return parse(yaml.safe_dump(tree))


def batches():
    return [Batch(parts=tuple(records(TOPIC, p, values, times=[0] * len(values)) for p, values in world.messages().items()),
                  assigned=frozenset((TOPIC, p) for p in range(world.PARTITIONS)))]


@pytest.fixture
def make(tmp_path):
    made = []

    def start(source=None, now=lambda: 0.0, **retrain):
        stages = build(configuration(tmp_path, **retrain), source=source or Memory(batches()), clock=now)
        made.append(stages)
        return stages

    yield start
    for stages in made:
        stages.close()


def test_a_manual_retraining_waits_for_its_answer_and_keeps_it(make):
    stages = make(approval="manual")
    stages.run()
    (launch,) = stages.trigger.ledger.launches.values()
    assert launch.state == "proposed"
    stages.inbox.put(Asked("approve", launch.id))
    stages.commit(Batch())
    stages.close()
    again = make(Memory([]), approval="manual")
    assert [known.state for known in again.trigger.ledger.launches.values()] == ["approved"]


def test_an_answer_that_comes_too_late_changes_nothing(make):
    stages = make(approval="manual")
    stages.run()
    (launch,) = stages.trigger.ledger.launches
    for action in ("reject", "approve"):
        stages.inbox.put(Asked(action, launch))
        stages.commit(Batch())
    assert stages.trigger.ledger.launches[launch].state == "refused"


def promoted(stages, folder, settle_at=0.0):
    """Make the one launch a promoted one whose new reference lies in the folder."""
    (launch,) = stages.trigger.ledger.launches.values()
    reference = stages.judge.scans["m"].reference
    path = folder / "new.json"
    Reference.from_json(reference.to_json()).save(path)
    done = replace(launch, state="promoted", steps=(*launch.steps, ("promoted", settle_at)), new_version="2",
                   reference_uri=str(path))
    stages.trigger.ledger.put(done)
    return done


def test_the_cut_over_waits_until_serving_has_settled_and_the_champions_last_answers_are_read(make, tmp_path):
    now = [0.0]
    source = Memory(batches())
    stages = make(source, now=lambda: now[0], promote={"type": "file", "path": str(tmp_path / "p.json"), "settle_seconds": 5})
    stages.run()
    promoted(stages, tmp_path)
    source.left = 1
    versions = []
    for second in (1.0, 6.0, 7.0):
        now[0] = second
        stages.advance()
        versions.append(stages.panes.streams["m"].version)
    assert versions == ["1", "1", "1"]              # not settled; then one record per partition is still unread
    for position in stages.panes.streams["m"].positions.values():
        position.next_offset += 1
    stages.advance()
    assert stages.panes.streams["m"].version == "2"


def test_after_a_cut_over_the_old_panes_stay_the_alarm_is_cleared_and_nothing_is_launched_again(make, tmp_path):
    stages = make(promote={"type": "file", "path": str(tmp_path / "p.json"), "settle_seconds": 0})
    stages.run()
    before = sum(events for _, _, events, _, _ in world.state(tmp_path)["panes"])
    offsets = stages.panes.offsets("m")
    launch = promoted(stages, tmp_path)
    stages.advance()
    stages.advance()
    found = world.state(tmp_path)
    assert sum(events for version, _, events, _, _ in found["panes"] if version == "1") == before
    assert stages.panes.offsets("m") == offsets
    assert [(alarm["state"], alarm["reason"]) for alarm in found["alarms"]][-1] == ("cleared", "new reference")
    assert stages.trigger.ledger.launches[launch.id].cut_over_at > 0
    assert not stages.judge.states["m"].alarm.firing
    stages.close()
    again = make(Memory([]))
    assert (again.panes.streams["m"].version, again.panes.offsets("m")) == ("2", offsets)


def test_what_the_whole_loop_shows_is_what_the_catalogue_says(make):
    stages = make()
    stages.run()
    text = stages.exporter.scrape().decode()
    assert differences(text) == []
    assert f'outcome="refused",reason="type"}} {float(world.PANES)}' in text


def test_a_new_version_in_the_configuration_begins_where_the_old_one_had_read_to(make, tmp_path):
    """A new version in the configuration begins at the offsets that the old one had reached."""
    stages = make()
    stages.run()
    offsets = stages.panes.offsets("m")
    stages.close()
    config = configuration(tmp_path)
    text = (tmp_path / "reference.json")
    old = Reference.load(text)
    data = {"x": [float(n % 7) for n in range(1000)], "c": ["a", "b"] * 500, "y": ["0", "1"] * 500}
    Reference.fit(data, old.columns, model="m", version="9").save(text)
    moved = build(config, source=Memory([]), clock=lambda: 0.0)
    try:
        assert (moved.panes.streams["m"].version, moved.panes.offsets("m")) == ("9", offsets)
        assert moved.panes.streams["m"].outcomes["counted"] > 0
    finally:
        moved.close()


def test_a_proposal_is_listed_and_approved_from_the_command_line(make, tmp_path, capsys):
    """The command asks the running service with its token; the loop stores the answer with its next checkpoint."""
    stages = make(approval="manual")
    stages.run()
    (launch,) = stages.trigger.ledger.launches
    (tmp_path / "token").write_text("0123456789abcdef")
    server = Server(application(stages.exporter, "0123456789abcdef", inbox=stages.inbox), "127.0.0.1", 0)
    server.start()
    config = tmp_path / "tidemark.yaml"
    tree = yaml.safe_load(config.read_text())
    tree["service"] |= {"listen": f"127.0.0.1:{server.port}", "token_file": str(tmp_path / "token")}
    config.write_text(yaml.safe_dump(tree))
    try:
        assert main(["triggers", "list", "-c", str(config)]) == 0
        assert f"{launch}  m 1  episode 1  proposed" in capsys.readouterr().out
        assert main(["triggers", "approve", "unknown", "-c", str(config)]) == 1
        assert "no launch 'unknown'" in capsys.readouterr().err
        assert main(["triggers", "approve", launch, "-c", str(config)]) == 0
    finally:
        server.stop()
    stages.commit(Batch())
    assert stages.trigger.ledger.launches[launch].state == "approved"
    assert main(["triggers", "approve", launch, "-c", str(config)]) == 1
    assert "expected the running service there" in capsys.readouterr().err


def test_an_alarm_that_stays_severe_is_offered_again_when_the_budget_allows_it(make):
    """The first answer is no; the drift lasts, and what was refused for now is not forgotten."""
    early, late = [], []
    for partition, values in world.messages().items():
        middle = len(values) * 3 // 4
        early.append(records(TOPIC, partition, values[:middle], times=[0] * middle))
        late.append(records(TOPIC, partition, values[middle:], first_offset=middle, times=[0] * (len(values) - middle)))
    assigned = frozenset((TOPIC, p) for p in range(world.PARTITIONS))
    stages = make(Memory([Batch(parts=tuple(early), assigned=assigned)]), max_per_week=0)
    stages.run()
    assert [(d.outcome, d.reason) for d in stages.trigger.ledger.decisions] == [("no", "budget")]
    stages.close()
    again = make(Memory([Batch(parts=tuple(late), assigned=assigned)]), max_per_week=2)
    again.run()
    assert [(d.outcome, d.reason) for d in again.trigger.ledger.decisions] == [("no", "budget"), ("launch", "")]
    assert [alarm.state for alarm in again.alarms if not alarm.cause] == ["raised", "severe"]


@pytest.mark.parametrize("varies", [True, False])
def test_after_a_cut_over_further_detectors_look_at_the_new_reference_or_are_left_where_they_do_not_fit_it(
    make, tmp_path, varies, caplog
):
    """A series is standardised with its reference's s.d.: one under which the column is constant is told, and no more."""
    stages = make(detectors=[{"name": "psi", "columns": ["x"]}, {"name": "cusum", "columns": ["x"]}],
                  promote={"type": "file", "path": str(tmp_path / "p.json"), "settle_seconds": 0})
    stages.run()
    assert {reading.detector for reading in stages.observer.readings("m")} == {"psi", "cusum"}
    launch = promoted(stages, tmp_path)
    data = {"x": [float(n % 7 if varies else 7) for n in range(1000)], "c": ["a", "b"] * 500, "y": ["0", "1"] * 500}
    columns = stages.judge.scans["m"].reference.columns
    Reference.fit(data, columns, model="m", version="2").save(tmp_path / "new.json")
    stages.advance()
    stream = stages.panes.streams["m"]
    assert stream.version == "2"
    assert stages.trigger.ledger.launches[launch.id].cut_over_at > 0
    assert stages.observer.readings("m") == ()      # nothing of the old reference is shown for the new one
    assert (stream.sampling is not None) is varies
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == (
        [] if varies else ["Further detectors left."])
