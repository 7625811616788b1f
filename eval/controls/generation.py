"""Labels verified by real generation: do chains that score an answer as right also write it?

For tasks that are not judged by generation anyway. Under each chain the model writes its answer after the same prompt.
A task that asks for a letter, or for a free answer, is read as `data.scoring` reads it. One that scores the choices'
texts asks for no form: the answer is the choice whose text is written, or whose letter where the prompt lists them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedModel

from data.answers import folded, parse_letter
from data.records import ChainResult
from data.scoring import ChainScorer, EncodedSample, SampleBlock
from data.tasks import Task
from eval.controls.statistics import Pair, PairedShares, Share, paired_shares, share_of
from eval.results import PolicyResult
from router.chain import Chain


@dataclass(frozen=True)
class GeneratedArm:
    """One arm's answers, judged and generated.

    Attributes:
        judged: accuracy in the mode of evaluation.
        generated: accuracy of what is generated; an answer that cannot be read counts as wrong.
        no_answer: samples in whose generated text no answer could be read.
        right: samples that are right in the mode of evaluation.
        confirmed: share of them that generation confirms.
        right_no_answer: how many of them have no answer that could be read.
        confirmed_of_read: share of the others that generation confirms.
        agreed: share of all samples in which both give the same verdict.
    """

    judged: Share | None
    generated: Share | None
    no_answer: int
    right: int
    confirmed: Share | None
    right_no_answer: int
    confirmed_of_read: Share | None
    agreed: Share | None


@dataclass(frozen=True)
class Generated:
    """What generation says of full depth and the oracle.

    Attributes:
        n: samples.
        modes: the modes of evaluation that generation is compared with.
        full: full depth.
        oracle: the oracle's chains.
        paired: generated answers, the oracle's accuracy against full depth's.
    """

    n: int
    modes: tuple[str, ...]
    full: GeneratedArm
    oracle: GeneratedArm
    paired: PairedShares | None


def policy_name(arm: str) -> str:
    """Return the name under which an arm's generated answers stand in the results."""
    return f"{arm}/generated"


@dataclass(frozen=True)
class GenerationJudge:
    """Runs chains by generation and reads their answers, whatever mode the samples' tasks are in.

    Attributes:
        scorer: runs the chains.
        positions: tokens that the model has positions for; None: any number.
    """

    scorer: ChainScorer
    positions: int | None

    @classmethod
    def of(cls, model: PreTrainedModel, scorer: ChainScorer) -> GenerationJudge:
        """Return the judge of a model and its scorer."""
        positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        return cls(scorer, positions if isinstance(positions, int) else None)

    def __call__(self, block: SampleBlock, jobs: Sequence[tuple[int, Chain]]) -> list[ChainResult]:
        """Generate and grade an answer for each (index of a sample in the block, chain), in order."""
        samples = tuple(self._writing(encoded) for encoded in block.samples)
        results = self.scorer.generate_answers(dataclasses.replace(block, samples=samples), jobs)
        return [
            _of_choices(block.samples[index], result) if block.samples[index].task.mode == "continuation" else result
            for (index, _), result in zip(jobs, results, strict=True)
        ]

    def _writing(self, encoded: EncodedSample) -> EncodedSample:
        """Return a sample whose answer can be written: within the model's positions, a choice as free text."""
        task, target, longest = encoded.task, encoded.target, encoded.task.max_new_tokens
        if task.mode == "continuation":
            task, target = _free_text(task), encoded.sample.gold
            longest = max(longest, 1 + max(map(len, encoded.continuations)))  # and its end
        if self.positions is not None:
            longest = min(longest, self.positions - len(encoded.prompt))
        return dataclasses.replace(encoded, task=dataclasses.replace(task, max_new_tokens=longest), target=target)


def _free_text(task: Task) -> Task:
    """Return a task of the same prompt whose answer is all the text up to its end."""
    return dataclasses.replace(
        task,
        columns=dataclasses.replace(task.columns, choices=None, labels=None),
        fixed_choices=(),
        answer_kind="text",
        mode="generate",
        real_mode=None,
        normalise="none",
        shuffle=0,
        grading="text",
    )


def _of_choices(encoded: EncodedSample, written: ChainResult) -> ChainResult:
    """Return the choice that a written text names, None where it names none."""
    choice = None if written.prediction is None else choice_of(str(written.prediction), encoded)
    return ChainResult.from_answer(written.chain, choice, choice == encoded.target)


def choice_of(text: str, encoded: EncodedSample) -> int | None:
    """Return the index of the choice that a text names: by its own text, or by its letter in the list; None: of none.

    Raises:
        ValueError: where more choices are listed than there are letters.
    """
    choices = encoded.sample.choices
    same = [i for i, choice in enumerate(choices) if folded(choice) == folded(text)]
    if len(same) == 1:
        return same[0]
    letter = parse_letter(text, len(choices)) if encoded.task.list_choices else None
    return None if letter is None else encoded.query.order[letter]


def measure_generated(judged: Pair, written: Pair, modes: Sequence[str], seed: int) -> dict[str, Any]:
    """Compare answers with generated ones; JSON data of `Generated`.

    Args:
        judged: results in the mode of evaluation.
        written: results by generation, of the same samples in the same order.
        modes: the modes of evaluation.
        seed: seed of the bootstrap.
    """
    full, oracle = ([one.correct for one in of_arm] for of_arm in written)
    arms = [_arm(one, other) for one, other in zip(judged, written, strict=True)]
    return asdict(Generated(len(full), tuple(modes), arms[0], arms[1], paired_shares(oracle, full, seed)))


def _arm(judged: Sequence[PolicyResult], written: Sequence[PolicyResult]) -> GeneratedArm:
    pairs = [*zip(judged, written, strict=True)]
    right = [other for one, other in pairs if one.correct]
    read = [other for other in right if other.prediction is not None]
    return GeneratedArm(
        judged=share_of([one.correct for one in judged]),
        generated=share_of([one.correct for one in written]),
        no_answer=sum(one.prediction is None for one in written),
        right=len(right),
        confirmed=share_of([one.correct for one in right]),
        right_no_answer=len(right) - len(read),
        confirmed_of_read=share_of([one.correct for one in read]),
        agreed=share_of([one.correct == other.correct for one, other in pairs]),
    )
