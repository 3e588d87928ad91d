"""Panels on axes of the caller's: what they draw, and what they say where there is nothing to draw."""

from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from fastgeom import analysis, figures
from tests.figures.test_figures import SMOOTH_STEPS, ZIGZAG_STEPS, render, texts, trace_of, two_regimes

N_STEPS = SMOOTH_STEPS + ZIGZAG_STEPS


def layered(**replaced: object) -> SimpleNamespace:
    """Two layers: the first as the whole, the second smooth all along."""
    trace = trace_of(two_regimes())
    cosine = np.stack([trace.lag_cosine, np.where(np.isfinite(trace.lag_cosine), 1.0, np.nan)], axis=1)
    return SimpleNamespace(**{**vars(trace), "layers": ("first", "second"), "layer_lag_cosine": cosine, **replaced})


@pytest.mark.parametrize(
    ("plot", "label"),
    [(figures.plot_loss, "loss"), (figures.plot_adjacent_cosine, "correlation"), (figures.plot_step_curvature, "curv")],
)
def test_one_panel_has_names_and_shades(plot, label: str) -> None:
    figure = Figure()
    axes = figure.subplots()
    plot(axes, layered())
    render(figure)
    assert label in axes.get_ylabel() and "step" in axes.get_xlabel()
    assert len(axes.collections) == 2, "smooth and zigzag are shaded"


@pytest.mark.parametrize("plot", [figures.plot_loss, figures.plot_adjacent_cosine, figures.plot_step_curvature])
def test_one_panel_marks_a_divergence(plot) -> None:
    trace = layered()
    trace.loss[30:], trace.grad_sq[30:] = np.inf, np.nan
    figure = Figure()
    axes = figure.subplots()
    plot(axes, trace)
    render(figure)
    assert "diverged at step 30" in texts(axes)


def test_curvature_has_the_colour_of_the_gradient_at_the_end_of_its_step() -> None:
    """Of the last smooth step, which ends at the first reversed gradient, kappa is 2 and zigzag's; c_t is smooth's."""
    trace = layered()
    labels = analysis.classify(trace.lag_cosine[:, 0], 0.9)
    for plot, shift in ((figures.plot_adjacent_cosine, 0), (figures.plot_step_curvature, 1)):
        axes = Figure().subplots()
        plot(axes, trace)
        for regime, colour in figures.COLOURS.items():
            (dots,) = (line for line in axes.lines if line.get_marker() == "." and line.get_color() == colour)
            expected = np.flatnonzero(np.append(labels[shift:], [analysis.MIXED] * shift) == analysis.REGIMES[regime])
            assert dots.get_xdata().tolist() == expected.tolist(), f"{plot.__name__}, {regime}"


@pytest.mark.parametrize("theta", [0.0, 1.0, -0.5, np.nan])
def test_theta_outside_is_named(theta: float) -> None:
    with pytest.raises(ValueError, match="theta: expected a number between 0 and 1"):
        figures.plot_adjacent_cosine(Figure().subplots(), layered(), theta)


def test_layer_map_shows_each_layer_at_each_step() -> None:
    axes = Figure().subplots()
    figures.plot_layer_cosines(axes, layered())
    (image,) = axes.images
    shown = image.get_array()
    assert shown.shape == (2, N_STEPS)
    assert image.get_extent() == [-0.5, N_STEPS - 0.5, 1.5, -0.5], "the first layer above"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]
    assert shown[0, 25] == pytest.approx(-1) and shown[1, 25] == 1


def test_layer_map_reads_what_it_says_and_no_more() -> None:
    trace = layered()
    read = SimpleNamespace(**{n: vars(trace)[n] for n in ("step", "grad_sq", "layers", "layer_lag_cosine")})
    read.grad_sq[30:] = np.nan
    axes = Figure().subplots()
    figures.plot_layer_cosines(axes, read)
    assert axes.images[0].get_array().shape == (2, 30) and "diverged at step 30" in texts(axes)


def test_layer_map_of_one_step_says_so() -> None:
    figure = Figure()
    axes = figure.subplots()
    one = trace_of(two_regimes()[:1])
    figures.plot_layer_cosines(
        axes, SimpleNamespace(**vars(one), layers=("a",), layer_lag_cosine=np.full((1, 1, 8), np.nan))
    )
    render(figure)
    assert "too short" in texts(axes) and not axes.images


def test_layer_map_ends_where_the_run_diverged() -> None:
    trace = layered()
    trace.loss[30:], trace.grad_sq[30:] = np.inf, np.nan
    axes = Figure().subplots()
    figures.plot_layer_cosines(axes, trace)
    assert axes.images[0].get_array().shape == (2, 30) and "diverged at step 30" in texts(axes)


def test_correlation_map_is_square_and_numbered() -> None:
    figure = Figure()
    axes = figure.subplots()
    figures.plot_correlations(axes, [[1.0, -1.0], [-1.0, np.nan]], first=7)
    figures.plot_correlation_bar(figure, axes)
    render(figure)
    assert axes.images[0].get_extent() == [6.5, 8.5, 8.5, 6.5]
    with pytest.raises(ValueError, match=r"cosine: expected shape \(step, step\), got \(2,\)"):
        figures.plot_correlations(axes, [1.0, 2.0])


def test_whole_figures_are_their_panels() -> None:
    trace = layered()
    for plot, draw in (
        (figures.plot_geometry, figures.draw_geometry),
        (figures.plot_run, figures.draw_run),
        (figures.plot_windows, figures.draw_windows),
    ):
        with matplotlib.rc_context(figures.STYLE):
            figure = Figure(layout="constrained")
            plot(figure, trace)
        render(figure)
        assert [axes.get_title(loc="left") for axes in figure.get_axes()] == [
            axes.get_title(loc="left") for axes in draw(trace).get_axes()
        ]


def test_dots_have_the_colour_of_their_regime() -> None:
    axes = Figure().subplots()
    trace = layered()
    figures.plot_adjacent_cosine(axes, trace)
    dots = {line.get_color(): line.get_ydata() for line in axes.lines if line.get_marker() == "."}
    assert (dots[figures.COLOURS["smooth"]] > 0.9).all() and (dots[figures.COLOURS["zigzag"]] < -0.9).all()
    assert set(dots) == set(figures.COLOURS.values()) and len(dots[figures.COLOURS["zigzag"]]) == ZIGZAG_STEPS - 1


def test_shade_alone_draws_only_regimes() -> None:
    axes = Figure().subplots()
    figures.plot_shade(axes, layered())
    assert len(axes.collections) == 2 and not axes.lines


def test_line_styles_differ_without_colour() -> None:
    looks = {(str(look["linestyle"]), look["marker"]) for look in figures.CYCLE}
    assert len(looks) == len(figures.CYCLE)
    luminance = [np.dot(to_rgb(figures.COLOURS[name]), (0.299, 0.587, 0.114)) for name in ("smooth", "zigzag")]
    assert abs(luminance[0] - luminance[1]) > 0.04
