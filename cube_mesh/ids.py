"""Random identifiers, cheap enough to make several for every request."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

_BLOCK = 4096  # bytes read from the kernel at once


def hex_ids(length: int, random: Callable[[int], bytes] = os.urandom) -> Callable[[], str]:
    """A source of lower-case hex strings of ``length`` digits, from one ``random`` call per 4 KiB.

    Not for secrets that outlive a request. Not safe across fork: both sides would hand out the same values.
    """

    def pieces() -> Iterator[str]:
        while True:
            block = random(_BLOCK).hex()
            for at in range(0, len(block) - length + 1, length):
                yield block[at : at + length]

    return pieces().__next__
