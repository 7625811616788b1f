"""Questions about drawn pictures, made on the spot: how many figures, of which colour, of which shape."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from router.validation import STORED, Count, Positive

if TYPE_CHECKING:
    from PIL.Image import Image

COLOURS = {"red": "#d62020", "green": "#18a030", "blue": "#2040e0", "yellow": "#f0d000", "black": "#101010"}
SHAPES = ("circle", "square", "triangle", "cross", "bar")
CELLS = 3
"""Cells of the picture along one side; each holds a figure at most."""
CHOICES = 4


@dataclass(frozen=True, slots=True, config=STORED)
class ShapesSource:
    """A generator of questions about drawn pictures.

    Attributes:
        size: rows in each split.
        seed: seed of the rows; each split has its own.
        most: figures in a picture at most; `metadata.difficulty` says how many there are.
        pixels: width and height of a picture, pixels.
    """

    size: Positive = 1000
    seed: Count = 0
    most: Annotated[int, Field(ge=1, le=CELLS * CELLS)] = 5
    pixels: Annotated[int, Field(ge=8 * CELLS)] = 224


def shape_rows(source: ShapesSource, split: str) -> Iterator[dict[str, Any]]:
    """Yield a split's rows: `image`, `question`, `choices`, `answer` (text), `kind` and `difficulty`.

    Colours and shapes all differ as far as they reach, so that each question has one answer.
    """
    kinds = ("count", "colour", "shape")
    for number in range(source.size):
        rng = random.Random(f"{source.seed}:{split}:{number}")
        kind = kinds[number % len(kinds)]
        figures = _figures(rng, rng.randint(1, source.most))
        asked_shape, asked_colour, _ = figures[0]
        if kind == "count":
            question, answer = "How many figures are in the picture?", str(len(figures))
            others = [str(count) for count in range(1, CELLS * CELLS + 1)]
        elif kind == "colour":
            question, answer, others = f"Which colour is the {asked_shape}?", asked_colour, list(COLOURS)
        else:
            question, answer, others = f"Which shape is {asked_colour}?", asked_shape, list(SHAPES)
        wrong = rng.sample([other for other in others if other != answer], CHOICES - 1)
        choices = sorted([answer, *wrong])
        yield {
            "image": _drawn(figures, source.pixels),
            "question": question,
            "choices": choices,
            "answer": answer,
            "kind": kind,
            "difficulty": len(figures),
        }


def _figures(rng: random.Random, count: int) -> list[tuple[str, str, int]]:
    """Return shape, colour and cell of each figure; the first one's shape and colour are no other's."""
    shape, colour = rng.choice(SHAPES), rng.choice(list(COLOURS))
    shapes = [shape, *(rng.choice([one for one in SHAPES if one != shape]) for _ in range(count - 1))]
    colours = [colour, *(rng.choice([one for one in COLOURS if one != colour]) for _ in range(count - 1))]
    return list(zip(shapes, colours, rng.sample(range(CELLS * CELLS), count), strict=True))


def _drawn(figures: list[tuple[str, str, int]], pixels: int) -> Image:
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (pixels, pixels), "white")
    pen, cell = ImageDraw.Draw(picture), pixels / CELLS
    for shape, colour, place in figures:
        left, top = place % CELLS * cell + cell * 0.15, place // CELLS * cell + cell * 0.15
        side, fill = cell * 0.7, COLOURS[colour]
        right, bottom, third = left + side, top + side, side / 3
        if shape == "circle":
            pen.ellipse((left, top, right, bottom), fill=fill)
        elif shape == "square":
            pen.rectangle((left, top, right, bottom), fill=fill)
        elif shape == "triangle":
            pen.polygon([(left, bottom), (right, bottom), (left + side / 2, top)], fill=fill)
        else:
            pen.rectangle((left, top + third, right, bottom - third), fill=fill)
            if shape == "cross":
                pen.rectangle((left + third, top, right - third, bottom), fill=fill)
    return picture
