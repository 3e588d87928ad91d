"""Peers of the benches: what needs no package is right, and what needs one says so when it is absent."""

import csv
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from bench.common import models
from bench.peers import card_norms, monitors, projectors
from bench.peers.available import Missing, load, require_card
from bench.peers.monitors import WINDOW

SIZES = (0, 1, 7, 1023, 1024, 1025, 8191, 8193, 20_000)


def norm(tensors):
    return float(torch.cat([t.double().reshape(-1) for t in tensors]).norm())


@pytest.mark.parametrize("dtypes", [(torch.float32,), (torch.bfloat16, torch.float32), (torch.float64, torch.float16)])
def test_norm_by_a_pointer_table_is_that_of_float64(device, dtypes):
    tensors = [torch.randn(n, device=device).to(dtypes[i % len(dtypes)]) for i, n in enumerate(SIZES)]
    call = card_norms.pointer_table(tensors)
    result = call()
    assert result.shape == () and result.dtype is torch.float64
    assert float(result) == pytest.approx(norm(tensors), rel=1e-13)
    tensors[-1].mul_(3.0)  # it reads the memory, at every call
    assert float(call()) == pytest.approx(norm(tensors), rel=1e-13)


def test_norm_by_a_pointer_table_reads_no_element_outside(device):
    storage = torch.full((3000,), torch.nan, device=device)
    tensors = [storage[100:101], storage[200 : 200 + 1025], storage[1501 : 1501 + 1023]]
    for tensor in tensors:
        tensor.normal_()
    assert float(card_norms.pointer_table(tensors)()) == pytest.approx(norm(tensors), rel=1e-13)


def test_norm_by_a_pointer_table_refuses_what_does_not_lie_in_one_vector(device):
    for tensor, message in ((torch.ones(4, 4).T[:, :2], "contiguous"), (torch.ones(0), "at least one element")):
        with pytest.raises(Missing, match=message):
            card_norms.pointer_table([tensor.to(device)])


def fake_norm(chunk_elements, overflow, lists, per_tensor):
    """As Apex and TransformerEngine have it: one dtype a call, no empty tensors, float32 of one element and another."""
    (tensors,) = lists
    assert overflow.dtype is torch.int32 and chunk_elements == 65536 and not per_tensor
    assert len({t.dtype for t in tensors}) == 1 and all(t.numel() for t in tensors)
    return torch.tensor([norm(tensors)], dtype=torch.float32), torch.zeros(0)


def fake_applier(operator, overflow, lists, *arguments):
    return operator(65536, overflow, lists, *arguments)


def install(monkeypatch, name, **attributes):
    module = ModuleType(name)
    vars(module).update(attributes)
    monkeypatch.setitem(sys.modules, name, module)


def test_norms_of_apex_and_transformer_engine_are_called_as_they_expect(monkeypatch):
    install(monkeypatch, "amp_C", multi_tensor_l2norm=fake_norm)
    install(monkeypatch, "apex")
    install(monkeypatch, "apex.multi_tensor_apply", multi_tensor_applier=fake_applier)
    for name in ("transformer_engine", "transformer_engine.pytorch"):
        install(monkeypatch, name)
    both = {"multi_tensor_l2norm": fake_norm, "multi_tensor_applier": fake_applier}
    install(monkeypatch, "transformer_engine.pytorch.optimizers", **both)
    monkeypatch.setattr(card_norms, "require_card", lambda tensors: None)
    for dtypes in ((torch.float32,), (torch.float32, torch.bfloat16)):
        tensors = [torch.randn(n).to(dtypes[i % len(dtypes)]) for i, n in enumerate(SIZES)]
        for peer in (card_norms.apex, card_norms.transformer_engine):
            result = peer(tensors)()
            assert result.shape == () and float(result) == pytest.approx(norm(tensors), rel=1e-6), peer


@pytest.mark.parametrize(
    ("make", "module", "message"),
    [
        (card_norms.transformer_engine, "transformer_engine", "transformer-engine: pip install '.[peers-cuda]'"),
        (card_norms.apex, "amp_C", "apex: build Apex from its source with its CUDA extensions"),
        (lambda tensors: projectors.trak(tensors, 128), "trak", "traker: pip install '.[peers]'"),
        (monitors.TensorBoard, "tensorboard", "tensorboard: pip install '.[peers]'"),
        (monitors.WeightsAndBiases, "wandb", "wandb: pip install '.[peers]'"),
        (monitors.Cockpit, "cockpit", "cockpit-for-pytorch: pip install --no-deps cockpit-for-pytorch"),
    ],
)
def test_peer_whose_package_is_absent_says_which(monkeypatch, tmp_path, make, module, message):
    def fail(name):
        raise ModuleNotFoundError(name=module)

    monkeypatch.setattr("importlib.import_module", fail)
    arguments = (nn.Linear(2, 1), tmp_path) if isinstance(make, type) else ([torch.ones(2)],)
    with pytest.raises(Missing) as missing:
        make(*arguments)
    assert str(missing.value).startswith(f"needs the package {message}")


