r"""Exchange chains with the published search of PoLar (arXiv 2606.06574): its file `merged_mcts_samples.json`.

    python -m examples.polar_files --kind export --records runs/small/search/train.jsonl --data runs/small/data \
        --file merged_mcts_samples.json
    python -m examples.polar_files --kind import --file merged_mcts_samples.json --num_layers 36 --first_editable 12 \
        --menu runs/polar/menu.json

The file holds, for each question, paths that answered right and paths that answered wrong; a path is the list of layer
indices in the order in which they run. An export writes a record file in that form. An import writes the chains that
are valid for most of their questions as a menu. Their labels come from another prompt, grader and executor, so the
import takes chains alone: `python -m search --menu` measures each of them on your own samples.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from data.records import SearchRecord, read_records
from data.sample import Sample, read_samples
from router.chain import Chain
from router.command import parse_settings, provenance, run_command
from router.files import require_directory, require_file, sha256_file, writable_directory, write_text
from router.validation import SETTINGS, Count, InputError, Positive, from_plain, parse_json
from search.menu import Menu, write_menu


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Example:
    """Settings of the example.

    Attributes:
        kind: "export": records to their file; "import": their file to a menu.
        file: their file; an export writes it.
        records: record file of a search (kind export).
        data: folder of `python -m data prepare` with its samples (kind export).
        menu: menu file to write (kind import).
        num_layers: layers of the model of their file (kind import).
        first_editable: layers 0..first_editable-1 run unedited in every chain of the menu (kind import).
        size: chains of the menu at most, full depth included (kind import).
    """

    kind: Literal["export", "import"]
    file: Path
    records: Path | None = None
    data: Path | None = None
    menu: Path | None = None
    num_layers: Positive | None = None
    first_editable: Count = 0
    size: Annotated[int, Field(ge=2)] = 16

    @model_validator(mode="after")
    def _complete(self) -> Self:
        """Refuse a kind without what it needs."""
        for name in ("records", "data") if self.kind == "export" else ("menu", "num_layers"):
            if getattr(self, name) is None:
                raise ValueError(f"{name}: expected a value with kind {self.kind}, got none")
        return self


@dataclass(frozen=True, config=ConfigDict(strict=True))
class Paths:
    """What we read of a sample of theirs; it has more fields.

    Attributes:
        final_valid_transitions: paths that answered right.
        final_invalid_transitions: paths that answered wrong; may be missing.
    """

    final_valid_transitions: list[list[int]]
    final_invalid_transitions: list[list[int]] | None = None


def polar_sample(record: SearchRecord, sample: Sample) -> dict[str, Any]:
    """Return a record in their form.

    A chain whose second run disagreed with the first, or that is right in too few variants, stands in neither list.
    """
    told = [result for result in record.results if result.verified is not False]
    score = {"initial_score": float(record.full.correct)} if record.full in told else {}
    asked = {"choices": list(sample.choices), "context": sample.context}
    return {
        "question": sample.question,
        "gt_ans": sample.gold,
        **score,
        "final_valid_transitions": [result.chain.to_json() for result in told if result.stands],
        "final_invalid_transitions": [result.chain.to_json() for result in told if not result.correct],
        "sample_info": {"query_id": sample.id, "task": sample.task, "split": sample.split}
        | {name: value for name, value in asked.items() if value},
    }


def export_file(records_file: Path, data: Path, file: Path, made: dict[str, Any]) -> None:
    """Write the records of a search in their form.

    Raises:
        InputError: where the records are of other samples, or of a search for a wrong answer.
    """
    records = read_records(records_file)
    samples: dict[str, Sample] = {}
    for split in {record.split for record in records}:
        samples |= {one.id: one for one in read_samples(data / f"{split}.jsonl", f"data: {split}")}
    for record in records:
        if record.reward_target != "gold":
            raise InputError("records: expected a search for the right answers, got one for wrong answers")
        if record.sample_id not in samples:
            raise InputError(f"records: expected samples of {data}, got {record.sample_id}")
    theirs = [polar_sample(record, samples[record.sample_id]) for record in records]
    value = {"made": {"records_sha256": sha256_file(records_file), **made}, "samples": theirs}
    write_text(file, json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
    valid, invalid = (sum(len(one[f"final_{kind}_transitions"]) for one in theirs) for kind in ("valid", "invalid"))
    print(f"{len(theirs)} samples: {valid} valid chains, {invalid} invalid: {file}")


def read_polar(path: Path) -> list[Paths]:
    """Return the valid and invalid paths of each sample of their file.

    Raises:
        InputError: where it is missing, no JSON, or of another form; names the place.
    """
    value = parse_json(require_file(path, "file").read_bytes(), str(path))
    samples = value.get("samples") if isinstance(value, dict) else value
    if not isinstance(samples, list) or not samples:
        raise InputError(f"{path}: expected a list 'samples' with at least one, got {type(samples).__name__}")
    return [from_plain(Paths, sample, f"{path}, sample {i}") for i, sample in enumerate(samples)]


def chains_by_reason(
    samples: Sequence[Paths], num_layers: int, first_editable: int
) -> tuple[Counter[Chain], Counter[str]]:
    """Return the chains with the number of samples for which each is valid, and what became of all paths.

    A path is "taken", or left out as "not a chain of this model", "edits the prefix", "invalid", "valid and invalid"
    (both lists of its sample hold it) or "repeated" (it stands twice in one list).
    """
    taken: Counter[Chain] = Counter()
    reasons: Counter[str] = Counter()
    for sample in samples:
        valid, invalid = sample.final_valid_transitions, sample.final_invalid_transitions or []
        seen: set[tuple[bool, Chain]] = set()
        for is_valid, path in [*((True, path) for path in valid), *((False, path) for path in invalid)]:
            try:
                chain = Chain(tuple(path), num_layers)
            except ValueError:
                reasons["not a chain of this model"] += 1
                continue
            if (is_valid, chain) in seen:
                reasons["repeated"] += 1
            elif path in valid and path in invalid:
                reasons["valid and invalid"] += 1
            elif chain.unedited_prefix < first_editable:
                reasons["edits the prefix"] += 1
            elif not is_valid:
                reasons["invalid"] += 1
            else:
                reasons["taken"] += 1
                taken[chain] += 1
            seen.add((is_valid, chain))
    return taken, reasons


def import_menu(example: Example, num_layers: int, menu_file: Path, made: dict[str, Any]) -> None:
    """Write the chains that are valid for most of their samples as a menu; of equal ones the shallower first."""
    valid, reasons = chains_by_reason(read_polar(example.file), num_layers, example.first_editable)
    print(", ".join(f"{count} {reason}" for reason, count in reasons.most_common()))
    full = Chain.full(num_layers)
    ranked = sorted(valid.keys() - {full}, key=lambda chain: (-valid[chain], chain.depth, chain.layers))
    if not ranked:
        raise InputError(
            f"file: expected valid chains besides full depth that can be taken, got none in {example.file}"
        )
    kept = ranked[: example.size - 1]
    counts = {str(chain): valid[chain] for chain in kept}
    about = {"file_sha256": sha256_file(example.file), "paths": dict(reasons), "valid_for": counts, **made}
    write_menu(menu_file, Menu.of([full, *kept], example.first_editable, about))
    print(f"{1 + len(kept)} of {1 + len(ranked)} chains: {menu_file}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the example."""
    example, plain = parse_settings(Example, argv, "examples.polar_files", "Read or write merged_mcts_samples.json.")
    made = provenance(plain)
    if example.records is not None and example.data is not None and example.kind == "export":
        writable_directory(example.file.parent, "file")
        export_file(example.records, require_directory(example.data, "data"), example.file, made)
    elif example.menu is not None and example.num_layers is not None:
        writable_directory(example.menu.parent, "menu")
        import_menu(example, example.num_layers, example.menu, made)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
