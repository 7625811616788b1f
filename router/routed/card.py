"""The model card of a router (`README.md`): what it is, how it is used, what was measured of it and what it promises.

Every text that comes from a config or a report is escaped: it can end no line, table, code or front matter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not marked so

from router.assets.wheels import read_catalogue
from router.chain import Chain
from router.command import one_line
from router.decision import Router
from router.fingerprint import Fingerprints
from router.heads.layerwise import CLASSES
from router.heads.menu import MenuHead
from router.storage import WEIGHTS_FILE, weights_sha256
from router.strip import BLOCKS, draw_strip
from router.validation import InputError, from_plain

TEMPLATE = Path(__file__).with_name("card.md")
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
    """Return the card of a router as Markdown with front matter; the text of it is the template `card.md`.

    Args:
        router: the router.
        report: content of the `report.json` of an evaluation of it; None: nothing was measured on a test split yet.

    Raises:
        InputError: where the report is none, or one of another router.
    """
    config, head = router.config, router.head
    place = place_of(config.base_model)
    data = ModelCardData(library_name=LIBRARY, pipeline_tag="text-generation", tags=list(TAGS))
    if place == "hub":
        data["base_model"] = config.base_model
        # The router is added to a model that stays as it is; without this the hub would say "finetuned".
        data["base_model_relation"] = "adapter"
    prints = config.fingerprints
    told = {
        "revision": "none named" if config.revision is None else config.revision,
        "fingerprint of the model": prints.model,
        "fingerprint of the tokenizer": prints.tokenizer,
        "fingerprint of the prompts": prints.prompt,
        "dtype whose states it reads": config.dtype,
    }
    chains = head.chains if isinstance(head, MenuHead) else ()
    points = sorted(config.budget_points, key=lambda point: point.mean_depth)
    step = max(1, math.ceil((len(points) - 1) / (SHOWN_POINTS - 1)))
    free = config.num_layers - config.read_layer
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        config=config,
        place=place,
        name="a local model" if place == "local" else plain_text(config.base_model),
        parameters=router.parameters,
        told=[(what, plain_text(value)) for what, value in told.items()],
        head_settings=_named({name: value for name, value in config.head_settings.items() if name != "chains"}),
        chains=chains,
        shown_chains=SHOWN_CHAINS,
        draw=_drawing(chains, config.read_layer),
        legend=BLOCKS.legend(),
        count=_count(free * math.log10(len(CLASSES))),
        points=points,
        shown_points=[*points[:-1:step], points[-1]] if points else [],
        validation=_named(config.training.get("validation")),
        guarantee=router.guarantee,
        measured=None if report is None else _measured(router, report),
        task=plain_text(config.task),
        mode=plain_text(config.mode),
    )
    return str(card)


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


def _named(values: Any) -> str:
    """Return names with their values as one text; empty where there are none."""
    if not isinstance(values, Mapping):
        return ""
    shown = {name: f"{value:.4g}" if isinstance(value, float) else plain_text(value) for name, value in values.items()}
    return ", ".join(f"{plain_text(name)} {value}" for name, value in shown.items())


def _drawing(chains: Sequence[Chain], read_layer: int) -> Callable[[Chain], str]:
    """Return what draws one of several chains as a line: its text, its depth and its strip of layers."""
    width = max((len(str(chain)) for chain in chains[:SHOWN_CHAINS]), default=0)
    return lambda chain: f"{chain!s:<{width}}  depth {chain.depth:>3}  {draw_strip(chain, read_layer)}"


def _count(exponent: float) -> str:
    """Return 10 to the exponent in words."""
    return f"{round(10**exponent):,}" if exponent < 9 else f"about 10^{exponent:.0f}"


def _measured(router: Router, report: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the card says of an evaluation."""
    try:
        _require_own(router, report)
        origin = report["provenance"]
        return {
            "samples": f"{report['n']:d}",
            "task": plain_text(report["task"]),
            "split": plain_text(report["split"]),
            "mode": plain_text(report["judged_mode"]),
            "dtype": plain_text(report["model"]["dtype"]),
            "chance": f"{report['chance_accuracy']:.3f}",
            "commit": plain_text(origin["commit"] or "unknown"),
            "started": plain_text(origin["started"]),
            "rows": [_row(arm) for arm in report["arms"]],
            "method": plain_text(report["comparisons"]["method"]),
            "notes": [plain_text(text) for text in [*report["caveats"], *report["notes"]]],
        }
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"report: expected a report.json of python -m eval, got one without {error}") from error


def _require_own(router: Router, report: Mapping[str, Any]) -> None:
    """Refuse the report of another router."""
    digest, told = weights_sha256(router), report["inputs"][f"router/{WEIGHTS_FILE}"]
    if digest != told:
        raise InputError(f"report: expected one of this router's weights {digest[:12]}, got one of {str(told)[:12]}")
    from_plain(Fingerprints, report["fingerprints"], "report").require(router.config.fingerprints, "report")


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
