"""Runs whose every quantity is known analytically, and what a trace records of them; numpy only."""

import numpy as np


def recorded(gradients: np.ndarray, window: int, step: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """lag_dot and grad_sq as in a trace: lag k means k steps, NaN where step t - k was not measured."""
    step = np.arange(len(gradients)) if step is None else step
    row_of = {int(number): row for row, number in enumerate(step)}
    lag_dot = np.full((len(step), window), np.nan)
    for row, number in enumerate(step):
        for lag in range(1, window + 1):
            if number - lag in row_of:
                lag_dot[row, lag - 1] = gradients[row] @ gradients[row_of[number - lag]]
    return lag_dot, (gradients**2).sum(axis=1)


def differences_and_sums(gradients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """diff_sq and sum_sq of gradients given as rows, NaN for the first."""
    first = [np.nan]
    difference = (np.diff(gradients, axis=0) ** 2).sum(axis=1)
    total = ((gradients[1:] + gradients[:-1]) ** 2).sum(axis=1)
    return np.concatenate([first, difference]), np.concatenate([first, total])


class Descent:
    """Gradient descent on x' A x / 2, A diagonal, step by step; ``eta`` may be one rate or one a step."""

    def __init__(self, eigenvalues: list[float], eta: float | np.ndarray, start: list[float], steps: int) -> None:
        self.eigenvalues, self.eta = np.array(eigenvalues), np.broadcast_to(eta, steps)
        x = [np.array(start)]
        for rate in self.eta:
            x.append(x[-1] - rate * self.eigenvalues * x[-1])
        self.x = np.array(x)
        self.gradients = self.eigenvalues * self.x
        self.loss = 0.5 * (self.eigenvalues * self.x**2).sum(axis=1)
        unknown = np.full((1, len(start)), np.nan)
        updates = np.concatenate([np.diff(self.x, axis=0), unknown])
        following = np.concatenate([self.gradients[1:], unknown])
        self.param_sq, self.update_sq = (self.x**2).sum(axis=1), (updates**2).sum(axis=1)
        self.layer_grad_dot_update = self.gradients * updates  # each coordinate a layer
        self.layer_next_grad_dot_update = following * updates
        self.grad_dot_update = self.layer_grad_dot_update.sum(axis=1)
        self.next_grad_dot_update = self.layer_next_grad_dot_update.sum(axis=1)


def rotation(angle: float, steps: int) -> np.ndarray:
    """A gradient of length 1 that turns by ``angle`` a step."""
    turned = angle * np.arange(steps)
    return np.stack([np.cos(turned), np.sin(turned)], axis=1)
