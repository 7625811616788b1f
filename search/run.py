"""The search of a batch of samples: their trees advance together, so that the executor always has full batches."""

from __future__ import annotations

import functools
import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from data.answers import wrong_answers
from data.records import ChainResult, SearchRecord, pareto_front
from data.sample import Sample
from data.scoring import ChainScorer, EncodedSample, SampleBlock, batches_by_length
from data.states import StatesOrigin, write_states
from router.chain import Chain
from router.files import read_json, sha256_file, sha256_json, write_json
from router.validation import InputError
from search.algorithms import Searcher, make_searcher
from search.menu import Menu, MenuSearcher
from search.settings import SearchSettings
from search.shards import SplitRecords
from search.summary import duration, megabytes, write_verification
from search.verification import RULE, verify

LONGEST_TEXT = 200
"""Characters of a metadata text that a record keeps."""


@dataclass(frozen=True)
class SplitSearch:
    """How the samples of a split are searched.

    Attributes:
        scorer: runs chains on samples.
        settings: settings of each sample's search.
        first_editable: layers that run in every chain.
        reward_target: "gold", or "wrong": a wrong answer, drawn from the sample's id, counts as right.
        batch_samples: trees that advance together; it changes the speed, not the search.
        verify: whether the chains that can become labels are judged once more (`search.verification`).
        menu: the chains to run on every sample, in place of a search; None: search.
        read_layers: layers e whose `hidden_states[e]` are kept for routers to be trained on.
    """

    scorer: ChainScorer
    settings: SearchSettings
    first_editable: int
    reward_target: str
    batch_samples: int
    verify: bool = True
    menu: Menu | None = None
    read_layers: tuple[int, ...] = ()

    @property
    def settings_hash(self) -> str:
        """SHA-256 of everything that decides what the search of a sample does."""
        real_modes = {name: task.judged_mode for name, task in self.scorer.tasks.tasks.items()}
        return sha256_json(
            {
                **self._plan(),
                "first_editable": self.first_editable,
                "reward_target": self.reward_target,
                "verify": {"rule": RULE, "modes": real_modes} if self.verify else None,
                "dtype": self.scorer.dtype,
            }
        )

    def _plan(self) -> dict[str, Any]:
        """Return what decides which chains are tried."""
        if self.menu is not None:
            return {"menu": self.menu.sha256}
        return {"search": vars(self.settings)}

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

    def check(
        self, record: SearchRecord, path: Path, samples: Mapping[str, Sample], targets: Mapping[str, int | str]
    ) -> None:
        """Refuse a record of another search.

        Args:
            record: a record that was found on the disk.
            path: its file.
            samples: the samples by id.
            targets: see `targets`.

        Raises:
            InputError: where model, tokenizer, prompt, search settings, sample or target is another.
        """
        record.fingerprints.require(self.scorer.fingerprints, f"out: records in {path}")
        if record.search != self.settings_hash:
            raise InputError(
                f"out: expected no records or records of the same search settings, got others in {path}; "
                "choose another directory or remove the file"
            )
        if record.sample_id not in samples:
            raise InputError(f"out: expected records of these samples in {path}, got sample {record.sample_id}")
        if record.target != targets.get(record.sample_id, record.target):
            raise InputError(f"out: expected the wrong answers of these samples as targets in {path}, got others")

    def searcher(self, sample_id: str) -> Searcher:
        """Return a new search of one sample.

        Raises:
            ValueError: where the settings do not fit the model.
        """
        if self.menu is not None:
            return MenuSearcher(self.menu.chains, self.settings)
        space = self.settings.action_space(self.scorer.num_layers, self.first_editable)
        return make_searcher(space, self.settings, self.settings.rng_for(sample_id))

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
        block = self.scorer.load(samples)
        if keep is not None and self.read_layers:
            # Before the search: it starts from these states.
            keep({e: self._states(block, e) for e in sorted(self.read_layers)})
        searchers = [self.searcher(encoded.sample.id) for encoded in samples]
        results: list[dict[Chain, ChainResult]] = [{} for _ in samples]
        while count := self.advance(block, searchers, results):
            told(count)
        # A space smaller than the simulations ends early; the whole is told all the same.
        told(sum(self.settings.simulations - searcher.simulations for searcher in searchers))
        executed = [block.executed(i) for i in range(len(samples))]
        found = [tuple(of_sample.values()) for of_sample in results]
        if self.verify:
            found = verify(self.scorer, block, found, self.first_editable)
        return [
            self.record(encoded, found[i], rows=len(block.rows[i]), executed=executed[i])
            for i, encoded in enumerate(samples)
        ]

    def _states(self, block: SampleBlock, layer: int) -> dict[str, Tensor]:
        states = self.scorer.states(block, layer)
        return {one.sample.id: state for one, state in zip(block.samples, states, strict=True)}

    def advance(
        self, block: SampleBlock, searchers: Sequence[Searcher], results: Sequence[dict[Chain, ChainResult]]
    ) -> int:
        """Play one round: score what every search asks for, tell it, and add it to its results.

        Returns:
            The number of chains scored; 0: all searches are done.
        """
        asked = [searcher.ask() for searcher in searchers]
        jobs = [(i, chain) for i, chains in enumerate(asked) for chain in chains]
        if jobs:
            for (i, chain), result in zip(jobs, self.scorer.score(block, jobs), strict=True):
                results[i][chain] = result
        for i, chains in enumerate(asked):
            if chains:
                told = [results[i][chain] for chain in chains]
                searchers[i].tell([self.settings.reward_for(r.correct, r.margin) for r in told])
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


