"""Random identifiers, cheap enough to make several for every request."""

from __future__ import annotations

import os
from collections.abc import Callable

from cube_mesh._fastpath import HexIds


def hex_ids(length: int, random: Callable[[int], bytes] = os.urandom) -> Callable[[], str]:
    """A source of lower-case hex strings of ``length`` digits (even, at most 64), from one ``random`` call per 4 KiB.

    Not for secrets that outlive a request. Not safe across fork: both sides would hand out the same values.
    """
    return HexIds(length, random)
