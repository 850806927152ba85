"""The thread beside the loop: what waits is replaced, what raises is told, and nobody is waited for."""

from __future__ import annotations

import threading

import pytest

from monitor.decide.background import Background


@pytest.fixture
def background():
    made = Background()
    yield made
    made.close()


def test_newer_work_replaces_what_has_not_begun_and_keeps_its_place(background):
    gate, begun = threading.Event(), threading.Event()

    def held():
        begun.set()
        gate.wait(10)
        return "held"

    assert background.give("a", held) is False
    assert begun.wait(10)
    answers = [background.give(key, lambda value=value: value) for key, value in (("b", 1), ("c", 2), ("b", 3), ("a", 4))]
    assert answers == [False, False, True, False]   # only b's first had to go: a's was at work already
    gate.set()
    background.wait()
    assert background.take() == [("a", "held"), ("b", 3), ("c", 2), ("a", 4)]
    assert background.take() == []


def test_an_exception_is_the_result_and_the_next_work_is_done(background):
    background.give("a", lambda: 1 / 0)
    background.wait()
    ((key, error),) = background.take()
    assert (key, type(error)) == ("a", ZeroDivisionError)
    background.give("a", lambda: 7)
    background.wait()
    assert background.take() == [("a", 7)]


def test_close_leaves_what_has_not_begun_and_takes_no_more():
    background, gate, begun, done = Background(), threading.Event(), threading.Event(), []

    def held():
        begun.set()
        gate.wait(10)
        done.append("held")

    background.give("a", held)
    assert begun.wait(10)
    background.give("b", lambda: done.append("b"))
    closing = threading.Thread(target=background.close)
    closing.start()
    gate.set()
    closing.join(10)
    background.close()
    background.give("c", lambda: done.append("c"))
    background.wait()
    assert done == ["held"]
    assert not any(thread.name == "detectors" for thread in threading.enumerate())


def test_no_thread_is_started_before_there_is_work():
    background = Background(name="idle detectors")
    background.wait()
    assert background.take() == []
    assert not any(thread.name == "idle detectors" for thread in threading.enumerate())
    background.close()
