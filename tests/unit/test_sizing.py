"""The memory formula: it stays above what is measured and not far, it is enforced at start, and it says what mends it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks import soak
from benchmarks.soak_world import SCENARIOS, configuration, sized
from monitor import sizing as module
from monitor.cli import main
from monitor.config import parse
from monitor.errors import ConfigError
from monitor.sizing import MIB, memory_given, memory_of, memory_warning, sizing
from monitor.watched import watched

ROOT = Path(__file__).resolve().parents[2]
#: Of the formula, what a full service takes at least: a formula that is far above refuses what would run.
LEAST_SHARE = 0.3
CASES = {
    "small": (sized(SCENARIOS["narrow"], numbers=6, categories=2, retrains=False, panes_of=40, pool=401, batch=200), 8_000),
    "medium": (sized(SCENARIOS["models"], models=6, panes_of=40, pool=101, batch=120, memory_mb=2_048), 4_800),
    "large": (sized(SCENARIOS["wide"], numbers=200, categories=20, panes_of=25, pool=51, batch=50), 2_000),
}


@pytest.mark.parametrize("name", CASES)
def test_measured_memory_is_below_the_formula_and_not_far_below(name, tmp_path):
    done = subprocess.run([sys.executable, __file__, name, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=280,
                          check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout)
    assert figures["peak_mib"] <= figures["formula_mib"], figures
    assert figures["peak_mib"] >= LEAST_SHARE * figures["formula_mib"], figures
    assert [words for words in figures["wrong"] if "grew" not in words] == []   # so short a run has no slope to speak of


def small(tmp_path, **limits):
    tree = yaml.safe_load(configuration(sized(SCENARIOS["narrow"], numbers=3, categories=1), tmp_path))
    tree["limits"] |= limits
    return tree


def test_every_part_is_in_the_sum_and_more_of_it_is_more(tmp_path):
    tree = small(tmp_path)
    config = parse(yaml.safe_dump(tree))
    found = sizing(config, watched(config))
    assert found.bytes == sum(term.bytes for term in found.terms)
    assert len({term.name for term in found.terms}) == len(found.terms)
    before = {term.name: term.bytes for term in found.terms}
    for name, section, key, value in (
            ("open panes", "limits", "open_panes", 80), ("captured rows", "limits", "capture_mb", 64),
            ("fetched bytes", "kafka", "fetch_bytes", 2 << 20), ("one poll", "kafka", "poll_records", 8_000)):
        more = {**tree, section: {**tree[section], key: value}}
        config = parse(yaml.safe_dump(more))
        after = {term.name: term.bytes for term in sizing(config, watched(config)).terms}
        assert after[name] > before[name], name
        assert {other for other in before if after[other] != before[other]} <= {name, "allocator", "samples"}


def test_a_configuration_that_cannot_fit_is_refused_by_how_much_and_with_what_mends_it(tmp_path):
    tree = small(tmp_path)
    config = parse(yaml.safe_dump(tree))
    needed = -(-sizing(config, watched(config)).bytes // MIB)
    tree["limits"]["memory_mb"] = needed
    watched(parse(yaml.safe_dump(tree)))                # exactly enough is enough
    tree["limits"]["memory_mb"] = needed - 7
    with pytest.raises(ConfigError, match=rf"limits.memory_mb: expected at least {needed} .* got {needed - 7}, 7 too little; the "
                                          r"largest part is captured rows .*lower limits.capture_mb, or raise"):
        watched(parse(yaml.safe_dump(tree)))


def terms(tree):
    config = parse(yaml.safe_dump(tree))
    return {term.name: term.bytes for term in sizing(config, watched(config)).terms}


def test_what_only_some_configurations_take_is_counted_for_those_alone(tmp_path):
    """Compiled code, Arrow messages, the state topic of replicas, launches that a policy looks back at, larger batches."""
    tree = small(tmp_path)
    plain = terms(tree)
    assert not {"package numba", "Arrow messages", "state topic"} & plain.keys()
    assert terms({**tree, "kafka": {**tree["kafka"], "decoder": "columns"}})["package numba"] >= 100 * MIB
    assert "package numba" in terms({**tree, "kafka": {**tree["kafka"], "transport": "librdkafka"}})
    tree["monitors"][0]["schema"]["format"] = "arrow"
    arrow = terms(tree)["Arrow messages"]
    assert terms({**tree, "limits": {**tree["limits"], "unpacked_bytes": 33_554_432}})["Arrow messages"] == 2 * arrow
    tree["monitors"][0]["schema"]["format"] = "json"
    tree["monitors"][0]["retrain"]["useless_max"] = 5_000
    assert terms(tree)["launches"] > 4 * plain["launches"]
    fetched = terms({**tree, "kafka": {**tree["kafka"], "fetch_bytes": 64 << 20}})["fetched bytes"]
    assert fetched == 64 * MIB + 3 * 128 * MIB
    replicas = {**tree, "service": {**tree["service"], "replicas": {}, "token_file": None}}
    del replicas["service"]["token_file"], replicas["monitors"][0]["retrain"]
    assert terms(replicas)["state topic"] >= 10_080 * 200


def test_run_refuses_it_before_anything_is_opened(tmp_path):
    tree = small(tmp_path, memory_mb=300)
    tree["service"]["listen"] = "127.0.0.1:0"
    path = tmp_path / "tidemark.yaml"
    path.write_text(yaml.safe_dump(tree))
    done = subprocess.run([sys.executable, "-m", "monitor.cli", "run", "-c", str(path)], cwd=ROOT, capture_output=True, text=True,
                          timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert "too little" in done.stderr
    assert not (tmp_path / "state.db").exists()


def test_check_config_shows_every_part_and_the_sum(tmp_path, capsys):
    path = tmp_path / "tidemark.yaml"
    path.write_text(yaml.safe_dump(small(tmp_path)))
    assert main(["check-config", "-c", str(path)]) == 0
    out = capsys.readouterr().out
    config = parse(path.read_text())
    found = sizing(config, watched(config))
    assert all(f"  {term.name} " in out and term.formula in out for term in found.terms)
    assert f"at most {found.bytes / MIB:,.0f} MiB" in out
    assert "Reports of its alarms are made from counts alone, without evidently's half: reports.enabled is false." in out
    assert main(["check-config", "-c", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["__memory__"]["bytes"] == found.bytes
    assert facts["m0"]["memory_bytes"] == memory_of(config, watched(config)[0])


def test_the_containers_limit_goes_before_the_machines(tmp_path):
    machine = tmp_path / "meminfo"
    machine.write_text("MemTotal:       4194304 kB\n")
    assert memory_given(tmp_path, machine) == (4 << 30, "the machine's memory")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_given(tmp_path, machine) == (4 << 30, "the machine's memory")
    (tmp_path / "memory.max").write_text("536870912\n")
    assert memory_given(tmp_path, machine) == (512 << 20, "the container's limit")
    (tmp_path / "memory.max").unlink()
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("1073741824\n")
    assert memory_given(tmp_path, machine) == (1 << 30, "the container's limit")
    assert memory_given(tmp_path / "none", tmp_path / "none") is None


def test_more_than_there_is_is_warned_of(tmp_path, monkeypatch):
    config = parse(yaml.safe_dump(small(tmp_path)))
    monkeypatch.setattr(module, "memory_given", lambda: (512 * MIB, "the container's limit"))
    assert "limits.memory_mb is 2048, and the container's limit is 512 MiB" in memory_warning(config)
    monkeypatch.setattr(module, "memory_given", lambda: (2_048 * MIB, "the container's limit"))
    assert memory_warning(config) == ""


if __name__ == "__main__":
    case, events = CASES[sys.argv[1]]
    print(json.dumps(soak.run(case, events, Path(sys.argv[2]), quiet=True)))
