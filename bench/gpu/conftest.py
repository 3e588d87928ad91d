"""What the checks that need a card may use: the card itself."""

from collections.abc import Iterator

import pytest

from bench.common.device import Device, this_device


@pytest.fixture(scope="session")
def card() -> Device:
    """The card, or CPU tensors that play it in a dry run."""
    return this_device()


@pytest.fixture(autouse=True)
def memory_given_back(card: Device) -> Iterator[None]:
    """No test finds the tensors of another in its way."""
    yield
    card.forget()
