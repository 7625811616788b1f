"""What a search found for each sample, summed up of its record; no model, no files."""

from __future__ import annotations

import json
from dataclasses import dataclass

from data.records import SearchRecord
from router.chain import Chain


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a search found for one sample.

    "Right" means that the answer is the one that the search was told; where a chain was judged a second time, that
    judgement counts.

    Attributes:
        sample_id: the sample.
        task: its task.
        difficulty: its difficulty as text; None: it has none.
        choices: number of its choices; 0: its answer is free; None: unknown, since answers were generated.
        num_layers: layers of the model.
        right: whether full depth is right.
        clear: whether nothing speaks against that: no second run and no tie.
        shortest: the shortest right chain that stood its second run (full depth among them); None: none was found.
        tried: chains tried, full depth apart.
        tried_right: of these, the right ones that no second run refuted.
        shorter: chains tried that are shorter than full depth.
        shorter_right: of these, the right ones that no second run refuted.
    """

    sample_id: str
    task: str
    difficulty: str | None
    choices: int | None
    num_layers: int
    right: bool
    clear: bool
    shortest: Chain | None
    tried: int
    tried_right: int
    shorter: int
    shorter_right: int

    @classmethod
    def of(cls, record: SearchRecord) -> Outcome:
        """Sum up a record."""
        full, others = record.full, record.results[1:]
        # A second run that disagrees says the opposite of the first.
        right = full.correct != (full.verified is False)
        standing = record.shortest
        shortest = standing.chain if standing is not None else full.chain if right else None
        shorter = [one for one in others if one.chain.depth < record.num_layers]
        return cls(
            sample_id=record.sample_id,
            task=record.task,
            difficulty=_text(record.metadata.get("difficulty")),
            choices={"exact": 0, "generate": None}.get(record.mode, len(full.scores)),
            num_layers=record.num_layers,
            right=right,
            clear=full.verified is not False and full.margin != 0,
            shortest=shortest,
            tried=len(others),
            tried_right=sum(one.correct and one.verified is not False for one in others),
            shorter=len(shorter),
            shorter_right=sum(one.correct and one.verified is not False for one in shorter),
        )

    @property
    def shortened(self) -> bool:
        """Whether a right chain is shorter than full depth."""
        return self.shortest is not None and self.shortest.depth < self.num_layers

    @property
    def guess(self) -> float | None:
        """Probability of guessing the answer, 0 for a free one; None where the number of choices is unknown."""
        return None if self.choices is None else 1.0 / self.choices if self.choices else 0.0


def _text(value: object) -> str | None:
    if value is None:
        return None
    return json.dumps(value, ensure_ascii=False, sort_keys=True) if isinstance(value, list | dict) else str(value)
