"""Search records: what a search found for each sample, one JSON line a sample (docs/formats.md)."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from pydantic import Field, ValidationInfo, model_validator
from pydantic.dataclasses import dataclass

from data.answers import clean_number, folded
from data.sample import Mode
from data.store import meta_path, read_finished
from router.chain import Chain
from router.files import read_json, read_json_lines, require_file, sha256_file
from router.fingerprint import Fingerprints
from router.validation import STORED, ChainField, Count, InputError, Positive, from_plain

SCHEMA: Literal[3] = 3
"""Version of the record file's format. Schema 2, of which only the name of `first_editable` differs, is read too."""
TIE = 1e-6
"""Margin of an exact answer that argmax picks among equal logits."""
Answer = int | str | None
"""Index of a choice, text of a free answer, or None: no answer could be read."""


def _is_none(value: object) -> bool:
    return value is None


def _is_one(value: int) -> bool:
    return value == 1


@dataclass(frozen=True, slots=True, config=STORED)
class VariantResult:
    """What one chain answers on one sample that is asked in another variant (`Task.variant`).

    Attributes:
        scores: as of `ChainResult`.
        prediction: as of `ChainResult`.
        correct: as of `ChainResult`.
        margin: as of `ChainResult`.
    """

    scores: tuple[float, ...]
    prediction: Answer
    correct: bool
    margin: float

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> Self:
        if info.context is not None:
            _require_consistent(self)
        return self

    @classmethod
    def of(cls, result: ChainResult) -> VariantResult:
        """Return what a chain was judged to answer in the variant that was run."""
        return cls(result.scores, result.prediction, result.correct, result.margin)


Variants = Annotated[tuple[VariantResult, ...], Field(exclude_if=operator.not_)]
"""Answers in variants; left out of files where there are none."""


@dataclass(frozen=True, slots=True, config=STORED)
class ChainResult:
    """What one chain answers on one sample.

    Attributes:
        chain: the chain that was run.
        scores: by scoring mode: the score of every choice, in the order of the sample's choices (log-probability,
            nats); of an exact answer the log-probability of each token of the right answer and its end; of a
            generated answer nothing. 6 decimals.
        prediction: index of the choice that was answered (the first of those with the highest score); of a free
            answer its text ("exact": what greedy decoding emits up to the first token that is not the right
            answer's); null: no answer could be read in what was generated (a format failure).
        correct: whether the answer is right, as first judged; whether it counts as right is `stands`.
        margin: above 0 where correct. Choices: score of the right choice minus the best other score, nats. Exact: the
            least of the right tokens' logits minus the best other token's (`TIE` where argmax breaks a tie for it).
            Generated: 1 where right, else -1.
        verified: whether a second run in another batch composition or mode agreed; null: not tried.
        verified_by: scoring mode of that second run.
        variants: what it answers where the sample is asked in its variants 1, 2, ..., in this order; fewer than asked
            for where it could no longer stand. Left out where there are none.
        robust: whether it is right, and in enough of the variants; null: the sample was asked in one only. Left out
            where null.
        held_out: what it answers in variants that the search never saw: full depth, and the chains of the front that
            stand. Left out where there are none.
    """

    chain: ChainField
    scores: tuple[float, ...]
    prediction: Answer
    correct: bool
    margin: float
    verified: bool | None = None
    verified_by: Mode | None = None
    variants: Variants = ()
    robust: Annotated[bool | None, Field(exclude_if=_is_none)] = None
    held_out: Variants = ()

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> Self:
        """Refuse fields read from a file that contradict each other; the makers below keep them consistent."""
        if info.context is None:
            return self
        if self.robust and not self.correct:
            raise ValueError("robust: expected false or null of a wrong answer, got True")
        _require_consistent(self)
        return self

    @property
    def answers(self) -> tuple[ChainResult | VariantResult, ...]:
        """What it answers in each variant that was tried, the usual one first."""
        return (self, *self.variants)

    @property
    def right(self) -> bool:
        """Whether the usual question is answered rightly: judged so, and a second run did not say otherwise."""
        return self.correct and self.verified is not False

    @property
    def stands(self) -> bool:
        """Whether the chain counts as right, everywhere: right, and in enough variants where there are several."""
        return self.right and self.robust is not False

    def mean_correct(self, variants: int) -> float:
        """Return the share of so many variants, the usual question among them, that are answered rightly.

        A variant that was not tried counts as wrong. With one variant it is 1 where the chain stands, else 0.
        """
        return (self.right + sum(one.correct for one in self.variants)) / variants

    @classmethod
    def from_scores(cls, chain: Chain, scores: Sequence[float], answer: int) -> ChainResult:
        """Judge a chain's scores against the right choice's index.

        Where the right choice shares the highest score with another (bfloat16 logits tie), the chain counts as wrong.

        Raises:
            ValueError: where a score is no finite number.
        """
        # Rounded here and not when written, so that what is read back is judged exactly alike.
        values = tuple(round(float(score), 6) for score in scores)
        _require_finite(values, chain)
        prediction = max(range(len(values)), key=values.__getitem__)
        margin = round(values[answer] - max(value for i, value in enumerate(values) if i != answer), 6)
        return cls(chain, values, prediction, margin > 0, margin)

    @classmethod
    def from_tokens(
        cls, chain: Chain, log_probabilities: Sequence[float], margins: Sequence[float], emitted: bool, prediction: str
    ) -> ChainResult:
        """Judge a free answer by its tokens: right where greedy decoding emits each of them.

        Args:
            chain: the chain that was run.
            log_probabilities: of the right answer's tokens, nats.
            margins: of each token, its logit minus the best other one's.
            emitted: whether each token is the one that argmax picks; it decides between equal logits.
            prediction: text that greedy decoding emits, as far as it is known.

        Raises:
            ValueError: where a value is no finite number.
        """
        scores = tuple(round(float(value), 6) for value in log_probabilities)
        margin = round(float(min(margins)), 6)
        _require_finite((*scores, margin), chain)
        margin = max(margin, TIE) if emitted else min(margin, 0.0)
        return cls(chain, scores, prediction, emitted, margin)

    @classmethod
    def from_answer(cls, chain: Chain, prediction: Answer, correct: bool) -> ChainResult:
        """Return the result of a generated and graded answer."""
        return cls(chain, (), prediction, correct, 1.0 if correct else -1.0)


