"""The bytes that each statistic must move: the least any implementation can do, and what a bench divides by its time.

``n_elements`` counts one gradient; ``gradient_bytes`` and ``history_bytes`` are the sizes of an element of the gradient
and of one of the history.
"""


def norm_bytes(n_elements: int, gradient_bytes: int = 4) -> int:
    """sum g^2, max |g| and the count of what is not finite: the gradient once."""
    return n_elements * gradient_bytes


def dot_bytes(n_elements: int, gradient_bytes: int = 4) -> int:
    """sum a b: both lists once."""
    return 2 * n_elements * gradient_bytes


def window_bytes(n_elements: int, window: int, gradient_bytes: int = 4, history_bytes: int = 4) -> int:
    """Dots with ``window`` rows and everything else of a step, and the gradient stored: g + (window + 1) h.

    The sums with the row before cost nothing more, since that row is one of the window's.
    """
    return n_elements * (gradient_bytes + (window + 1) * history_bytes)


def update_bytes(n_elements: int, gradient_bytes: int = 4, history_bytes: int = 4, parameter_bytes: int = 4) -> int:
    """Moments of the update: gradient, previous gradient, parameter and snapshot read, the snapshot written."""
    return n_elements * (gradient_bytes + history_bytes + 3 * parameter_bytes)
