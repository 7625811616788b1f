"""The search of a batch of samples: their trees advance together, so that the executor always has full batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from data.controls import wrong_answers
from data.encoding import EncodedSample
from data.records import ChainResult, SearchRecord, pareto_front
from data.sample import Sample
from data.scoring import ChainScorer, SampleBlock
from router.chain import Chain
from router.command import InputError
from router.durable import sha256_json
from search.algorithms import Searcher, make_searcher
from search.menu_file import Menu
from search.menu_search import MenuSearcher
from search.settings import SearchSettings
from search.verification import RULE, verify

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
        verify: whether the chains that can become labels are judged once more (`search.verification`).
        menu: the chains to run on every sample, in place of a search; None: search.
        read_layers: layers e whose `hidden_states[e]` are kept for routers to be trained on.
    """

    scorer: ChainScorer
    settings: SearchSettings
    prefix_layers: int
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
                "prefix_layers": self.prefix_layers,
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
        space = self.settings.action_space(self.scorer.num_layers, self.prefix_layers)
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
            found = verify(self.scorer, block, found, self.prefix_layers)
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
            prefix_layers=self.prefix_layers,
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
