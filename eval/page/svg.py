"""Figures inside an HTML page: SVG that takes the page's colours and font and brings no styles of its own."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path as Outline
from matplotlib.transforms import Affine2D

from eval.figures.style import BLACK, BLUE, GREY, Style

_LONG = re.compile(r"-?\d+\.\d{2,}")
_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
_DROPPED = {"metadata", "style", "title", "desc"}
"""Elements of matplotlib's that must not come into a page: styles there would hold for all of it."""
_PAGE_COLOURS = {BLACK: "currentColor", GREY: "var(--figure-grey)", BLUE.lower(): "var(--figure-blue)"}
"""Colours that change with the page's scheme; the others can be told from either background."""
_KEPT_ATTRIBUTES = {
    "d", "transform", "x", "y", "width", "height", "viewBox", "id", "clip-path", "fill", "stroke", "stroke-width",
    "stroke-linecap", "stroke-linejoin", "stroke-dasharray", "stroke-dashoffset", "stroke-opacity", "fill-opacity",
    "opacity", "text-anchor", "font-size", "patternUnits", "href",
}  # fmt: skip
_COMMANDS = {
    int(Outline.MOVETO): "M",
    int(Outline.LINETO): "L",
    int(Outline.CURVE3): "Q",
    int(Outline.CURVE4): "C",
    int(Outline.CLOSEPOLY): "Z",
}
"""SVG's letter of each of matplotlib's codes."""


def inline_svg(figure: Figure, name: str, title: str, description: str) -> Markup:
    """Return a figure as an `<svg>` element for an HTML page.

    Text stays text, black becomes the page's own colour, the background is none, and attributes take the place of
    styles, so that the page's security policy need not allow any.

    Args:
        figure: the figure.
        name: begins the ids inside, so that several figures can stand in one page.
        title: what it shows, for readers who do not see it.
        description: how it reads, for them.

    Raises:
        ValueError: where the figure holds pixels, which would not follow the page's colours and policy.
    """
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(stream.getvalue())
    _clean(root, name)
    box = root.get("viewBox", "")
    root.attrib = {"viewBox": box, "fill": "currentColor", "stroke-linejoin": "round", "stroke-linecap": "butt"}
    root.attrib |= {"role": "img", "aria-labelledby": f"{name}-title {name}-desc", "class": "figure"}
    for tag, text in (("desc", description), ("title", title)):
        told = ElementTree.Element(tag, {"id": f"{name}-{tag}"})
        told.text = text
        root.insert(0, told)
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # escaped by ElementTree


def _clean(element: ElementTree.Element, name: str) -> None:
    """Take styles, namespaces and foreign elements out of an element and all below it."""
    element.tag = element.tag.removeprefix(_SVG)
    if element.tag == "image":
        raise ValueError(f"figure: expected shapes and text in {name}, got pixels")
    attributes = dict(element.attrib)
    if _LINK in attributes:
        attributes["href"] = attributes.pop(_LINK)
    for rule in attributes.pop("style", "").split(";"):
        key, _, value = (part.strip() for part in rule.partition(":"))
        if key == "font":  # shorthand: the size counts, the family is the page's
            key, value = "font-size", value.split("px")[0].split()[-1]
        if key:
            attributes[key] = value
    element.attrib = {key: _value(key, value, name) for key, value in attributes.items() if key in _KEPT_ATTRIBUTES}
    for child in list(element):
        if not isinstance(child.tag, str) or child.tag.removeprefix(_SVG) in _DROPPED:
            element.remove(child)
        else:
            _clean(child, name)


def _value(key: str, value: str, name: str) -> str:
    """Return an attribute's value with ids of the figure's own, the page's colours and short numbers."""
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return value.replace("#", f"#{name}-", 1)
    if value.startswith("url(#"):
        return value.replace("url(#", f"url(#{name}-", 1)
    if key in ("fill", "stroke"):
        return _PAGE_COLOURS.get(value.lower(), value)
    return _LONG.sub(lambda match: f"{float(match.group()):.2f}".rstrip("0").rstrip("."), value)


def marker_svg(style: Style) -> dict[str, str]:
    """Return an arm's marker as attributes of an SVG `<path>` in a box of 16 by 16 around the origin."""
    shape = MarkerStyle(style.marker)
    path = shape.get_path().transformed(shape.get_transform() + Affine2D().scale(10, -10))
    parts = [
        _COMMANDS[int(code)] + ("" if code == Outline.CLOSEPOLY else " ".join(f"{value:.2f}" for value in points))
        for points, code in path.iter_segments(simplify=False)
    ]
    colour = _PAGE_COLOURS.get(style.colour.lower(), style.colour)
    return {"d": "".join(parts), "fill": "none" if style.hollow else colour, "stroke": colour}