# One process's part of a run: it takes batches of all splits as long as there are any, beside other processes.
#
# The unit of work is a batch of a fixed partition of a split's samples. It does not depend on what is finished, so a
# sample always runs in the same company and the records do not depend on how many processes ran or were killed.


Measured = Callable[[Sequence[EncodedSample], Sequence[SearchRecord], float], object]
"""Takes a batch, its records, and the seconds that its search took."""

POLL_SECONDS = 0.5
"""Time between two looks at what other processes have finished."""


class SplitWork:
    """The search of one split, shared with other processes.

    Attributes:
        name: the split.
        search: how its samples are searched.
        samples: the samples to search, by id, in their order.
        records: what is on the disk.
        before: ids of the samples that were finished when this process began.
    """

    def __init__(
        self,
        name: str,
        search: SplitSearch,
        samples: Sequence[Sample],
        limit: int | None,
        out: Path,
        run: dict[str, Any],
    ) -> None:
        """Look at what is there.

        Args:
            name: the split.
            search: how its samples are searched.
            samples: all its samples.
            limit: samples to search at most, the first ones; None: all.
            out: folder of the record file.
            run: what the settings file says of this process's run.

        Raises:
            InputError: where the folder holds records of another search or of other samples.
        """
        self.name, self.search = name, search
        self._targets = search.targets(samples)
        self.samples = {sample.id: sample for sample in samples[:limit]}
        self.records = SplitRecords(out / f"{name}.jsonl", self._check)
        self.before = frozenset(self.records.finished)
        self._run = {**run, "run": uuid.uuid4().hex[:12], "searched": 0, "seconds": 0.0}
        self._states = out / f"{name}.states"
        self._origin = StatesOrigin(search.scorer.fingerprints, search.scorer.dtype)
        self._began: float | None = None
        self.seconds = 0.0

    def _check(self, record: SearchRecord, path: Path) -> None:
        self.search.check(record, path, self.samples, self._targets)

    @property
    def waiting(self) -> list[Sample]:
        """Samples without a record."""
        return [sample for key, sample in self.samples.items() if key not in self.records.finished]

    @property
    def complete(self) -> bool:
        """Whether every sample has a record."""
        return self.records.finished.issuperset(self.samples)

    @cached_property
    def encoded(self) -> list[EncodedSample]:
        """The samples as token ids; all, since the partition depends on every length."""
        return self.search.scorer.encode_all(self.samples.values(), self._targets)

    @property
    def waiting_encoded(self) -> list[EncodedSample]:
        """Samples without a record, as token ids."""
        return [one for one in self.encoded if one.sample.id not in self.records.finished]

    @cached_property
    def batches(self) -> list[tuple[str, list[EncodedSample]]]:
        """The partition: each batch with a name that is the same in all processes that cut it alike."""
        made = batches_by_length([sample.length for sample in self.encoded], self.search.batch_samples)
        batches = [[self.encoded[i] for i in batch] for batch in made]
        key = sha256_json([[one.sample.id for one in batch] for batch in batches])[:8]
        return [(f"{key}-{number}", batch) for number, batch in enumerate(batches)]

    def work(self, told: Callable[[float], object], measured: Measured) -> bool:
        """Search every batch that no other process has; returns whether there was one.

        Args:
            told: called with the simulations made and not on the disk yet; below 0: they are.
            measured: called after each batch, when its records are on the disk.
        """
        self._began = self._began or time.monotonic()
        found = False
        if self.complete:
            return False
        try:
            for name, batch in self.batches:
                ids = [one.sample.id for one in batch]
                if self.records.finished.issuperset(ids):
                    continue
                with self.records.claim(name, ids) as missing:
                    if not missing:
                        continue
                    found, start = True, time.monotonic()
                    share = len(missing) / len(batch)  # a batch is searched whole, what is there is not counted again
                    keep = functools.partial(write_states, self._states / f"{name}.safetensors", self._origin)
                    records = self.search.search(batch, lambda count, share=share: told(count * share), keep)  # type: ignore[misc]
                    self.records.append([record for record in records if record.sample_id in missing])
                    told(-len(missing) * self.search.settings.simulations)  # they are on the disk now
                    self._run["searched"] += len(missing)
                    self._run["seconds"] = round(self._run["seconds"] + time.monotonic() - start, 3)
                    with self.records.alone():
                        self._note()
                    measured(batch, records, time.monotonic() - start)
        finally:
            self.records.leave()
        return found

    def finish(self) -> bool:
        """Merge the records if every sample has one; returns whether the split is done."""
        self.records.refresh()
        if not self.complete or not (self.records.merged or self.records.merge(list(self.samples), self._merged)):
            return False
        self.seconds = time.monotonic() - self._began if self._began else 0.0
        return True

    def _merged(self) -> None:
        merged_hash = sha256_file(self.records.path)
        self._note(merged_hash)
        write_verification(self.records.path, self.records.merged_records(), merged_hash)

    def _note(self, merged_hash: str | None = None) -> None:
        """Say in the settings file what this run searched, and which file the runs made."""
        path = self.records.path.with_suffix(".settings.json")
        before = read_json(path) if path.exists() else {}
        if before.get("search") != self.search.settings_hash:
            before = {"runs": [], "sha256": None}  # none, or left over from another search whose records were removed
        runs = [run for run in before["runs"] if run.get("run") != self._run["run"]]
        if self._run["searched"]:
            runs.append(self._run)
        known = before["sha256"] if merged_hash is None else merged_hash
        write_json(path, {"search": self.search.settings_hash, "sha256": known, "runs": runs})


