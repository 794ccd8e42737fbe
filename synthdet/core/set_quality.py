"""How good a set of synthetic pictures is as a whole: its distance from real ones nobody trained on.

All measures are on CLIP embeddings, rows of length 1. None decides about a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Embeddings = NDArray[np.float32]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

NEIGHBOURS = 5
"""The k of the manifolds, as Naeem et al. recommend."""
MIN_PICTURES = NEIGHBOURS + 1
_BANDWIDTH, _SCALE = 10.0, 1000.0
_ROUNDS = 200


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measure and the 95 % interval of its bootstrap."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class SetQuality:
    """Synthetic against held-out real pictures.

    Attributes:
        cmmd: CLIP maximum mean discrepancy, 0 or more: 0 is the same distribution.
        precision: Share of the synthetic pictures within the real ones' manifold, 0..1.
        recall: Share of the real pictures within the synthetic ones' manifold, 0..1.
        density: Real neighbourhoods that a synthetic picture lies in, over k; about 1 for real ones.
        coverage: Share of the real neighbourhoods that hold a synthetic picture, 0..1.
        num_real: Pictures.
        num_synthetic: Pictures.
    """

    cmmd: Estimate
    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate
    num_real: int
    num_synthetic: int


def squared_mmd(within_x: float, within_y: float, between: float) -> float:
    """CMMD from the mean kernel values.

    Source: Jayasumana et al., "Rethinking FID: towards a better evaluation metric for image
    generation", CVPR 2024: the biased estimate with a Gaussian kernel of width 10, times 1000.

    Examples:
        >>> squared_mmd(1.0, 1.0, 0.999)
        2.0
    """
    return round(_SCALE * (within_x + within_y - 2 * between), 6)


def gaussian_kernel(first: Embeddings, second: Embeddings) -> Floats:
    """``exp(-|x - y|^2 / (2 * 10^2))`` of every row of one with every row of the other."""
    return np.asarray(np.exp(_squared_distances(first, second) / (-2 * _BANDWIDTH**2)))


def cmmd(first: Embeddings, second: Embeddings) -> float:
    """CLIP maximum mean discrepancy of two sets.

    Examples:
        >>> cmmd(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32))
        0.0
    """
    return squared_mmd(
        float(gaussian_kernel(first, first).mean()),
        float(gaussian_kernel(second, second).mean()),
        float(gaussian_kernel(first, second).mean()),
    )


def measure_set(
    real: Embeddings, groups: Sequence[str], synthetic: Embeddings, *, seed: int = 0
) -> SetQuality | None:
    """Hold synthetic pictures against real ones, with intervals for other real groups and pictures.

    The bootstrap draws groups of real pictures and single synthetic ones. Manifolds stay those of all
    pictures, so their measures' intervals say how sure the means are, not how the manifolds would move.

    Source: Naeem et al., "Reliable fidelity and diversity metrics for generative models", ICML 2020
    (density, coverage); Kynkäänniemi et al., NeurIPS 2019 (precision, recall).

    Args:
        real: ``(n, dimensions)``, pictures that neither LoRA nor centroid has seen.
        groups: The group of each.
        synthetic: ``(m, dimensions)``.
        seed: Of the bootstrap.

    Returns:
        None with fewer than `MIN_PICTURES` of either.
    """
    if min(len(real), len(synthetic)) < MIN_PICTURES:
        return None
    rng = np.random.default_rng(seed)
    real_weights = _group_weights(groups, rng)
    drawn = rng.integers(0, len(synthetic), (_ROUNDS, len(synthetic)))
    times = np.stack([np.bincount(row, minlength=len(synthetic)) for row in drawn])
    synthetic_weights: Floats = times / len(synthetic)

    apart = _squared_distances(real, synthetic)
    real_radius = _radii(real)
    inside: Flags = np.asarray(apart <= real_radius[:, None])
    reached: Flags = np.asarray(apart <= _radii(synthetic)[None, :])
    of_synthetic: dict[str, Floats] = {
        "precision": inside.max(axis=0).astype(np.float64),
        "density": inside.sum(axis=0) / NEIGHBOURS,
    }
    of_real: dict[str, Floats] = {
        "recall": reached.max(axis=1).astype(np.float64),
        "coverage": inside.max(axis=1).astype(np.float64),
    }
    means = {name: _estimate(values, synthetic_weights) for name, values in of_synthetic.items()}
    means |= {name: _estimate(values, real_weights) for name, values in of_real.items()}
    return SetQuality(
        cmmd=_estimate_cmmd(real, synthetic, real_weights, synthetic_weights),
        num_real=len(real),
        num_synthetic=len(synthetic),
        **means,
    )


def _estimate_cmmd(
    real: Embeddings, synthetic: Embeddings, real_weights: Floats, synthetic_weights: Floats
) -> Estimate:
    xx, yy = gaussian_kernel(real, real), gaussian_kernel(synthetic, synthetic)
    xy = gaussian_kernel(real, synthetic)
    value = squared_mmd(float(xx.mean()), float(yy.mean()), float(xy.mean()))
    within_x = np.einsum("ri,ri->r", real_weights @ xx, real_weights)
    within_y = np.einsum("ri,ri->r", synthetic_weights @ yy, synthetic_weights)
    between = np.einsum("ri,ri->r", real_weights @ xy, synthetic_weights)
    drawn = [squared_mmd(*row) for row in np.stack([within_x, within_y, between], axis=1).tolist()]
    # A resample holds pictures twice, which makes it look farther away than it is by about as much
    # as the value is above 0 by chance: the interval is turned around the value (basic bootstrap).
    low, high = np.percentile(drawn, [2.5, 97.5]).tolist()
    return Estimate(
        value, round(max(0.0, 2 * value - high), 6), round(max(value, 2 * value - low), 6)
    )


def _estimate(values: Floats, weights: Floats) -> Estimate:
    low, high = np.percentile(weights @ values, [2.5, 97.5]).tolist()
    return Estimate(round(float(values.mean()), 6), round(low, 6), round(high, 6))


def _group_weights(groups: Sequence[str], rng: np.random.Generator) -> Floats:
    """``(rounds, pictures)`` weights that sum to 1, of groups drawn with replacement."""
    names, members = np.unique(np.array(groups), return_inverse=True)
    drawn = rng.integers(0, len(names), (_ROUNDS, len(names)))
    times = np.stack([np.bincount(row, minlength=len(names)) for row in drawn])[:, members]
    return np.asarray(times / times.sum(axis=1, keepdims=True))


def _radii(embeddings: Embeddings) -> Floats:
    """Squared distance of each row to its k-th nearest other one."""
    apart = _squared_distances(embeddings, embeddings)
    np.fill_diagonal(apart, -1.0)  # itself comes first
    return np.asarray(np.partition(apart, NEIGHBOURS, axis=1)[:, NEIGHBOURS])


def _squared_distances(first: Embeddings, second: Embeddings) -> Floats:
    cosines = first.astype(np.float64) @ second.astype(np.float64).T
    return np.asarray(np.maximum(2 - 2 * cosines, 0))
