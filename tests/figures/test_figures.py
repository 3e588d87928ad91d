"""Figures say what a trace holds, and say so in a panel where it holds too little."""

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from fastgeom import figures

SMOOTH_STEPS, ZIGZAG_STEPS = 20, 15


def trace_of(gradients: np.ndarray, window: int = 8, lr: float = 0.1, **replaced: object) -> SimpleNamespace:
    """The arrays that gradient descent with these gradients, one a row, leaves in a trace."""
    n = len(gradients)
    products = gradients @ gradients.T
    norm = np.sqrt(np.diagonal(products))
    lag_dot, lag_cosine = np.full((2, n, window), np.nan)
    for lag in range(1, window + 1):
        rows = np.arange(lag, n)
        lag_dot[rows, lag - 1] = products[rows, rows - lag]
        lag_cosine[rows, lag - 1] = products[rows, rows - lag] / norm[rows] / norm[rows - lag]
    after = np.full(n, np.nan)
    after[:-1] = -lr * lag_dot[1:, 0]
    arrays = dict(
        step=np.arange(n),
        loss=np.geomspace(2.0, 0.01, n) if n else np.zeros(0),
        grad_sq=norm**2,
        lag_dot=lag_dot,
        lag_cosine=lag_cosine,
        grad_dot_update=-lr * norm**2,
        next_grad_dot_update=after,
    )
    return SimpleNamespace(**arrays | replaced)


def two_regimes() -> np.ndarray:
    """Gradients that agree for 20 steps and flip for 15."""
    sign = np.concatenate([np.ones(SMOOTH_STEPS), (-1.0) ** np.arange(ZIGZAG_STEPS)])
    return sign[:, None] * np.array([3.0, 4.0])


def render(figure: Figure) -> None:
    """Lay out and draw, so that errors in either show, and positions are final."""
    FigureCanvasAgg(figure).draw()


def panels(figure: Figure) -> dict[str, Axes]:
    """All axes by their y label, those of subfigures too."""
    return {axes.get_ylabel(): axes for axes in figure.get_axes()}


def texts(axes: Axes) -> str:
    return "\n".join(text.get_text() for text in axes.texts)


def everything_said(figure: Figure) -> str:
    return "\n".join(texts(axes) for axes in figure.get_axes())


def legend_of(figure: Figure) -> Legend:
    return next(legend for part in (figure, *figure.subfigs) for legend in part.legends)


def test_geometry_draws_the_arrays_of_the_trace() -> None:
    trace = trace_of(two_regimes())
    drawn = panels(figures.draw_geometry(trace))
    np.testing.assert_array_equal(drawn["loss $f_t$"].lines[0].get_ydata(), trace.loss)
    np.testing.assert_array_equal(drawn["correlation $c_t$"].lines[0].get_ydata(), trace.lag_cosine[:, 0])
    kappa = drawn[r"curvature $\kappa_t$"].lines[0].get_ydata()
    np.testing.assert_allclose(kappa[:-1], 1 - trace.lag_cosine[1:, 0], atol=1e-12)


def test_levels_stand_where_they_are_named() -> None:
    drawn = panels(figures.draw_geometry(trace_of(two_regimes()), theta=0.8))
    for label, expected in (("correlation $c_t$", {0.8, -0.8}), (r"curvature $\kappa_t$", {1, 2})):
        levels = {line.get_ydata()[0] for line in drawn[label].lines if list(line.get_xdata()) == [0, 1]}
        assert levels == expected


def test_regimes_are_shaded_where_they_are() -> None:
    figure = figures.draw_geometry(trace_of(two_regimes()))
    for axes in panels(figure).values():
        smooth, zigzag = axes.collections[:2]
        assert [path.get_extents().intervalx.tolist() for path in smooth.get_paths()] == [[0.5, SMOOTH_STEPS + 0.5]]
        assert [path.get_extents().intervalx.tolist() for path in zigzag.get_paths()] == [[SMOOTH_STEPS + 0.5, 34.5]]
        assert zigzag.get_hatch() and not smooth.get_hatch(), "grey print needs more than hue"
    entries = [text.get_text() for text in legend_of(figure).get_texts()]
    assert [entry.split(": ")[1] for entry in entries] == ["20 steps, 57.1%", "1 step, 2.9%", "14 steps, 40.0%"]


