"""Choices after a prompt: read once by the router, then scored under one chain.

Prompt and choices stand in one packed row where the model allows it, else in a row for each choice.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from router.chain import Chain
from router.engine.executor import ChainExecutor, Job
from router.engine.load import prompt_tokens, tokens_after
from router.engine.rows import Row, pack_row, plain_row, separate_rows
from router.heads.head import Decision, ReadOn

STATE_BYTES = 2**28
"""Bytes of computed states kept while a call runs."""


@dataclass(frozen=True)
class Question:
    """A prompt and its choices as token ids.

    Attributes:
        prompt: tokens of the prompt.
        choices: tokens of each choice, that follow the prompt; none: the prompt alone is read.
    """

    prompt: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class ScoredChoices:
    """What one chain says of a question's choices.

    Attributes:
        routed: the chain, with the router's score of it.
        logprobs: log-probability of each choice after the prompt, nats, summed over its tokens.
        tokens: tokens of each choice, for who wants means.
    """

    routed: Decision
    logprobs: tuple[float, ...]
    tokens: tuple[int, ...]

    @property
    def best(self) -> int:
        """Index of the choice of greatest log-probability, the first of several."""
        return max(range(len(self.logprobs)), key=self.logprobs.__getitem__)


def question_of(tokenizer: PreTrainedTokenizerBase, prompt: str, choices: Sequence[str]) -> Question:
    """Return a prompt and its choices as token ids.

    Raises:
        ValueError: where there is no choice.
    """
    if isinstance(choices, str) or not choices:
        raise ValueError(f"choices: expected a list of at least one text, got {choices!r}")
    tokens = prompt_tokens(tokenizer, prompt)
    wholes = [prompt_tokens(tokenizer, prompt + choice) for choice in choices]
    own = (tokens_after(tokenizer, tokens, whole, choice) for whole, choice in zip(wholes, choices, strict=True))
    return Question(tokens, tuple(own))


def rows_of(prompt: Sequence[int], choices: Sequence[Sequence[int]], *, packed: bool) -> list[Row]:
    """Return the rows of a question: one with everything, or one a choice.

    Raises:
        ValueError: where the prompt or a choice is empty.
    """
    if not choices:
        return [plain_row(prompt)]
    return [pack_row(prompt, choices)] if packed else separate_rows(prompt, choices)


def joined_states(
    states: Sequence[Float[Tensor, "_ d_model"]], prompt_tokens: int, *, choices: bool
) -> Float[Tensor, "_ d_model"]:
    """Return the states of a question from those of its rows: of the prompt, then of each choice.

    Choices come without their last token, which nothing follows.

    Args:
        states: the states of each of its rows.
        prompt_tokens: tokens of its prompt.
        choices: whether those of the choices are wanted.
    """
    first, *others = states
    if not choices:
        return first[:prompt_tokens]
    return torch.cat([first, *(other[prompt_tokens:] for other in others)])


class ChoiceScorer:
    """Reads and scores questions with a model; safe for several threads, which take turns."""

    def __init__(self, model: PreTrainedModel, read_layers: Sequence[int], *, batch_tokens: int = 2048) -> None:
        """Prepare a model, which is not changed.

        Args:
            model: a decoder-only model in evaluation mode.
            read_layers: layers that have run when the router reads, and when it reads once more, if it does.
            batch_tokens: tokens in one call of a layer at most.
        """
        self._executor = ChainExecutor(model, batch_tokens=batch_tokens, state_bytes=STATE_BYTES)
        self._prefixes = [Chain(tuple(range(layer)), self._executor.num_layers) for layer in read_layers]
        self._lock = threading.Lock()

    def score(
        self,
        questions: Sequence[Question],
        decide: Callable[[Sequence[Float[Tensor, "_ d_model"]], ReadOn], list[Decision]],
        *,
        scored: bool = True,
    ) -> list[ScoredChoices]:
        """Run the first layers, let the router decide, and score each question's choices under its chain.

        Args:
            questions: the questions.
            decide: one chain for each question, from the states of its prompt and choices, and what reads them on.
            scored: whether log-probabilities are wanted; otherwise there are none.

        Raises:
            ValueError: where a prompt or a choice is empty, or a log-probability is not a number.
        """
        if not questions:
            return []
        with self._lock:
            self._executor.follow()  # how rows are made hangs on what the model is now
            packed = self._executor.can_pack
            every = [rows_of(question.prompt, question.choices, packed=packed) for question in questions]
            block = self._executor.load([row for rows in every for row in rows])
            owners = [owner for owner, rows in enumerate(every) for _ in rows]

            def states(prefix: Chain, wanted: Sequence[int]) -> list[Float[Tensor, "_ d_model"]]:
                known = set(wanted)
                jobs = [Job(row, prefix) for row, owner in enumerate(owners) if owner in known]
                read = iter(self._executor.states(block, jobs))
                own = {owner: [next(read) for _ in rows] for owner, rows in enumerate(every) if owner in known}
                asked = [(own[owner], questions[owner]) for owner in wanted]
                return [joined_states(of, len(one.prompt), choices=bool(one.choices)).cpu() for of, one in asked]

            first = states(self._prefixes[0], range(len(questions)))
            routed = decide(first, functools.partial(states, self._prefixes[-1]))
            if not scored:
                return [ScoredChoices(one, (), ()) for one in routed]
            jobs = [Job(row, routed[owner].chain) for row, owner in enumerate(owners)]
            logprobs = self._executor.target_logprobs(block, jobs)
        sums = [[0.0] * len(question.choices) for question in questions]
        for row, owner, values in zip(block.rows, owners, logprobs, strict=True):
            for target, value in zip(row.targets, values.tolist(), strict=True):
                sums[owner][target.group] += value
        for one, total in zip(routed, sums, strict=True):
            if any(map(math.isnan, total)):
                raise ValueError(
                    f"choices: expected numbers as log-probabilities, got nan under chain {one.chain} "
                    "(in float16 some models overflow)"
                )
        return [
            ScoredChoices(one, tuple(total), tuple(map(len, question.choices)))
            for one, total, question in zip(routed, sums, questions, strict=True)
        ]
