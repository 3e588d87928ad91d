"""Parsing of arguments: an error is one line that names what was expected and what was given."""

from __future__ import annotations

import argparse
import math
from typing import NoReturn

MOST_SEED = 10**9
"""Far below the largest seed of torch, so that a figure may add to it."""


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line on stderr and exit status 2."""

    def error(self, message: str) -> NoReturn:
        """Exit with ``message`` alone, without the usage before it."""
        self.exit(2, f"{self.prog}: {message}\n")


def positive_integer(text: str) -> int:
    """Parse a whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return number


def seed_number(text: str) -> int:
    """Parse a whole number from 0 to ``MOST_SEED``."""
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number <= MOST_SEED:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to {MOST_SEED:,}, got {text!r}")
    return number


def positive_number(text: str) -> float:
    """Parse a finite number above 0."""
    number = _number(text)
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(f"expected a finite number above 0, got {text!r}")
    return number


def threshold(text: str) -> float:
    """Parse a number between 0 and 1, both excluded."""
    number = _number(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, both excluded, got {text!r}")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
