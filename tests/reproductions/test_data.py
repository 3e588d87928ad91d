"""The data of the reproductions: images as networks read them, and text whose targets are the next characters."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from reproductions.common.data import DataNotFoundError, Examples, describe, load


def test_images_are_standardised_and_every_class_is_there() -> None:
    examples = load("mnist5k", 1000)
    assert examples.inputs.shape == (1000, 1, 28, 28) and len(load("digits")) == 1797
    assert abs(float(examples.inputs.mean())) < 1e-5 and abs(float(examples.inputs.std()) - 1) < 1e-3
    assert examples.targets.bincount().tolist() == [100] * 10 and examples.n_classes == 10


def test_targets_of_text_are_the_next_characters() -> None:
    whole = load("text", 10**6)
    assert whole.inputs.shape == whole.targets.shape == (len(whole), 32)
    assert whole.inputs.dtype == whole.targets.dtype == torch.int64
    assert torch.equal(whole.targets[:, :-1], whole.inputs[:, 1:])
    assert torch.equal(whole.targets[:-1, -1], whole.inputs[1:, 0])  # the sequences touch
    assert whole.inputs.unique().tolist() == list(range(whole.n_classes))


def test_symbols_of_text_are_the_commonest_characters() -> None:
    whole = load("text", 10**6)
    counts = whole.inputs.flatten().bincount()
    assert torch.equal(counts[1:], counts[1:].sort(descending=True).values)
    assert int(counts[0]) < 0.01 * whole.inputs.numel()


def test_part_of_text_is_spread_evenly_over_all_of_it() -> None:
    whole, part = load("text", 10**6), load("text", 100)
    starts = [round(i * len(whole) / 100) for i in (0, 50)]
    assert len(part) == 100
    assert torch.equal(part.inputs[[0, 50]], whole.inputs[starts])


def test_captions_say_how_many_of_what() -> None:
    assert describe("digits", 1797) == "1,797 images of 8×8 digits (scikit-learn)"
    assert describe("text", 200) == "200 sequences of 32 characters of Python's help topics"
    assert load("text", 200).inputs.shape == (200, 32)


def test_taken_rows_are_those_asked_for_in_the_same_memory_order() -> None:
    rows = torch.tensor([3, 0, 3])
    for inputs in (torch.randn(5, 3, 4, 4), torch.randint(0, 9, (5, 7))):
        examples = Examples("noise", inputs, torch.arange(5), 9)
        selected = examples.select(rows)
        assert torch.equal(selected.inputs, inputs[rows]) and selected.targets.tolist() == [3, 0, 3]
        assert (selected.name, selected.n_classes, len(selected)) == ("noise", 9, 3)
        assert not selected.are_images or selected.inputs.is_contiguous(memory_format=torch.channels_last)


def test_moving_to_where_they_are_copies_nothing() -> None:
    examples = load("digits", 10)
    assert examples.to("cpu").inputs.data_ptr() == examples.inputs.data_ptr()
    assert examples.to("meta").targets.device.type == "meta"


def test_unknown_data_are_refused() -> None:
    with pytest.raises(ValueError, match="data: expected one of digits, mnist5k, cifar10, text, got 'imagenet'"):
        load("imagenet")


def test_cifar10_is_read_in_the_forms_it_comes_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
    labels = np.arange(20) % 10
    batches, packed = tmp_path / "torchvision" / "cifar-10-batches-py", tmp_path / "npz"
    batches.mkdir(parents=True)
    packed.mkdir()
    for number, rows in ((1, slice(0, 10)), (2, slice(10, 20))):
        content = {b"data": pixels[rows].reshape(-1, 3072), b"labels": labels[rows].tolist()}
        (batches / f"data_batch_{number}").write_bytes(pickle.dumps(content))
    np.savez(packed / "cifar10.npz", x_train=pixels.transpose(0, 2, 3, 1), y_train=labels[:, None])
    for folder in (batches.parent, batches, packed, packed / "cifar10.npz"):
        monkeypatch.setenv("FASTGEOM_DATA", str(folder))
        examples = load("cifar10", 20)
        assert examples.targets.tolist() == labels.tolist()
        expected = (pixels - pixels.mean()) / pixels.std(ddof=1)
        np.testing.assert_allclose(examples.inputs.numpy(), expected, atol=1e-4)


def test_labels_of_cifar10_are_integers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = np.zeros((20, 32, 32, 3), np.uint8), np.arange(20) % 10
    images[::2] = 1
    monkeypatch.setenv("FASTGEOM_DATA", str(tmp_path / "both.npz"))
    np.savez(tmp_path / "both.npz", a_weights=np.linspace(0, 1, 20), images=images, labels=labels)
    assert load("cifar10", 20).targets.tolist() == labels.tolist()
    monkeypatch.setenv("FASTGEOM_DATA", str(tmp_path / "weights.npz"))
    np.savez(tmp_path / "weights.npz", a_weights=np.linspace(0, 1, 20), images=images)
    with pytest.raises(DataNotFoundError, match="weights.npz holds no 20 labels"):
        load("cifar10", 20)
