"""Search chains for every sample of one or more splits.

    python -m search --config configs/search/demo.yaml
    python -m search --config configs/search/demo.yaml --splits '[train]' --search.simulations 200

Writes `<out>/<split>.jsonl`, one record a sample (docs/formats.md), and `<out>/<split>.settings.json`. A run that was
killed goes on where it stopped when the same command is given again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data.models import load_model
from data.records import SearchRecord, read_records
from data.sample import SPLITS, Sample, read_samples
from data.scoring import ChainScorer
from data.task_files import TaskSet, read_tasks
from router.command import InputError, one_line, parse_settings, provenance, run_command
from router.durable import read_json, require_directory, sha256_file, writable_directory, write_json
from search.agreement import agreement_of
from search.run import SplitSearch
from search.settings import SearchSettings


@dataclass(frozen=True)
class RunSettings:
    """Settings of `python -m search`.

    Attributes:
        data: directory with the splits' sample files and their tasks, made by `python -m data prepare`.
        out: directory for the records.
        splits: splits to search, in this order.
        model: base model: an offline asset, a local directory or a hub id.
        revision: hub revision of the model.
        prefix_layers: layers 0..prefix_layers-1 run unedited in every chain; the router will read their output.
        reward_target: "gold", or "wrong": the control that counts a wrong answer as right.
        shuffle: 0: the listed choices in their usual order; any other number: in another one, for the control
            whether what was found survives it.
        verify: judge the chains that are kept (the front and full depth) once more, in the mode of evaluation.
        dtype: dtype of the model: float32, bfloat16 or float16.
        device: torch device, or auto.
        limit: samples of each split to search at most; null: all.
        batch_samples: samples whose trees advance together.
        batch_tokens: tokens in one call of a layer at most.
        state_bytes: bytes of computed states kept for reuse.
        search: settings of each sample's search.
    """

    data: Path
    out: Path
    prefix_layers: int
    splits: tuple[str, ...] = ("train", "validation", "test")
    model: str = "smollm2-135m-instruct"
    revision: str | None = None
    reward_target: Literal["gold", "wrong"] = "gold"
    shuffle: int = 0
    verify: bool = True
    dtype: str = "bfloat16"
    device: str = "auto"
    limit: int | None = None
    batch_samples: int = 32
    batch_tokens: int = 1024
    state_bytes: int = 2**30
    search: SearchSettings = field(default_factory=SearchSettings)

    def __post_init__(self) -> None:
        """Refuse values out of bounds."""
        unknown = [split for split in self.splits if split not in SPLITS]
        if unknown or not self.splits:
            raise ValueError(f"splits: expected some of {', '.join(SPLITS)}, got {list(self.splits)}")
        for name, least in (
            ("batch_samples", 1),
            ("batch_tokens", 1),
            ("state_bytes", 0),
            ("prefix_layers", 0),
            ("shuffle", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit: expected at least 1, got {self.limit}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    settings, plain = parse_settings(RunSettings, argv, "search", "Search chains of layers for every sample.")
    require_directory(settings.data, "data")
    tasks = read_tasks(settings.data)
    samples = {split: _read(settings, split, tasks) for split in settings.splits}
    if settings.shuffle:
        tasks = tasks.shuffled(settings.shuffle)
    writable_directory(settings.out, "out")
    model, tokenizer = load_model(
        settings.model, dtype=settings.dtype, device=settings.device, revision=settings.revision
    )
    scorer = ChainScorer(model, tokenizer, tasks, batch_tokens=settings.batch_tokens, state_bytes=settings.state_bytes)
    if settings.prefix_layers >= scorer.num_layers:
        raise InputError(
            f"prefix_layers: expected fewer than the model's {scorer.num_layers} layers, got {settings.prefix_layers}"
        )
    runner = SplitSearch(
        scorer,
        settings.search,
        settings.prefix_layers,
        settings.reward_target,
        settings.batch_samples,
        settings.verify,
    )
    try:
        settings.search.action_space(scorer.num_layers, settings.prefix_layers)
    except ValueError as error:
        raise InputError(f"search.{one_line(error)}") from error
    for split in settings.splits:
        path = settings.out / f"{split}.jsonl"
        start = time.monotonic()
        searched = runner.run(samples[split], path, settings.limit)
        seconds = time.monotonic() - start
        records = read_records(path)
        if searched:
            _note_run(settings.out / f"{split}.settings.json", path, plain, runner, searched)
        print(_summary(split, records, searched, seconds))
        if agreement := agreement_of(records):
            print(f"{split}: {agreement}")
    print("".join(f"note: {note}\n" for note in scorer.notes), end="")
    print(f"records: {settings.out}")


def _note_run(note: Path, path: Path, plain: dict[str, Any], runner: SplitSearch, searched: int) -> None:
    """Add this run to the runs that made a record file: each with its settings, commit, versions and samples."""
    earlier = read_json(note)["runs"] if note.exists() else []
    run = {**provenance(plain), "searched": searched}
    write_json(note, {"search": runner.settings_hash, "sha256": sha256_file(path), "runs": [*earlier, run]})


def _read(settings: RunSettings, split: str, tasks: TaskSet) -> list[Sample]:
    samples = read_samples(settings.data / f"{split}.jsonl", f"data: {split}")
    other = [sample for sample in samples if sample.split != split]
    if other:
        raise InputError(f"data: expected samples of the split {split}, got one of {other[0].split}")
    for name in {sample.task for sample in samples}:
        tasks[name]  # refuses a sample of another task
    manifest = settings.data / "manifest.json"
    if manifest.exists() and read_json(manifest).get("prompt_hash") not in (None, tasks.prompt_hash()):
        raise InputError(f"data: expected tasks.json with the prompt that {manifest} names, got another ({tasks.name})")
    return samples


def _summary(split: str, records: Sequence[SearchRecord], searched: int, seconds: float) -> str:
    """Return one line on what was found; the share with a right chain has seen the answers."""
    right = sum(record.full.correct for record in records)
    found = [record.shortest for record in records if record.shortest is not None]
    depth = sum(result.chain.depth for result in found) / max(1, len(found))
    nominal = sum(record.nominal_layers for record in records)
    executed = sum(record.executed_layers for record in records)
    chains = sum(record.simulations for record in records) * searched / len(records)
    return (
        f"{split}: {len(records)} samples ({searched} searched now, {chains / max(seconds, 1e-9):.0f} chains/s); "
        f"full depth right {right / len(records):.3f}; some chain right {len(found) / len(records):.3f} (has seen the "
        f"answers), shortest at mean depth {depth:.1f}; {executed / nominal:.2f} of nominal layers run"
    )


if __name__ == "__main__":
    raise SystemExit(run_command(main))
