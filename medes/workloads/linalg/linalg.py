"""Solve and multiply, as FunctionBench's linpack and matmul, plus a projection through a kept basis."""

from collections import OrderedDict

import numpy as np

from medes.runtimes.instance.checked_state import CheckedState, digest

BASIS_ROWS, BASIS_COLUMNS = 1536, 768
SOLUTIONS_MAX = 16

state = CheckedState("linalg", buffer_bytes=1 << 20)
# A discrete cosine basis: large, the same in every instance, and dense with floats that no compressor likes.
basis = np.cos(np.pi / BASIS_ROWS * np.outer(np.arange(BASIS_ROWS) + 0.5, np.arange(BASIS_COLUMNS)))
solutions: OrderedDict[str, np.ndarray] = OrderedDict()


def handler(event, context):
    key = state.begin(event)
    n = min(int(event["n"]), 512)
    generator = np.random.default_rng(int(event["seed"]))
    matrix = generator.random((n, n)) - 0.5
    right = matrix.sum(axis=1)
    solution = np.linalg.solve(matrix, right)
    product = matrix @ matrix.T
    projection = basis[: 4 * n] @ basis[0]
    previous = solutions.get(key)
    if previous is not None and not np.array_equal(previous, solution):
        raise RuntimeError("the kept solution differs")
    solutions[key] = solution
    while len(solutions) > SOLUTIONS_MAX:
        solutions.popitem(last=False)
    residual = float(np.abs(matrix @ solution - right).max())
    result = {
        "residual_ok": residual < 1e-6,
        "trace": float(np.trace(product)),
        "solution": digest(solution.tobytes()),
        "projection": digest(projection.tobytes()),
    }
    return state.finish(key, result)
