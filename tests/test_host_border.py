"""Left of recording nothing is read back to the host: run, under modes that raise where torch would have to wait.

`test_layering` reads the sources for the same; here the calls themselves are caught. On CPU tensors a copy to the host
is no operation that torch dispatches, so the methods that make one are caught by name.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastgeom

READS_A_VALUE = {
    "aten::_local_scalar_dense",
    "aten::is_nonzero",
    "aten::equal",
    "aten::nonzero",
    "aten::masked_select",
    "aten::unique_consecutive",
    "aten::_unique2",
    "aten::repeat_interleave.Tensor",
    "aten::bincount",
}
"""Operations whose result, or its shape, must be known on the host before the program can go on."""

COPIES_TO_HOST = {
    "item",
    "cpu",
    "numpy",
    "tolist",
    "nonzero",
    "__array__",
    "__bool__",
    "__float__",
    "__int__",
    "__index__",
    "__complex__",
    "__contains__",
    "__dlpack__",
}


class ReadBackError(Exception):
    """A tensor's content went to the host."""


class NoReadBack(TorchDispatchMode):
    """Raises on operations that need a value on the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        by_mask = name.startswith("aten::index") and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
            for argument in args[1:]
            if isinstance(argument, (list, tuple))
            for index in argument
        )
        if by_mask or name in READS_A_VALUE:
            raise ReadBackError(name)
        return func(*args, **(kwargs or {}))


class NoCopyToHost(TorchFunctionMode):
    """Raises on the methods that take a tensor's content out of torch, even where the tensor lies on the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        targets = [a for a in (*args[1:], *kwargs.values()) if isinstance(a, (str, torch.device))]
        if name in COPIES_TO_HOST or (name == "to" and any(torch.device(t).type == "cpu" for t in targets)):
            raise ReadBackError(name)
        return func(*args, **kwargs)


@contextmanager
def no_reading_back() -> Iterator[None]:
    with ExitStack() as modes:
        modes.enter_context(NoCopyToHost())
        modes.enter_context(NoReadBack())
        yield


@pytest.mark.parametrize(
    "read",
    [
        Tensor.item,
        bool,
        float,
        int,
        Tensor.tolist,
        Tensor.numpy,
        Tensor.cpu,
        lambda t: t.to("cpu"),
        lambda t: t.to(device=torch.device("cpu")),
        lambda t: t.reshape(1)[t.reshape(1) > 0],
        Tensor.nonzero,
        lambda t: torch.equal(t, t),
        lambda t: torch.masked_select(t, t > 0),
        lambda t: range(8)[t.long()],
        lambda t: 1.0 if t > 0 else 0.0,
        lambda t: max(t, t + 1),
    ],
)
def test_the_modes_catch_every_way_of_reading_a_tensor_back(read: Callable[[Tensor], object]) -> None:
    value = torch.tensor(3.0)
    read(value)
    with pytest.raises(ReadBackError), no_reading_back():
        read(value)


@pytest.mark.parametrize("read", [Tensor.item, bool, float, lambda t: t.reshape(1)[t.reshape(1) > 0]])
def test_the_dispatch_mode_alone_catches_what_torch_dispatches(read: Callable[[Tensor], object]) -> None:
    with pytest.raises(ReadBackError), NoReadBack():
        read(torch.tensor(3.0))


def small_model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(48, 2))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["history of its own dtype", "bfloat16 history"])
def test_a_measured_training_loop_reads_nothing_back(dtype) -> None:
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images, target = torch.randn(5, 1, 6, 6), torch.randn(5, 2)
    schedule = fastgeom.bursts(every=5, length=4)
    history = fastgeom.Exact(dtype=dtype)
    measured = []
    with fastgeom.Probe(model, window=4, track_updates=True, schedule=schedule, history=history) as probe:
        for _ in range(12):
            loss = (model(images) - target).square().mean()
            loss.backward()
            with no_reading_back():
                measured.append(probe.step(loss=loss, max_norm=0.5, rate=torch.tensor(0.01)))
            optimizer.step()
            optimizer.zero_grad()
    assert [m is None for m in measured] == [step % 5 == 4 for step in range(12)]
    last = measured[-1]
    assert last is not None
    assert bool(last.lag_dot[0].isfinite()) and bool(last.diff_sq > 0) and bool(last.param_sq > 0)
    assert bool(last.clip_coefficient < 1), "the loop never clipped"


def test_a_probe_attached_to_an_optimizer_reads_nothing_back() -> None:
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with fastgeom.Probe(model, window=4, track_updates=True).attach(optimizer):
        for _ in range(3):
            model(torch.randn(5, 1, 6, 6)).square().mean().backward()
            with no_reading_back():
                optimizer.step()


def test_the_calls_on_lists_of_tensors_read_nothing_back() -> None:
    a, b = ([torch.randn(5, 3), torch.randn(7).bfloat16(), torch.randn(3, 4).t()] for _ in range(2))
    other = [t.double() for t in b]
    parameters = [torch.nn.Parameter(t.clone()) for t in a]
    with no_reading_back():
        fastgeom.norm(a)
        fastgeom.dot(a, b)
        fastgeom.cosine(a, b)
        fastgeom.window_dots(a, [b, other, a])
        fastgeom.window_dots(a, [])
        fastgeom.clip_grad_norm_([], 0.1)
        for norm_type in (2.0, float("inf")):
            for parameter, gradient in zip(parameters, b, strict=True):
                parameter.grad = gradient.clone()
            fastgeom.clip_grad_norm_(parameters, 0.1, norm_type)
    with NoReadBack():  # torch's own norm moves partial norms to the gradients' device, which here is the CPU
        fastgeom.clip_grad_norm_(parameters, 0.1, 1.0)


def test_a_sweep_reads_nothing_back() -> None:
    model = small_model()
    images, target = torch.randn(5, 1, 6, 6), torch.randn(5, 2)

    def closure() -> Tensor:
        model.zero_grad()
        loss = (model(images) - target).square().mean()
        loss.backward()
        return loss

    with no_reading_back():
        sweep = fastgeom.scale_sweep(closure, model.parameters(), [1e-3, 0.1, 10.0])
    assert bool(sweep.cosine.isfinite().all()) and bool(sweep.cosine[0] > sweep.cosine[-1])


def test_error_if_nonfinite_is_the_one_option_that_looks_at_a_value() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    with pytest.raises(ReadBackError), no_reading_back():
        fastgeom.clip_grad_norm_([parameter], 0.1, error_if_nonfinite=True)
