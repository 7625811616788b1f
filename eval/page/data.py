"""What the page's sample browser reads: samples and every arm's answers, each text and chain once."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from data.sample import Sample
from eval.figures.style import Report, short_label
from eval.results import ArmResult
from router.chain import Chain
from router.validation import InputError

RUN, SKIPPED, AGAIN, MOVED = "", "!", "+", "~"
"""Marks of a strip: a layer that runs, one that never does, one that has run before, one out of its place."""
_UNSAFE = re.compile("[<>&\u2028\u2029\ud800-\udfff]")


class _Once:
    """Numbers values by their first coming."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def number(self, value: str) -> int:
        return self.numbers.setdefault(value, len(self.numbers))


def browser_data(
    report: Report, results: Mapping[str, Sequence[ArmResult]], samples: Sequence[Sample]
) -> dict[str, Any]:
    """Return the browser's data.

    `samples` are columns: `id`, `task` (index into `tasks`), `question`, `choices`, `answer` (index of a choice, or
    text), `context` (index into `texts`, or null), `difficulty`, `subject`. `arms` have `name`, `label`, `saw`, and
    columns in the samples' order: `chain` (index into `chains`: text, strip, depth), `right` (a digit each) and
    `prediction` (index of a choice; -1 - i: text i of `texts`; null: no answer).

    Args:
        report: the content of `report.json`.
        results: each arm's results, one a sample.
        samples: the samples, in the order in which they are shown; others than those with results are left out.

    Raises:
        InputError: where a result's sample is missing, or an arm has no result for it.
    """
    by_arm = {name: {one.sample_id: one for one in of_arm} for name, of_arm in results.items()}
    wanted = {key for of_arm in by_arm.values() for key in of_arm}
    shown = [sample for sample in samples if sample.id in wanted]
    if missing := wanted - {sample.id for sample in shown}:
        raise InputError(f"samples: expected the sample of every result, got none with id {min(missing)}")
    tasks, texts, chains = _Once(), _Once(), _Once()
    kept: dict[str, Chain] = {}
    arms = []
    for arm in report["arms"]:
        of_arm = by_arm.get(arm["name"], {})
        if absent := [sample.id for sample in shown if sample.id not in of_arm]:
            raise InputError(f"results: expected every sample for the arm {arm['name']}, got none for {absent[0]}")
        ordered = [of_arm[sample.id] for sample in shown]
        kept |= {str(one.chain): one.chain for one in ordered}
        arms.append(
            {
                "name": arm["name"],
                "label": short_label(arm["label"]),
                "saw": arm["saw_answers"],
                "chain": [chains.number(str(one.chain)) for one in ordered],
                "right": "".join("1" if one.correct else "0" for one in ordered),
                "prediction": [
                    -1 - texts.number(one.prediction) if isinstance(one.prediction, str) else one.prediction
                    for one in ordered
                ],
            }
        )
    columns = {
        "id": [sample.id for sample in shown],
        "task": [tasks.number(sample.task) for sample in shown],
        "question": [sample.question for sample in shown],
        "choices": [list(sample.choices) for sample in shown],
        "answer": [sample.answer for sample in shown],
        "context": [texts.number(sample.context) if sample.context else None for sample in shown],
        "difficulty": [_text(sample.label("difficulty")) for sample in shown],
        "subject": [_text(sample.label("subject")) for sample in shown],
    }
    return {
        "layers": report["model"]["num_layers"],
        "tasks": list(tasks.numbers),
        "texts": list(texts.numbers),
        "chains": [[text, strip(kept[text]), kept[text].depth] for text in chains.numbers],
        "samples": columns,
        "arms": arms,
    }


def strip(chain: Chain) -> str:
    """Return a chain as a strip of layers in the order in which they run, for example `0-21 !22 23 !24-27`.

    Items are a layer or a range of them: as it stands, it runs; with `!`, the chain never runs it (it stands where the
    model has it); with `+`, it has run before; with `~`, it runs out of its place. Of first runs those are in place
    that make the longest ascending series.
    """
    runs = set(chain.layers)
    firsts = list(dict.fromkeys(chain.layers))
    in_place = set(_longest_ascending(firsts))
    cells: list[tuple[str, int]] = []
    seen: set[int] = set()
    next_layer = 0  # below this, layers that never run stand already
    for layer in chain.layers:
        kind = AGAIN if layer in seen else RUN if layer in in_place else MOVED
        if kind == RUN:
            cells += [(SKIPPED, skipped) for skipped in range(next_layer, layer) if skipped not in runs]
            next_layer = layer + 1
        cells.append((kind, layer))
        seen.add(layer)
    cells += [(SKIPPED, skipped) for skipped in range(next_layer, chain.num_layers) if skipped not in runs]
    items: list[tuple[str, int, int]] = []
    for kind, layer in cells:
        if items and items[-1][0] == kind and items[-1][2] == layer - 1:
            items[-1] = (kind, items[-1][1], layer)
        else:
            items.append((kind, layer, layer))
    return " ".join(f"{kind}{first}" if first == last else f"{kind}{first}-{last}" for kind, first, last in items)


def script_json(value: Any) -> str:
    """Return JSON that may stand in an HTML script element, whatever texts it holds.

    What could end the element or a line of script (`<`, `>`, `&`, U+2028, U+2029), or could not be written as UTF-8,
    is escaped.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _UNSAFE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def _longest_ascending(values: Sequence[int]) -> list[int]:
    """Return the longest ascending series among different values, the first of several."""
    best: list[list[int]] = []
    for i, value in enumerate(values):
        before = max((best[j] for j in range(i) if values[j] < value), key=len, default=[])
        best.append([*before, value])
    return max(best, key=len)


def _text(label: str | int | float | None) -> str | None:
    return None if label is None else str(label)
