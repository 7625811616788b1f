"""The model card of a router (`README.md`): what it is, how it is used, what was measured of it and what it promises.

Every text that comes from a config or a report is escaped: it can end no line, table, code or front matter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not marked so

from router.assets.wheels import read_catalogue
from router.chain import Chain
from router.command import one_line
from router.fingerprint import Fingerprints
from router.heads.layerwise import CLASSES
from router.heads.menu import MenuHead
from router.storage import WEIGHTS_FILE, Router, RouterConfig, weights_sha256
from router.validation import InputError

LIBRARY = "cola-router"
TAGS = ("cola-router", "adaptive-depth", "layer-skipping")
SHOWN_CHAINS, SHOWN_POINTS = 12, 8
"""Chains of a menu, and operating points, that a card lists at most."""
LONGEST = 1000
"""Characters of one text from a report at most."""
_LEADING = re.compile(r"^([0-9]+(?=[.)](?: |$))|(?=[-+=]))")
"""What would begin a list or underline a heading."""
_ESCAPED = re.compile(r"([\\`*_{}\[\]<>|#~&$])")


def model_card(router: Router, *, report: Mapping[str, Any] | None = None) -> str:
    """Return the card of a router as Markdown with front matter.

    Args:
        router: the router.
        report: content of the `report.json` of an evaluation of it; None: nothing was measured on a test split yet.

    Raises:
        InputError: where the report is none, or one of another router.
    """
    config = router.config
    data = ModelCardData(library_name=LIBRARY, pipeline_tag="text-generation", tags=list(TAGS))
    if place_of(config.base_model) == "hub":
        data["base_model"] = config.base_model
        # The router is added to a model that stays as it is; without this the hub would say "finetuned".
        data["base_model_relation"] = "adapter"
    parts = [_summary(router), _use(config), _base_model(config), _head(router), _budgets(router), _guarantee(router)]
    parts += [_measured(router, report), _training(config)]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"))


def place_of(name: str) -> Literal["asset", "hub", "local"]:
    """Return where a base model is found by its name: as `router.engine.load.load_model` tells names apart."""
    if name in read_catalogue()[1]:
        return "asset"
    if refused_id(name) is not None or Path(name).exists():  # no id begins with ".", "/" or "~"
        return "local"
    return "hub"


def refused_id(name: str) -> str | None:
    """Return why a name can be no hub id, on one line; None: it can."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        return one_line(error)
    return None


def plain_text(value: object) -> str:
    """Return a value as Markdown that shows it and does nothing else: on one line, without marks or control letters."""
    text = "".join(letter if letter.isprintable() else "?" for letter in " ".join(str(value).split()))
    text = text if len(text) <= LONGEST else text[:LONGEST] + "..."
    return _LEADING.sub(r"\1\\", _ESCAPED.sub(r"\\\1", text))


def _summary(router: Router) -> str:
    config = router.config
    size = sum(parameter.numel() for parameter in router.head.parameters())
    return (
        f"# Router for {_name(config)}\n\n"
        f"A small network ({size:,} parameters) that reads a frozen language model's states after its first "
        f"{config.read_layer} layers and picks, for each prompt, which of the {config.num_layers} layers run, and "
        "how often. It holds no weights of the language model, which is loaded beside it and stays as it is."
    )


def _use(config: RouterConfig) -> str:
    local = place_of(config.base_model) == "local"
    base = ', base_model="PATH/OF/THE/MODEL"' if local else ""
    return (
        "## How to use\n\n"
        f"`USER/NAME` stands for this repository's id, or for the folder; the Python package is {LIBRARY}.\n\n"
        "```python\n"
        "from router.routed import RoutedModel\n"
        f'model = RoutedModel.from_pretrained("USER/NAME"{base})\n'
        'prompt = model.tokenizer("a prompt", return_tensors="pt").to(model.device)\n'
        "tokens = model.generate(**prompt, max_new_tokens=32)\n"
        "```\n\n"
        "`budget=` takes a mean depth in layers, `guaranteed=True` the certified operating point, where there is one."
    )


def _name(config: RouterConfig) -> str:
    return "a local model" if place_of(config.base_model) == "local" else plain_text(config.base_model)


