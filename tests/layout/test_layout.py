"""What a layout takes and refuses, and that elements are paired rightly and uncopied whatever their memory order."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastgeom import reference
from fastgeom.engines.cpu import passes
from fastgeom.layout.chunks import CHUNK_ELEMENTS, chunk_table, segments
from fastgeom.layout.layout import Layout
from fastgeom.layout.reader import TensorReader
from fastgeom.validation import DTYPES
from tests.support import assert_accurate


class Block(nn.Module):
    """A parameter of its own, and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(4, 3, bias=False)


class Model(nn.Module):
    """Parameters at the root, in nested modules and frozen ones."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(2))
        self.blocks = nn.ModuleList([Block(), Block()])
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.head = nn.Linear(3, 2)


# ---------------------------------------------------------------- which tensors, in which layers


def test_a_layer_is_the_module_that_owns_the_parameter() -> None:
    layout = Layout(Model())
    assert layout.layers == (
        "(root)",
        "blocks.0",
        "blocks.0.first",
        "blocks.0.second",
        "blocks.1",
        "blocks.1.first",
        "blocks.1.second",
        "head",
    )
    layer_of = {name: layout.layers[i] for name, i in zip(layout.names, layout.layer, strict=True)}
    assert layer_of["offset"] == "(root)"
    assert layer_of["blocks.1.gain"] == "blocks.1"
    assert layer_of["blocks.0.first.bias"] == layer_of["blocks.0.first.weight"] == "blocks.0.first"


def test_layers_may_be_parameters_or_one_or_what_a_callable_says() -> None:
    model = Model()
    assert Layout(model, "parameter").layers == Layout(model).names
    assert Layout(model, "all").layers == ("(all)",)
    by_kind = Layout(model, lambda name: name.rpartition(".")[2])
    assert by_kind.layers == ("offset", "gain", "weight", "bias")
    assert [by_kind.layers[i] for i in by_kind.layer] == [n.rpartition(".")[2] for n in by_kind.names]


def test_frozen_parameters_are_left_out_and_the_others_stand_in_the_module_s_order() -> None:
    model = Model()
    layout = Layout(model)
    assert layout.names == tuple(n for n, p in model.named_parameters() if p.requires_grad)
    assert not any(name.startswith("frozen") for name in layout.names)
    assert all(p is dict(model.named_parameters())[n] for n, p in zip(layout.names, layout.parameters, strict=True))


def test_tied_weights_count_once_under_their_first_name() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert Layout(model).names == ("0.weight", "0.bias", "1.bias")
    weight = nn.Parameter(torch.ones(2))
    assert Layout([("a", weight), ("b", weight), ("c", nn.Parameter(torch.ones(2)))]).names == ("a", "c")


def test_an_iterable_of_names_and_parameters_is_taken_as_it_comes_and_read_once() -> None:
    model = Model()
    expected = Layout(model)
    wanted = ((n, p) for n, p in model.named_parameters() if p.requires_grad)
    from_generator = Layout(wanted)
    assert from_generator.names == expected.names and from_generator.layers == expected.layers
    plain = Layout({"z": torch.ones(3), "a": torch.ones(2)}.items())  # plain tensors, frozen or not: asked for by name
    assert plain.names == ("z", "a") and plain.numels.tolist() == [3, 2]


def test_empty_and_0d_parameters_are_fine() -> None:
    layout = Layout([("nothing", torch.zeros(0, 3)), ("scalar", torch.tensor(2.0)), ("none", torch.zeros(0))])
    assert layout.numels.tolist() == [0, 1, 0]
    assert layout.chunks.tensor.tolist() == [1] and layout.chunks.length.tolist() == [1]
    assert layout.segments.nonempty.tolist() == [0]  # "(root)" owns all three


# ---------------------------------------------------------------- chunks and segments


def test_chunks_cover_each_tensor_once_from_front_to_back() -> None:
    sizes = [0, 1, CHUNK_ELEMENTS - 1, 0, CHUNK_ELEMENTS, CHUNK_ELEMENTS + 1, 3 * CHUNK_ELEMENTS + 5, 0]
    chunks = chunk_table(sizes)
    for tensor, size in enumerate(sizes):
        mine = chunks.tensor == tensor
        ends = (chunks.start + chunks.length)[mine]
        assert chunks.start[mine].tolist() == [0, *ends[:-1]][: mine.sum()]
        assert (ends[-1] if mine.any() else 0) == size
    assert (np.diff(chunks.tensor) >= 0).all()
    assert chunks.length.min() >= 1 and chunks.length.max() == CHUNK_ELEMENTS
    assert len(chunks) == sum(-(-size // CHUNK_ELEMENTS) for size in sizes)


def test_no_tensors_and_empty_tensors_have_no_chunks() -> None:
    assert len(chunk_table([])) == 0 and len(chunk_table([0, 0])) == 0


def test_segments_hold_each_chunk_once_in_its_layer_and_in_order() -> None:
    chunk_layers = np.array([3, 0, 3, 1, 1, 3, 0])
    gathered = segments(chunk_layers, 5)
    ends = [*gathered.first[1:], len(chunk_layers)]
    found = {
        int(layer): gathered.order[first:end].tolist()
        for layer, first, end in zip(gathered.nonempty, gathered.first, ends, strict=True)
    }
    assert found == {0: [1, 6], 1: [3, 4], 3: [0, 2, 5]}
    assert gathered.layers == 5


# ---------------------------------------------------------------- what is refused


def test_a_target_without_anything_to_measure_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^target: expected at least one parameter to measure, got ReLU with 0 param"):
        Layout(nn.ReLU())
    frozen = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match=r"got Linear with 2 parameters, none of which requires a gradient$"):
        Layout(frozen)
    with pytest.raises(ValueError, match=r"got an empty iterable$"):
        Layout([])
    with pytest.raises(ValueError, match=r"got an empty iterable$"):
        Layout(iter(()))


@pytest.mark.parametrize("target", [3, None, torch.ones(3)], ids=str)
def test_a_target_that_is_neither_module_nor_iterable_is_refused(target) -> None:
    with pytest.raises(TypeError, match=rf"^target: expected a module or an iterable .*, got {type(target).__name__}$"):
        Layout(target)


@pytest.mark.parametrize(
    ("second", "found"),
    [
        (torch.ones(2), "Tensor at place 1"),
        (("", torch.ones(2)), "name '' at place 1"),
        ((None, torch.ones(2)), "name None at place 1"),
        ((torch.ones(2), "b"), "name tensor"),
        (("b", torch.ones(2), 3), "name 'b' at place 1"),
        ((), "tuple at place 1"),
    ],
)
def test_a_parameter_without_a_name_is_refused_by_its_place(second, found) -> None:
    with pytest.raises(ValueError, match=rf"^target: expected pairs \(name, parameter\) with a name .*, got {found}"):
        Layout([("a", torch.ones(2)), second])


def test_model_parameters_in_the_place_of_named_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected pairs \(name, parameter\) .*, got Parameter at place 0$"):
        Layout(nn.Linear(2, 2).parameters())


def test_a_name_given_twice_is_refused() -> None:
    same = torch.ones(2)
    for pair in ((torch.ones(2), torch.ones(2)), (same, same)):
        with pytest.raises(ValueError, match=r"^target: expected each name once, got parameter 'a' twice$"):
            Layout([("a", pair[0]), ("a", pair[1])])


class Sharded(torch.Tensor):
    """What tells a DTensor from others."""

    placements = ()


BAD = {
    "sparse": (torch.ones(3).to_sparse(), "expected a dense tensor, got layout torch.sparse_coo"),
    "complex": (torch.ones(3, dtype=torch.complex64), "expected dtype float32, .*, got complex64"),
    "integer": (torch.ones(3, dtype=torch.int32), "expected dtype float32, .*, got int32"),
    "sharded": (torch.ones(3).as_subclass(Sharded), "expected a plain tensor, got a DTensor"),
    "no tensor": (np.ones(3, np.float32), "expected a tensor, got ndarray"),
}


@pytest.mark.parametrize(("bad", "message"), BAD.values(), ids=BAD)
def test_a_parameter_that_cannot_be_measured_is_refused_by_name(bad, message) -> None:
    with pytest.raises(TypeError, match=rf"^parameter 'b': {message}"):
        Layout([("a", torch.ones(2)), ("b", bad)])


def test_parameters_on_two_devices_are_refused_with_a_name_for_each() -> None:
    with pytest.raises(ValueError, match=r"expected all on one device, got {'cpu': 'a', 'meta': 'b'}"):
        Layout([("a", torch.ones(2)), ("b", torch.ones(2, device="meta"))])


@pytest.mark.parametrize("layers", ["layers", "", 3, None])
def test_an_unknown_grouping_is_refused(layers) -> None:
    message = rf"^layers: expected 'module', 'parameter', 'all' or a callable .*, got {layers!r}$"
    with pytest.raises(ValueError, match=message):
        Layout(nn.Linear(2, 2), layers)


@pytest.mark.parametrize("group", [None, 3, ""])
def test_a_callable_that_returns_no_name_is_refused(group) -> None:
    with pytest.raises(TypeError, match=rf"^layers: expected a callable .* got {group!r} for 'weight'$"):
        Layout(nn.Linear(2, 2), lambda name: group)


# ---------------------------------------------------------------- memory order

SHAPE = (4, 3, 6, 5)
ORDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "channels last": lambda t: t.to(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 3).contiguous().transpose(0, 3),
    "every second": lambda t: t.repeat_interleave(2, dim=3)[..., ::2],
    "part of a larger one": lambda t: torch.nn.functional.pad(t, (1, 2))[..., 1:-2],
    "negated view": lambda t: torch._neg_view(-t),
    "negated view, channels last": lambda t: torch._neg_view(-t.to(memory_format=torch.channels_last)),
}
DENSE = ("contiguous", "channels last", "transposed")


def dot_in(layout: Layout, a: list[Tensor], b: list[Tensor]) -> float:
    located = [TensorReader(layout, "gradient").locate(x) for x in (a, b)]
    moments = passes.window_moments(layout.chunks, layout.segments, located[0], rows=[located[1]])
    return float(moments.dots[-1, 0])


@pytest.mark.parametrize("of_b", ORDERS)
@pytest.mark.parametrize("of_a", ORDERS)
@pytest.mark.parametrize("of_parameter", ORDERS)
def test_gradients_are_paired_by_their_indices_whatever_their_order_in_memory(of_parameter, of_a, of_b) -> None:
    a, b = torch.randn(SHAPE), torch.randn(SHAPE)
    layout = Layout([("x", ORDERS[of_parameter](torch.zeros(SHAPE)))])
    ours = dot_in(layout, [ORDERS[of_a](a)], [ORDERS[of_b](b)])
    assert_accurate(ours, reference.dot([a], [b]), torch.mul, [a], [b])


@pytest.mark.parametrize("order", DENSE)
def test_a_gradient_in_the_memory_order_of_its_parameter_is_read_where_it_lies(order) -> None:
    layout = Layout([("x", ORDERS[order](torch.zeros(SHAPE)))])
    reader = TensorReader(layout, "gradient")
    for _ in range(2):
        gradient = ORDERS[order](torch.randn(SHAPE))
        located = reader.locate([gradient])
        assert located.address.tolist() == [gradient.data_ptr()]
        assert located.code.tolist() == [DTYPES.index(torch.float32)]


def test_a_convolution_s_channels_last_weight_and_its_gradient_are_read_where_they_lie() -> None:
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    assert not model.weight.is_contiguous()
    model(torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)).square().sum().backward()
    layout = Layout(model)
    for what, tensors in (("parameter", layout.parameters), ("gradient", [p.grad for p in layout.parameters])):
        located = TensorReader(layout, what).locate(tensors)
        assert located.address.tolist() == [t.data_ptr() for t in tensors]


@pytest.mark.parametrize(("parameter", "gradient"), [("channels last", "contiguous"), ("contiguous", "every second")])
def test_a_gradient_in_another_memory_order_is_copied_into_its_parameter_s(parameter, gradient) -> None:
    layout = Layout([("x", ORDERS[parameter](torch.zeros(SHAPE)))])
    content = torch.randn(SHAPE)
    found = ORDERS[gradient](content)
    located = TensorReader(layout, "gradient").locate([found])
    assert located.address[0] != found.data_ptr()
    (copy,) = located.owners
    assert isinstance(copy, Tensor) and copy.data_ptr() == located.address[0]
    assert copy.stride() == layout.strides[0] and torch.equal(copy, content)


@pytest.mark.parametrize(
    "view",
    [
        lambda: torch.randn(5, 1, 3).transpose(0, 1),
        lambda: torch.randn(1, 3, 1, 1).to(memory_format=torch.channels_last),
        lambda: torch.randn(7)[3],
        lambda: torch.randn(4, 6)[1:2, 2:3],
        lambda: torch.randn(1, 1, 1).expand(1, 1, 1),
        lambda: torch.randn(4, 6)[2],
    ],
    ids=["5x1x3 turned", "1x3x1x1 channels last", "0-d", "one element", "one expanded to one", "a row"],
)
def test_dimensions_of_size_one_do_not_make_an_order(view) -> None:
    gradient = view()
    layout = Layout([("x", torch.zeros(gradient.shape))])
    assert TensorReader(layout, "gradient").locate([gradient]).address.tolist() == [gradient.data_ptr()]
    ours = dot_in(layout, [gradient], [gradient])
    assert_accurate(ours, reference.dot([gradient], [gradient]), torch.mul, [gradient], [gradient])


def test_an_expanded_gradient_counts_every_element() -> None:
    expanded, full = torch.randn(5).expand(3, 5), torch.randn(3, 5)
    for parameter in (torch.zeros(3, 5), torch.zeros(5).expand(3, 5), torch.zeros(5, 3).t()):
        layout = Layout([("x", parameter)])
        ours = dot_in(layout, [expanded], [full])
        assert_accurate(ours, reference.dot([expanded], [full]), torch.mul, [expanded], [full])


# ---------------------------------------------------------------- step after step


def test_what_changes_from_step_to_step_is_found_again_each_time() -> None:
    """Order, dtype, presence, and back: what the reader remembers of one step must not be held against the next."""
    layout = Layout([("x", torch.zeros(SHAPE)), ("y", torch.zeros(7))])
    reader = TensorReader(layout, "gradient")
    y = torch.randn(7)
    row = [torch.randn(SHAPE), torch.randn(7)]
    row_table = TensorReader(layout, "gradient").locate(row)
    steps = ["contiguous", "channels last", "channels last", "contiguous", "negated view", "contiguous", "every second"]
    for order in steps:
        x = ORDERS[order](torch.randn(SHAPE))
        located = reader.locate([x, y])
        moments = passes.window_moments(layout.chunks, layout.segments, located, rows=[row_table])
        assert_accurate(float(moments.dots[-1, 0]), reference.dot([x, y], row), torch.mul, [x, y], row)
        assert (located.address[0] == x.data_ptr()) == (order == "contiguous")
        assert located.address[1] == y.data_ptr()
    assert reader.locate([None, y]).address.tolist() == [0, y.data_ptr()]
    half = torch.randn(SHAPE).bfloat16()
    located = reader.locate([half, None])
    assert located.address.tolist() == [half.data_ptr(), 0]
    assert DTYPES[located.code[0]] is torch.bfloat16


def test_a_missing_gradient_has_its_parameter_s_dtype() -> None:
    layout = Layout([("x", torch.zeros(3, dtype=torch.float64)), ("y", torch.zeros(3, dtype=torch.bfloat16))])
    located = TensorReader(layout, "gradient").locate([None, None])
    assert located.address.tolist() == [0, 0]
    assert [DTYPES[code] for code in located.code] == [torch.float64, torch.bfloat16]


def test_a_shape_that_changed_is_refused_by_name_at_any_step_and_the_next_good_one_is_read() -> None:
    layout = Layout([("x", torch.zeros(2)), ("w", torch.zeros(3, 4))])
    good = [torch.ones(2), torch.ones(3, 4)]
    for what, named in (("gradient", "gradient of 'w'"), ("parameter", "parameter 'w'")):
        reader = TensorReader(layout, what)
        for _ in range(2):
            with pytest.raises(ValueError, match=rf"^{named}: expected shape \(3, 4\) as at the start, got \(4, 3\)$"):
                reader.locate([torch.ones(2), torch.ones(4, 3)])
            assert reader.locate(good).address.tolist() == [t.data_ptr() for t in good]


def test_a_parameter_whose_data_was_replaced_is_read_at_its_new_place() -> None:
    model = nn.Linear(3, 2)
    layout = Layout(model)
    reader = TensorReader(layout, "parameter")
    reader.locate(layout.parameters)
    model.weight.data = torch.randn(2, 3)
    assert reader.locate(layout.parameters).address[0] == model.weight.data_ptr()
    model.weight.data = torch.randn(2, 4)
    with pytest.raises(
        ValueError, match=r"^parameter 'weight': expected shape \(2, 3\) as at the start, got \(2, 4\)$"
    ):
        reader.locate(layout.parameters)


@pytest.mark.parametrize(("bad", "message"), BAD.values(), ids=BAD)
def test_a_gradient_that_cannot_be_measured_is_refused_by_name_at_the_first_step_and_later(bad, message) -> None:
    layout = Layout([("x", torch.zeros(3)), ("y", torch.zeros(3))])
    fresh, used = TensorReader(layout, "gradient"), TensorReader(layout, "gradient")
    used.locate([torch.ones(3), torch.ones(3)])
    for reader in (fresh, used):
        with pytest.raises(TypeError, match=rf"^gradient of 'y': {message}"):
            reader.locate([torch.ones(3), bad])


def test_a_gradient_on_another_device_is_refused_by_name() -> None:
    layout = Layout([("x", torch.zeros(3))])
    with pytest.raises(ValueError, match=r"^gradient of 'x': expected it on cpu with all others, got meta$"):
        TensorReader(layout, "gradient").locate([torch.ones(3, device="meta")])
