"""Sharpness from Hessian-vector products against the eigenvalues of the dense Hessian."""

import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from reproductions.common.sharpness import hessian_product, sharpness


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other take forty times as long over so small a network on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Task:
    """A small network, its data, and its loss in pieces."""

    def __init__(self, dtype: torch.dtype = torch.float64, cut: int = 7) -> None:
        self.model = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).to(dtype)
        self.x, self.y = torch.randn(30, 5, dtype=dtype), torch.randint(3, (30,))
        self.parameters = list(self.model.parameters())
        self.cut, self.calls = cut, 0

    def pieces(self) -> Iterator[Tensor]:
        self.calls += 1
        for x, y in zip(self.x.split(self.cut), self.y.split(self.cut), strict=True):
            yield functional.cross_entropy(self.model(x), y, reduction="sum") / len(self.y)

    def dense(self) -> Tensor:
        """The Hessian in float64, of the whole loss at once."""
        named = {name: p.detach().double() for name, p in self.model.named_parameters()}
        sizes, shapes = [p.numel() for p in named.values()], [p.shape for p in named.values()]

        def loss(flat: Tensor) -> Tensor:
            values = (v.reshape(s) for v, s in zip(flat.split(sizes), shapes, strict=True))
            output = torch.func.functional_call(self.model, dict(zip(named, values, strict=True)), (self.x.double(),))
            return functional.cross_entropy(output, self.y)

        x = torch.cat([p.reshape(-1) for p in named.values()])
        return torch.autograd.functional.hessian(loss, x, vectorize=True)


@pytest.mark.parametrize(("dtype", "unit"), [(torch.float64, 2.0**-53), (torch.float32, 2.0**-24)], ids=str)
@pytest.mark.parametrize("cut", [30, 7, 1])
def test_a_product_is_that_of_the_dense_hessian(dtype, unit, cut) -> None:
    task = Task(dtype, cut)
    hessian, v = task.dense().numpy(), np.random.default_rng(1).standard_normal(57)
    error = np.linalg.norm(hessian_product(task.parameters, task.pieces, v) - hessian @ v)
    assert error <= 8 * unit * np.linalg.norm(hessian, 2) * np.linalg.norm(v)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_it_is_the_largest_eigenvalue_of_the_dense_hessian(dtype) -> None:
    task = Task(dtype)
    values, vectors = np.linalg.eigh(task.dense().numpy())
    found, vector = sharpness(task.parameters, task.pieces, tolerance=1e-6)
    assert isinstance(found, float) and vector.dtype == np.float64 and vector.shape == (57,)
    assert found == pytest.approx(values[-1], rel=1e-6)
    assert abs(vector @ vectors[:, -1]) == pytest.approx(1, abs=1e-6)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-12)


def test_at_the_default_tolerance_the_eigenvalue_is_far_better_than_the_vector() -> None:
    task = Task()
    values, _ = np.linalg.eigh(task.dense().numpy())
    found, vector = sharpness(task.parameters, task.pieces)
    residual = np.linalg.norm(hessian_product(task.parameters, task.pieces, vector) - found * vector)
    assert residual <= 1.01e-3 * found
    assert abs(found - values[-1]) <= residual**2 / (values[-1] - values[-2]) + 1e-12


def test_it_is_the_largest_and_not_the_one_of_largest_magnitude() -> None:
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    curvature = torch.tensor([-50.0, 2.0, 1.0], dtype=torch.float64)
    found, vector = sharpness([x], lambda: [0.5 * (curvature * x**2).sum()])
    assert found == pytest.approx(2) and abs(vector[1]) == pytest.approx(1)


def test_a_warm_start_saves_products() -> None:
    task = Task()
    sharpness(task.parameters, task.pieces, tolerance=1e-6)
    cold = task.calls
    found, vector = sharpness(task.parameters, task.pieces, tolerance=1e-12)
    task.calls = 0
    with torch.no_grad():
        for parameter in task.parameters:
            parameter.mul_(1.001)
    assert sharpness(task.parameters, task.pieces, vector, 1e-6)[0] == pytest.approx(found, rel=0.01)
    assert task.calls < cold


@pytest.mark.parametrize("stale", [1, 2, 30])
def test_a_start_at_another_eigenvector_finds_the_largest_all_the_same(stale) -> None:
    task = Task()
    values, vectors = np.linalg.eigh(task.dense().numpy())
    found, _ = sharpness(task.parameters, task.pieces, vectors[:, -1 - stale])
    assert found == pytest.approx(values[-1], rel=1e-4)


def test_a_start_without_any_part_of_the_largest_eigenvector_finds_it_all_the_same() -> None:
    x = torch.randn(40, dtype=torch.float64, requires_grad=True)
    curvature = torch.linspace(0, 1, 40, dtype=torch.float64)
    curvature[-1] = 3
    start = np.r_[np.ones(39), 0]
    found, _ = sharpness([x], lambda: [0.5 * (curvature * x**2).sum()], start)
    assert found == pytest.approx(3, rel=1e-5)


def test_the_same_call_gives_the_same_number() -> None:
    task = Task()
    first, second = (sharpness(task.parameters, task.pieces) for _ in range(2))
    assert first[0] == second[0] and np.array_equal(first[1], second[1])


def test_what_a_piece_does_not_depend_on_or_is_linear_in_has_no_curvature() -> None:
    x, y, unused = (torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(3))
    scales = torch.tensor([1.0, 3.0], dtype=torch.float64)
    found, vector = sharpness([unused, x, y], lambda: iter([y.sum(), (scales * x**2).sum() + 2 * y.sum()]))
    assert found == pytest.approx(6)
    np.testing.assert_allclose(np.abs(vector), [0, 0, 0, 1, 0, 0], atol=1e-6)
    assert np.array_equal(hessian_product([x], lambda: [x.sum()], np.ones(2)), [0, 0])


def test_one_piece_s_graph_is_gone_before_the_next_is_made_and_gradients_are_left_alone() -> None:
    task = Task()
    made: list[weakref.ref[Tensor]] = []

    def pieces() -> Iterator[Tensor]:
        for piece in task.pieces():
            assert all(earlier() is None for earlier in made[:-1])
            made.append(weakref.ref(piece))
            yield piece

    with torch.no_grad():
        hessian_product(task.parameters, pieces, np.ones(57))
    assert len(made) == 5 and all(p.grad is None for p in task.parameters)
