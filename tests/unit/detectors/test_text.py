"""Texts become a few numbers: which, in every script, and that no text breaks them."""

import json
import random
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from detectors import text as module
from detectors.text import CHARACTERS_MAX, VOCABULARY_MAX, Text, words

WORDS = [f"{a}{b}{c}" for a in "bdgklm" for b in "aeiou" for c in "nrst"]


def texts(n, seed=1, vocabulary=WORDS):
    rng = random.Random(seed)
    weights = [1 / (i + 2) for i in range(len(vocabulary))]
    return [" ".join(rng.choices(vocabulary, weights, k=rng.randint(3, 20))) for _ in range(n)]


def fitted(values):
    return Text.fit(values, np.arange(len(values)) // 50 % 2 == 0)


def shapes(*values):
    """The first five rows of texts under a vocabulary of `WORDS`."""
    return fitted(texts(500)).rows(values)[:, :5].tolist()


def test_the_rows_are_length_words_unknown_ones_their_length_and_symbols():
    assert shapes("Ban, bar zzzz!") == [[14.0, 3.0, pytest.approx(1 / 3), pytest.approx(10 / 3), pytest.approx(2 / 12)]]
    assert shapes("ban 1234") == [[8.0, 2.0, 0.5, 3.5, pytest.approx(4 / 7)]]


def test_the_names_are_the_rows():
    text = fitted(texts(500))
    assert text.names == ("characters", "words", "unknown", "word_length", "symbols", *(f"hand{i}" for i in range(1, 21)),
                          "pc1", "pc2", "pc3", "pc4", "pc5", "pc6", "spread")
    assert text.rows(texts(3)).shape == (3, 32)


def test_an_empty_text_has_no_words_and_a_missing_one_is_missing():
    text = fitted(texts(500))
    rows = text.rows(["", None, "  \n"])
    assert rows[:, :5].tolist()[0] == [0.0] * 5
    assert np.isnan(rows[1]).all()
    assert rows[2, :5].tolist() == [3.0, 0.0, 0.0, 0.0, 0.0]
    assert np.isfinite(rows[[0, 2]]).all()


@pytest.mark.parametrize(("text", "found"), [
    ("Don't stop-me NOW", ["don", "t", "stop", "me", "now"]),
    ("on 2024-01-31 at 7pm", ["on", "0000", "00", "00", "at", "0", "pm"]),
    ("Straße ΑΘΗΝΑ Ёлка", ["straße", "αθηνα", "ёлка"]),
    ("हिन्दी में लिखा है।", ["हिन्दी", "में", "लिखा", "है"]),              # vowel signs belong to their words
    ("مرحبا، بالعالم", ["مرحبا", "بالعالم"]),
    ("한국어 문장", ["한국어", "문장"]),
    ("今天很好。", ["今天", "天很", "很好"]),
    ("私はTokyoに", ["私は", "tokyo", "に"]),
    ("สวัสดี", ["สว", "วั", "ัส", "สด", "ดี"]),
    ("👍👍 ok", ["👍👍", "ok"]),
    ("", []), (" \t\n", []), ("...", [])])
def test_words_are_found_in_every_script(text, found):
    assert words(text) == found


def test_a_run_that_is_too_long_for_a_word_is_taken_in_pairs():
    assert words("x" * 40) == ["x" * 40]
    assert words("x" * 41) == ["xx"] * 40
    assert words("7" * 99) == ["0" * 40]


@pytest.mark.parametrize("text", ["\ud800 half a pair", "\x00\x01", "a\u0301" * 50, "\ufeffban", "x" * 1_000_000, "今" * 20_000,
                                  "1" * 20_000, "\u202e gnirts", " " * 100_000])
def test_no_text_breaks_the_rows(text):
    rows = fitted(texts(300)).rows([text])
    assert np.isfinite(rows).all()
    assert rows[0, 0] == len(text)
    assert 0 <= rows[0, 2] <= 1
    assert 0 <= rows[0, 4] <= 1


def test_what_stands_behind_the_first_characters_changes_the_length_alone():
    text = fitted(texts(300))
    page = ("ban bar " * CHARACTERS_MAX)[:CHARACTERS_MAX - 1] + " "
    short, long = text.rows([page, page + "zzzz 99 !! " * 1000])
    assert (short[0], long[0]) == (CHARACTERS_MAX, CHARACTERS_MAX + 11_000)
    np.testing.assert_array_equal(short[1:], long[1:])


def test_the_second_half_is_an_honest_stream_for_unknown_words():
    """Each text has one word of its own: half A's are known, half B's are as unknown as a live stream's."""
    values = [f"ban bar {a}" for a in map("".join, zip(texts(2000, 3), texts(2000, 4), strict=True))]
    values = [value.replace(" ", "") + " ban ban" for value in values]
    unknown = fitted(values).rows(values)[:, 2]
    live = fitted(values).rows([value[::-1] for value in values])[:, 2]
    assert unknown[np.arange(2000) // 50 % 2 == 0].mean() < unknown[np.arange(2000) // 50 % 2 == 1].mean() <= live.mean()


def test_the_most_frequent_words_are_known(monkeypatch):
    monkeypatch.setattr(module, "VOCABULARY_MAX", 2)
    text = Text.fit(["ban ban bar", "bar ban dan"] * 30, np.ones(60, bool))
    assert text.rows(["ban", "bar", "dan"])[:, 2].tolist() == [0.0, 0.0, 1.0]


def test_a_hand_holds_the_card_of_its_first_word_or_none():
    text = fitted(texts(500))
    frequent = {word: text.rows([word])[0, 5:9] for word in WORDS}
    frequent = {word: hands for word, hands in frequent.items() if hands.max() >= 0}
    assert len(frequent) == 60                                  # each word has one card, and each of the four hands 15
    assert sorted((int(np.argmax(hands)), hands.max()) for hands in frequent.values()) == [
        (hand, card) for hand in range(4) for card in range(15)]
    assert all((hands == -1).sum() == 3 for hands in frequent.values())
    one, other = [word for word, hands in frequent.items() if hands[0] >= 0][:2]
    assert text.rows([f"{one} {other} zzzz"])[0, 5] == frequent[one][0]
    assert text.rows([f"zzzz {other} {one} {one}"])[0, 5] == frequent[other][0]
    assert set(text.rows(texts(500, 3))[:, 5:25].ravel().tolist()) <= set(range(-1, 15))


def test_a_word_that_nobody_knew_is_a_card_too():
    hands = fitted(texts(500)).rows(["zzzz"])[0, 5:25]
    assert (hands[:4] == -1).all()
    assert (hands[4:] >= 0).sum() == 1


def test_what_a_text_is_about_moves_its_directions():
    text = fitted(texts(2000))
    same, other = (text.rows(texts(500, 9, vocabulary))[:, 25:-1].mean(axis=0) for vocabulary in (WORDS, WORDS[::-1]))
    assert np.abs(same).max() < 0.2                             # 500 texts: 4.5 standard errors
    assert np.abs(other).max() > 0.3


@pytest.mark.parametrize("values", [[None] * 100, [""] * 100, ["same words here"] * 100, []])
def test_references_without_variety_have_sane_rows(values):
    text = Text.fit(values, np.ones(len(values), bool))
    assert text.names == fitted(texts(200)).names[:25]
    assert np.isfinite(text.rows(["anything", ""])).all()


def test_the_memory_of_words_is_bounded_and_changes_nothing(monkeypatch):
    values = texts(300)
    rows = fitted(values).rows(values)
    monkeypatch.setattr(module, "_LATELY_MAX", 3)
    text = fitted(values)
    np.testing.assert_array_equal(rows, text.rows(values))
    assert len(text._lately) <= 3


def test_the_file_gives_back_the_same_rows():
    values = texts(300)
    text = fitted(values)
    again = Text.decode(json.loads(json.dumps(text.encode())))
    assert again.encode() == text.encode()
    np.testing.assert_array_equal(text.rows(values), again.rows(values))


def test_another_process_finds_the_same_rows():
    """Python's own hash of a text differs from process to process."""
    program = ("import hashlib; from tests.unit.detectors.test_text import fitted, texts; "
               "print(hashlib.sha256(fitted(texts(300)).rows(texts(50, 2)).tobytes()).hexdigest())")
    found = {subprocess.run([sys.executable, "-c", program], env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."}, check=True,
                            capture_output=True, text=True).stdout for seed in ("1", "2")}
    assert len(found) == 1


@pytest.mark.parametrize("change", [
    {"vocabulary": "###"}, {"vocabulary": "AAAA"}, {"content": None}, {"content": {"dim": 3}},
    {"vocabulary": "AAAAAAAAAAA="}, {"vocabulary": ""}, {"frequent": "AAAAAAAAAAA="}, {"frequent": None},
    {"content": {"dim": 256}}])
def test_a_spoilt_file_is_one_line(change):
    item = {**fitted(texts(100)).encode(), **change}
    if change == {"vocabulary": "AAAAAAAAAAA="}:
        item["vocabulary"] = ("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA" * (VOCABULARY_MAX // 3 + 1))
    with pytest.raises(ValueError, match="expected") as error:
        Text.decode(item)
    assert "\n" not in str(error.value)


def test_rows_do_not_depend_on_the_block_of_texts(monkeypatch):
    values = texts(300)
    text = fitted(values)
    rows = text.rows(values)
    monkeypatch.setattr(module, "_BLOCK_TEXTS", 7)
    np.testing.assert_array_equal(rows, text.rows(values))


def test_hash_buckets_are_used_evenly():
    """800 words in 256 buckets: no bucket above 14 (Poisson 3.1, P < 1e-5 a bucket)."""
    found = [f"{a}{b}" for a in WORDS for b in WORDS[:7]]
    buckets = np.array([module.level_hash(word) % module.BUCKETS for word in found[:800]])
    assert np.bincount(buckets, minlength=module.BUCKETS).max() <= 14
    assert len({a == b for a, b in pairwise(buckets.tolist())}) == 2
