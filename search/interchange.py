"""Read PoLar's `merged_mcts_samples.json` as search records, and write it from ours.

    python -m search.interchange --kind import --file merged_mcts_samples.json --data runs/math/data --split train \
        --prefix_layers 12 --model qwen2.5-3b-instruct --out runs/polar/search
    python -m search.interchange --kind export --records runs/demo/search/train.jsonl --data runs/demo/data \
        --out merged_mcts_samples.json

Their labels come from another prompt, grader and executor, without scores: an import takes the chains alone and runs
each of them again on our samples, the full chain first. What the records say is what we measured; how far their labels
agree with it is reported, and kept in `<out>/<split>.import.json`. A run that was stopped goes on where it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from data.launch import this_process
from data.records import read_records
from data.sample import Sample, read_samples
from data.scoring import ChainScorer
from data.tasks import read_tasks
from router.chain import Chain
from router.command import InputError, parse_settings, provenance, run_command
from router.durable import require_directory, sha256_file, sha256_json, writable_directory, write_json
from router.models import load_model
from search.algorithms import Searcher
from search.menu_search import MenuSearcher
from search.polar_file import polar_sample, predictor_writes, read_polar, verdict, write_polar
from search.polar_match import Matches, TheirChains, agreement, match_samples
from search.run import SplitSearch
from search.run_settings import RunSettings
from search.settings import SearchSettings
from search.summary import summary
from search.work import SplitWork, run_all

SCHEMA = 1
"""Version of `<split>.import.json`."""


@dataclass(frozen=True)
class InterchangeSettings:
    """Settings of `python -m search.interchange`.

    Attributes:
        kind: "import": their file to search records; "export": search records to their file.
        out: import: folder for the records; export: the file to write.
        data: folder of `python -m data prepare` with the samples.
        file: their file (kind import).
        records: record file to export (kind export).
        split: split whose samples are looked for in their file (kind import).
        prefix_layers: layers 0..prefix_layers-1 run unedited in every chain (kind import); chains that edit them are
            left out.
        model: base model: an offline asset, a local directory or a hub id.
        revision: hub revision of the model.
        verify: judge the chains that can become labels once more, in the mode of evaluation.
        dtype: dtype of the model: float32, bfloat16 or float16.
        device: torch device, or auto.
        limit: samples found in their file to import at most, the first ones; null: all.
        batch_samples: samples whose chains run together.
        batch_tokens: tokens in one call of a layer at most.
        state_bytes: bytes of computed states kept for reuse.
    """

    kind: Literal["import", "export"]
    out: Path
    data: Path
    file: Path | None = None
    records: Path | None = None
    split: str = "train"
    prefix_layers: int | None = None
    model: str = "smollm2-135m-instruct"
    revision: str | None = None
    verify: bool = True
    dtype: str = "bfloat16"
    device: str = "auto"
    limit: int | None = None
    batch_samples: int = 32
    batch_tokens: int = 1024
    state_bytes: int = 2**30

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        for name in {"import": ("file", "prefix_layers"), "export": ("records",)}[self.kind]:
            if getattr(self, name) is None:
                raise ValueError(f"{name}: expected a value with kind {self.kind}, got none")
        self.run_settings()  # refuses what it refuses

    def run_settings(self) -> RunSettings:
        """Return the same as settings of a search."""
        return RunSettings(
            data=self.data,
            out=self.out,
            prefix_layers=self.prefix_layers or 0,
            splits=(self.split,),
            limit=self.limit,
            batch_samples=self.batch_samples,
            batch_tokens=self.batch_tokens,
            state_bytes=self.state_bytes,
        )


@dataclass(frozen=True)
class GivenChains(SplitSearch):
    """Runs chains that are given for each sample, in place of a search.

    Attributes:
        chains: by sample id, its chains, each once, the full chain first. `settings.simulations` is the greatest
            number of chains that a sample has.
    """

    chains: Mapping[str, tuple[Chain, ...]] = field(default_factory=dict)

    @property
    def settings_hash(self) -> str:
        """SHA-256 of everything that decides what is run."""
        return sha256_json({"given": self._chains_hash, "run": super().settings_hash})

    @cached_property
    def _chains_hash(self) -> str:
        return sha256_json({key: [chain.to_json() for chain in chains] for key, chains in self.chains.items()})

    def searcher(self, sample_id: str) -> Searcher:
        """Return what asks for a sample's chains, all at once."""
        chains = self.chains[sample_id]
        return MenuSearcher(chains, replace(self.settings, simulations=len(chains)))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    settings, plain = parse_settings(
        InterchangeSettings, argv, "search.interchange", "Read or write PoLar's merged_mcts_samples.json."
    )
    require_directory(settings.data, "data")
    {"import": _import, "export": _export}[settings.kind](settings, provenance(plain))