def _base_model(config: RouterConfig) -> str:
    found = {
        "asset": f"{plain_text(config.base_model)} (an offline asset of {LIBRARY})",
        "hub": f"[{plain_text(config.base_model)}](https://huggingface.co/{config.base_model})",
        "local": "a local model: give your own copy of it, the fingerprint is compared",
    }[place_of(config.base_model)]
    prints = config.fingerprints
    rows = [
        ("base model", found),
        ("revision", "none named" if config.revision is None else plain_text(config.revision)),
        ("fingerprint of the model", plain_text(prints.model)),
        ("fingerprint of the tokenizer", plain_text(prints.tokenizer)),
        ("fingerprint of the prompts", plain_text(prints.prompt)),
        ("dtype whose states it reads", plain_text(config.dtype)),
        ("layers", str(config.num_layers)),
        ("layers that always run first", f"{config.read_layer} (read_layer)"),
    ]
    return "## Base model\n\n" + _table(("what", "value"), rows)


def _head(router: Router) -> str:
    config, head = router.config, router.head
    settings = {name: value for name, value in config.head_settings.items() if name != "chains"}
    told = ", ".join(f"{plain_text(name)} {plain_text(value)}" for name, value in settings.items())
    lines = [f"## Head and chains\n\nHead: {plain_text(config.head)}" + (f" ({told})." if told else ".")]
    free = config.num_layers - config.read_layer
    if isinstance(head, MenuHead):
        lines.append(f"It picks one of {len(head.chains)} chains (a layer's mark: how often it runs, · not at all):")
        lines.append(_drawn(head.chains[:SHOWN_CHAINS]))
        if len(head.chains) > SHOWN_CHAINS:
            lines.append(f"{len(head.chains) - SHOWN_CHAINS} more stand in config.json.")
    else:
        lines.append(
            f"It can say {_count(free * math.log10(len(CLASSES)))} chains: each of the last {free} layers runs not at "
            "all, once or twice."
        )
    return "\n\n".join(lines)


def _count(exponent: float) -> str:
    """Return 10 to the exponent in words."""
    return f"{round(10**exponent):,}" if exponent < 9 else f"about 10^{exponent:.0f}"


def _drawn(chains: Sequence[Chain]) -> str:
    """Return a line for each chain: its text, its depth and a mark for each layer where the order allows it."""
    width = max(len(str(chain)) for chain in chains)
    lines = [f"{chain!s:<{width}}  depth {chain.depth:>3}  {_marks(chain)}".rstrip() for chain in chains]
    return "\n".join(["```text", *lines, "```"])


def _marks(chain: Chain) -> str:
    try:
        counts = chain.to_counts()
    except ValueError:
        return ""  # layers out of order
    return "".join("·" if count == 0 else str(count) if count < 10 else "+" for count in counts)


def _budgets(router: Router) -> str:
    config = router.config
    lines = ["## Operating points"]
    points = sorted(config.budget_points, key=lambda point: point.mean_depth)
    if points:
        low, high = points[0].mean_depth, points[-1].mean_depth
        lines.append(
            f"A budget is a mean depth, {low:.2f} to {high:.2f} layers, as measured on the validation split at "
            f"{len(points)} operating points (offsets of the head's choice), and interpolated between. A single prompt "
            "may run deeper or shallower. What accuracy a budget gives was not measured there."
        )
        step = max(1, math.ceil((len(points) - 1) / (SHOWN_POINTS - 1)))
        shown = [*points[:-1:step], points[-1]]
        rows = [
            (f"{one.mean_depth:.2f}", f"{one.mean_depth / config.num_layers:.1%}", f"{one.offset:.4g}") for one in shown
        ]
        lines.append(_table(("mean depth", "of full depth", "offset"), rows))
    else:
        lines.append("None were measured: it takes no budget, only its own choice.")
    measured = config.training.get("validation")
    if isinstance(measured, Mapping) and measured:
        told = [
            f"{plain_text(name)} {f'{value:.4g}' if isinstance(value, (int, float)) else plain_text(value)}"
            for name, value in measured.items()
        ]
        lines.append("On the validation split, at its own choice: " + ", ".join(told) + ".")
    return "\n\n".join(lines)