def _require_consistent(result: ChainResult | VariantResult) -> None:
    """Refuse fields read from a file that contradict each other."""
    n, prediction, right = len(result.scores), result.prediction, result.margin > 0
    if n == 0 and abs(result.margin) != 1.0:
        raise ValueError(f"margin: expected 1 or -1 of a generated answer, got {result.margin!r}")
    if isinstance(prediction, int) and not 0 <= prediction < (n or math.inf):
        raise ValueError(f"prediction: expected an index below {n}, text or null, got {prediction!r}")
    if prediction is None and (n or result.correct):
        raise ValueError("prediction: expected null only where no answer could be read, got it otherwise")
    if result.correct != right:
        raise ValueError(f"correct: expected {right} for the margin, got {result.correct!r}")


def _require_finite(values: Sequence[float], chain: Chain) -> None:
    if not all(map(math.isfinite, values)):
        raise ValueError(f"scores: expected finite numbers, got {list(values)} for chain {chain}")


@dataclass(frozen=True, slots=True, config=STORED)
class SearchRecord:
    """All chains that a search, or a menu, tried on one sample.

    Attributes:
        sample_id: `Sample.id`.
        task: the sample's task.
        split: the sample's split.
        metadata: what the data set says of the sample besides (difficulty, subject); texts above 200 characters stay
            with the sample.
        mode: scoring mode of the results.
        num_layers: layers of the base model.
        first_editable: layers 0..first_editable-1 run unedited in every chain.
        dtype: dtype of the base model during the search, for example "bfloat16".
        reward_target: "gold", or "wrong" for the control that searches for a wrong answer; then `correct`, `margin`
            and `pareto` are about that answer.
        target: the answer that counts as right: the index of a choice, or text.
        seed: seed of the search.
        simulations: simulations made.
        nominal_layers: layers of all chains tried, as if each had run from layer 0.
        executed_layers: layers really run for this sample (shared prefixes once); 0 in mode "generate", where the
            decoding library runs them.
        results: every chain tried, in order of trial; the first is the full chain.
        pareto: indices into `results`: right chains (robust ones, where there are several variants) that no shorter
            right chain dominates, by depth; the shortest right chain first. Empty where no chain is right.
        fingerprints: what the record is valid for.
        search: SHA-256 of what decided the search (of a menu table: of the menu), which stands in the meta file.
        schema: version of the format.
        variants: variants in which the sample was asked, the usual one among them. Left out where 1.
    """

    sample_id: str
    task: str
    split: str
    metadata: dict[str, Any]
    mode: Mode
    num_layers: Positive
    first_editable: Count
    dtype: str
    reward_target: Literal["gold", "wrong"]
    target: int | str
    seed: int
    simulations: Count
    nominal_layers: Count
    executed_layers: Count
    results: Annotated[tuple[ChainResult, ...], Field(min_length=1)]
    pareto: tuple[Count, ...]
    fingerprints: Fingerprints
    search: str
    schema: Literal[3] = SCHEMA
    variants: Annotated[int, Field(ge=1, exclude_if=_is_one)] = 1

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> Self:
        """Refuse fields read from a file that contradict each other."""
        if info.context is None:
            return self
        if not self.full.chain.is_full:
            raise ValueError("results[0]: expected the full chain, got another")
        if {len(result.scores) for result in self.results} != {len(self.full.scores)}:
            raise ValueError("results: expected as many scores for every chain, got different numbers")
        if any((result.robust is None) != (self.variants == 1) for result in self.results):
            raise ValueError("results: expected robust true or false exactly where there are several variants")
        if any(len(result.variants) >= self.variants for result in self.results):
            raise ValueError(f"results: expected answers in at most {self.variants - 1} further variants, got more")
        if self.pareto != pareto_front(self.results):
            raise ValueError(f"pareto: expected {list(pareto_front(self.results))}, got {list(self.pareto)}")
        return self

    @property
    def full(self) -> ChainResult:
        """Full depth's result."""
        return self.results[0]

    def require_gold(self, where: str) -> None:
        """Refuse a record of the search for a wrong answer.

        Raises:
            InputError: for such a record; the message begins with `where`.
        """
        if self.reward_target != "gold":
            raise InputError(f"{where}: expected the reward target gold, got {self.reward_target}")

    @property
    def shortest(self) -> ChainResult | None:
        """The shortest chain that stands (greatest margin among equals), or None where none does."""
        standing = [result for result in self.results if result.stands]
        return min(standing, key=lambda one: (one.chain.depth, -one.margin), default=None)


