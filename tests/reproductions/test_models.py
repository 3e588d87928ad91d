"""The networks of the reproductions, and exact gradients in pieces: shapes, seeds, values by hand, bad combinations."""

import re

import numpy as np
import pytest
import torch

import fastgeom
from reproductions.common.data import Examples, load
from reproductions.common.descent import LOSSES, add_batch_gradient, add_full_batch_gradient, loss_terms
from reproductions.common.models import NETWORKS, build, count_parameters, describe

LARGE = ("resnet18", "vgg11")
SMALL = [name for name in NETWORKS if name not in LARGE]
OF_IMAGES = [name for name, network in NETWORKS.items() if network.reads == "images"]
WITHOUT_BATCH_NORM = [name for name in SMALL if not name.endswith("-bn")]

pytestmark = pytest.mark.usefixtures("one_thread")


def noise(*shape: int) -> Examples:
    """Images of nothing."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last)
    return Examples("noise", images, torch.arange(shape[0]) % 10, 10)


def fitting(name: str, n: int) -> Examples:
    return load("text" if NETWORKS[name].reads == "text" else "digits", n)


def gradients(model: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)], ids=str)
@pytest.mark.parametrize("name", OF_IMAGES)
def test_image_networks_take_a_step_on_every_size(name: str, shape: tuple[int, int, int]) -> None:
    examples = noise(4, *shape)
    model = build(name, examples, seed=0)
    assert model(examples.inputs).shape == (4, 10)
    loss = add_full_batch_gradient(model, examples)
    assert loss.dtype == torch.float64 and not loss.requires_grad and loss.isfinite()
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients(model))


def test_transformer_takes_a_step() -> None:
    examples = load("text", 20)
    model = build("transformer", examples, seed=0)
    assert model(examples.inputs).shape == (20, 32, examples.n_classes)
    assert add_full_batch_gradient(model, examples) == pytest.approx(np.log(examples.n_classes), rel=0.2)
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients(model))


def test_transformer_sees_no_later_character() -> None:
    examples = load("text", 4)
    model, changed = build("transformer", examples, seed=0), examples.inputs.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % examples.n_classes
    before, after = model(examples.inputs), model(changed)
    torch.testing.assert_close(after[:, :20], before[:, :20])
    assert ((after - before)[:, 20:].abs().amax(-1) > 1e-3).all()


@pytest.mark.parametrize("name", SMALL)
def test_a_seed_gives_the_same_weights_and_leaves_the_global_state(name: str) -> None:
    examples, state = fitting(name, 10), torch.get_rng_state()
    first, again, other = (build(name, examples, seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_cnn_is_drawn_as_it_always_was() -> None:
    """By the global generator and torch's default initialisation, layer after layer."""
    model = build("cnn", load("digits", 10), seed=3)
    torch.manual_seed(3)
    expected = [
        torch.nn.Conv2d(1, 8, 3),
        torch.nn.Conv2d(8, 16, 3),
        torch.nn.Conv2d(16, 16, 3),
        torch.nn.Linear(16, 10),
    ]
    found = [model.conv1, model.conv2, model.conv3, model.linear]
    for layer, drawn in zip(found, expected, strict=True):
        assert torch.equal(layer.weight, drawn.weight) and torch.equal(layer.bias, drawn.bias)


@pytest.mark.parametrize("end", ["", "-bn"])
def test_plain_network_is_the_resnet_without_its_skips(end: str) -> None:
    examples = load("digits", 10)
    resnet, plain = build("resnet" + end, examples, seed=0), build("plain" + end, examples, seed=0)
    assert resnet.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(resnet.parameters(), plain.parameters(), strict=True))
    assert not torch.allclose(resnet(examples.inputs), plain(examples.inputs))


def test_a_residual_branch_of_zeros_leaves_the_input() -> None:
    examples = noise(2, 3, 8, 8)
    block = build("resnet", examples, seed=0).block2  # 8 to 16 channels, stride 2
    torch.nn.init.zeros_(block.conv2.weight)
    images = torch.rand(2, 8, 6, 6)
    halved = block(images)
    assert torch.equal(halved[:, :8], images[:, :, ::2, ::2]) and not halved[:, 8:].any()


@pytest.mark.parametrize("name", OF_IMAGES)
def test_weights_are_channels_last(name: str) -> None:
    weights = [p for p in build(name, noise(2, 3, 8, 8), seed=0).parameters() if p.ndim == 4]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def test_layers_have_names_for_a_figure() -> None:
    layers = {name: list(fastgeom.Probe(build(name, fitting(name, 10), 0)).layers) for name in SMALL}
    assert layers["mlp"] == ["linear1", "linear2", "linear"]
    assert layers["vgg"] == [*(f"conv{number}" for number in range(1, 7)), "linear"]
    assert layers["resnet"] == ["conv1", *(f"block{b}.conv{c}" for b in (1, 2, 3) for c in (1, 2)), "linear"]
    assert layers["resnet-bn"][:4] == ["conv1", "norm1", "block1.conv1", "block1.norm1"]
    assert layers["transformer"][:4] == ["embedding", "positions", "block1.norm1", "block1.query_key_value"]


