"""Fréchet distance: how far one set of sounds is from another in the feature space of a
network.

Both sets are treated as Gaussian distributions, whose distance is known in closed form
(Dowson and Landau 1982). With the features of an Inception network it is the FID
(Heusel et al. 2017, arXiv 1706.08500), with those of VGGish the FAD (Kilgour et al.
2018, arXiv 1812.08466). Chapter 17 builds this module.
"""

from __future__ import annotations

import torch
from torch import Tensor


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Squared Fréchet distance between two sets of features, as Gaussians (Heusel et
    al. 2017, eq. 6).

    d² = |m_a - m_b|² + Tr(C_a + C_b - 2 (C_a C_b)^½). With X the centred features over
    sqrt(n - 1), C = XᵀX, and the trace of the root is the sum of the singular values of
    X_a X_bᵀ: no root is computed, and singular covariances (n < D) cause no trouble.
    The smaller the sets, the larger the distance: compare only sets of equal sizes.

    Args:
        features_a: (n_a, D); features_b: (n_b, D), each with two rows or more; computed
            in float64.
    Returns:
        the squared distance, 0 or more.
    Raises:
        ValueError: the shapes differ from these, or a feature is not a finite number.

    Chapter 17.
    """
    check_features(features_a, features_b)
    a, b = features_a.double(), features_b.double()
    X_a, X_b = ((x - x.mean(dim=0)) / (len(x) - 1) ** 0.5 for x in (a, b))  # (n, D)
    means = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    spread = (
        X_a.square().sum()
        + X_b.square().sum()
        - 2 * torch.linalg.svdvals(X_a @ X_b.T).sum()
    )
    return max(0.0, float(means + spread))  # rounding may give -1e-15


def check_features(features_a: Tensor, features_b: Tensor) -> None:
    """Raise a sentence unless both sets are (n, D) with equal D, n >= 2, and finite."""
    for name, features in (("features_a", features_a), ("features_b", features_b)):
        if features.ndim != 2 or features.shape[0] < 2 or features.shape[1] < 1:
            raise ValueError(
                f"{name} must be (n, D) with n >= 2; given {tuple(features.shape)}"
            )
        if not features.isfinite().all():
            raise ValueError(
                f"{name} must hold finite numbers; the given ones hold NaN or infinity"
            )
    if features_a.shape[1] != features_b.shape[1]:
        raise ValueError(
            f"features_a and features_b must have equally many columns; given "
            f"{features_a.shape[1]} and "
            f"{features_b.shape[1]}"
        )
