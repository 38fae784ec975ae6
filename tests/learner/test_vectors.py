"""Whole vectors and matrices against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from streammaml.learner.kernels import vectors


@pytest.mark.parametrize("size", [1, 255, 256, 257, 600])
def test_the_norm_equals_numpys(size: int) -> None:
    values = np.random.default_rng(size).normal(size=size).astype(np.float32)
    sums = np.full(vectors.SUMS, 5, np.float32)

    np.testing.assert_allclose(
        vectors.norm(values, sums), np.linalg.norm(values.astype(float)), rtol=1e-6
    )


@pytest.mark.parametrize("shape", [(1, 1), (16, 16), (64, 2), (64, 64), (15, 33), (40, 17)])
def test_a_transposed_matrix_equals_numpys(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    target = np.empty(shape[::-1], np.float32)

    vectors.transpose(matrix, target)

    assert (target == matrix.T).all()


def test_a_copy_is_equal() -> None:
    source, target = np.arange(70, dtype=np.float32), np.zeros(70, np.float32)

    vectors.copy(source, target)

    assert (target == source).all()