def test_sizes_are_those_of_the_literature() -> None:
    colour = noise(2, 3, 32, 32)
    assert count_parameters(build("resnet18", colour, 0)) == 11_173_962
    assert count_parameters(build("vgg11", colour, 0)) == 9_220_480 + 5_130  # torchvision's features, and one layer


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", WITHOUT_BATCH_NORM)
def test_full_batch_gradient_does_not_depend_on_the_pieces(name: str, loss: str) -> None:
    examples = fitting(name, 41)
    model = build(name, examples, seed=0)
    whole = add_full_batch_gradient(model, examples, loss, micro_batch=41)
    expected = [gradient.clone() for gradient in gradients(model)]
    for micro_batch in (20, 7):
        model.zero_grad()
        torch.testing.assert_close(
            add_full_batch_gradient(model, examples, loss, micro_batch), whole, rtol=1e-6, atol=0
        )
        for gradient, reference in zip(gradients(model), expected, strict=True):
            torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_cross_entropy_is_the_mean_over_all_targets(name: str) -> None:
    examples = fitting(name, 30)
    model = build(name, examples, seed=0)
    direct = torch.nn.functional.cross_entropy(model(examples.inputs).flatten(0, -2), examples.targets.flatten())
    expected = torch.autograd.grad(direct, list(model.parameters()))
    torch.testing.assert_close(add_full_batch_gradient(model, examples), direct.detach().double(), rtol=1e-6, atol=0)
    for gradient, reference in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-6)


def test_mse_by_hand() -> None:
    """Outputs (1, 2) and (0, 3) with targets 0 and 1: half of (0 + 4 + 0 + 4) over two examples."""
    examples = Examples("numbers", torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.tensor([0, 1]), 2)
    model = torch.nn.Linear(2, 2, bias=False)
    torch.nn.init.eye_(model.weight)
    assert add_full_batch_gradient(model, examples, "mse") == 2
    torch.testing.assert_close(model.weight.grad, torch.tensor([[0.0, 0.0], [1.0, 5.0]]))


def test_pieces_carry_graphs_and_add_up() -> None:
    examples = load("digits", 25)
    model = build("cnn", examples, seed=0)
    terms = list(loss_terms(model, examples, micro_batch=10))
    assert len(terms) == 3 and all(term.requires_grad for term in terms)
    assert float(sum(terms).detach()) == pytest.approx(float(add_full_batch_gradient(model, examples)), rel=1e-6)


def test_batch_gradients_of_a_partition_average_to_the_full_one() -> None:
    examples = load("digits", 30)
    model = build("cnn", examples, seed=0)
    loss = add_full_batch_gradient(model, examples, "mse")
    expected = [gradient.clone() for gradient in gradients(model)]
    model.zero_grad()
    losses = [add_batch_gradient(model, examples, rows, "mse") for rows in torch.randperm(30).split(10)]
    assert float(sum(losses)) / 3 == pytest.approx(float(loss), rel=1e-6)
    for gradient, reference in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(gradient / 3, reference, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["cnn", "vgg", "resnet", "resnet-bn"])
def test_captions_name_the_channels_that_there_are(name: str) -> None:
    """Of every convolution, or of every pair of them."""
    layers = [layer for layer in build(name, noise(2, 1, 8, 8), 0).modules() if isinstance(layer, torch.nn.Conv2d)]
    stem = layers[1:] if name.startswith("resnet") else layers
    channels = [layer.out_channels for layer in (stem if name == "cnn" else stem[::2])]
    assert f" {'-'.join(map(str, channels))} channels" in describe(name)


def test_no_two_networks_have_one_caption() -> None:
    assert len({describe(name) for name in NETWORKS}) == len(NETWORKS)


@pytest.mark.parametrize(
    ("network", "data", "message"),
    [
        ("resnet50", "digits", "network: expected one of mlp, cnn, vgg, resnet, "),
        (
            "transformer",
            "digits",
            "network 'transformer': expected text to read, got images (8×8 digits (scikit-learn))",
        ),
        ("cnn", "text", "network 'cnn': expected images to read, got text (Python's help topics)"),
    ],
)
def test_what_does_not_fit_is_refused(network: str, data: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build(network, load(data, 10), seed=0)


def test_unknown_loss_is_refused() -> None:
    examples = load("digits", 10)
    with pytest.raises(ValueError, match="loss: expected one of cross-entropy, mse, got 'hinge'"):
        add_full_batch_gradient(build("cnn", examples, 0), examples, "hinge")
