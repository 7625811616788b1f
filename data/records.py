"""Search records: what a search found for each sample, one JSON line a sample (docs/formats.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from router.chain import Chain
from router.command import InputError
from router.durable import read_json_lines, require_file
from router.fingerprint import Fingerprints

SCHEMA = 2
"""Version of the record file's format."""
TIE = 1e-6
"""Margin of an exact answer that argmax picks among equal logits."""


@dataclass(frozen=True, slots=True)
class ChainResult:
    """What one chain answers on one sample.

    Attributes:
        chain: the chain that was run.
        scores: by scoring mode: the score of every choice, in the order of the sample's choices (log-probability,
            nats); of an exact answer the log-probability of each token of the right answer and its end; of a
            generated answer nothing. 6 decimals.
        prediction: index of the choice that was answered (the first of those with the highest score); of a free
            answer its text ("exact": what greedy decoding emits up to the first token that is not the right
            answer's); None: no answer could be read in what was generated (a format failure).
        correct: whether the answer is right.
        margin: above 0 where correct. Choices: score of the right choice minus the best other score, nats. Exact: the
            least of the right tokens' logits minus the best other token's (`TIE` where argmax breaks a tie for it).
            Generated: 1 where right, else -1.
        verified: whether a second run in another batch composition or mode agreed; None: not tried.
        verified_by: scoring mode of that second run.
    """

    chain: Chain
    scores: tuple[float, ...]
    prediction: int | str | None
    correct: bool
    margin: float
    verified: bool | None = None
    verified_by: str | None = None

    @classmethod
    def from_scores(cls, chain: Chain, scores: Sequence[float], answer: int) -> ChainResult:
        """Judge a chain's scores against the right choice's index.

        Where the right choice shares the highest score with another (bfloat16 logits tie), the chain counts as wrong.

        Raises:
            ValueError: where a score is no finite number.
        """
        # Rounded here and not when written, so that what is read back is judged exactly alike.
        values = tuple(round(float(score), 6) for score in scores)
        if not all(map(math.isfinite, values)):
            raise ValueError(f"scores: expected finite numbers, got {list(values)} for chain {chain}")
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
        margin = round(min(margins), 6)
        if not all(map(math.isfinite, (*scores, margin))):
            raise ValueError(f"scores: expected finite numbers, got {list(scores)} for chain {chain}")
        margin = max(margin, TIE) if emitted else min(margin, 0.0)
        return cls(chain, scores, prediction, emitted, margin)

    @classmethod
    def from_answer(cls, chain: Chain, prediction: int | str | None, correct: bool) -> ChainResult:
        """Return the result of a generated and graded answer."""
        return cls(chain, (), prediction, correct, 1.0 if correct else -1.0)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of docs/formats.md."""
        return {
            "chain": self.chain.to_json(),
            "scores": [round(score, 6) for score in self.scores],
            "prediction": self.prediction,
            "correct": self.correct,
            "margin": self.margin,
            "verified": self.verified,
            "verified_by": self.verified_by,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any], num_layers: int) -> ChainResult:
        """Read the JSON object; raises ValueError, KeyError or TypeError where it is none."""
        result = cls(
            chain=Chain.from_json(value["chain"], num_layers),
            scores=tuple(float(score) for score in value["scores"]),
            prediction=value["prediction"],
            correct=value["correct"],
            margin=float(value["margin"]),
            verified=value["verified"],
            verified_by=value["verified_by"],
        )
        n = len(result.scores)
        if not all(map(math.isfinite, (*result.scores, result.margin))):
            raise ValueError(f"scores and margin: expected finite numbers, got {value}")
        if n == 0 and abs(result.margin) != 1.0:
            raise ValueError(f"margin: expected 1 or -1 of a generated answer, got {result.margin!r}")
        if not isinstance(result.prediction, str | None) and (
            type(result.prediction) is not int or result.prediction < 0 or (n and result.prediction >= n)
        ):
            raise ValueError(f"prediction: expected an index below {n}, text or null, got {result.prediction!r}")
        if result.prediction is None and (n or result.correct):
            raise ValueError("prediction: expected null only where no answer could be read, got it otherwise")
        if type(result.correct) is not bool or result.correct != (result.margin > 0):
            raise ValueError(f"correct: expected {result.margin > 0} for the margin, got {result.correct!r}")
        return result


@dataclass(frozen=True, slots=True)
class SearchRecord:
    """All chains that a search tried on one sample.

    Attributes:
        sample_id: `Sample.id`.
        task: the sample's task.
        split: the sample's split.
        metadata: what the data set says of the sample besides (difficulty, subject).
        mode: scoring mode of the results, one of `data.tasks.MODES`.
        num_layers: layers of the base model.
        prefix_layers: layers 0..prefix_layers-1 run unedited in every chain.
        dtype: dtype of the base model during the search, for example "bfloat16".
        reward_target: "gold", or "wrong" for the control that is told a wrong answer; then `correct`, `margin`
            and `pareto` are about that answer.
        target: the answer that counts as right: the index of a choice, or text.
        seed: seed of the search.
        simulations: simulations made.
        nominal_layers: layers of all chains tried, as if each had run from layer 0.
        executed_layers: layers really run for this sample (shared prefixes once); 0 in mode "generate", where the
            decoding library runs them.
        results: every chain tried, in order of trial; the first is the full chain.
        pareto: indices into `results`: right chains that no shorter right chain dominates, by depth; the
            shortest right chain first. Empty where no chain is right.
        fingerprints: what the record is valid for.
        search: SHA-256 of the search settings, which stand beside the records in the run's settings file.
    """

    sample_id: str
    task: str
    split: str
    metadata: dict[str, Any]
    mode: str
    num_layers: int
    prefix_layers: int
    dtype: str
    reward_target: str
    target: int | str
    seed: int
    simulations: int
    nominal_layers: int
    executed_layers: int
    results: tuple[ChainResult, ...]
    pareto: tuple[int, ...]
    fingerprints: Fingerprints
    search: str

    @property
    def full(self) -> ChainResult:
        """Full depth's result."""
        return self.results[0]

    @property
    def shortest(self) -> ChainResult | None:
        """The shortest right chain (greatest margin among equals), or None where no chain is right."""
        return self.results[self.pareto[0]] if self.pareto else None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of docs/formats.md."""
        value = {name: getattr(self, name) for name in self.__slots__}
        value["results"] = [result.to_json() for result in self.results]
        value["pareto"] = list(self.pareto)
        value["fingerprints"] = asdict(self.fingerprints)
        return {"schema": SCHEMA, **value}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> SearchRecord:
        """Read the JSON object.

        Raises:
            ValueError: where a field is missing, unknown or out of its bounds.
        """
        fields = dict(value)
        if fields.pop("schema", None) != SCHEMA:
            raise ValueError(f"schema: expected {SCHEMA}, got {value.get('schema')!r}")
        try:
            n = int(fields["num_layers"])
            fields["results"] = tuple(ChainResult.from_json(result, n) for result in fields["results"])
            fields["pareto"] = tuple(fields["pareto"])
            fields["fingerprints"] = Fingerprints(**fields["fingerprints"])
            record = cls(**fields)
        except KeyError as error:
            raise ValueError(f"expected the field {error}, got none") from error
        except TypeError as error:
            raise ValueError(f"expected a search record, got {error}") from error
        if not record.results or not record.full.chain.is_full:
            raise ValueError("results[0]: expected the full chain")
        if {len(result.scores) for result in record.results} != {len(record.full.scores)}:
            raise ValueError("results: expected as many scores for every chain, got different numbers")
        if record.pareto != pareto_front(record.results):
            raise ValueError(f"pareto: expected {list(pareto_front(record.results))}, got {list(record.pareto)}")
        for name in ("num_layers", "prefix_layers", "simulations", "nominal_layers", "executed_layers", "seed"):
            if type(getattr(record, name)) is not int:
                raise ValueError(f"{name}: expected an integer, got {getattr(record, name)!r}")
        if not isinstance(record.metadata, dict):
            raise ValueError(f"metadata: expected an object, got {record.metadata!r}")
        return record


def pareto_front(results: Sequence[ChainResult]) -> tuple[int, ...]:
    """Return the indices of right chains on the front of (depth, margin): shorter first, then only greater margins."""
    right = sorted((r.chain.depth, -r.margin, i) for i, r in enumerate(results) if r.correct)
    front: list[int] = []
    best = float("-inf")
    for _, negative, i in right:
        if -negative > best:
            front.append(i)
            best = -negative
    return tuple(front)


def shared_chains(records: Sequence[SearchRecord]) -> list[Chain]:
    """Return the chains that every record has tried, in the first record's order: of menu tables, the menu.

    Args:
        records: at least one.
    """
    common = set.intersection(*({result.chain for result in record.results} for record in records))
    return [result.chain for result in records[0].results if result.chain in common]


def parse_record(value: dict[str, Any], where: str) -> SearchRecord:
    """Read one line's object; `where` (file and line) begins the message of a refusal.

    Raises:
        InputError: where it is no record.
    """
    try:
        return SearchRecord.from_json(value)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


def read_records(path: Path, setting: str = "records") -> list[SearchRecord]:
    """Read a record file.

    Raises:
        InputError: where the file is missing or empty, a line is corrupt, or a sample stands twice (file and line).
    """
    require_file(path, setting)
    records: list[SearchRecord] = []
    seen: set[str] = set()
    for number, value in read_json_lines(path):
        where = f"{path}, line {number}"
        record = parse_record(value, where)
        if record.sample_id in seen:
            raise InputError(f"{where}: expected each sample once, got {record.sample_id} again")
        seen.add(record.sample_id)
        records.append(record)
    if not records:
        raise InputError(f"{setting}: expected at least one record, got the empty file {str(path)!r}")
    return records
