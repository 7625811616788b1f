"""Per-sample results: what stands in a folder of them, and what it was made from.

A folder of results holds `run.json` (what was run on what) and JSON Lines of one (policy, sample) each.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.records import ChainResult
from data.sample import Sample
from router.chain import Chain
from router.files import read_json, read_json_lines, sha256_json, write_json
from router.validation import InputError

SCHEMA = 3
"""Version of `run.json` and of the results' lines."""
RUN_FILE, RESULTS_FILE = "run.json", "results.jsonl"
Label = str | int | float | None
"""A difficulty or subject, as the sample's metadata has it."""


_TOLD = ("policy", "sample_id", "task", "difficulty", "subject", "choices", "tokens")
"""Fields of a line that are not the chain's answer."""


@dataclass(frozen=True, slots=True)
class PolicyResult:
    """What a policy's chain answered on one sample.

    Attributes:
        policy: name of the policy.
        sample_id: `Sample.id`.
        task: the sample's task.
        difficulty: what its metadata says of it; None: nothing.
        subject: what its metadata says of it; None: nothing.
        choices: number of its choices; 0: the answer is free.
        tokens: tokens of its prompt and choices, which every chain reads.
        chain: the chain that was run.
        prediction: what was answered, as in `ChainResult`: a choice's index, text, or None, where no answer could be
            read in what was generated (a format failure).
        correct: whether it is right.
        scores: as in `ChainResult`; none of a generated answer.
        margin: as in `ChainResult`.
    """

    policy: str
    sample_id: str
    task: str
    difficulty: Label
    subject: Label
    choices: int
    tokens: int
    chain: Chain
    prediction: int | str | None
    correct: bool
    scores: tuple[float, ...]
    margin: float

    @classmethod
    def from_chain_result(cls, policy: str, sample: Sample, tokens: int, result: ChainResult) -> PolicyResult:
        """Join what the scorer found and what is known of the sample, which has so many tokens."""
        return cls(
            policy=policy,
            sample_id=sample.id,
            task=sample.task,
            difficulty=sample.label("difficulty"),
            subject=sample.label("subject"),
            choices=len(sample.choices),
            tokens=tokens,
            chain=result.chain,
            prediction=result.prediction,
            correct=result.correct,
            scores=result.scores,
            margin=result.margin,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the line's JSON object; `depth` stands there for readers without the chain's rules."""
        return {
            "policy": self.policy,
            "sample_id": self.sample_id,
            "task": self.task,
            "difficulty": self.difficulty,
            "subject": self.subject,
            "choices": self.choices,
            "tokens": self.tokens,
            "chain": self.chain.to_json(),
            "depth": self.chain.depth,
            "prediction": self.prediction,
            "correct": self.correct,
            "scores": [round(score, 6) for score in self.scores],
            "margin": round(self.margin, 6),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any], num_layers: int) -> PolicyResult:
        """Read a line's JSON object.

        Raises:
            ValueError: where a field is missing or holds something else.
        """
        try:
            answered = ChainResult.from_json({**value, "verified": None, "verified_by": None}, num_layers)
            told = {name: value[name] for name in _TOLD}
        except KeyError as error:
            raise ValueError(f"expected the field {error}, got none") from error
        except TypeError as error:
            raise ValueError(f"expected a result, got {error}") from error
        for name in ("policy", "sample_id", "task"):
            if not isinstance(told[name], str):
                raise ValueError(f"{name}: expected text, got {told[name]!r}")
        for name in ("difficulty", "subject"):
            if not isinstance(told[name], Label):
                raise ValueError(f"{name}: expected text, a number or null, got {told[name]!r}")
        for name, least in (("choices", 0), ("tokens", 1)):
            if type(told[name]) is not int or told[name] < least:
                raise ValueError(f"{name}: expected a number of at least {least}, got {told[name]!r}")
        if value.get("depth") != answered.chain.depth:
            raise ValueError(f"depth: expected {answered.chain.depth}, got {value.get('depth')!r}")
        found = {name: getattr(answered, name) for name in ("chain", "prediction", "correct", "scores", "margin")}
        return cls(**told, **found)


def read_results(path: Path, num_layers: int, *, torn: bool = False) -> list[PolicyResult]:
    """Read a results file; with `torn` a last line without an end, still being written, does not count.

    Raises:
        InputError: where a line is corrupt, or a sample stands twice for one policy; names file and line.
    """
    results: list[PolicyResult] = []
    seen: set[tuple[str, str]] = set()
    for number, value in read_json_lines(path, torn=torn):
        try:
            result = PolicyResult.from_json(value, num_layers)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
        key = (result.policy, result.sample_id)
        if key in seen:
            raise InputError(f"{path}, line {number}: expected each sample once for {key[0]}, got {key[1]} again")
        seen.add(key)
        results.append(result)
    return results


def read_run(out: Path) -> dict[str, Any]:
    """Read `run.json`.

    Raises:
        InputError: where it is missing, corrupt or of another schema.
    """
    run = read_json(out / RUN_FILE)
    if run.get("schema") != SCHEMA:
        raise InputError(f"{out / RUN_FILE}: expected schema {SCHEMA}, got {run.get('schema')!r}")
    return run


def write_run(out: Path, identity: dict[str, Any], run: dict[str, Any]) -> None:
    """Write `run.json`, unless it stands there already (`check_identity` has compared it)."""
    if not (out / RUN_FILE).exists():
        write_json(
            out / RUN_FILE,
            {"schema": SCHEMA, "identity_hash": sha256_json(identity), "identity": identity, **run},
        )


def check_identity(out: Path, identity: dict[str, Any]) -> None:
    """Check that what stands in `out` was made with the same settings, router, records and samples.

    Raises:
        InputError: where it was not; the message names the file and what to do.
    """
    path = out / RUN_FILE
    remedy = f"choose another out, or remove {str(out)!r}"
    if not path.exists():
        if (out / RESULTS_FILE).exists():
            raise InputError(f"out: expected {path} beside {RESULTS_FILE}, got none; {remedy}")
        return
    run = read_run(out)
    stored = run.get("identity")
    if run.get("identity_hash") == sha256_json(identity) and isinstance(stored, dict):
        return
    differing = [key for key in identity if not isinstance(stored, dict) or stored.get(key) != identity[key]]
    raise InputError(
        f"out: expected results of the same settings and inputs, got {path} made with another "
        f"{', '.join(differing) or 'version'}; {remedy}"
    )
