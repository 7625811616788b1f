"""A chain drawn as a strip of layers, one character a layer."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass

from router.chain import Chain


@dataclass(frozen=True)
class Marks:
    """What stands for a layer in a strip.

    Attributes:
        read: it runs, and the router reads what it and those before it made.
        run: it runs once.
        skipped: it does not run.
        moved: it runs in another place.
    """

    read: str
    run: str
    skipped: str
    moved: str

    def legend(self, *, read: bool = True) -> str:
        """Return what the marks mean, in one line; `read`: whether a router reads some layers."""
        return (f"{self.read} runs before the router decides   " if read else "") + (
            f"{self.run} runs   {self.skipped} skipped   2-9 runs so often   {self.moved} runs in another place"
        )


BLOCKS = Marks("▒", "█", "·", "↷")
ASCII = Marks("=", "#", ".", "~")
MEANING = BLOCKS.legend(read=False)
"""What the marks of a chain mean that no router reads."""


def marks_for(encoding: str | None) -> Marks:
    """Return marks that an output of this encoding can show."""
    try:
        "".join(vars(BLOCKS).values()).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return BLOCKS


def draw_strip(chain: Chain, read_layer: int, marks: Marks = BLOCKS) -> str:
    """Return a chain as `num_layers` characters.

    A layer that runs more than once is drawn by how often (9 for more), one that is out of order as moved.

    Args:
        chain: the chain.
        read_layer: layers that the router reads.
        marks: what stands for a layer.
    """
    counts, moved = Counter(chain.layers), _moved(chain)
    strip = []
    for layer in range(chain.num_layers):
        if not counts[layer]:
            strip.append(marks.skipped)
        elif counts[layer] > 1:
            strip.append(str(min(9, counts[layer])))
        elif layer in moved:
            strip.append(marks.moved)
        else:
            strip.append(marks.read if layer < read_layer else marks.run)
    return "".join(strip)


def ruler(num_layers: int) -> str:
    """Return the layers' numbers, every fifth, to stand above or below a strip."""
    line = ""
    for layer in range(0, num_layers, 5):
        line = line.ljust(layer) + str(layer)
    return line


def draw_lines(chain: Chain, read_layer: int = 0, marks: Marks = BLOCKS, width: int = 60) -> list[str]:
    """Return a strip with its ruler below, cut into lines of at most `width` layers."""
    strip, numbers = draw_strip(chain, read_layer, marks), ruler(chain.num_layers)
    lines = []
    for start in range(0, chain.num_layers, width):
        lines += [strip[start : start + width], numbers[start : start + width].rstrip()]
    return lines


def _moved(chain: Chain) -> set[int]:
    """Return the layers outside a longest part of the chain that is in order."""
    ends: list[int] = []  # the smallest last layer of an ordered part, by its length
    places: list[int] = []  # for each of these, its place in the chain
    before: list[int] = []
    for place, layer in enumerate(chain.layers):
        length = bisect_right(ends, layer)
        before.append(places[length - 1] if length else -1)
        ends[length : length + 1], places[length : length + 1] = [layer], [place]
    kept, place = set(), places[-1] if places else -1
    while place >= 0:
        kept.add(place)
        place = before[place]
    return {layer for place, layer in enumerate(chain.layers) if place not in kept}