def _import(settings: InterchangeSettings, made: dict[str, Any]) -> None:
    file, prefix_layers = settings.file, settings.prefix_layers
    assert file is not None
    assert prefix_layers is not None
    tasks = read_tasks(settings.data)
    samples = settings.run_settings().read_samples(settings.split, tasks)
    matches = match_samples(read_polar(file), samples, tasks)
    launch = this_process(settings.device)
    if launch.is_main:
        print(*matches.lines(settings.split), sep="\n", flush=True)
    if not matches.theirs:
        raise InputError(f"file: expected samples of the split {settings.split} in {file}, got none")
    writable_directory(settings.out, "out")
    model, tokenizer = load_model(
        settings.model, dtype=settings.dtype, device=launch.device, revision=settings.revision
    )
    scorer = ChainScorer(model, tokenizer, tasks, batch_tokens=settings.batch_tokens, state_bytes=settings.state_bytes)
    if prefix_layers >= scorer.num_layers:
        raise InputError(
            f"prefix_layers: expected fewer than the model's {scorer.num_layers} layers, got {prefix_layers}"
        )
    theirs = TheirChains.of(matches, scorer.num_layers, prefix_layers)
    chains = theirs.to_run(scorer.num_layers)
    search = GivenChains(
        scorer=scorer,
        settings=SearchSettings(simulations=max(map(len, chains.values()))),
        prefix_layers=prefix_layers,
        reward_target="gold",
        batch_samples=settings.batch_samples,
        verify=settings.verify,
        chains=chains,
    )
    ours = [sample for sample in samples if sample.id in chains]
    work = SplitWork(
        settings.split, search, ours, settings.limit, settings.out, {**made, "processes": launch.processes}
    )
    if launch.is_main:
        print(theirs.line(settings.split), flush=True)

    def show(work: SplitWork) -> None:
        if launch.is_main:
            found = work.records.merged_records()
            for line in summary(work.name, found, work.before, work.seconds, work.records.total_bytes):
                tqdm.write(line)
            tqdm.write(_report(file, work, matches, theirs))

    run_all([work], shown=launch.is_main, done=show)
    if launch.is_main:
        print("".join(f"note: {note}\n" for note in scorer.notes), end="")
        print(f"records: {settings.out}")


def _report(file: Path, work: SplitWork, matches: Matches, theirs: TheirChains) -> str:
    """Write what became of their file beside the records; returns a line on the agreement."""
    table = agreement(work.records.merged_records(), theirs.verdicts)
    write_json(
        work.records.path.with_suffix(".import.json"),
        {
            "schema": SCHEMA,
            "source": {"file": str(file), "sha256": sha256_file(file)},
            "samples": matches.counts | {"imported": len(work.samples)},
            "chains": theirs.counts,
            "agreement": table,
        },
    )
    valid, invalid = table["valid"], table["invalid"]
    return (
        f"{work.name}: of their {valid['chains']} valid chains {valid['right']} are right here, "
        f"of their {invalid['chains']} invalid ones {invalid['wrong']} are wrong"
    )


def _export(settings: InterchangeSettings, made: dict[str, Any]) -> None:
    assert settings.records is not None
    writable_directory(settings.out.parent, "out")
    records = read_records(settings.records)[: settings.limit]
    first = records[0]
    samples: dict[str, Sample] = {}
    for split in {record.split for record in records}:
        samples |= {one.id: one for one in read_samples(settings.data / f"{split}.jsonl", f"data: {split}")}
    written = []
    for record in records:
        record.fingerprints.require(first.fingerprints, f"records: {settings.records}")
        if record.reward_target != "gold":
            raise InputError("records: expected a search told the right answers, got the control's, told wrong ones")
        if record.sample_id not in samples:
            raise InputError(f"records: expected samples of {settings.data}, got {record.sample_id}")
        written.append(polar_sample(record, samples[record.sample_id]))
    right = [result.chain for record in records for result in record.results if verdict(result) is True]
    wrong = sum(verdict(result) is False for record in records for result in record.results)
    neither = sum(len(record.results) for record in records) - len(right) - wrong
    write_polar(
        settings.out,
        written,
        {
            "num_layers": first.num_layers,
            "prefix_layers": first.prefix_layers,
            "fingerprints": asdict(first.fingerprints),
            "records_sha256": sha256_file(settings.records),
            **made,
        },
    )
    print(
        f"{len(written)} samples: {len(right)} valid chains, {sum(map(predictor_writes, right))} of which PoLar's "
        f"predictor can write; {wrong} invalid; {neither} in neither list, whose second run disagreed"
    )
    print(f"file: {settings.out}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
