"""Text columns as a few ordinary numbers: how long, in which words, about what.

Idea: a text is looked at as a person would who does not read it: its length, its number of words, the share of words
that the reference never used, how long its words are, how much of it is digits and signs, and which words stand in it.
The last becomes numbers in two ways. For a change of subject, as every other vector does (`embedding`): a bag of words
without the 60 most frequent ones, hashed into 256 buckets, along the reference's six leading directions, with the
distance within its cloud (`spread`). For single words that come or go, which no direction of a whole language shows:
every word is a card of one of 20 hands, the 60 most frequent ones of the first four and all others, by their hash, of the
rest; `hand7` is the card of the text's first word of the seventh hand, -1 where it has none, and each of the 16 values is
a bin of its own. All are numeric rows, so text costs the scan no other test than numbers do. Vocabulary and directions
come from half A of the reference, so its half B is an honest stream: it has words that half A has not, as a live one will.

Words: runs of letters and of digits, in lower case, of at most 40 characters; of a number only the number of digits
counts. Scripts that put no space between words (Chinese, Japanese, Thai, Lao, Burmese, Khmer), and any run above 40
characters, are taken as pairs of neighbouring characters. Only the first `CHARACTERS_MAX` characters of a text are
looked at, except for its length: a text of 1 MB costs what one of 10 kB does. An empty text has length 0, no words, and
0 in every share; None is missing: a row of NaN.

Invariant: the rows of an event are a function of its text alone, the same in every process and on every machine: words
are hashed by BLAKE2, never by Python's own hash, and the bag goes through exact arithmetic.

Cost per event: 5 us plus 0.8 us per word. Memory: 8 bytes for each of at most 20,000 words, 70 kB of directions, and a
memory of words seen lately (`_LATELY_MAX`, 10 MB at most), which speeds up and changes nothing.

Neighbours: `embedding` for the directions, `reference` bins the rows, `domain` says in which words two sets differ.
"""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from detectors.binning import level_hash
from detectors.embedding import Embedding

Floats = NDArray[np.float64]

#: Characters of a text that are looked at: a long page; beyond, nothing is learned that the beginning does not say.
CHARACTERS_MAX = 10_000
#: Words of the reference that are known; language has no end, and the rare ones say nothing together.
VOCABULARY_MAX = 20_000
#: Longer runs are no words: addresses, keys, scripts without spaces.
WORD_CHARACTERS_MAX = 40
#: Buckets of the bag of words, a power of two, and directions that become rows.
BUCKETS, DIRECTIONS = 256, 6
#: Hands that become rows, those of them for the most frequent words, and cards of a hand: with -1 as many values as the
#: scan has bins. A frequent word that shared a hand with rare ones would nearly always come before them.
HANDS, FREQUENT_HANDS, CARDS = 20, 4, 15
_KNOWN, _DIGITS, _CARD = BUCKETS, 2 * BUCKETS, 4 * BUCKETS
_LATELY_MAX = 50_000
#: Texts that the directions are fitted on, evenly spaced over half A: their bags take 40 MB.
FIT_TEXTS_MAX = 20_000
#: Texts worked on at once: bounds the memory of the bags.
_BLOCK_TEXTS = 2_048
_SHAPES = ("characters", "words", "unknown", "word_length", "symbols")

# What separates words: white space and the signs of ASCII, Latin 1, general, Indic and East Asian punctuation. Not \W:
# Python counts the vowel signs of Indic scripts as no part of a word.
_SIGNS = r"\s\x00-/:-@\[-`{-\u00a9\u00ab-\u00b4\u00b6-\u00b9\u00bb-\u00bf\u00d7\u00f7\u0964\u0965\u060c\u061b\u061f\u06d4" \
         r"\u0f0b-\u0f14\u2000-\u206f\u20a0-\u20cf\u3000-\u3004\u3008-\u3020\u3030\u30fb\ufe10-\ufe1f\ufe30-\ufe6f\uff00-\uff0f" \
         r"\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\ufeff"
_RUNS = re.compile(rf"[^\d{_SIGNS}]+|\d+")
_ASCII_RUNS = re.compile(r"[a-z]+|[0-9]+")          # finds the same in lower-case ASCII, in two thirds of the time
#: Runs of characters of scripts that put no space between words.
UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3021-\u302f\u3031-\u30fa\u30fc-\u30ff\u3400-\u9fff"
                      r"\uf900-\ufaff\U00020000-\U0003ffff]+")


def words(text: str) -> list[str]:
    """The words of a text's first `CHARACTERS_MAX` characters, in order.

    >>> words("Refund 120 EUR, please; don't wait!")
    ['refund', '000', 'eur', 'please', 'don', 't', 'wait']
    >>> words("\u4eca\u5929\u5f88\u597d") == ["\u4eca\u5929", "\u5929\u5f88", "\u5f88\u597d"]
    True
    """
    return [_shape(run) for run in _divided(_runs(text[:CHARACTERS_MAX]))]