def _guarantee(router: Router) -> str:
    title, given = "## Guarantee", router.guarantee
    if given is None:
        return f"{title}\n\nNone: this router was not calibrated."
    sure = f"{1 - given.delta:.4g}"
    if given.loss == "accuracy":
        claim = f"the mean accuracy is at most {given.epsilon:g} below that of full depth"
    else:
        claim = f"at most a share of {given.epsilon:g} of the answers differ from those of full depth"
    if given.offset is None:
        least = given.smallest_epsilon
        could = "for no bound below 1" if least is None else f"for a bound of {least:.4f} or more"
        return (
            f"{title}\n\nNone could be certified: that with probability {sure} {claim}. The {given.samples} "
            f"calibration samples are enough {could}. With `guaranteed=True` every prompt runs at full depth."
        )
    fallback = "" if given.least_score is None else ", prompts of which it is unsure run at full depth,"
    return (
        f"{title}\n\nWith `guaranteed=True`{fallback} {claim}: this holds with probability {sure} over the draw of the "
        f"{given.samples} calibration samples (Learn then Test), for prompts drawn like them. On these samples the "
        f"mean depth was {given.mean_depth:.2f} of {router.config.num_layers} layers and the loss "
        f"{given.mean_loss:+.4f} (below 0: better than full depth)."
    )


def _training(config: RouterConfig) -> str:
    return (
        "## Training, and what it holds for\n\n"
        f"Trained on {plain_text(config.task)}, scored by {plain_text(config.mode)}. Budgets and guarantee hold for "
        "prompts like those of training only: on others the mean depth may be another, and how much accuracy is lost "
        "is not known."
    )


def _measured(router: Router, report: Mapping[str, Any] | None) -> str:
    title = "## Measured"
    if report is None:
        return f"{title}\n\nNothing was measured on a test split yet."
    try:
        _require_own(router, report)
        origin = report["provenance"]
        lines = [
            f"{report['n']:d} samples of {plain_text(report['task'])}, split {plain_text(report['split'])}, judged by "
            f"{plain_text(report['judged_mode'])}, in {plain_text(report['model']['dtype'])}; guessing is right on "
            f"{report['chance_accuracy']:.3f}. Commit {plain_text(origin['commit'] or 'unknown')}, "
            f"{plain_text(origin['started'])}.",
            _table(
                ("arm", "accuracy", "95 %", "mean depth", "against full depth", "95 %", "p"),
                [_row(arm) for arm in report["arms"]],
            ),
            "Against full depth: the paired difference of accuracy on the same samples. Intervals are not corrected; p "
            f"is McNemar's, corrected by {plain_text(report['comparisons']['method'])}, for arms that saw no answers.",
            "\n".join(f"- {plain_text(text)}" for text in [*report["caveats"], *report["notes"]]),
        ]
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"report: expected a report.json of python -m eval, got one without {error}") from error
    return "\n\n".join([title, *lines])


def _require_own(router: Router, report: Mapping[str, Any]) -> None:
    """Refuse the report of another router."""
    digest, told = weights_sha256(router), report["inputs"][f"router/{WEIGHTS_FILE}"]
    if digest != told:
        raise InputError(f"report: expected one of this router's weights {digest[:12]}, got one of {str(told)[:12]}")
    Fingerprints(**report["fingerprints"]).require(router.config.fingerprints, "report")


def _row(arm: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = arm["accuracy_interval"]
    accuracy, depth = f"{arm['accuracy']:.3f}", f"{arm['mean_depth']:.2f}"
    shown = (plain_text(arm["label"]), accuracy, f"{low:.3f} to {high:.3f}", depth)
    against = arm["against_full"]
    if against is None:
        return (*shown, "", "", "")
    low, high = against["difference_interval"]
    p = against["mcnemar_p_holm"]
    told = "" if p is None else "below 0.001" if p < 0.001 else f"{p:.3f}"
    return (*shown, f"{against['difference']:+.3f}", f"{low:+.3f} to {high:+.3f}", told)


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the cells are Markdown already."""
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
