"""PoLar's `merged_mcts_samples.json` (docs/formats.md, "PoLar interchange"): read strictly, written from our records.

Read are the forms that tianyi-lab/PoLar's README and loader name, and those that DATEXIS/RE-PoLar writes.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.records import ChainResult, SearchRecord
from data.sample import Sample
from router.chain import MAX_DEPTH, Chain
from router.command import InputError, one_line
from router.durable import require_file, write_text

VALID, INVALID = "final_valid_transitions", "final_invalid_transitions"
QUESTIONS = (("question",), ("sample_info", "question"), ("sample_info", "query"))
"""Where a sample's question may stand; the first place that holds something counts."""
ANSWERS = (
    ("gt_ans",),
    ("ground_truth",),
    ("answer",),
    ("sample_info", "ground_truth"),
    ("sample_info", "answer"),
)
"""Where the right answer may stand."""
LONGEST_BLOCK = 4
"""Layers of the longest segment that PoLar's predictor writes; it repeats a segment once more at most."""


@dataclass(frozen=True, slots=True)
class PolarSample:
    r"""One sample of their file.

    Attributes:
        where: file and place in it, with which the message of a refusal begins.
        question: the question's text.
        answer: the right answer's text, as it stands there (it may be a whole `\boxed{...}`).
        valid: chains that answered right there, as layer indices in the order in which they run.
        invalid: chains that answered wrong there.
    """

    where: str
    question: str
    answer: str
    valid: tuple[tuple[int, ...], ...]
    invalid: tuple[tuple[int, ...], ...]

    def verdicts(self, num_layers: int) -> dict[Chain, bool | None]:
        """Return the chains, each once, and whether each was right there; None: both lists hold it.

        Raises:
            InputError: where one is no chain of a model with `num_layers` layers.
        """
        found: dict[Chain, bool | None] = {}
        for name, paths, right in ((VALID, self.valid, True), (INVALID, self.invalid, False)):
            for i, layers in enumerate(paths):
                try:
                    chain = Chain(layers, num_layers)
                except ValueError as error:
                    raise InputError(f"{self.where}: {name}[{i}]: {error}") from error
                found[chain] = right if found.get(chain, right) is right else None
        return found


def read_polar(path: Path, setting: str = "file") -> list[PolarSample]:
    """Read their file, gzipped where its name ends in `.gz`.

    Raises:
        InputError: where it is missing, not JSON, of another shape, or a sample lacks a field; names the place.
    """
    require_file(path, setting)
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        value = json.loads(content)
    except (ValueError, RecursionError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: expected JSON, got a corrupt file ({one_line(error)})") from error
    if isinstance(value, dict):
        value = value["samples"] if "samples" in value else list(value.values())
    if not isinstance(value, list):
        raise InputError(f"{path}: expected a list of samples, got {type(value).__name__}")
    if not value:
        raise InputError(f"{path}: expected at least one sample, got an empty list")
    return [_sample(one, f"{path}, sample {i}") for i, one in enumerate(value)]


def _sample(value: Any, where: str) -> PolarSample:
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object, got {type(value).__name__}")
    question, answer = _first(value, QUESTIONS, where), _first(value, ANSWERS, where)
    if isinstance(question, dict):  # RE-PoLar's multiple choice
        options = question.get("options")
        if not isinstance(options, list) or type(answer) is not int or not 0 <= answer < len(options):
            raise InputError(f"{where}: expected gt_ans to be the index of one of the question's options")
        question, answer = _first(question, (("question",),), where), options[answer]
    if type(answer) in (int, float):
        answer = str(answer)
    for name, text in (("question", question), ("gt_ans", answer)):
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{where}: {name}: expected text, got {text!r}")
    if VALID not in value:
        raise InputError(f"{where}: expected the field '{VALID}', got none")
    return PolarSample(where, question, answer, _paths(value, VALID, where), _paths(value, INVALID, where))


def _first(value: Mapping[str, Any], places: Sequence[tuple[str, ...]], where: str) -> Any:
    """Return what stands at the first of some places that holds something."""
    for place in places:
        found: Any = value
        for key in place:
            found = found.get(key) if isinstance(found, Mapping) else None
        if found is not None and found != "":
            return found
    raise InputError(f"{where}: expected the field '{places[0][0]}', got none")


def _paths(value: Mapping[str, Any], name: str, where: str) -> tuple[tuple[int, ...], ...]:
    """Return a list of paths; each is a list of layer indices, or an object with such a list under "path"."""
    paths = value.get(name)
    if paths is None:
        return ()
    if not isinstance(paths, list):
        raise InputError(f"{where}: {name}: expected a list of lists of layer indices, got {type(paths).__name__}")
    return tuple(_path(path, f"{where}: {name}[{i}]") for i, path in enumerate(paths))


def _path(path: Any, where: str) -> tuple[int, ...]:
    layers = path.get("path") if isinstance(path, dict) else path
    if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
        raise InputError(f"{where}: expected a list of layer indices, got {str(layers)[:80]}")
    if len(layers) > MAX_DEPTH:
        raise InputError(f"{where}: expected at most {MAX_DEPTH} layers, got {len(layers)}")
    return tuple(layers)


def verdict(result: ChainResult) -> bool | None:
    """Return whether a chain answered right; None: the second run did not agree with the first."""
    return None if result.verified is False else result.correct


def polar_sample(record: SearchRecord, sample: Sample) -> dict[str, Any]:
    """Return a record in their format.

    Args:
        record: what the search found; chains whose second run did not agree stand in neither list.
        sample: its sample.
    """
    full = verdict(record.full)
    # Two names for one thing: PoLar's README has the first, RE-PoLar's writer the second; PoLar's loader knows both.
    score = {} if full is None else {"initial_score": float(full), "initial_transition_metric": float(full)}
    asked = {"choices": list(sample.choices), "context": sample.context}
    return {
        "question": sample.question,
        "gt_ans": sample.gold,
        **score,
        VALID: [result.chain.to_json() for result in record.results if verdict(result) is True],
        INVALID: [result.chain.to_json() for result in record.results if verdict(result) is False],
        "sample_info": {
            "query_id": sample.id,
            "task": sample.task,
            "split": sample.split,
            **{name: value for name, value in asked.items() if value},
        },
    }


def predictor_writes(chain: Chain) -> bool:
    """Whether PoLar's predictor can write a chain: segments skipped, run, or run twice in a row.

    Its loader drops other valid chains. (Their repository: segments of at most 4 layers; longer ones that are skipped
    or run once are several.)
    """
    try:
        segments = chain.to_segments()
    except ValueError:
        return False
    return all(
        one.operation != "repeat" or (one.times == 2 and one.stop - one.start <= LONGEST_BLOCK) for one in segments
    )


def write_polar(path: Path, samples: Sequence[Mapping[str, Any]], made: Mapping[str, Any]) -> None:
    """Write their file, complete or not at all.

    Args:
        path: the file.
        samples: what `polar_sample` returned.
        made: how it was made; their loaders ignore it.
    """
    value = {"made": dict(made), "samples": list(samples)}
    write_text(path, json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
