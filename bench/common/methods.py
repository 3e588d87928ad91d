"""Which ways of measuring a statistic there are: ours first, then the others."""

from bench.common import numba_ways, ours, peer_ways, torch_ways
from bench.common.case import CLIP, DEFERRED, DOT, NORM, SKETCH, SKETCH_STEP, STEP, UPDATE, WINDOW
from bench.common.ways import OURS, Way

LEAN, CAT_DOTS, STACK = "cat(out=) + mv + norm", "cat + dots + norm", "stack + cat + mv + norm"
COMPILED, NUMBA, FOREACH, EAGER = "torch.compile(dynamic=True)", "numba", "torch._foreach_norm", "torch"
TOTAL = "torch get_total_norm"
CARD_NORMS = [way.name for way in peer_ways.NORMS]
STEP_BY_STEP, ONE_THREAD = "fastgeom, every step", "fastgeom, one thread"

WAYS: dict[str, list[Way]] = {
    NORM: [
        Way(OURS, ours.norm),
        Way(FOREACH, torch_ways.foreach_norm),
        Way(TOTAL, torch_ways.total_norm),
        Way("torch cat + norm", torch_ways.cat_norm, lambda case: 1),
        Way(COMPILED, torch_ways.compiled_norm, counted=False),
        Way(NUMBA, numba_ways.norm, counted=False),
        *peer_ways.NORMS,
    ],
    CLIP: [Way(OURS, ours.clip), Way("torch clip_grad_norm_", torch_ways.clip_grad_norm)],
    DOT: [
        Way(OURS, ours.dot),
        Way("torch.dot, each pair", torch_ways.dots),
        Way("torch cat + dot", torch_ways.cat_dot, lambda case: 2),
        Way("torch._foreach_mul + sums", torch_ways.foreach_dot, lambda case: 1),
        Way(COMPILED, torch_ways.compiled_dot, counted=False),
        Way(NUMBA, numba_ways.dot, counted=False),
    ],
    WINDOW: [
        Way(OURS, ours.window),
        Way(LEAN, torch_ways.lean),
        Way(CAT_DOTS, torch_ways.cat_dots, lambda case: 1),
        Way(STACK, torch_ways.stack_mv, lambda case: case.window + 1),
        Way(COMPILED, torch_ways.compiled_window, lambda case: case.window, counted=False),
        Way(NUMBA, numba_ways.window, counted=False),
    ],
    STEP: [
        Way(OURS, ours.probe_step),
        Way(LEAN, torch_ways.lean),
        Way(CAT_DOTS, torch_ways.cat_dots, lambda case: 1),
        Way(STACK, torch_ways.stack_mv, lambda case: case.window + 1),
    ],
    DEFERRED: [
        Way(OURS, ours.deferred),
        Way(STEP_BY_STEP, ours.step_by_step),
        Way("cat(out=) + norm, mm every B steps", torch_ways.deferred_mm),
    ],
    UPDATE: [
        Way(OURS, ours.update),
        Way(EAGER, torch_ways.update, lambda case: 5),
        Way(COMPILED, torch_ways.compiled_update, counted=False),
    ],
    SKETCH: [Way(OURS, ours.sketch), Way(ONE_THREAD, ours.sketch_on_one_thread), *peer_ways.PROJECTORS],
    SKETCH_STEP: [Way(OURS, ours.sketch_step)],
}
