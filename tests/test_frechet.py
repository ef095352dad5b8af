"""The Fréchet distance of two sets of features (chapter 17)."""

import pytest
import scipy.linalg
import torch

from minilib.frechet import frechet_distance


def features(n: int, D: int, seed: int = 0) -> torch.Tensor:
    """Features of correlated columns and a mean that is not 0."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(D, D, generator=generator, dtype=torch.float64) / D**0.5
    return torch.randn(n, D, generator=generator, dtype=torch.float64) @ mixing + 0.3


def test_a_set_is_at_no_distance_from_itself_and_a_shift_counts_squared():
    a = features(50, 7)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(a, a + 2) == pytest.approx(7 * 4)
    assert (
        frechet_distance(
            a, a[torch.randperm(50, generator=torch.Generator().manual_seed(1))]
        )
        < 1e-12
    )


def test_rounding_makes_no_distance_negative():
    assert (
        min(
            frechet_distance(a, a.clone())
            for a in (features(30, 5, seed) for seed in range(10))
        )
        >= 0
    )


def test_the_distance_of_a_set_from_itself_made_wider_is_that_of_equation_6():
    a = features(50, 7)
    a = a - a.mean(dim=0)
    # C_b = 9 C_a: Tr(C + 9 C - 2 * 3 C) = 4 Tr C
    assert frechet_distance(a, 3 * a) == pytest.approx(
        4 * float(torch.cov(a.T).trace())
    )


@pytest.mark.parametrize(("n_a", "n_b", "D"), [(200, 150, 8), (60, 60, 40)])
def test_the_trace_of_the_root_is_that_of_scipys_matrix_root(n_a, n_b, D):
    a, b = features(n_a, D), features(n_b, D, seed=1)
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    root = scipy.linalg.sqrtm((cov_a @ cov_b).numpy()).real
    means = float((a.mean(0) - b.mean(0)).square().sum())
    expected = means + float(cov_a.trace() + cov_b.trace()) - 2 * root.trace()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_fewer_rows_than_columns_and_float32_do_no_harm():
    a, b = features(20, 100), features(20, 100, seed=1)
    assert frechet_distance(a.float(), a.float()) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a.float(), b.float()) == pytest.approx(
        frechet_distance(a, b), rel=1e-5
    )
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))


def test_what_is_no_set_of_features_is_refused():
    good = features(5, 3)
    with pytest.raises(ValueError, match="features_a must be .*given \\(1, 3\\)"):
        frechet_distance(good[:1], good)
    with pytest.raises(ValueError, match="features_b must be .*given \\(5,\\)"):
        frechet_distance(good, good[:, 0])
    with pytest.raises(ValueError, match="equally many columns; given 3 and 2"):
        frechet_distance(good, good[:, :2])
    with pytest.raises(ValueError, match="features_b must hold finite numbers"):
        frechet_distance(good, good / 0)