def run_all(
    works: Sequence[SplitWork], *, shown: bool, done: Callable[[SplitWork], object], processes: int = 1
) -> None:
    """Search all splits, with whatever other processes are at it; returns when all is finished and merged.

    A process that finds no batch free goes on to the next split. When all are taken it waits: what a killed process
    had becomes free, and no process ends before the work has.

    Args:
        works: the splits in their order.
        shown: whether to show the progress, of all processes together, and after the first batch the expected cost.
        done: called with each split that is finished.
        processes: processes launched together.

    Raises:
        InputError: where, after the first batch, the records clearly do not fit on the disk.
    """
    with _Progress(works, shown, processes) as progress:
        left = list(works)
        while left:
            found = False
            for work in list(left):
                found = work.work(progress.add, progress.measured) or found
                if work.finish():
                    progress.look()
                    left.remove(work)
                    done(work)
            if left and not found:
                progress.look("waiting for other processes")
                time.sleep(POLL_SECONDS)


class _Progress:
    """A bar of simulations: of the finished samples of all processes, and of this process's own batch."""

    def __init__(self, works: Iterable[SplitWork], shown: bool, processes: int) -> None:
        self._works = list(works)
        self._processes = processes
        self._estimated = not shown
        self._own = 0.0
        self._looked = time.monotonic()
        self._total = sum(len(work.samples) * work.search.settings.simulations for work in self._works)
        self._bar = tqdm(
            total=self._total,
            initial=self._finished(),
            desc="search " + "+".join(work.name for work in self._works),
            unit="chain",
            disable=not shown,
        )

    def _finished(self) -> int:
        return sum(len(work.records.finished) * work.search.settings.simulations for work in self._works)

    def add(self, simulations: float) -> None:
        """Count simulations of this process's batch."""
        self._own += simulations
        if not self._bar.disable and time.monotonic() > self._looked + POLL_SECONDS:
            self._show()

    def measured(self, batch: Sequence[EncodedSample], records: Sequence[SearchRecord], seconds: float) -> None:
        """Say once, after the first batch, what the whole is expected to cost; nothing where the batch was all."""
        if self._estimated:
            return
        self._estimated = True
        left = [one for work in self._works for one in work.waiting_encoded]
        if left:
            out = self._works[0].records.path.parent
            tqdm.write(expected(batch, records, seconds, [*batch, *left], out, self._processes))

    def look(self, note: str = "") -> None:
        """Count what is on the disk, with no batch of this process under way."""
        self._own = 0.0
        self._show()
        self._bar.set_postfix_str(note)

    def _show(self) -> None:
        if self._bar.disable:
            return
        for work in self._works:
            work.records.refresh()
        self._looked = time.monotonic()
        self._bar.update(min(self._finished() + int(self._own), self._total) - self._bar.n)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