def agrees(one: ChainResult | VariantResult, other: ChainResult | VariantResult) -> bool:
    """Whether two results on one sample give the same answer: the only meaning of "agrees with full depth".

    Choices: the same one. Free answers: both are right, however written, or both are wrong and say the same: the same
    folded text, or the same number (`0.5` and `1/2`).
    """
    if not isinstance(one.prediction, str) or not isinstance(other.prediction, str):
        return one.prediction == other.prediction
    if one.correct or other.correct:
        return one.correct == other.correct
    first, second = folded(one.prediction), folded(other.prediction)
    return first == second or (_number(first) is not None and _number(first) == _number(second))


def mean_agreement(one: ChainResult, other: ChainResult) -> float:
    """Return the share of the variants, tried with both chains, in which two results on one sample agree."""
    agreed = [agrees(*pair) for pair in zip(one.answers, other.answers, strict=False)]
    return sum(agreed) / len(agreed)


def _number(text: str) -> Fraction | None:
    try:
        return Fraction(clean_number(text) or text)
    except (ValueError, ZeroDivisionError):
        return None


def pareto_front(results: Sequence[ChainResult]) -> tuple[int, ...]:
    """Return the indices of right chains on the front of (depth, margin): shorter first, then only greater margins."""
    right = sorted((r.chain.depth, -r.margin, i) for i, r in enumerate(results) if r.correct and r.robust is not False)
    front: list[int] = []
    best = float("-inf")
    for _, negative, i in right:
        if -negative > best:
            front.append(i)
            best = -negative
    return tuple(front)


def shared_chains(records: Sequence[SearchRecord]) -> list[Chain]:
    """Return the chains that every record has tried, in the first record's order: of menu tables, the menu."""
    common = set.intersection(*({result.chain for result in record.results} for record in records))
    return [result.chain for result in records[0].results if result.chain in common]


def joined(one: SearchRecord, other: SearchRecord) -> SearchRecord:
    """Return a record with the chains of both; of a chain tried in both, what the first found.

    Raises:
        InputError: where they asked the sample in different numbers of variants.
    """
    if one.variants != other.variants:
        raise InputError(f"records: expected records of {one.variants} variants, got some of {other.variants}")
    known = {result.chain for result in one.results}
    results = (*one.results, *(new for new in other.results if new.chain not in known))
    return replace(one, results=results, pareto=pareto_front(results))


def read_records(path: Path, setting: str = "records") -> list[SearchRecord]:
    """Read a finished record file, of this schema or of schema 2.

    Raises:
        InputError: where the file is missing, empty, cut or not finished, a line is corrupt, or a sample stands twice.
    """
    records: list[SearchRecord] = []
    seen: set[str] = set()
    for where, value in _lines(path, setting):
        record = _parse(value, where)
        if record.sample_id in seen:
            raise InputError(f"{where}: expected each sample once, got {record.sample_id} again")
        seen.add(record.sample_id)
        records.append(record)
    if not records:
        raise InputError(f"{setting}: expected at least one record, got the empty file {str(path)!r}")
    return records


