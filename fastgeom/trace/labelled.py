"""Conversion of a trace to an ``xarray.Dataset``; the only file of the package that needs xarray."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgeom.schema import DERIVED_FIELDS, STEP, Field
from fastgeom.trace.access import FileIdentity, opened
from fastgeom.trace.file import CONFIGURATION, field_attributes

if TYPE_CHECKING:
    import xarray

Labelled = tuple[tuple[str, ...], np.ndarray]


def to_xarray(
    path: Path,
    expected: FileIdentity,
    arrays: Mapping[str, Labelled],
    coordinates: Mapping[str, np.ndarray | list[str]],
    attributes: Mapping[str, Any],
) -> xarray.Dataset:
    """Make the dataset of ``Trace.to_xarray``, with units, formulas and sources as the file has them.

    Args:
        path: the trace.
        expected: its identity.
        arrays: names of the dimensions and values of each field.
        coordinates: values along each dimension.
        attributes: root attributes.

    Raises:
        ImportError: xarray is not installed.
    """
    try:
        import xarray
    except ImportError as error:
        raise ImportError("Trace.to_xarray() needs xarray: expected it installed, as by pip install xarray") from error
    with opened(path, expected) as file:
        documentation = {name: _text_attributes(file[name].attrs) for name in file}
    documentation |= {f.name: field_attributes(f) for f in _derived_fields()}
    attributes = dict(attributes)
    if CONFIGURATION in attributes:
        attributes[CONFIGURATION] = json.dumps(attributes[CONFIGURATION])
    dataset = xarray.Dataset(
        {name: (*labelled, documentation[name]) for name, labelled in arrays.items() if name != STEP},
        {name: (name, values, documentation[name]) for name, values in coordinates.items() if name in documentation},
        attributes,
    )
    return xarray.decode_cf(dataset)


def _derived_fields() -> list[Field]:
    return [*DERIVED_FIELDS, *(f.layered() for f in DERIVED_FIELDS)]


def _text_attributes(attributes: Any) -> dict[str, str]:
    """Attributes that are texts, without those that HDF5 stores for dimension scales."""
    return {name: value for name, value in attributes.items() if isinstance(value, str)}
