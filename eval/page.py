"""`report.html`: a report with its figures and samples as one page that opens without a network.

The page asks for nothing outside itself and its security policy forbids it to. Questions and answers are untrusted:
the template escapes, samples travel as data, and the script writes them as text only.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree

import matplotlib
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path as Outline
from matplotlib.transforms import Affine2D

from data.figures import BLACK, BLUE, GREY
from data.sample import Sample
from eval.arms import FULL, GUARANTEE, MIXTURE, ORACLE, ROUTER, STATIC
from eval.figures import Style, drawings_of, short_label, style_of
from eval.measures import Group, Paired
from eval.report import Report, ReportArm, Spread
from eval.results import ArmResult, text_of
from eval.tables import control_lines, group_label, probability, scope_lines
from router.chain import Chain
from router.files import write_text
from router.strip import ASCII, draw_strip
from router.validation import InputError, to_plain

T = TypeVar("T")
PAGE_FILE = "report.html"
MANY_GROUPS = 12
"""Groups from which on their table is folded."""
LEVEL = 0.05
"""P-value, corrected for all comparisons, below which a page says that the router is better."""
NBSP = "\N{NO-BREAK SPACE}"
_UNSAFE = re.compile("[<>&\u2028\u2029\ud800-\udfff]")
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


def write_page(
    report: Report, results: Mapping[str, Sequence[ArmResult]], samples: Sequence[Sample], out: Path
) -> Path:
    """Write the page, complete or not at all.

    Args:
        report: the report.
        results: each arm's results, one a sample.
        samples: the samples, in the order in which they are shown.
        out: the folder, which exists.

    Returns:
        The page's file.

    Raises:
        InputError: where results and samples do not fit.
    """
    path = out / PAGE_FILE
    write_text(path, build_page(report, results, samples))
    return path


def build_page(report: Report, results: Mapping[str, Sequence[ArmResult]], samples: Sequence[Sample]) -> str:
    """Return the page's HTML; see `write_page`."""
    environment = _environment()
    style, script = (_asset(environment, name) for name in ("style.css", "browser.js"))
    return environment.get_template("report.html").render(
        report=report,
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
        data=Markup(script_json(browser_data(report, results, samples))),
        figures=_figures(report),
        markers={arm.name: marker_svg(style_of(arm.name)) for arm in report.arms},
        control_lines=control_lines(report.controls),
        scope_lines=scope_lines(report),
        origins=_origins(report),
        many_groups=MANY_GROUPS,
    )


