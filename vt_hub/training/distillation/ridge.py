"""Ridge regression on rows that come in batches."""

import torch
from torch import Tensor

__all__ = ['Ridge', 'solve_ridge']

RIDGE = 0.01  # relative to the mean variance of the inputs


class Ridge:
    """Fits y = W x + b on rows x (N, in) and y (N, out), of which it keeps sums of products in float64."""

    def __init__(self) -> None:
        self.rows = 0
        self.sums: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        x, y = x.double(), y.double()
        found = [x.sum(0), y.sum(0), x.T @ x, x.T @ y, y.square().sum(0)]
        self.sums = [a + b for a, b in zip(self.sums, found, strict=True)] if self.sums else found
        self.rows += len(x)

    def means(self) -> tuple[Tensor, Tensor]:
        """Of x and of y."""
        return self.sums[0] / self.rows, self.sums[1] / self.rows

    def deviations(self) -> Tensor:
        """Standard deviations of y, (out,)."""
        _, mean = self.means()
        return (self.sums[4] / self.rows - mean.square()).clamp(min=0).sqrt()

    def covariances(self) -> tuple[Tensor, Tensor]:
        """Of x with itself, (in, in), and with y, (in, out)."""
        x, y = self.means()
        return self.sums[2] / self.rows - x.outer(x), self.sums[3] / self.rows - x.outer(y)

    def best_scale(self, weight: Tensor) -> Tensor:
        """The factor with which a given W (out, in) predicts y best."""
        own, both = self.covariances()
        return (weight.T * both).sum() / (weight @ own * weight).sum()

    def solve(self) -> Tensor:
        """W (out, in)."""
        return solve_ridge(*self.covariances(), RIDGE)


def solve_ridge(own: Tensor, both: Tensor, strength: float) -> Tensor:
    """The matrix W (out, in) of a ridge regression.

    Args:
        own: Products of the inputs with themselves, (in, in); its diagonal is raised in place.
        both: Products of the inputs with what is wanted, (in, out).
        strength: What is added to the diagonal, relative to its mean.
    """
    own.diagonal().add_(strength * own.diagonal().mean())
    return torch.linalg.solve(own, both).T
