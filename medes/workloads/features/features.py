"""TF-IDF features and grouped statistics of generated product reviews; keeps the fitted vectoriser."""

import random

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer

from medes.runtimes.instance.checked_state import CheckedState, digest

FITTED_REVIEWS = 2_000
GOOD = ["good", "great", "tasty", "excellent", "fresh", "lovely", "perfect", "crisp", "sweet", "favourite"]
BAD = ["bad", "awful", "stale", "bland", "bitter", "broken", "poor", "soggy", "worst", "refund"]
PLAIN = [
    "the",
    "tea",
    "coffee",
    "cereal",
    "snack",
    "box",
    "arrived",
    "with",
    "my",
    "order",
    "and",
    "it",
    "was",
    "of",
    "a",
    "quality",
    "that",
    "i",
    "would",
    "buy",
    "again",
]


def reviews(count: int, seed: object) -> pd.DataFrame:
    """count reviews with a score from 1 to 5 and text that leans to it."""
    generator = random.Random(seed)
    scores = [generator.randint(1, 5) for _ in range(count)]
    texts = [
        " ".join(generator.choices(PLAIN + (GOOD if score > 3 else BAD) * 2 + [f"item{number % 997}"], k=24))
        for number, score in enumerate(scores)
    ]
    return pd.DataFrame({"score": scores, "text": texts, "length": [len(text) for text in texts]})


state = CheckedState("features", buffer_bytes=1 << 20)
corpus = reviews(FITTED_REVIEWS, "corpus")
vectoriser = TfidfVectorizer(ngram_range=(1, 2), min_df=2)
fitted = vectoriser.fit_transform(corpus["text"])
idf_digest = digest(vectoriser.idf_.tobytes())


def handler(event, context):
    key = state.begin(event)
    frame = reviews(min(int(event["reviews"]), FITTED_REVIEWS), int(event["seed"]))
    matrix = vectoriser.transform(frame["text"])
    grouped = frame.groupby("score")["length"].agg(["mean", "max", "count"])
    nearest = np.asarray(matrix[:16] @ fitted[:512].T.toarray()).argmax(axis=1)
    if digest(vectoriser.idf_.tobytes()) != idf_digest:
        raise RuntimeError("the fitted weights changed between requests")
    result = {
        "features": digest(np.round(matrix.data, 9).tobytes()),
        "nonzero": int(matrix.nnz),
        "by_score": digest(grouped.to_csv()),
        "nearest": nearest.tolist(),
    }
    return state.finish(key, result)