def _origins(report: Report) -> dict[str, list[tuple[str, str]]]:
    """Return what is shown as it is: settings, choices, versions and hashes, by title."""
    plain = to_plain(report)
    return {
        "All settings": facts(report.provenance.settings),
        "Baselines: how they were chosen": facts(plain["baselines"] | {"static": plain["static"]}),
        "Versions": facts(report.provenance.versions),
        "Inputs (SHA-256)": facts(report.inputs),
        "Fingerprints": facts(plain["fingerprints"]),
    }


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("eval", "page_assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (share, share_interval, points, points_interval, probability, whole, spread, short_label, group_label)
    environment.filters |= {one.__name__: one for one in filters}
    environment.globals |= {one.__name__: one for one in (headline, sentences, task_words)}
    return environment


def _asset(environment: Environment, name: str) -> str:
    """Return a style sheet or script as it stands in the package; it is no template."""
    assert environment.loader is not None
    source, _, _ = environment.loader.get_source(environment, name)
    assert "</" not in source, f"{name} would end its element"
    return source


def _policy(style: str, script: str) -> str:
    """Return the content security policy: this style sheet and this script, nothing else, from nowhere."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _figures(report: Report) -> list[dict[str, Any]]:
    """Return each figure in a wide and a narrow form; the style sheet shows the one that fits the screen."""
    return [
        {
            "title": one.title,
            "caption": one.caption.replace("95 %", f"95{NBSP}%"),
            "wide": inline_svg(one.draw(report, False), f"{one.name}-wide", one.title, one.caption),
            "narrow": inline_svg(one.draw(report, True), f"{one.name}-narrow", one.title, one.caption),
        }
        for one in drawings_of(report)
    ]


def share(value: float | None) -> str:
    """Return a share as per cent, `59.6 %`."""
    return "-" if value is None else f"{100 * value:.1f}{NBSP}%"


def points(value: float | None) -> str:
    """Return a difference of two shares in percentage points, `+1.8`."""
    if value is None:
        return "-"
    text = f"{100 * value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def share_interval(interval: Sequence[float] | None) -> str:
    """Return an interval of a share, `56.8 to 62.3 %`."""
    return "-" if interval is None else f"{100 * interval[0]:.1f} to {share(interval[1])}"


def points_interval(interval: Sequence[float] | None) -> str:
    """Return an interval of a difference in percentage points, `−0.3 to +4.1`."""
    return "-" if interval is None else f"{points(interval[0])} to {points(interval[1])}"


def whole(value: int) -> str:
    """Return a count, `1,200`."""
    return f"{value:,}"


def spread(value: Spread | None, digits: int) -> str:
    """Return a median and its quartiles, `17.5 (17.1 to 18.0)`."""
    if value is None:
        return "-"
    return f"{value.median:.{digits}f} ({value.low:.{digits}f} to {value.high:.{digits}f})"


def headline(report: Report) -> str:
    """Return the result in one sentence."""
    full, router = report.arm(FULL), report.arm(ROUTER)
    return (
        f"With {router.mean_depth:.1f} of {report.model.num_layers} layers the router answers "
        f"{share(router.accuracy)} of the questions right, full depth {share(full.accuracy)}"
    )


def sentences(report: Report) -> list[str]:
    """Return what the result means: against full depth and fixed chains, what is certified, what the oracle is."""
    router, static, oracle = (report.arm(name) for name in (ROUTER, STATIC, ORACLE))
    against_full, against_static = router.against_full, report.router_against[STATIC]
    assert against_full is not None
    bound = f"The oracle, which has seen the answers, reaches {share(oracle.accuracy)}: an upper bound, no method"
    luck = None if report.controls is None else report.controls.luck
    if luck is None or luck.gain is None or luck.net_gain is None:
        bound += ", and part of it is luck."
    else:
        bound += (
            f". Of its search's gain of {points(luck.gain.value)} points, {points(luck.net_gain.value)} "
            f"({points_interval(luck.net_gain.interval)}) are left minus what the wrong-answer search finds."
        )
    headroom = None if report.controls is None else report.controls.headroom
    if headroom is not None and (gain := headroom.over_full["anew"]) is not None:
        bound += (
            f" Chosen on some variants of a question and judged on others, it gains {points(gain.value)} points over "
            f"full depth ({points_interval(gain.interval)})."
        )
    return [
        f"Against full depth the router {_gain(against_full)}: it sets {whole(against_full.wrong_to_right)} answers "
        f"right and breaks {whole(against_full.right_to_wrong)}, of {whole(report.n)}. "
        f"It needs {share(router.flops_ratio)} of full depth's operations.",
        f"Against the best static chain, one for all questions ({static.mean_depth:.1f} layers, "
        f"{share(static.accuracy)}), it {_gain(against_static)}.",
        *(_mixed(arm, report.router_against[MIXTURE]) for arm in report.arms if arm.name == MIXTURE),
        *(_certified(arm, report.model.num_layers) for arm in report.arms if arm.name == GUARANTEE),
        *(_worst(group) for group in report.kinds if group.task == report.worst_kind),
        bound,
    ]


def _mixed(mixture: ReportArm, against: Paired) -> str:
    """Return what the router's reading of the prompt is worth."""
    return (
        f"Against the best mixture of static chains, drawn without reading the prompt "
        f"({mixture.mean_depth:.1f} layers, {share(mixture.accuracy)}), it {_gain(against)}."
    )


def _certified(arm: ReportArm, num_layers: int) -> str:
    """Return what the certified operating point saves here."""
    if arm.mean_depth == num_layers:
        return "Nothing shorter than full depth could be certified."
    promise = arm.label.partition("(")[2].rstrip(")")
    assert arm.against_full is not None
    return (
        f"Certified ({promise}): {arm.mean_depth:.1f} of {num_layers} layers, where the router "
        f"{_gain(arm.against_full)} here."
    )


def _worst(group: Group) -> str:
    """Return what the router loses on the kind (task) on which it loses the most."""
    full, router = group.arms_named(FULL, ROUTER)
    if router.difference is not None and router.difference >= 0:
        return (
            f"On no kind of task is the router below full depth here ({group.task}: "
            f"{points(router.difference)} points, 95{NBSP}% interval {points_interval(router.difference_interval)})."
        )
    return (
        f"By kind of task the router loses the most on {group.task}: {share(router.accuracy)} with "
        f"{router.mean_depth:.1f} layers, full depth {share(full.accuracy)} "
        f"({points(router.difference)} points, 95{NBSP}% interval {points_interval(router.difference_interval)})."
    )


def _gain(pair: Paired) -> str:
    """Return what a paired comparison says, honest where its interval holds 0 or the corrected test finds nothing."""
    low, high = pair.difference_interval
    size = f"{points(abs(pair.difference)).lstrip('+')} points"
    interval = f"95{NBSP}% interval {points_interval((low, high))}"
    p = pair.mcnemar_p if pair.mcnemar_p_holm is None else pair.mcnemar_p_holm
    if low > 0 and p >= LEVEL:
        return f"is {size} ahead, which is not shown ({interval}; p {p:.2f}, corrected for all comparisons)"
    if low > 0:
        return f"is better by {size} ({interval})"
    if high < 0:
        return f"is worse by {size} ({interval})"
    if pair.difference == 0:
        return f"is neither better nor worse ({interval})"
    sense = "ahead" if pair.difference > 0 else "behind"
    return f"is {size} {sense}, which chance alone can explain ({interval})"


def task_words(report: Report) -> str:
    """Return the tasks' names, joined as in a sentence."""
    tasks = report.task.split("+")
    return tasks[0] if len(tasks) == 1 else ", ".join(tasks[:-1]) + " and " + tasks[-1]


def facts(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Return nested JSON data as (name, text) lines, for settings and whatever else is shown as it is."""
    if isinstance(value, Mapping) and value:
        prefix = f"{name}." if name else ""
        return [line for key, inner in value.items() for line in facts(inner, f"{prefix}{key}")]
    if value is None:
        return [(name, "none")]
    return [(name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]


def browser_data(
    report: Report, results: Mapping[str, Sequence[ArmResult]], samples: Sequence[Sample]
) -> dict[str, Any]:
    """Return the browser's data.

    `samples` are columns: `id`, `task` (index into `tasks`), `question`, `choices`, `answer` (index of a choice, or
    text), `context` (index into `texts`, or null), `difficulty`, `subject`. `arms` have `name`, `label`, `saw`, and
    columns in the samples' order: `chain` (index into `chains`: text, strip, depth), `right` (a digit each) and
    `prediction` (index of a choice; -1 - i: text i of `texts`; null: no answer).

    Args:
        report: the report.
        results: each arm's results, one a sample (`read_arms` refuses others).
        samples: the samples, in the order in which they are shown; others than those with results are left out.

    Raises:
        InputError: where a result's sample is missing.
    """
    by_arm = {name: {one.sample_id: one for one in of_arm} for name, of_arm in results.items()}
    wanted = {key for of_arm in by_arm.values() for key in of_arm}
    shown = [sample for sample in samples if sample.id in wanted]
    if missing := wanted - {sample.id for sample in shown}:
        raise InputError(f"samples: expected the sample of every result, got none with id {min(missing)}")
    tasks: dict[str, int] = {}
    texts: dict[str, int] = {}
    chains: dict[Chain, int] = {}
    arms = []
    for arm in report.arms:
        ordered = [by_arm[arm.name][sample.id] for sample in shown]
        arms.append(
            {
                "name": arm.name,
                "label": short_label(arm.label),
                "saw": arm.saw_answers,
                "chain": [_number(chains, one.chain) for one in ordered],
                "right": "".join("1" if one.correct else "0" for one in ordered),
                "prediction": [
                    -1 - _number(texts, one.prediction) if isinstance(one.prediction, str) else one.prediction
                    for one in ordered
                ],
            }
        )
    columns = {
        "id": [sample.id for sample in shown],
        "task": [_number(tasks, sample.task) for sample in shown],
        "question": [sample.question for sample in shown],
        "choices": [list(sample.choices) for sample in shown],
        "answer": [sample.answer for sample in shown],
        "context": [_number(texts, sample.context) if sample.context else None for sample in shown],
        "difficulty": [text_of(sample.label("difficulty")) for sample in shown],
        "subject": [text_of(sample.label("subject")) for sample in shown],
    }
    return {
        "layers": report.model.num_layers,
        "tasks": list(tasks),
        "texts": list(texts),
        "chains": [[str(chain), draw_strip(chain, 0, ASCII), chain.depth] for chain in chains],
        "samples": columns,
        "arms": arms,
    }


def _number(known: dict[T, int], value: T) -> int:
    """Return a value's number by its first coming."""
    return known.setdefault(value, len(known))


def script_json(value: Any) -> str:
    """Return JSON that may stand in an HTML script element, whatever texts it holds.

    What could end the element or a line of script (`<`, `>`, `&`, U+2028, U+2029), or could not be written as UTF-8,
    is escaped.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _UNSAFE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


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
        words = ElementTree.Element(tag, {"id": f"{name}-{tag}"})
        words.text = text
        root.insert(0, words)
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
