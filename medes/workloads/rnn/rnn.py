"""A gated recurrent network over characters, stepped one letter at a time; keeps its weights and what it wrote."""

from collections import OrderedDict

import numpy as np

from medes.runtimes.instance.checked_state import CheckedState, digest

ALPHABET = "abcdefghijklmnopqrstuvwxyz"
HIDDEN = 1024
NAMES_MAX = 64

state = CheckedState("rnn", buffer_bytes=1 << 20)


class Network:
    """Embedding, one GRU layer and a projection, with weights from a fixed seed."""

    def __init__(self) -> None:
        generator = np.random.default_rng(1024)
        scale = np.float32(1 / np.sqrt(HIDDEN))

        def weights(rows: int, columns: int) -> np.ndarray:
            return generator.standard_normal((rows, columns), dtype=np.float32) * scale

        self.embedding = weights(len(ALPHABET), HIDDEN) * np.float32(8)
        self.input = weights(3 * HIDDEN, HIDDEN)
        self.recurrent = weights(3 * HIDDEN, HIDDEN)
        self.output = weights(len(ALPHABET), HIDDEN) * np.float32(8)
        self.sums = self.row_sums()

    def row_sums(self) -> str:
        """A digest that a changed weight would change."""
        return digest(self.input.sum(axis=1).tobytes(), self.recurrent.sum(axis=1).tobytes())

    def step(self, letter: int, hidden: np.ndarray) -> np.ndarray:
        """The next hidden state."""
        reset_in, update_in, new_in = np.split(self.input @ self.embedding[letter], 3)
        reset_h, update_h, new_h = np.split(self.recurrent @ hidden, 3)
        reset = 1 / (1 + np.exp(-(reset_in + reset_h)))
        update = 1 / (1 + np.exp(-(update_in + update_h)))
        new = np.tanh(new_in + reset * new_h)
        return (1 - update) * new + update * hidden


network = Network()
names: OrderedDict[str, list[str]] = OrderedDict()


def write(first: str, length: int, seed: int) -> str:
    """A name that begins with a letter."""
    generator = np.random.default_rng([seed, ord(first)])
    letter = ALPHABET.index(first)
    hidden = np.zeros(HIDDEN, dtype=np.float32)
    name = first
    for _ in range(length):
        hidden = network.step(letter, hidden)
        scores = network.output @ hidden
        chances = np.exp(scores - scores.max())
        letter = int(generator.choice(len(ALPHABET), p=chances / chances.sum()))
        name += ALPHABET[letter]
    return name


def handler(event, context):
    key = state.begin(event)
    first_letters = [letter for letter in str(event["letters"]).lower() if letter in ALPHABET][:16]
    written = [write(letter, min(int(event["length"]), 64), int(event["seed"])) for letter in first_letters]
    if names.get(key, written) != written:
        raise RuntimeError("the kept names differ")
    if network.row_sums() != network.sums:
        raise RuntimeError("the weights changed between requests")
    names[key] = written
    while len(names) > NAMES_MAX:
        names.popitem(last=False)
    return state.finish(key, {"names": written})