def test_windows_are_a_block_beside_a_checkerboard() -> None:
    figure = figures.draw_windows(trace_of(two_regimes()))
    smooth, zigzag = (axes.images[0].get_array() for axes in figure.get_axes()[:2])
    sign = (-1.0) ** np.arange(9)
    np.testing.assert_allclose(smooth, np.ones((9, 9)))
    np.testing.assert_allclose(zigzag, np.outer(sign, sign))
    assert "9 of 9 smooth" in figure.get_axes()[0].get_title("left")
    assert "9 of 9 zigzag" in figure.get_axes()[1].get_title("left")


def test_window_axes_bear_the_step_numbers_of_the_trace() -> None:
    gradients = two_regimes() + np.random.default_rng(0).normal(0, 0.3, (SMOOTH_STEPS + ZIGZAG_STEPS, 2))
    trace = trace_of(gradients)
    trace.step = trace.step + 1000
    axes = figures.draw_windows(trace, size=5).get_axes()[1]
    left, right = axes.images[0].get_extent()[:2]
    rows = np.arange(left + 0.5, right + 0.5).astype(int) - 1000
    assert len(rows) == 5 and rows[0] >= SMOOTH_STEPS
    direction = gradients[rows] / np.linalg.norm(gradients[rows], axis=1)[:, None]
    np.testing.assert_allclose(axes.images[0].get_array(), direction @ direction.T)


def test_run_holds_both_and_marks_the_windows() -> None:
    figure = figures.draw_run(trace_of(two_regimes()), title="A title", caption="A caption")
    drawn = panels(figure)
    assert {"loss $f_t$", "correlation $c_t$", r"curvature $\kappa_t$", "optimiser step $s$"} <= set(drawn)
    assert {"a", "b"} <= set(texts(drawn["correlation $c_t$"]).split("\n"))
    assert figure.get_suptitle() == "A title" and figure.get_supxlabel() == "A caption"


@pytest.mark.parametrize("draw", [figures.draw_geometry, figures.draw_windows, figures.draw_run])
def test_no_text_lies_on_another(draw) -> None:
    figure = draw(trace_of(two_regimes()), title="A title", caption="A caption\nof two lines")
    render(figure)
    written = [text for text in (figure._suptitle, figure._supxlabel) if text is not None]
    written += [legend for part in (figure, *figure.subfigs) for legend in part.legends]
    for axes in figure.get_axes():
        written += [axes.xaxis.label, axes.yaxis.label, axes._left_title, *axes.texts]
    boxes = [(str(item), item.get_window_extent()) for item in written]
    boxes = [(name, box) for name, box in boxes if box.width > 0]
    assert len(boxes) > 6
    assert not [(name, other) for (name, a), (other, b) in combinations(boxes, 2) if a.overlaps(b)]
    assert not [name for name, box in boxes if not figure.bbox.padded(1).count_contains(box.corners()) == 4]


@pytest.mark.parametrize(
    ("loss", "grad_sq"), [(np.inf, 1.0), (np.inf, np.inf), (np.nan, np.inf), (np.nan, np.nan), (1.0, np.nan)]
)
def test_a_diverged_run_is_drawn_up_to_the_divergence_and_marked(loss: float, grad_sq: float) -> None:
    trace = trace_of(two_regimes())
    trace.loss[30:], trace.grad_sq[30:] = loss, grad_sq
    figure = figures.draw_run(trace)
    render(figure)
    drawn = panels(figure)
    assert drawn["loss $f_t$"].lines[0].get_xdata()[-1] == 29
    assert drawn["correlation $c_t$"].lines[0].get_xdata()[-1] == 29
    assert "diverged at step 30" in texts(drawn["loss $f_t$"])


def test_a_divergence_is_marked_where_the_trace_has_no_loss() -> None:
    trace = trace_of(two_regimes())
    del trace.loss
    trace.grad_sq[25:] = np.nan
    said = everything_said(figures.draw_geometry(trace))
    assert "diverged at step 25" in said and "no loss in this trace" in said


@pytest.mark.parametrize("first", [0, 3, 9])
def test_a_loss_that_is_given_at_some_steps_only_is_joined_and_no_divergence(first: int) -> None:
    trace = trace_of(two_regimes())
    given = np.arange(first, len(trace.step), 10)
    dense = trace.loss.copy()
    trace.loss[:] = np.nan
    trace.loss[given] = dense[given]
    figure = figures.draw_run(trace)
    render(figure)
    assert "diverged" not in everything_said(figure)
    drawn = panels(figure)
    np.testing.assert_array_equal(drawn["loss $f_t$"].lines[0].get_xdata(), given)
    np.testing.assert_array_equal(drawn["loss $f_t$"].lines[0].get_ydata(), dense[given])
    np.testing.assert_array_equal(drawn["correlation $c_t$"].lines[0].get_xdata(), trace.step)
    assert drawn["loss $f_t$"].get_xlim()[1] >= trace.step[-1]


