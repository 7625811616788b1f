"""The parts of routed calls: read prompts once, decide a chain for each, run rows of one chain from what was read."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from router.chain import Chain
from router.choices import ChoiceScorer, Question, ScoredChoices
from router.head import ScoredChain
from router.routed.replay import Prefix, PrefixRun
from router.storage import Router
from router.view import CACHED_VIEWS


@dataclass(frozen=True)
class Reading:
    """What was read of a batch of prompts.

    Attributes:
        run: what the first layers computed.
        output: what the router's head says of each row.
    """

    run: PrefixRun
    output: Float[Tensor, "rows ..."]

    def select(self, rows: Sequence[int]) -> Reading:
        """Return the same of some rows."""
        return Reading(self.run.select(rows), self.output[list(rows)])


@dataclass(frozen=True)
class Operation:
    """How much depth the router is to spend.

    Attributes:
        budget: mean depth wanted, layers; None: the router's own choice.
        guaranteed: take the certified operating point instead.
    """

    budget: float | None = None
    guaranteed: bool = False


class ChainRunner:
    """Runs a model's chains for prompts that its router has read; safe for several threads."""

    def __init__(self, model: PreTrainedModel, router: Router) -> None:
        """Prepare a model, which is not changed.

        Raises:
            ValueError: where the model has another number of layers than the router was trained for.
        """
        self._model, self._router = model, router
        self._prefix = Prefix(model, router.config.prefix_layers)
        if self._prefix.num_layers != router.config.num_layers:
            raise ValueError(
                f"model: expected {router.config.num_layers} layers, as the router has it, "
                f"got {self._prefix.num_layers}"
            )
        self._views: OrderedDict[Chain, PreTrainedModel] = OrderedDict()
        self._scorer: ChoiceScorer | None = None
        self._lock = threading.Lock()

    @torch.no_grad()
    def read(self, ids: Int[Tensor, "rows tokens"], mask: Int[Tensor, "rows tokens"]) -> Reading:
        """Run the first layers and the router's head over a batch of prompts, padded on the left."""
        run = self._prefix.run(ids, mask)
        return Reading(run, self._router.outputs([row.cpu() for row in run.rows()]))

    @torch.no_grad()
    def decide(
        self, output: Float[Tensor, "rows ..."], own: Operation, budgets: Sequence[float | None] | None = None
    ) -> list[ScoredChain]:
        """Return the chain of each row, with its score.

        Args:
            output: what the head says of the rows.
            own: how much depth to spend on rows without a budget.
            budgets: mean depth wanted for each row, layers; None for rows without.

        Raises:
            ValueError: where a budget lies outside what was measured in training.
        """
        wanted = [None] * len(output) if budgets is None else list(budgets)
        if len(wanted) != len(output):
            raise ValueError(f"budgets: expected {len(output)} entries, one a row, got {len(wanted)}")
        operations = [own if budget is None else Operation(budget) for budget in wanted]
        decided: dict[int, ScoredChain] = {}
        for operation in dict.fromkeys(operations):
            rows = [row for row, one in enumerate(operations) if one == operation]
            decided |= zip(rows, self._at(output[rows], operation), strict=True)
        return [decided[row] for row in range(len(wanted))]

    def _at(self, output: Float[Tensor, "rows ..."], operation: Operation) -> list[ScoredChain]:
        if operation.guaranteed:
            return self._router.guaranteed(output)
        return [ranked[0] for ranked in self._router.head.decode(output, operation.budget)]

    @torch.no_grad()
    def generate(self, chain: Chain, reading: Reading, settings: GenerationConfig | None, **options: Any) -> Any:
        """Generate under one chain for all rows of a reading, with the library's `generate`.

        Args:
            chain: a chain that begins with the layers which were read.
            reading: what was read of the rows.
            settings: the model's own settings, which `options` override.
            options: what the library's `generate` takes.

        Raises:
            ValueError: where the chain begins otherwise.
        """
        view = self.view(chain)
        view.generation_config = settings
        with self._prefix.given(reading.run):
            return view.generate(input_ids=reading.run.ids, attention_mask=reading.run.mask, **options)

    def view(self, chain: Chain) -> PreTrainedModel:
        """Return a plain model that runs a chain, for all that a model does; views are cached.

        Raises:
            ValueError: where the chain does not begin with the layers that the router reads.
        """
        with self._lock:
            view = self._views.get(chain)
            if view is None:
                view = self._views[chain] = self._prefix.view(chain)
                if len(self._views) > CACHED_VIEWS:
                    self._views.popitem(last=False)
            self._views.move_to_end(chain)
            return view

    def score(self, questions: Sequence[Question], own: Operation, *, scored: bool = True) -> list[ScoredChoices]:
        """Score choices under the one chain that the router picks from prompt and choices.

        Args:
            questions: prompts and choices as token ids.
            own: how much depth to spend.
            scored: whether log-probabilities are wanted; otherwise only the chains.

        Raises:
            ValueError: where a prompt or a choice is empty.
        """
        with self._lock:
            if self._scorer is None:
                self._scorer = ChoiceScorer(self._model, self._router.config.prefix_layers)

        def decide(states: list[Float[Tensor, "_ d_model"]]) -> list[ScoredChain]:
            return self.decide(self._router.outputs(states), own)

        return self._scorer.score(questions, decide, scored=scored)
