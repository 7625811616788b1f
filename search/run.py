"""The search of a split: batches of samples whose trees advance together, so that the executor has full batches."""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from tqdm import tqdm

from data.answers import wrong_answers
from data.encoding import EncodedSample, batches_by_length
from data.pool import Batch, Done, Pool, Report, States, Task, run_batches
from data.records import ChainResult, SearchRecord, pareto_front
from data.sample import Sample
from data.scoring import ChainScorer, SampleBlock
from data.states import StatesOrigin, write_states
from data.store import Store
from router.chain import Chain
from router.files import sha256_json
from router.validation import InputError, to_plain
from search.actions import ActionSpace
from search.algorithms import ListSearcher, Searcher, make_searcher
from search.menu import Menu
from search.settings import SearchSettings
from search.summary import Summary, duration, megabytes
from search.variants import VariantSettings, judge_held_out, load_variants, score_variants
from search.verification import RULE, verify

LONGEST_TEXT = 200
"""Characters of a metadata text that a record keeps."""
MARGIN_OF_ERROR = 0.8
"""Share of the expected bytes that must fit on the disk."""


@dataclass(frozen=True)
class BatchSearch:
    """How samples are searched, whatever split they are of.

    Attributes:
        scorer: runs chains on samples.
        settings: settings of each sample's search.
        first_editable: layers that run in every chain.
        reward_target: "gold", or "wrong": a wrong answer, drawn from the sample's id, counts as right.
        verify: whether the chains that can become labels are judged once more (`search.verification`).
        menu: the chains to run on every sample, in place of a search; None: search.
        read_layers: layers e whose `hidden_states[e]` are kept for routers to be trained on.
        asked: in how many variants each sample is asked; of a menu every chain runs in all of them.
    """

    scorer: ChainScorer
    settings: SearchSettings
    first_editable: int
    reward_target: Literal["gold", "wrong"] = "gold"
    verify: bool = True
    menu: Menu | None = None
    read_layers: tuple[int, ...] = ()
    asked: VariantSettings = field(default_factory=VariantSettings)

    @cached_property
    def decides(self) -> dict[str, Any]:
        """Everything that decides what the search of a sample does, as JSON data."""
        real_modes = {name: task.judged_mode for name, task in self.scorer.tasks.tasks.items()}
        plan = {"search": self.settings.decisive} if self.menu is None else {"menu": self.menu.sha256}
        return {
            **plan,
            "first_editable": self.first_editable,
            "reward_target": self.reward_target,
            "verify": {"rule": RULE, "modes": real_modes} if self.verify else None,
            "dtype": self.scorer.dtype,
            **self.asked.decides(self.scorer.tasks),
        }

    @cached_property
    def sha256(self) -> str:
        """Hash of `decides`, which every record names."""
        return sha256_json(self.decides)

    def targets(self, samples: Sequence[Sample]) -> dict[str, int | str]:
        """Return, by sample id, the answer that counts as right where it is not the sample's own.

        Args:
            samples: all samples of a split; wrong free answers are drawn from among them.

        Raises:
            InputError: where a sample has no wrong answer.
        """
        if self.reward_target != "wrong":
            return {}
        try:
            return wrong_answers(samples, self.scorer.means_the_same)
        except ValueError as error:
            raise InputError(str(error)) from error

    def searcher(self, sample_id: str) -> Searcher:
        """Return a new search of one sample.

        Raises:
            ValueError: where the settings do not fit the model.
        """
        if self.menu is not None:
            return ListSearcher(self.menu.chains, self.settings)
        space = ActionSpace(self.settings, self.scorer.num_layers, self.first_editable)
        return make_searcher(space, self.settings.rng_for(sample_id))

    def search(
        self,
        samples: Sequence[EncodedSample],
        told: Callable[[int], object],
        keep: Callable[[dict[int, dict[str, Tensor]]], object] | None = None,
    ) -> list[SearchRecord]:
        """Search samples side by side: each round scores what all their trees ask for.

        Args:
            samples: the samples.
            told: called with the number of simulations after each round.
            keep: takes the states at `read_layers`, by layer and sample id; None: they are not computed.

        Returns:
            A record for each sample.
        """
        blocks = load_variants(self.scorer, samples, self.asked)
        if keep is not None and self.read_layers:
            # Before the search: it starts from these states.
            keep({e: self._states(blocks[0], e) for e in sorted(self.read_layers)})
        searchers = [self.searcher(encoded.sample.id) for encoded in samples]
        results: list[dict[Chain, ChainResult]] = [{} for _ in samples]
        while count := self.advance(blocks, searchers, results):
            told(count)
        # A space smaller than the simulations ends early; the whole is told all the same.
        told(sum(self.settings.simulations - searcher.simulations for searcher in searchers))
        executed = [sum(block.executed(i) for block in blocks) for i in range(len(samples))]
        found = [tuple(of_sample.values()) for of_sample in results]
        if self.verify:
            found = verify(self.scorer, blocks[0], found, self.first_editable)
        if self.asked.held_out:
            found = judge_held_out(self.scorer, samples, found, self.asked)
        return [
            self.record(encoded, found[i], rows=len(blocks[0].rows[i]), executed=executed[i])
            for i, encoded in enumerate(samples)
        ]

    def _states(self, block: SampleBlock, layer: int) -> dict[str, Tensor]:
        states = self.scorer.states(block, layer)
        return {one.sample.id: state for one, state in zip(block.samples, states, strict=True)}

    def advance(
        self,
        blocks: Sequence[SampleBlock],
        searchers: Sequence[Searcher],
        results: Sequence[dict[Chain, ChainResult]],
    ) -> int:
        """Play one round: score what every search asks for, tell it, and add it to its results.

        Args:
            blocks: the samples in each variant.
            searchers: the search of each.
            results: what each has found so far.

        Returns:
            The number of chains scored; 0: all searches are done.
        """
        asked = [searcher.ask() for searcher in searchers]
        jobs = [(i, chain) for i, chains in enumerate(asked) for chain in chains]
        if jobs:
            whole = self.menu is not None
            scored = score_variants(self.scorer, blocks, jobs, self.asked, whole=whole)
            for (i, chain), result in zip(jobs, scored, strict=True):
                results[i][chain] = result
        for i, chains in enumerate(asked):
            if chains:
                told = [results[i][chain] for chain in chains]
                rewards = [self.asked.reward(result, self.settings) for result in told]
                searchers[i].tell(rewards, [result.stands for result in told])
        return len(jobs)

    def record(
        self, encoded: EncodedSample, results: Sequence[ChainResult], *, rows: int, executed: int
    ) -> SearchRecord:
        """Return a sample's record.

        Args:
            encoded: the sample.
            results: what the search found, one result a simulation.
            rows: rows of the sample.
            executed: layers run for it, by row.
        """
        return SearchRecord(
            sample_id=encoded.sample.id,
            task=encoded.sample.task,
            split=encoded.sample.split,
            metadata=_short(encoded.sample.metadata),
            mode=encoded.task.mode,
            num_layers=self.scorer.num_layers,
            first_editable=self.first_editable,
            dtype=self.scorer.dtype,
            reward_target=self.reward_target,
            target=encoded.target,
            seed=self.settings.seed,
            simulations=len(results),
            nominal_layers=rows * sum(result.chain.depth * (1 + len(result.variants)) for result in results),
            executed_layers=executed,
            results=tuple(results),
            pareto=pareto_front(results),
            fingerprints=self.scorer.fingerprints,
            search=self.sha256,
            variants=self.asked.variants,
        )


