"""Joint Bayesian (two-covariance) model of feature vectors, by exact EM.

x_ij = μ_i + ε_ij with identity μ_i ~ N(0, S_μ) and variation ε_ij ~ N(0, S_ε). The
score of a pair is the log-likelihood ratio of "one μ" against "two μ" (Chen et al.,
ECCV 2012; the EM here keeps the posterior covariance of μ, which that paper leaves out;
Ioffe's PLDA, ECCV 2006, is the same model).

Letters: N vectors of P people, D dimensions.
"""

import dataclasses

import numpy as np
import scipy.linalg


@dataclasses.dataclass(frozen=True)
class JointBayesian:
    """A fitted model.

    Attributes:
      mean: subtracted from every vector [D].
      own: A of the score x'Ax + y'Ay + 2 x'Gy [D, D].
      cross: G [D, D].
    """

    mean: np.ndarray
    own: np.ndarray
    cross: np.ndarray

    def scores(
        self, x: np.ndarray, first: np.ndarray, second: np.ndarray
    ) -> np.ndarray:
        """Log-likelihood ratio of each pair of rows, up to a constant [n]."""
        a, b = x[first] - self.mean, x[second] - self.mean
        alone = np.einsum("nd,nd->n", a @ self.own, a)
        alone += np.einsum("nd,nd->n", b @ self.own, b)
        return alone + 2 * np.einsum("nd,nd->n", a @ self.cross, b)


def fit(x: np.ndarray, labels: np.ndarray, iterations: int = 20) -> JointBayesian:
    """Fits both covariances.

    Args:
      x: float [N, D], at least some people with two vectors.
      labels: int [N].
      iterations: of EM.
    """
    mean = x.mean(0)
    x = x - mean
    order = np.argsort(labels, kind="stable")
    x = x[order]
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    sums = np.add.reduceat(x, starts, axis=0)  # [P, D]
    total = x.T @ x
    centres = sums / counts[:, None]
    between, within = np.cov(centres.T), total / len(x)
    within = within - between * 0.5 + 1e-6 * np.eye(x.shape[1]) * np.trace(within)
    for _ in range(iterations):
        between, within = _step(total, sums, counts, between, within)
    return JointBayesian(mean, *_score_matrices(between, within))


def _step(total, sums, counts, between, within):
    """One EM iteration, in the basis where both covariances are diagonal."""
    variance, basis = scipy.linalg.eigh(between, within)  # of μ where that of ε is 1
    variance = np.maximum(variance, 0)
    posterior = variance / (1 + counts[:, None] * variance)  # variance of each μ [P, D]
    sums = sums @ basis
    expected = sums * posterior
    new_between = expected.T @ expected + np.diag(posterior.sum(0))
    spread = (expected * counts[:, None]).T @ expected
    spread += np.diag(counts @ posterior)
    cross = sums.T @ expected
    new_within = basis.T @ total @ basis - cross - cross.T + spread
    back = np.linalg.inv(basis)
    new_between = back.T @ new_between @ back / len(counts)
    return _symmetric(new_between), _symmetric(
        back.T @ new_within @ back / counts.sum()
    )


def _score_matrices(between, within):
    """A and G of the log-likelihood ratio."""
    whole = between + within
    joint = np.block([[whole, between], [between, whole]])
    inverse = np.linalg.inv(joint)
    d = len(whole)
    own = 0.5 * (np.linalg.inv(whole) - inverse[:d, :d])
    return _symmetric(own), _symmetric(-0.5 * inverse[:d, d:])


def _symmetric(matrix):
    return (matrix + matrix.T) / 2
