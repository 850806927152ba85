"""`tidemark demo` as a user runs it, without a terminal: the loop closes by itself, with page and /metrics served meanwhile."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request

import pytest

from tests.conftest import CHECKOUT, Stopwatch

#: Every one of these happens, in this order.
STORY = ["started", "trained", "watching", "quiet", "changed", "alarm", "severe", "launch", "verdict", "promoted", "cleared",
         "closed"]


@pytest.mark.timeout(900)
def test_the_demo_closes_the_loop_in_under_three_minutes() -> None:
    watch = Stopwatch()
    demo = subprocess.Popen([sys.executable, "-m", "monitor.cli", "demo", "--json", "--stay"], cwd=CHECKOUT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert demo.stdout is not None
    assert demo.stderr is not None
    events, metrics, pages = [], "", []
    try:
        for line in demo.stdout:
            events.append(json.loads(line))
            if events[-1]["event"] == "severe":
                watching = next(event for event in events if event["event"] == "watching")
                metrics = urllib.request.urlopen(watching["address"], timeout=30).read().decode()
                pages.append(urllib.request.urlopen(f"{watching['page']}models/digits", timeout=30).read().decode())
            if events[-1]["event"] == "staying":                            # it goes on until somebody has seen enough
                pages.append(urllib.request.urlopen(f"{events[-1]['page']}models/digits", timeout=30).read().decode())
                demo.send_signal(signal.SIGINT)
        errors = demo.stderr.read()
        assert (demo.wait(30), errors) == (0, ""), events[-1]
    finally:
        demo.kill()                                                     # where something above failed: else it would stay
    assert [name for name in dict.fromkeys(event["event"] for event in events) if name in STORY] == STORY
    assert watch.seconds() < 180
    assert 'tidemark_score{model="digits"' in metrics
    assert "Score of digits over time" in pages[0]
    assert "takes the place of 1" in pages[1]
    closed = next(event for event in events if event["event"] == "closed")
    assert closed["accuracy_before"] > closed["accuracy_after"] > closed["accuracy_drifted"] + 0.1