# What a run costs in all: what its first batch cost, times what is to search. Times are estimates, not promises.


MARGIN_OF_ERROR = 0.8
"""Share of the expected bytes that must fit on the disk."""


def expected(
    batch: Sequence[EncodedSample],
    records: Sequence[SearchRecord],
    seconds: float,
    samples: Sequence[EncodedSample],
    out: Path,
    processes: int,
) -> str:
    """Return a line on what it costs to search some samples.

    Layers and bytes grow with the number of samples. Time grows with their tokens, because the first batch has the
    shortest samples.

    Args:
        batch: samples that were searched.
        records: their records.
        seconds: time that their search took, verification included.
        samples: samples to search, the batch included.
        out: folder of the records.
        processes: processes that share the work.

    Raises:
        InputError: where the records clearly do not fit on the disk.
    """
    times = len(samples) / len(batch)
    layers = times * sum(record.executed_layers for record in records)
    size = times * sum(len(json.dumps(record.to_json(), ensure_ascii=False).encode()) + 1 for record in records)
    total = seconds * sum(one.length for one in samples) / sum(one.length for one in batch)
    free = shutil.disk_usage(out).free
    if size * MARGIN_OF_ERROR > free:
        raise InputError(f"out: expected about {megabytes(size)} of free disk at {str(out)!r}, got {megabytes(free)}")
    shared = f" for one process, {duration(total / processes)} if {processes} share it" if processes > 1 else ""
    return (
        f"expected: {layers:,.0f} layers run, about {duration(total)}{shared}, {megabytes(size)} of records "
        f"({megabytes(free)} free); measured on {len(batch)} of {len(samples):,} samples"
    )
