"""The search of a split: many samples' trees advance together, each finished sample is on the disk at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.controls import wrong_answers
from data.encoding import EncodedSample
from data.records import ChainResult, SearchRecord, pareto_front, read_records
from data.sample import Sample
from data.scoring import ChainScorer, batches_by_length
from router.chain import Chain
from router.command import InputError
from router.durable import JsonLog, sha256_json
from search.mcts import Searcher
from search.settings import SearchSettings

LONGEST_TEXT = 200
"""Characters of a metadata text that a record keeps."""


@dataclass(frozen=True)
class SplitSearch:
    """How the samples of a split are searched.

    Attributes:
        scorer: runs chains on samples.
        settings: settings of each sample's search.
        prefix_layers: layers that run in every chain.
        reward_target: "gold", or "wrong": a wrong answer, drawn from the sample's id, counts as right.
        batch_samples: trees that advance together; it changes the speed, not the search.
        verify: whether the chains that are kept (the front and full depth) are judged once more: in the real mode
            (`Task.judged_mode`) and in another batch composition.
    """

    scorer: ChainScorer
    settings: SearchSettings
    prefix_layers: int
    reward_target: str
    batch_samples: int
    verify: bool = True

    @property
    def settings_hash(self) -> str:
        """SHA-256 of everything that decides what the search of a sample does."""
        real_modes = {name: task.judged_mode for name, task in self.scorer.tasks.tasks.items()}
        return sha256_json(
            {
                "search": vars(self.settings),
                "prefix_layers": self.prefix_layers,
                "reward_target": self.reward_target,
                "verify": real_modes if self.verify else None,
                "dtype": self.scorer.dtype,
            }
        )

    def run(self, samples: Sequence[Sample], path: Path, limit: int | None = None) -> int:
        """Search every sample that has no record in `path` yet, and append the records as they are finished.

        Args:
            samples: the samples of a split.
            path: the record file.
            limit: samples to search at most, the first ones; None: all.

        Returns:
            The number of samples searched now.

        Raises:
            InputError: where `path` holds records of another search or of other samples.
        """
        try:
            targets = wrong_answers(samples, self.scorer.means_the_same) if self.reward_target == "wrong" else {}
        except ValueError as error:
            raise InputError(str(error)) from error
        samples = samples[:limit]
        finished = self._finished(samples, path, targets)
        waiting = [sample for sample in samples if sample.id not in finished]
        encoded = [self._encode(sample, targets.get(sample.id)) for sample in waiting]
        total = len(samples) * self.settings.simulations
        with (
            JsonLog(path) as log,
            tqdm(
                total=total,
                initial=len(finished) * self.settings.simulations,
                desc=f"search {path.stem}",
                unit="chain",
            ) as progress,
        ):
            for batch in batches_by_length([sample.length for sample in encoded], self.batch_samples):
                self._search_batch([encoded[i] for i in batch], log, progress)
        return len(waiting)

    def _finished(self, samples: Sequence[Sample], path: Path, targets: Mapping[str, int | str]) -> set[str]:
        """Return the ids of samples that have a record, all of this search and of these samples."""
        if not path.exists():
            return set()
        with JsonLog(path):
            pass  # opening cuts off a line that a killed run left unfinished
        if not path.stat().st_size:
            return set()
        wanted = {sample.id for sample in samples}
        for record in (records := read_records(path)):
            record.fingerprints.require(self.scorer.fingerprints, f"out: records in {path}")
            if record.search != self.settings_hash:
                raise InputError(
                    f"out: expected no records or records of the same search settings, got others in {path}; "
                    "choose another directory or remove the file"
                )
            if record.sample_id not in wanted:
                raise InputError(f"out: expected records of these samples in {path}, got sample {record.sample_id}")
            if record.target != targets.get(record.sample_id, record.target):
                raise InputError(f"out: expected the wrong answers of these samples as targets in {path}, got others")
        return {record.sample_id for record in records}

    def _encode(self, sample: Sample, target: int | str | None) -> EncodedSample:
        try:
            return self.scorer.encode(sample, target)
        except ValueError as error:
            raise InputError(f"data: sample {sample.id}: {error}") from error

    def _search_batch(self, samples: Sequence[EncodedSample], log: JsonLog, progress: tqdm) -> None:  # type: ignore[type-arg]
        """Search samples side by side: each round scores what all their trees ask for."""
        block = self.scorer.load(samples)
        space = self.settings.action_space(self.scorer.num_layers, self.prefix_layers)
        searchers = {
            i: Searcher(space, self.settings, self.settings.rng_for(encoded.sample.id))
            for i, encoded in enumerate(samples)
        }
        results: list[dict[Chain, ChainResult]] = [{} for _ in samples]
        finished: dict[int, Searcher] = {}
        while searchers:
            asked = {i: searcher.ask() for i, searcher in searchers.items()}
            jobs = [(i, chain) for i, chains in asked.items() for chain in chains]
            for (i, chain), result in zip(jobs, self.scorer.score(block, jobs), strict=True):
                results[i][chain] = result
            for i, chains in asked.items():
                told = [results[i][chain] for chain in chains]
                searchers[i].tell([self.settings.reward_for(r.correct, r.margin) for r in told])
            for i in [i for i, searcher in searchers.items() if searcher.done]:
                finished[i] = searchers.pop(i)
                # A space smaller than the simulations ends early; the bar still reaches its end.
                progress.update(self.settings.simulations - finished[i].simulations)
            progress.update(len(jobs))
        executed = [block.executed(i) for i in range(len(samples))]
        found = [tuple(of_sample.values()) for of_sample in results]
        if self.verify:
            found = self._verified(samples, found)
        for i, encoded in enumerate(samples):
            log.append(self._record(encoded, finished[i], found[i], len(block.rows[i]), executed[i]).to_json())

    def _verified(
        self, samples: Sequence[EncodedSample], found: Sequence[tuple[ChainResult, ...]]
    ) -> list[tuple[ChainResult, ...]]:
        """Judge each sample's front and full chain once more; other rows share the batches, so rounding differs too."""
        block = self.scorer.load(samples)
        kept = [(i, j) for i, results in enumerate(found) for j in sorted({0, *pareto_front(results)})]
        judged = self.scorer.judge(block, [(i, found[i][j].chain) for i, j in kept])
        verified = [list(results) for results in found]
        for (i, j), again in zip(kept, judged, strict=True):
            one = verified[i][j]
            verified[i][j] = dataclasses.replace(
                one, verified=again.correct == one.correct, verified_by=samples[i].task.judged_mode
            )
        return [tuple(results) for results in verified]

    def _record(
        self, encoded: EncodedSample, searcher: Searcher, results: Sequence[ChainResult], rows: int, executed: int
    ) -> SearchRecord:
        return SearchRecord(
            sample_id=encoded.sample.id,
            task=encoded.sample.task,
            split=encoded.sample.split,
            metadata=_short(encoded.sample.metadata),
            mode=encoded.task.mode,
            num_layers=self.scorer.num_layers,
            prefix_layers=self.prefix_layers,
            dtype=self.scorer.dtype,
            reward_target=self.reward_target,
            target=encoded.target,
            seed=self.settings.seed,
            simulations=searcher.simulations,
            nominal_layers=rows * sum(result.chain.depth for result in results),
            executed_layers=executed,
            results=tuple(results),
            pareto=pareto_front(results),
            fingerprints=self.scorer.fingerprints,
            search=self.settings_hash,
        )


def _short(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata without long texts (worked solutions), which stay with the sample."""
    return {key: value for key, value in metadata.items() if not isinstance(value, str) or len(value) <= LONGEST_TEXT}