def test_package_that_is_there_and_broken_is_not_called_absent(monkeypatch, tmp_path):
    (tmp_path / "halfinstalled.py").write_text("import a_module_that_no_one_has\n")
    (tmp_path / "unloadable.py").write_text("raise OSError('libcublas.so: cannot open')\n")
    (tmp_path / "warns.py").write_text("import warnings\nwarnings.warn('old', stacklevel=1)\nx = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name, why in (("halfinstalled", "a_module_that_no_one_has"), ("unloadable", "libcublas")):
        with pytest.raises(Missing, match=f"^the package {name} is installed and fails to import: .*{why}"):
            load(name, name, "")
    assert load("warns", "warns", "").x == 1, "warnings of an import are not ours"


def test_card_is_missed(monkeypatch):
    for available, message in ((False, "^needs a CUDA card$"), (True, "got one on cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        with pytest.raises(Missing, match=message):
            require_card([torch.ones(1)])


@pytest.mark.parametrize("peer", projectors.PEERS, ids=lambda peer: peer.make.__name__)
@pytest.mark.parametrize("m", [128, 1024])
def test_projections_estimate_norms_as_theory_says_and_are_linear(device, peer, m):
    x, y = ([torch.randn(n, device=device) + mean for n in (3000, 1, 1999)] for mean in (0.5, -2.0))
    try:
        projectors.check_projection(peer.make, x, y, m)
    except Missing as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("broken", [lambda image: 1.3 * image, lambda image: image.abs(), lambda image: image[:-1]])
def test_check_of_a_projection_notices_what_is_wrong(broken):
    def make(tensors, m):
        call = projectors.stored_count_sketch(tensors, m)
        return lambda: broken(call())

    x, y = [torch.randn(3000)], [torch.randn(3000)]
    with pytest.raises(AssertionError):
        projectors.check_projection(make, x, y, 1024)


@pytest.fixture
def watched(tmp_path):
    """Watches made-up gradients of a small model for more steps than a window; gives them, flat, and the losses."""

    def watch(kind):
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        monitor, gradients, losses = kind(model, tmp_path), [], []
        for step in range(WINDOW + 5):
            for p in model.parameters():
                p.grad = torch.randn_like(p) + 0.5
            before = [p.grad.clone() for p in model.parameters()]
            monitor.step(torch.tensor(0.25 * step))
            assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))
            gradients.append(before)
            losses.append(0.25 * step)
        monitor.close()
        return gradients, losses

    return watch


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors]).double().numpy()


def rows(path):
    with path.open() as file:
        return [[float(value) for value in row] for row in csv.reader(file)]


@pytest.mark.parametrize("kind", [monitors.GlobalNorm, monitors.ParameterNorms], ids=lambda kind: kind.__name__)
def test_monitors_of_norms_write_them(watched, tmp_path, kind):
    gradients, losses = watched(kind)
    each = kind is monitors.ParameterNorms
    expected = [
        [loss, *(np.linalg.norm(flat([one])) for one in g if each), np.linalg.norm(flat(g))]
        for loss, g in zip(losses, gradients, strict=True)
    ]
    np.testing.assert_allclose(rows(tmp_path / "norm.csv"), expected, rtol=1e-6)


@pytest.mark.parametrize("kind", [monitors.LeanWindow, monitors.NumpyWindow], ids=lambda kind: kind.__name__)
def test_windows_write_the_dots_with_the_gradients_before(watched, tmp_path, kind):
    gradients, losses = watched(kind)
    if kind is monitors.LeanWindow:  # a full row a step, with 0 where no gradient was
        written = [[loss, norm, *dots] for *dots, norm, loss in np.load(tmp_path / "dots.npy").tolist()]
    else:
        written = [row + [0.0] * (WINDOW + 2 - len(row)) for row in rows(tmp_path / "norm.csv")]
    for step, row in enumerate(written):
        past = [flat(gradients[step - lag]) if lag <= step else np.zeros(1) for lag in range(1, WINDOW + 1)]
        dots = [float((flat(gradients[step]) * before).sum()) for before in past]
        expected = [losses[step], np.linalg.norm(flat(gradients[step])), *dots]
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-4)
    assert len(written) == len(gradients)


@pytest.mark.parametrize("kind", [monitors.TensorBoard, monitors.Cockpit], ids=lambda kind: kind.__name__)
def test_monitor_of_a_package_writes_something(watched, tmp_path, kind):
    try:
        watched(kind)
    except Missing as missing:
        pytest.skip(str(missing))
    assert any(path.stat().st_size > 0 for path in tmp_path.rglob("*") if path.is_file())


def test_hooks_of_wandb_watch_measure_and_go(tmp_path):
    model = nn.Linear(3, 2)
    try:
        monitor = monitors.WeightsAndBiases(model, tmp_path)
    except Missing as missing:
        pytest.skip(str(missing))
    for _ in range(2):
        loss = model(torch.ones(1, 3)).sum()
        loss.backward()
        monitor.step(loss.detach())
    assert model.weight._backward_hooks
    monitor.close()
    assert not model.weight._backward_hooks
    (written,) = tmp_path.rglob("*.wandb")
    assert b"gradients/weight" in written.read_bytes()


def test_models_of_the_training_bench_are_as_large_as_they_say():
    with torch.device("meta"):
        assert round(sum(p.numel() for p in models.Gpt(2048, 16, 20, 1024).parameters()) / 1e9, 1) == 1.0
    assert round(models.gpt_blocks(torch.device("cpu")).n_elements / 1e6, 1) == 3.3
    assert models.cnn(torch.device("cpu")).n_elements == 6138
