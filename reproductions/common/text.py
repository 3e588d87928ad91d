"""Text: the documentation of the language that ships with Python."""

from __future__ import annotations

from collections import Counter

import numpy as np

N_SYMBOLS = 64
CONTEXT = 32
"""Characters a sequence."""


def help_topics() -> tuple[np.ndarray, np.ndarray]:
    """Cut the topics of Python's ``help`` into adjacent sequences of characters.

    ``pydoc_data.topics`` holds about 465,000 characters of English and of examples; its topics are joined in the order
    of their names. The commonest 63 characters are symbols 1 to 63 and all rarer ones (0.6 %) are symbol 0, so that a
    network has the same shape whatever the text.

    **The text differs between versions of Python**, and the losses with it: compare statistics.

    Returns:
        Inputs and targets, int64, both of shape (n, ``CONTEXT``); ``targets[i, j]`` is the character after
        ``inputs[i, j]``.
    """
    from pydoc_data.topics import topics

    text = "".join(topics[name] for name in sorted(topics))
    commonest = sorted(Counter(text).items(), key=lambda item: (-item[1], item[0]))[: N_SYMBOLS - 1]
    symbol = {character: number for number, (character, _) in enumerate(commonest, start=1)}
    symbols = np.array([symbol.get(character, 0) for character in text], np.int64)
    n = (len(symbols) - 1) // CONTEXT
    return symbols[: n * CONTEXT].reshape(n, CONTEXT), symbols[1 : n * CONTEXT + 1].reshape(n, CONTEXT)
