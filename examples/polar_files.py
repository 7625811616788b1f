r"""Exchange chains with the published search of PoLar (arXiv 2606.06574): its file `merged_mcts_samples.json`.

    python -m examples.polar_files --kind export --records runs/demo/search/train.jsonl --data runs/demo/data \
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.records import SearchRecord, read_records
from data.sample import Sample, read_samples
from router.chain import Chain
from router.command import one_line, parse_settings, provenance, run_command
from router.files import require_directory, require_file, sha256_file, writable_directory, write_text
from router.validation import InputError
from search.menu import Menu, write_menu

VALID, INVALID = "final_valid_transitions", "final_invalid_transitions"


@dataclass(frozen=True)
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
    num_layers: int | None = None
    first_editable: int = 0
    size: int = 16

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        for name in {"export": ("records", "data"), "import": ("menu", "num_layers")}[self.kind]:
            if getattr(self, name) is None:
                raise ValueError(f"{name}: expected a value with kind {self.kind}, got none")
        if self.size < 2 or self.first_editable < 0:
            raise ValueError(f"size, first_editable: expected at least 2, 0, got {self.size}, {self.first_editable}")


def polar_sample(record: SearchRecord, sample: Sample) -> dict[str, Any]:
    """Return a record in their form; a chain whose second run disagreed with the first stands in neither list."""
    stands = [result for result in record.results if result.verified is not False]
    score = {"initial_score": float(record.full.correct)} if record.full in stands else {}
    asked = {"choices": list(sample.choices), "context": sample.context}
    return {
        "question": sample.question,
        "gt_ans": sample.gold,
        **score,
        VALID: [result.chain.to_json() for result in stands if result.correct],
        INVALID: [result.chain.to_json() for result in stands if not result.correct],
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
    valid, invalid = (sum(len(one[name]) for one in theirs) for name in (VALID, INVALID))
    print(f"{len(theirs)} samples: {valid} valid chains, {invalid} invalid: {file}")


def read_polar(path: Path) -> list[dict[str, list[list[int]]]]:
    """Return the valid and invalid paths of each sample of their file.

    Raises:
        InputError: where it is missing, no JSON, or of another form; names the place.
    """
    try:
        value = json.loads(require_file(path, "file").read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected JSON, got a corrupt file ({one_line(error)})") from error
    samples = value.get("samples") if isinstance(value, dict) else value
    if not isinstance(samples, list) or not samples:
        raise InputError(f"{path}: expected a list 'samples' with at least one, got {type(samples).__name__}")
    found = []
    for i, sample in enumerate(samples):
        if not isinstance(sample, dict) or VALID not in sample:
            raise InputError(f"{path}, sample {i}: expected an object with the field '{VALID}', got none")
        found.append({name: _paths(sample.get(name), f"{path}, sample {i}: {name}") for name in (VALID, INVALID)})
    return found


def _paths(value: Any, where: str) -> list[list[int]]:
    """Return a list of paths; the list of wrong ones may be missing."""
    paths = [] if value is None else value
    if not isinstance(paths, list):
        raise InputError(f"{where}: expected a list of lists of layer indices, got {type(paths).__name__}")
    for i, path in enumerate(paths):
        if not isinstance(path, list) or not all(type(layer) is int for layer in path):
            raise InputError(f"{where}[{i}]: expected a list of layer indices, got {str(path)[:80]}")
    return paths


def chains_by_reason(
    samples: Sequence[dict[str, list[list[int]]]], num_layers: int, first_editable: int
) -> tuple[Counter[Chain], Counter[str]]:
    """Return the chains with the number of samples for which each is valid, and what became of all paths.

    A path is "taken", or left out as "not a chain of this model", "edits the prefix", "invalid", "valid and invalid"
    (both lists of its sample hold it) or "repeated" (it stands twice in one list).
    """
    valid: Counter[Chain] = Counter()
    reasons: Counter[str] = Counter()
    for sample in samples:
        seen: set[tuple[str, Chain]] = set()
        for name in (VALID, INVALID):
            for path in sample[name]:
                try:
                    chain = Chain(tuple(path), num_layers)
                except ValueError:
                    reasons["not a chain of this model"] += 1
                    continue
                if (name, chain) in seen:
                    reasons["repeated"] += 1
                elif path in sample[VALID] and path in sample[INVALID]:
                    reasons["valid and invalid"] += 1
                elif chain.unedited_prefix < first_editable:
                    reasons["edits the prefix"] += 1
                elif name == INVALID:
                    reasons["invalid"] += 1
                else:
                    reasons["taken"] += 1
                    valid[chain] += 1
                seen.add((name, chain))
    return valid, reasons


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