def _runs(text: str) -> list[str]:
    """Runs of letters, in lower case, and runs of digits."""
    text = text.lower()
    return (_ASCII_RUNS if text.isascii() else _RUNS).findall(text)


def _divided(runs: list[str]) -> list[str]:
    """Runs that are words, and pairs of characters of those that are none."""
    if not runs:
        return runs
    joined = "".join(runs)
    if max(map(len, runs)) <= WORD_CHARACTERS_MAX and (joined.isascii() or not UNSPACED.search(joined)):
        return runs
    return list(chain.from_iterable(_parts(run) for run in runs))


def _parts(run: str) -> Iterable[str]:
    """One run; its pairs of neighbouring characters if it is long, or in a script without spaces."""
    if run[0].isdigit():
        return (run[:WORD_CHARACTERS_MAX],)
    if len(run) > WORD_CHARACTERS_MAX:
        return _neighbours(run)
    parts: list[str] = []
    end = 0
    for match in UNSPACED.finditer(run):
        if match.start() > end:
            parts.append(run[end:match.start()])
        parts.extend(_neighbours(match.group()))
        end = match.end()
    if end < len(run):
        parts.append(run[end:])
    return parts


def _neighbours(run: str) -> list[str]:
    return [run] if len(run) == 1 else list(map(str.__add__, run, run[1:]))


def _shape(run: str) -> str:
    """A word as it is known: of a number only how many digits it has."""
    return "0" * len(run) if run[0].isdigit() else run