def test_a_sparse_loss_that_becomes_infinite_is_a_divergence_at_the_step_that_says_so() -> None:
    trace = trace_of(two_regimes())
    trace.loss[np.arange(len(trace.step)) % 10 != 0] = np.nan
    trace.loss[30:31] = np.inf
    assert "diverged at step 30" in everything_said(figures.draw_geometry(trace))
    trace.grad_sq[27:] = np.nan
    assert "diverged at step 27" in everything_said(figures.draw_geometry(trace))


@pytest.mark.parametrize(("name", "bad"), [("loss", np.nan), ("loss", np.inf), ("grad_sq", np.inf)])
def test_what_recovers_is_no_divergence(name: str, bad: float) -> None:
    """A scaler of mixed precision overflows now and then and skips the step; so it may beside a sparse loss."""
    trace = trace_of(two_regimes())
    getattr(trace, name)[10] = bad
    assert "diverged" not in everything_said(figures.draw_geometry(trace))
    trace.loss[21:] = np.nan
    trace.grad_sq[24] = np.inf
    assert "diverged" not in everything_said(figures.draw_geometry(trace))


def test_no_zigzag_is_said() -> None:
    figure = figures.draw_run(trace_of(np.ones((20, 2))))
    assert "no zigzag stretch in this run" in everything_said(figure)
    assert "no smooth stretch" not in everything_said(figure)


def test_what_a_trace_lacks_is_said() -> None:
    trace = trace_of(two_regimes())
    del trace.loss, trace.grad_dot_update
    drawn = panels(figures.draw_geometry(trace))
    assert "no loss in this trace" in texts(drawn["loss $f_t$"])
    assert "track_updates=True" in texts(drawn[r"curvature $\kappa_t$"])


@pytest.mark.parametrize("n_steps", [0, 1, 2])
def test_too_short_is_said(n_steps: int) -> None:
    figure = figures.draw_run(trace_of(np.ones((n_steps, 2))))
    render(figure)
    said = everything_said(figure)
    assert "no zigzag stretch" in said and "no smooth stretch" in said
    assert ("too short" in said) == (n_steps < 2)


def test_all_nan_is_drawn() -> None:
    trace = trace_of(two_regimes())
    for name in ("loss", "grad_sq", "lag_dot", "lag_cosine", "grad_dot_update", "next_grad_dot_update"):
        getattr(trace, name)[...] = np.nan
    render(figures.draw_run(trace))


def test_huge_curvature_is_marked_at_the_border() -> None:
    trace = trace_of(two_regimes())
    trace.next_grad_dot_update[5] = -1e6 * trace.grad_dot_update[5]
    curvature = panels(figures.draw_geometry(trace))[r"curvature $\kappa_t$"]
    assert curvature.get_ylim()[1] < 10
    marked = [line for line in curvature.lines if line.get_marker() == "^"]
    assert marked[0].get_xdata().tolist() == [5]


def test_loss_axis_is_logarithmic_only_where_it_helps() -> None:
    trace = trace_of(two_regimes())
    assert panels(figures.draw_geometry(trace))["loss $f_t$"].get_yscale() == "log"
    trace.loss = np.linspace(2, 1, len(trace.step))
    assert panels(figures.draw_geometry(trace))["loss $f_t$"].get_yscale() == "linear"
    trace.loss = np.linspace(100, -1, len(trace.step))
    assert panels(figures.draw_geometry(trace))["loss $f_t$"].get_yscale() == "linear"


def test_bad_input_is_named() -> None:
    trace = trace_of(two_regimes())
    with pytest.raises(ValueError, match="theta"):
        figures.draw_run(trace, theta=1.5)
    with pytest.raises(ValueError, match="size: expected at least 2 steps, got 1"):
        figures.draw_windows(trace, size=1)


def test_nothing_global_changes(run_python) -> None:
    """No pyplot, and matplotlib's settings as before."""
    code = (
        "import sys, matplotlib; before = dict(matplotlib.rcParams); import numpy as np\n"
        "from types import SimpleNamespace; from fastgeom import figures\n"
        "one = np.ones(3); trace = SimpleNamespace(step=np.arange(3), grad_sq=one, lag_dot=one[:, None],\n"
        "    lag_cosine=one[:, None])\n"
        "figures.draw_run(trace); assert dict(matplotlib.rcParams) == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules; print('clean')"
    )
    assert run_python(code).strip() == "clean"