def runs_file(path: Path) -> Path:
    """Return the file beside a record file that names the runs which made it; of schema 2 it has another name."""
    return meta_path(path) if meta_path(path).exists() else path.with_suffix(".settings.json")


def model_of(path: Path) -> str | None:
    """Return the base model that a record file's first run names; None: it names none."""
    beside = runs_file(path)
    runs = read_json(beside).get("runs", []) if beside.exists() else []
    found = runs[0].get("settings", {}).get("model") if runs else None
    return found if isinstance(found, str) else None


def _lines(path: Path, setting: str) -> Iterable[tuple[str, dict[str, Any]]]:
    """Give (file and line, object); what lies beside a file of schema 2 has another name."""
    old = path.with_suffix(".settings.json")
    return _old_lines(path, old, setting) if old.exists() else read_finished(path, setting)


def _old_lines(path: Path, settings: Path, setting: str) -> Iterator[tuple[str, dict[str, Any]]]:
    require_file(path, setting)
    if read_json(settings).get("sha256") != sha256_file(path):
        raise InputError(f"{path}: expected the SHA-256 in {settings.name}, got another: it was changed or cut")
    for number, value in read_json_lines(path):
        yield f"{path}, line {number}", value


def _parse(value: dict[str, Any], where: str) -> SearchRecord:
    if value.get("schema") == 2:
        value = {**value, "schema": SCHEMA}
        if "prefix_layers" in value:
            value["first_editable"] = value.pop("prefix_layers")
    if value.get("schema") != SCHEMA:
        raise InputError(f"{where}: expected schema {SCHEMA} or 2, got {value.get('schema')!r}")
    layers = value.get("num_layers")
    return from_plain(SearchRecord, value, where, num_layers=layers if isinstance(layers, int) else None)


@dataclasses.dataclass(frozen=True)
class DenseTable:
    """What every chain of a menu answered on every sample.

    Attributes:
        chains: the chains, the full one first.
        sample_ids: the samples.
        tasks: each sample's task.
        correct: `[samples, chains]`: `ChainResult.right`.
    """

    chains: tuple[Chain, ...]
    sample_ids: tuple[str, ...]
    tasks: tuple[str, ...]
    correct: Bool[np.ndarray, "samples chains"]

    @classmethod
    def of(cls, records: Sequence[SearchRecord], chains: Sequence[Chain] | None = None) -> DenseTable:
        """Gather the chains that all records have (or those given), in the first record's order.

        Raises:
            InputError: where a record lacks a chain that was asked for.
        """
        by_sample = [{result.chain: result for result in record.results} for record in records]
        chains = shared_chains(records) if chains is None else chains
        for record, known in zip(records, by_sample, strict=True):
            missing = [chain for chain in chains if chain not in known]
            if missing:
                raise InputError(f"records: expected {missing[0]} for every sample, got none for {record.sample_id}")
        rows = [[known[chain] for chain in chains] for known in by_sample]
        return cls(
            chains=tuple(chains),
            sample_ids=tuple(record.sample_id for record in records),
            tasks=tuple(record.task for record in records),
            correct=np.array([[result.right for result in row] for row in rows], dtype=bool),
        )

    @cached_property
    def depths(self) -> Int[np.ndarray, " chains"]:
        """Depth of each chain, layers."""
        return np.array([chain.depth for chain in self.chains])

    @property
    def accuracy(self) -> Float[np.ndarray, " chains"]:
        """Share of samples that each chain answers rightly."""
        result: NDArray[np.float64] = self.correct.mean(0)
        return result

    def best_of_each_depth(self) -> list[int]:
        """Return each depth's most accurate chain (among equals the first by layers) as a column, shallowest first."""
        right = self.correct.sum(0)
        best: dict[int, int] = {}
        for i in sorted(range(len(self.chains)), key=lambda i: (-right[i], self.chains[i].layers)):
            best.setdefault(int(self.depths[i]), i)
        return [best[depth] for depth in sorted(best)]

    def place(self, chain: Chain) -> int:
        """Return a chain's column.

        Raises:
            InputError: where it is not in the table.
        """
        try:
            return self.chains.index(chain)
        except ValueError:
            raise InputError(f"records: expected a table with the chain {chain}, got one without") from None

    def right(self, choices: Int[np.ndarray, " samples"]) -> Float[np.ndarray, " samples"]:
        """Return 1 for each sample that its chosen chain answers rightly, else 0."""
        found: NDArray[np.float64] = self.correct[np.arange(len(choices)), choices].astype(float)
        return found