class _Lately(dict[str, int]):
    """Words to codes: bucket, `_KNOWN` where the vocabulary has the word, `_DIGITS` for a number, `_CARD` times its card
    among those of all hands. Emptied when full."""

    def __init__(self, vocabulary: frozenset[int], frequent: Sequence[int]) -> None:
        self._vocabulary = vocabulary
        self._frequent = {word: rank % FREQUENT_HANDS * CARDS + rank // FREQUENT_HANDS for rank, word in enumerate(frequent)}

    def __missing__(self, run: str) -> int:
        word = level_hash(_shape(run))
        card = self._frequent.get(word)
        if card is None:
            card = FREQUENT_HANDS * CARDS + word // BUCKETS % ((HANDS - FREQUENT_HANDS) * CARDS)
        code = word % BUCKETS + _KNOWN * (word in self._vocabulary) + _DIGITS * run[0].isdigit() + _CARD * card
        if len(self) >= _LATELY_MAX:
            self.clear()
        self[run] = code
        return code


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """What one text column needs at run time.

    vocabulary : 64-bit hashes of the words that half A used most
    frequent   : those of the very most frequent ones, by falling frequency
    content    : the directions of its bags of words
    """

    vocabulary: frozenset[int]
    frequent: tuple[int, ...]
    content: Embedding
    _lately: _Lately = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_lately", _Lately(self.vocabulary, self.frequent))

    @classmethod
    def fit(cls, values: Sequence[str | None], half_a: NDArray[np.bool_]) -> Text:
        """Vocabulary and directions of a reference column; half_a, bool (n,), marks the texts they may look at."""
        chosen = [values[i] for i in np.flatnonzero(half_a).tolist()]
        counts: Counter[str] = Counter()
        for text in chosen:                                     # turns: the reference's texts, once
            if text is not None:
                counts.update(_divided(_runs(text[:CHARACTERS_MAX])))
        known: Counter[str] = Counter()
        for run, count in counts.items():
            known[_shape(run)] += count
        frequent = sorted(known.items(), key=lambda pair: (-pair[1], pair[0]))[:VOCABULARY_MAX]
        hashes = [level_hash(word) for word, _ in frequent]
        vocabulary, most = frozenset(hashes), tuple(hashes[:FREQUENT_HANDS * CARDS])
        if len(chosen) > FIT_TEXTS_MAX:
            chosen = [chosen[i] for i in np.linspace(0, len(chosen) - 1, FIT_TEXTS_MAX).astype(int).tolist()]
        bags = _bags(_counts(chosen, _Lately(vocabulary, most))[0])
        bags[[text is None for text in chosen]] = np.nan
        content = Embedding.fit(bags, np.ones(len(bags), bool), directions=DIRECTIONS)
        return cls(vocabulary, most, content)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the rows."""
        content = [name for name in self.content.names if name not in ("norm", "residual")]
        return (*_SHAPES, *(f"hand{i}" for i in range(1, HANDS + 1)), *content)

    def rows(self, values: Sequence[str | None]) -> Floats:
        """The rows of a batch, float64 (n, len(names)); NaN where a text is missing.

        characters, words, word_length (mean, in characters): numbers from 0. unknown: share of words out of the vocabulary.
        symbols: share of the characters that are neither white space nor in a word of letters. hand...: 0 to 14, or -1 for
        none. The rest as `Embedding`.
        """
        width, shown = len(self.names), len(_SHAPES) + HANDS
        result = np.empty((width, len(values)))
        for start in range(0, len(values), _BLOCK_TEXTS):       # turns: blocks of texts
            block = values[start:start + _BLOCK_TEXTS]
            counts, shapes = _counts(block, self._lately)
            part = result[:, start:start + _BLOCK_TEXTS]
            part[:shown] = shapes
            part[shown:] = self.content.rows(_bags(counts)).T[: width - shown]
            part[:, [text is None for text in block]] = np.nan
        return result.T

    # ---- the file -------------------------------------------------------------------------------------------------

    def encode(self) -> dict[str, object]:
        """The column, ready for JSON, exact."""
        return {"vocabulary": _packed(sorted(self.vocabulary)), "frequent": _packed(self.frequent),
                "content": self.content.encode()}

    @classmethod
    def decode(cls, item: Mapping[str, object]) -> Text:
        """What `encode` wrote; ValueError, one line, for anything else."""
        try:
            hashes, frequent = (
                np.frombuffer(base64.b64decode(str(item[key]), validate=True), dtype="<u8") for key in ("vocabulary", "frequent"))
            content = item["content"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"text: expected a vocabulary and its directions, got {type(error).__name__}: {error}; "
                             "fit the reference again, or restore the file") from None
        if not isinstance(content, Mapping) or content.get("dim") != BUCKETS or len(hashes) > VOCABULARY_MAX \
                or len(frequent) > FREQUENT_HANDS * CARDS or not set(frequent.tolist()) <= set(hashes.tolist()):
            raise ValueError(f"text: expected at most {VOCABULARY_MAX} words and bags of {BUCKETS} buckets, got others; "
                             "fit the reference again, or restore the file")
        return cls(frozenset(hashes.tolist()), tuple(frequent.tolist()), Embedding.decode(content))


def _packed(hashes: Sequence[int]) -> str:
    return base64.b64encode(np.array(hashes, dtype="<u8").tobytes()).decode()


def _counts(texts: Sequence[str | None], codes: _Lately) -> tuple[Floats, Floats]:
    """Rarer words in each bucket, shape (n, BUCKETS), and the other rows, shape (5 + HANDS, n); None counts as empty."""
    n = len(texts)
    looked_at = ["" if text is None else text[:CHARACTERS_MAX] for text in texts]
    runs = [_runs(text) for text in looked_at]
    letters = np.fromiter((len("".join(found)) for found in runs), np.float64, n)
    printed = np.fromiter((len("".join(text.split())) for text in looked_at), np.float64, n)
    divided = list(map(_divided, runs))
    lengths = np.fromiter(map(len, divided), np.int64, n)
    event = np.repeat(np.arange(n), lengths)
    code = np.fromiter(map(codes.__getitem__, chain.from_iterable(divided)), np.int64, len(event))
    size = np.fromiter(map(len, chain.from_iterable(divided)), np.float64, len(event))
    subject = code // _CARD >= FREQUENT_HANDS * CARDS           # the most frequent words belong to every subject
    counts = np.bincount((event * BUCKETS + code % BUCKETS)[subject], minlength=n * BUCKETS).reshape(n, BUCKETS)
    words_or_one = np.maximum(lengths, 1)
    letters -= np.bincount(event, weights=size * (code & _DIGITS > 0), minlength=n)
    symbols = 1.0 - np.divide(letters, printed, out=np.ones(n), where=printed > 0)
    hands = np.full((HANDS, n), -1.0)
    # Backwards, because of equal places the last one assigned stays: the first word's card.
    hands[code[::-1] // _CARD // CARDS, event[::-1]] = code[::-1] // _CARD % CARDS
    shapes = np.stack([
        np.fromiter((0 if text is None else len(text) for text in texts), np.float64, n), lengths.astype(np.float64),
        np.bincount(event, weights=code & _KNOWN == 0, minlength=n) / words_or_one,
        np.bincount(event, weights=size, minlength=n) / words_or_one, np.clip(symbols, 0.0, 1.0), *hands])
    return counts.astype(np.float64), shapes


def _bags(counts: Floats) -> Floats:
    """Bags of words of length 1: roots of the shares, so that their distance is Hellinger's; empty ones are 0."""
    bags: Floats = np.sqrt(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0))
    return bags
