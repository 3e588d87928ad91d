"""What the geometry of a run says, from its trace alone: numpy in, numpy out, no torch.

>>> import fastgeom
>>> trace = fastgeom.open_trace("run.h5")                                           # doctest: +SKIP
>>> labels = fastgeom.analysis.classify(trace.lag_cosine[:, 0])                     # doctest: +SKIP
>>> fastgeom.analysis.progress_shares(trace.loss, labels, trace.step).net.zigzag    # doctest: +SKIP
"""

from fastgeom.analysis.attribution import attribution_residual, loss_attribution
from fastgeom.analysis.curvature import directional_curvature, path_smoothness, step_curvature
from fastgeom.analysis.momentum import momentum_cosine, momentum_norm, neglected_weight
from fastgeom.analysis.noise import cosine_attenuation, denoised_cosine, noise_share
from fastgeom.analysis.oscillation import FlowOscillation, flow_oscillation_split, moving_predictability, predictability
from fastgeom.analysis.path import displacement, path_length, tortuosity
from fastgeom.analysis.progress import ProgressShares, RegimeShares, progress_sensitivity, progress_shares
from fastgeom.analysis.regimes import (
    MIXED,
    REGIMES,
    SMOOTH,
    THETAS,
    ZIGZAG,
    Stretch,
    classify,
    regime_counts,
    sensitivity,
    stretches,
)
from fastgeom.analysis.sketches import SketchCosine, sketch_cosine, sketch_gram
from fastgeom.analysis.spectrum import (
    coherence,
    dc_energy,
    effective_rank,
    nyquist_energy,
    participation_ratio,
    spectral_gap,
    two_cycle_index,
)
from fastgeom.analysis.updates import angular_update, update_cosine, update_ratio
from fastgeom.analysis.window import densest_window, window_cosine, window_gram, window_grams
from fastgeom.trace.derived import lag_cosine

__all__ = [
    "MIXED",
    "REGIMES",
    "SMOOTH",
    "THETAS",
    "ZIGZAG",
    "FlowOscillation",
    "ProgressShares",
    "RegimeShares",
    "SketchCosine",
    "Stretch",
    "angular_update",
    "attribution_residual",
    "classify",
    "coherence",
    "cosine_attenuation",
    "dc_energy",
    "denoised_cosine",
    "densest_window",
    "directional_curvature",
    "displacement",
    "effective_rank",
    "flow_oscillation_split",
    "lag_cosine",
    "loss_attribution",
    "momentum_cosine",
    "momentum_norm",
    "moving_predictability",
    "neglected_weight",
    "noise_share",
    "nyquist_energy",
    "participation_ratio",
    "path_length",
    "path_smoothness",
    "predictability",
    "progress_sensitivity",
    "progress_shares",
    "regime_counts",
    "sensitivity",
    "sketch_cosine",
    "sketch_gram",
    "spectral_gap",
    "step_curvature",
    "stretches",
    "tortuosity",
    "two_cycle_index",
    "update_cosine",
    "update_ratio",
    "window_cosine",
    "window_gram",
    "window_grams",
]
