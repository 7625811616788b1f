"""What a run and its controls answered, by policy and sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.arms import FULL, ORACLE
from eval.controls.statistics import Pair
from eval.results import PolicyResult
from router.validation import InputError

CONTROLLED = (FULL, ORACLE)
"""Arms whose chains are run again."""
REMEDY = "run python -m eval again"


@dataclass(frozen=True)
class Found:
    """Results by policy and sample id.

    Attributes:
        path: the controls' results file.
        arms: the run's results.
        controls: the controls'.
    """

    path: Path
    arms: Mapping[tuple[str, str], PolicyResult]
    controls: Mapping[tuple[str, str], PolicyResult]

    @classmethod
    def of(cls, path: Path, arms: Sequence[PolicyResult], controls: Sequence[PolicyResult]) -> Found:
        """Index the run's results and those of its controls; `path` is the controls' file, for refusals."""
        by_name = [{(one.policy, one.sample_id): one for one in results} for results in (arms, controls)]
        return cls(path, *by_name)

    def usual(self, ids: Sequence[str]) -> Pair:
        """Return full depth's and the oracle's results on some samples, in their order."""
        full, oracle = ([self._one(self.arms, arm, key) for key in ids] for arm in CONTROLLED)
        return full, oracle

    def again(self, names: Mapping[str, str], ids: Sequence[str]) -> Pair:
        """Return their results in a control; `names`: the policy of each arm there."""
        pair = tuple([self._one(self.controls, names[arm], key) for key in ids] for arm in CONTROLLED)
        for arm, of_arm in zip(CONTROLLED, pair, strict=True):
            for one in of_arm:
                if one.chain != self._one(self.arms, arm, one.sample_id).chain:
                    raise InputError(
                        f"{self.path}: expected the chain that {arm} has run on sample {one.sample_id}, got {one.chain}"
                    )
        return pair[0], pair[1]

    def _one(self, results: Mapping[tuple[str, str], PolicyResult], policy: str, key: str) -> PolicyResult:
        if (policy, key) not in results:
            raise InputError(f"{self.path}: expected a result of {policy} on sample {key}, got none; {REMEDY}")
        return results[policy, key]
