"""Give attributes of older trace files their present names.

Before ``groups=`` of a probe became ``layers=``, the attribute ``configuration`` had an entry ``groups``, with other
values, and wrote ``Sketch(record=...)`` for ``Sketch(stored_size=...)``. Fields and dimensions have the same names.
"""

from __future__ import annotations

from typing import Any

_LAYERS = {"layer": "module", "parameter": "parameter", "global": "all"}
"""From values of ``groups`` to values of ``layers``; any other is the name of a callable, which is the same."""


def rename_configuration(configuration: Any) -> Any:
    """Rename the entries of an older configuration; return any other unchanged.

    Args:
        configuration: the decoded attribute ``configuration``.

    Returns:
        The configuration under the present names, its entries in the same order.
    """
    if not isinstance(configuration, dict) or "groups" not in configuration or "layers" in configuration:
        return configuration
    renamed: dict[str, Any] = {}
    for name, value in configuration.items():
        if name == "groups":
            renamed["layers"] = _LAYERS.get(value, value)
        elif name == "history":
            renamed[name] = str(value).replace(" record=", " stored_size=")
        else:
            renamed[name] = value
    return renamed
