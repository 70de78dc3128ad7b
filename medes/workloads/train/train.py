"""Trains TF-IDF and logistic regression on generated reviews, as FunctionBench's model_training."""

import random
from collections import OrderedDict

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline

from medes.runtimes.instance.checked_state import CheckedState, digest

KEPT_REVIEWS = 3_000
MODELS_MAX = 8
PRAISE = ["works", "well", "sturdy", "bright", "easy", "recommend", "happy", "quick", "solid", "value"]
BLAME = ["failed", "broke", "dim", "hard", "returned", "sad", "slow", "flimsy", "waste", "never"]
FILLER = [
    "i",
    "bought",
    "this",
    "lamp",
    "for",
    "the",
    "desk",
    "in",
    "our",
    "office",
    "and",
    "used",
    "it",
    "for",
    "two",
    "weeks",
    "before",
    "writing",
    "this",
    "text",
]

state = CheckedState("train", buffer_bytes=1 << 20)
models: OrderedDict[str, tuple[Pipeline, str]] = OrderedDict()


def reviews(count: int, seed: object) -> pd.DataFrame:
    """count labelled reviews; one word in ten lies about its label."""
    generator = random.Random(seed)
    rows = []
    for number in range(count):
        liked = generator.random() < 0.5
        mood = PRAISE if liked == (generator.random() < 0.9) else BLAME
        words = generator.choices(FILLER, k=16) + generator.choices(mood, k=4) + [f"model{number % 211}"]
        generator.shuffle(words)
        rows.append((" ".join(words), int(liked)))
    return pd.DataFrame(rows, columns=["text", "liked"])


archive = reviews(KEPT_REVIEWS, "archive")


def fit(frame: pd.DataFrame) -> tuple[Pipeline, float]:
    """A fitted model and its accuracy on held-out reviews."""
    train, test = train_test_split(frame, test_size=0.25, random_state=7)
    model = make_pipeline(TfidfVectorizer(min_df=2), LogisticRegression(max_iter=60, random_state=7))
    model.fit(train["text"], train["liked"])
    return model, float(model.score(test["text"], test["liked"]))


def handler(event, context):
    key = state.begin(event)
    frame = reviews(min(int(event["reviews"]), 20_000), int(event["seed"]))
    model, accuracy = fit(frame)
    chances = np.round(model.predict_proba(archive["text"][:100]), 9).tobytes()
    predicted = digest(chances)
    if key in models:
        kept, kept_digest = models[key]
        again = digest(np.round(kept.predict_proba(archive["text"][:100]), 9).tobytes())
        if not predicted == kept_digest == again:
            raise RuntimeError("the kept model predicts otherwise than it did")
    models[key] = (model, predicted)
    while len(models) > MODELS_MAX:
        models.popitem(last=False)
    return state.finish(key, {"accuracy": accuracy, "predicted": predicted})


first_model = fit(archive)
