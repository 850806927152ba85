"""Which raw columns are vectors, which are texts to read, and which only look like either."""

import random
import uuid
from datetime import UTC, datetime

import numpy as np
import pytest

from detectors.proposal import propose

N = 1200
RANDOM = random.Random(4)
WORDS = ["please", "refund", "my", "order", "the", "card", "was", "declined", "twice", "today"]


def proposed(values):
    (proposal,) = propose({"c": values})
    return proposal


def sentences(n, length):
    return [" ".join(RANDOM.choices(WORDS, k=length)) for _ in range(n)]


@pytest.mark.parametrize("values", [
    np.zeros((N, 5)), [[1.0, 2.0]] * N, [None, (1, 2), np.array([3.0, 4.0])], [[1, None]] * N])
def test_lists_of_numbers_of_one_length_are_embeddings(values):
    assert (proposed(values).column.kind, proposed(values).column.role) == ("embedding", "input")


@pytest.mark.parametrize("values", [[[1.0], [1.0, 2.0]], [[1.0], 2.0], [["a"], ["b"]], [[], []]])
def test_other_lists_are_left_out_with_a_warning(values):
    found = proposed(values)
    assert (found.column.role, found.warning) == ("ignored", True)


@pytest.mark.parametrize("values", [
    sentences(N, 12),
    [f"{text} {i}." for i, text in enumerate(sentences(N, 4))],
    [f"今天天气很好我们去公园玩{chr(0x4e00 + i)}" for i in range(N)],
    [f"สวัสดีครับผมชื่อ{i}" for i in range(N)],
    [f"हिन्दी में लिखा हुआ {i}" for i in range(N)],
    [f"don't re-open «{i}» it's done, please" for i in range(N)],
    [*sentences(N, 8), None, ""]])
def test_values_of_several_words_that_nearly_always_differ_are_text(values):
    found = proposed(values)
    assert (found.column.kind, found.column.role, found.warning) == ("text", "input", False)


@pytest.mark.parametrize("values", [
    [str(uuid.UUID(int=RANDOM.getrandbits(128))) for _ in range(N)],
    [f"user-{i}" for i in range(N)],
    [f"a{i}@example.org" for i in range(N)],
    [f"{i} {i + 1} {i + 2} {i + 3}" for i in range(N)],
    [datetime.fromtimestamp(i * 1000, UTC).ctime() for i in range(N)],
    [f"Anna Meyer{i}" for i in range(N)],
    [f"[0.5, {i}]" for i in range(N)]])
def test_identifiers_are_no_text(values):
    found = proposed(values)
    assert (found.column.kind, found.column.role, found.warning) == ("category", "ignored", True)


def test_lists_written_as_text_are_told_where_they_can_stand():
    assert proposed([f"[0.5, {i}]" for i in range(N)]).reason == "lists written as text: give Parquet or JSON lines"


@pytest.mark.parametrize("values", [["New York City Centre", "San Juan de la Cruz"] * N, sentences(30, 6) * 40])
def test_few_values_of_many_words_are_levels(values):
    assert (proposed(values).column.kind, proposed(values).column.role) == ("category", "input")
