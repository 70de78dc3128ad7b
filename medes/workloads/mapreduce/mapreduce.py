"""Counts how often languages are named in generated lines, mapped over two worker processes that stay."""

import multiprocessing
import random
from collections import Counter

from medes.runtimes.instance.checked_state import CheckedState

WORKERS = 2
CORPUS_LINES = 12_000
LANGUAGES = [
    "ada",
    "algol",
    "basic",
    "c",
    "cobol",
    "eiffel",
    "erlang",
    "forth",
    "fortran",
    "haskell",
    "java",
    "lisp",
    "ml",
    "perl",
    "python",
]
WORDS = [
    "the",
    "a",
    "program",
    "was",
    "written",
    "in",
    "for",
    "with",
    "many",
    "lines",
    "and",
    "few",
    "comments",
    "by",
    "people",
    "who",
    "like",
]

state = CheckedState("mapreduce", buffer_bytes=1 << 20)


LANGUAGE_SET = frozenset(LANGUAGES)
index: list[dict[str, int]] = []  # filled in the workers only: each builds its own


def build_index() -> None:
    """Runs once in each worker: the words of every line of the corpus, counted."""
    generator = random.Random("corpus")
    vocabulary = WORDS * 3 + LANGUAGES
    for _ in range(CORPUS_LINES):
        words = generator.choices(vocabulary, k=14)
        index.append({word: words.count(word) for word in words})


def count(span: tuple[int, int]) -> dict[str, int]:
    """Runs in a worker: how often each language is named in the lines of a span."""
    found: Counter = Counter()
    for number in range(*span):
        line = index[number % CORPUS_LINES]
        found.update({word: times for word, times in line.items() if word in LANGUAGE_SET})
    return dict(found)


pool = multiprocessing.get_context("fork").Pool(WORKERS, initializer=build_index)


def handler(event, context):
    key = state.begin(event)
    lines, begin = min(int(event["lines"]), 1_000_000), int(event["seed"]) * 97
    step = max(1, lines // (WORKERS * 2))
    spans = [(begin + at, begin + min(at + step, lines)) for at in range(0, lines, step)]
    total: Counter = Counter()
    for part in pool.map(count, spans, chunksize=1):
        total.update(part)
    return state.finish(key, {"counts": dict(sorted(total.items())), "workers": WORKERS})