def _short(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata without long texts (worked solutions), which stay with the sample."""
    return {key: value for key, value in metadata.items() if not isinstance(value, str) or len(value) <= LONGEST_TEXT}


class SplitSearch:
    """The search of one split, on the disk.

    Attributes:
        name: the split.
        search: how its samples are searched.
        store: their records.
    """

    def __init__(
        self,
        name: str,
        search: BatchSearch,
        samples: Sequence[Sample],
        limit: int | None,
        batch_samples: int,
        out: Path,
        part: str = "1/1",
    ) -> None:
        """Look at what is there.

        Args:
            name: the split.
            search: how its samples are searched.
            samples: all its samples.
            limit: samples to search at most, the first ones; None: all.
            batch_samples: samples whose trees advance together; it changes the speed, not the search.
            out: folder of the record file.
            part: which of how many parts of the batches to search, "2/16"; the parts' records are merged later.

        Raises:
            InputError: where the folder holds records of another search or of other samples.
        """
        self.name, self.search = name, search
        self._targets = search.targets(samples)
        self._samples = {sample.id: sample for sample in samples[:limit]}
        search.asked.require(search.scorer.tasks, list(self._samples.values()))
        self._batch_samples, self._out = batch_samples, out
        self._number, self._parts = map(int, part.split("/"))
        whole = {}
        if self._parts > 1:
            partition = sha256_json([batch.keys for batch in self.partition])
            whole = {"part": part, "of": {"samples": len(self._samples), "batches": partition}}
            own = {key for batch in self.batches for key in batch.keys}
            if not own:
                raise InputError(f"part: expected one with a batch of the {name} split, got {part!r}; fewer parts do")
            self._samples = {key: sample for key, sample in self._samples.items() if key in own}
        scorer = search.scorer
        identity = {
            **search.decides,
            "fingerprints": asdict(scorer.fingerprints),
            "targets": sha256_json(self._targets),
        } | whole
        self.store = Store(out / f"{name}.jsonl", SearchRecord, identity, key_of, num_layers=scorer.num_layers)
        strange = [key for key in self.store.keys if key not in self._samples]
        if strange:
            raise InputError(f"out: expected records of these samples in {self.store.path}, got sample {strange[0]}")
        self._before = frozenset(self.store.keys)

    @property
    def count(self) -> int:
        """Samples to search, finished ones included."""
        return len(self._samples)

    @property
    def waiting(self) -> list[EncodedSample]:
        """Samples without a record, as token ids."""
        return [one for batch in self.batches for one in batch.items if one.sample.id not in self.store]

    @property
    def missing(self) -> list[Batch[EncodedSample]]:
        """Batches in which a sample has no record."""
        return [batch for batch in self.batches if any(key not in self.store for key in batch.keys)]

    @cached_property
    def partition(self) -> list[Batch[EncodedSample]]:
        """All samples in batches. It does not hang on what is finished, so a sample always has the same company."""
        encoded = self.search.scorer.encode_all(self._samples.values(), self._targets)
        made = [
            [encoded[i] for i in batch]
            for batch in batches_by_length([sample.length for sample in encoded], self._batch_samples)
        ]
        ids = [tuple(one.sample.id for one in batch) for batch in made]
        name = sha256_json(ids)[:8]
        units = self.search.settings.simulations
        return [
            Batch(f"{name}-{number}", tuple(batch), keys, units * len(batch))
            for number, (batch, keys) in enumerate(zip(made, ids, strict=True))
        ]

    @cached_property
    def batches(self) -> list[Batch[EncodedSample]]:
        """The batches of this part of the search; none where all are finished."""
        if self._parts == 1 and all(key in self.store for key in self._samples):
            return []
        return self.partition[self._number - 1 :: self._parts]

    def run(self, provenance: Mapping[str, Any], cost: Cost, pool: Pool | None = None) -> None:
        """Search every sample that has no record, then put the records in order, and say what they are worth.

        Args:
            provenance: what the meta file says of this run.
            cost: told what the first batch costs.
            pool: where the batches run; None: in this process.

        Raises:
            InputError: where the records clearly do not fit on the disk; those of the first batch stay.
            UnfinishedError: where some batches could not be run.
        """
        folder, search, began = self._out / f"{self.name}.states", self.search, time.monotonic()
        origin = StatesOrigin(search.scorer.fingerprints, search.scorer.dtype)

        def work(batch: Batch[EncodedSample], report: Report) -> list[SearchRecord]:
            return search.search(batch.items, report.tick, report.keep)

        def keep(name: str, states: States) -> None:
            write_states(folder / f"{name}.safetensors", origin, states)

        def told(done: Done[EncodedSample]) -> None:
            if not cost.said:
                cost.say(done.batch.items, list(self.store.rows(done.batch.keys)), done.seconds)

        run_batches(
            self.store,
            self.batches,
            Task(work, key_of, search.scorer, keep),
            label=f"search {self.name}",
            unit="chain",
            pool=pool,
            run={**provenance, "run": uuid.uuid4().hex[:12]},
            told=told,
        )
        self.store.finish(list(self._samples))
        path = self.store.path
        found = Summary(self.store.rows(), self._before)
        for line in found.lines(time.monotonic() - began, path.stat().st_size):
            tqdm.write(f"{self.name}: {line}")


def key_of(record: SearchRecord) -> str:
    """Return a record's key in its store."""
    return record.sample_id


class Cost:
    """What a run is expected to cost, by what its first batch did: an estimate, not a promise.

    Layers and bytes grow with the number of samples. Time grows with their tokens, because a batch has samples of one
    length.

    Attributes:
        said: whether it was said.
    """

    def __init__(self, samples: Sequence[EncodedSample], out: Path) -> None:
        """Start before the first batch.

        Args:
            samples: all samples to search.
            out: folder of the records.
        """
        self._samples, self._out = samples, out
        self.said = False

    def say(self, batch: Sequence[EncodedSample], records: Sequence[SearchRecord], seconds: float) -> None:
        """Write the line on the cost, given what the search of a batch made and how long it took in one process.

        Raises:
            InputError: where the records clearly do not fit on the disk.
        """
        self.said = True
        times = len(self._samples) / len(batch)
        layers = times * sum(record.executed_layers for record in records)
        size = times * sum(len(json.dumps(to_plain(record), ensure_ascii=False).encode()) + 1 for record in records)
        total = seconds * sum(one.length for one in self._samples) / sum(one.length for one in batch)
        free = shutil.disk_usage(self._out).free
        if size * MARGIN_OF_ERROR > free:
            raise InputError(
                f"out: expected about {megabytes(size)} of free disk at {str(self._out)!r}, got {megabytes(free)}"
            )
        tqdm.write(
            f"expected: {layers:,.0f} layers run, about {duration(total)} in one process, {megabytes(size)} of records "
            f"({megabytes(free)} free); measured on {len(batch)} of {len(self._samples):,} samples"
        )
