"""Laws of expanded columns: an event's rows are its own, bit for bit, whatever comes with it."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors import embedding as embedding_module
from detectors.embedding import Embedding
from detectors.reference import Column, Reference
from detectors.text import Text

RNG = np.random.default_rng(11)
DIM = 48
VALUES = np.exp(RNG.standard_normal((900, DIM))) @ RNG.standard_normal((DIM, DIM)) + 100 * RNG.standard_normal(DIM)
VALUES[RNG.random(900) < 0.05] = np.nan
HALF = np.arange(900) // 50 % 2 == 0
EMBEDDING = Embedding.fit(VALUES, HALF)
ROWS = EMBEDDING.rows(VALUES)

RANDOM = random.Random(12)
WORDS = [*(f"w{chr(97 + i)}" for i in range(26)), "99", "今天"]
TEXTS = [None if RANDOM.random() < 0.05 else " ".join(RANDOM.choices(WORDS, k=9))
         for _ in range(900)]
TEXT = Text.fit(TEXTS, HALF)
TEXT_ROWS = TEXT.rows(TEXTS)

anything = st.one_of(st.none(), st.text(max_size=60), st.text(st.characters(exclude_categories=()), max_size=30))
numbers = st.floats(width=64, allow_nan=True, allow_infinity=True)


@given(st.lists(st.integers(0, 900), max_size=6))
@settings(deadline=None, max_examples=60)
def test_rows_do_not_depend_on_where_the_stream_was_cut(cuts):
    at = [0, *sorted(cuts), 900]
    for expansion, values, rows in ((EMBEDDING, VALUES, ROWS), (TEXT, TEXTS, TEXT_ROWS)):
        pieces = [expansion.rows(values[start:end]) for start, end in itertools.pairwise(at)]
        np.testing.assert_array_equal(rows, np.concatenate(pieces))


@given(st.randoms(use_true_random=False), st.integers(1, 900))
@settings(deadline=None, max_examples=40)
def test_rows_do_not_depend_on_the_other_events(rng, n):
    chosen = [rng.randrange(900) for _ in range(n)]
    np.testing.assert_array_equal(ROWS[chosen], EMBEDDING.rows(VALUES[chosen]))
    np.testing.assert_array_equal(TEXT_ROWS[chosen], TEXT.rows([TEXTS[i] for i in chosen]))


@pytest.mark.parametrize("entries", [1, 100, 1 << 10, 1 << 20])
def test_rows_do_not_depend_on_the_block(monkeypatch, entries):
    monkeypatch.setattr(embedding_module, "_BLOCK_ENTRIES", entries)
    np.testing.assert_array_equal(ROWS, EMBEDDING.rows(VALUES))


def test_rows_do_not_depend_on_the_order_of_summation():
    """The machine's linear algebra may add in any order: here backwards, and dimension by dimension."""
    backwards = Embedding(DIM, EMBEDDING.exponent, EMBEDDING.origin[::-1], EMBEDDING.axes[::-1], EMBEDDING.centre,
                          EMBEDDING.scale, EMBEDDING.total, EMBEDDING.directions)
    np.testing.assert_array_equal(ROWS, backwards.rows(VALUES[:, ::-1]))


@given(st.lists(st.lists(numbers, min_size=DIM, max_size=DIM), min_size=1, max_size=8))
@settings(deadline=None, max_examples=60)
def test_any_vector_has_rows_that_are_finite_or_all_missing(values):
    found = np.array(values)
    rows = EMBEDDING.rows(found)
    missing = ~np.isfinite(found).all(axis=1)
    assert np.isnan(rows[missing]).all()
    assert not np.isnan(rows[~missing]).any()


@given(st.lists(anything, min_size=1, max_size=20))
@settings(deadline=None, max_examples=80)
def test_any_text_has_rows_that_are_finite_or_all_missing(values):
    rows = TEXT.rows(values)
    missing = np.array([value is None for value in values])
    assert np.isnan(rows[missing]).all()
    assert np.isfinite(rows[~missing]).all()
    shares = rows[~missing][:, [2, 4]]
    assert ((shares >= 0) & (shares <= 1)).all()


@given(st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=0, max_size=12), st.lists(anything, max_size=12))
@settings(deadline=None, max_examples=60)
def test_any_reference_can_be_fitted_and_stored(values, texts):
    found = np.array(values, dtype=float).reshape(-1, 3)
    embedding = Embedding.fit(found, np.arange(len(found)) % 2 == 0)
    np.testing.assert_array_equal(embedding.rows(found), Embedding.decode(embedding.encode()).rows(found))
    text = Text.fit(texts, np.arange(len(texts)) % 2 == 0)
    np.testing.assert_array_equal(text.rows(texts), Text.decode(text.encode()).rows(texts))


@given(st.integers(0, 900), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=30)
def test_profiles_of_expanded_columns_add_up_in_any_order(cut, rng):
    order = list(range(900))
    rng.shuffle(order)
    columns = {"e": VALUES[order], "t": [TEXTS[i] for i in order]}
    whole = REFERENCE.profile({"e": VALUES, "t": TEXTS})
    parts = [REFERENCE.profile({name: values[at] for name, values in columns.items()}) for at in (slice(cut), slice(cut, None))]
    assert whole == parts[0] + parts[1]


REFERENCE = Reference.fit({"e": VALUES, "t": TEXTS}, [Column("e", "embedding"), Column("t", "text")], model="m", version="1")
