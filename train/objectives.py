"""What each head is taught: its targets, its loss and its measures, behind one interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from sklearn.metrics import f1_score
from torch import Tensor

from data.records import SearchRecord
from router.chain import Chain
from router.head import Head
from router.layerwise import CLASSES, LayerwiseHead
from train.losses import effective_number_weights, focal_loss
from train.targets import TargetRule, class_counts, layer_classes, layer_frequencies

HeadName = Literal["layerwise", "menu", "program"]


class Objective(ABC):
    """How one kind of head learns from records.

    Attributes:
        name: the head's name, a key of `router.storage.HEADS`.
    """

    name: HeadName

    @abstractmethod
    def target(self, record: SearchRecord, prefix_layers: int) -> Any | None:
        """Return what a record teaches, or None where it teaches nothing.

        Args:
            record: what was found for a sample.
            prefix_layers: layers that the router's chains begin with.
        """

    @abstractmethod
    def settings(self, records: Sequence[SearchRecord], prefix_layers: int) -> dict[str, Any]:
        """Return the settings of the head that hang on the records (a menu's chains); none for most."""

    @abstractmethod
    def start(self, head: Head, targets: Sequence[Any]) -> None:
        """Let the untrained head answer as is best without reading anything, given the training targets."""

    @abstractmethod
    def collate(self, targets: Sequence[Any]) -> Any:
        """Join targets of a batch."""

    @abstractmethod
    def loss(self, head: Head, output: Tensor, targets: Any) -> Tensor:
        """Return the mean loss of a batch; `targets` as `collate` joined them."""

    @abstractmethod
    def measures(self, head: Head, output: Tensor, targets: Any) -> dict[str, float]:
        """Return what is worth knowing of a head's output on held-out samples, besides the collapse measures."""

    def describe(self, targets: Sequence[Any]) -> str:  # noqa: ARG002
        """Return a line on the training targets; empty: nothing to say."""
        return ""


class LayerwiseObjective(Objective):
    """Per-layer classes of one right chain, with a class-balanced focal loss."""

    name: HeadName = "layerwise"

    def __init__(self, rule: TargetRule, gamma: float, beta: float) -> None:
        """Set the rule of targets, the focal loss's exponent and the class balancing."""
        self._rule, self._gamma, self._beta = rule, gamma, beta
        self._weights = torch.ones(len(CLASSES))

    def target(self, record: SearchRecord, prefix_layers: int) -> Tensor | None:
        """Return the classes of the record's target chain by layer."""
        classes = layer_classes(record, prefix_layers, self._rule)
        return None if classes is None else torch.tensor(classes)

    def settings(self, records: Sequence[SearchRecord], prefix_layers: int) -> dict[str, Any]:  # noqa: ARG002
        """Return nothing."""
        return {}

    def start(self, head: Head, targets: Sequence[Tensor]) -> None:
        """Start from the classes' frequencies, and weigh the classes by them."""
        assert isinstance(head, LayerwiseHead)
        lists = [target.tolist() for target in targets]
        head.start_from(torch.tensor(layer_frequencies(lists, len(CLASSES))))
        self._weights = effective_number_weights(class_counts(lists, len(CLASSES)), self._beta)

    def collate(self, targets: Sequence[Tensor]) -> Tensor:
        """Stack."""
        return torch.stack(list(targets))

    def loss(self, head: Head, output: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG002
        """Return the focal loss over all layers of all rows."""
        return focal_loss(output, targets, self._weights.to(output), self._gamma)

    def measures(self, head: Head, output: Tensor, targets: Tensor) -> dict[str, float]:  # noqa: ARG002
        """Return F1 of each class over all layers."""
        predicted = output.argmax(-1).reshape(-1).numpy()
        labels = list(range(len(CLASSES)))
        scores = f1_score(targets.reshape(-1).numpy(), predicted, labels=labels, average=None, zero_division=0.0)
        return {f"f1_{name}": float(score) for name, score in zip(CLASSES, scores, strict=True)}

    def describe(self, targets: Sequence[Tensor]) -> str:
        """Return the classes' shares."""
        counts = class_counts([target.tolist() for target in targets], len(CLASSES))
        shares = [count / sum(counts) for count in counts]
        return "training targets: " + ", ".join(f"{n} {s:.3f}" for n, s in zip(CLASSES, shares, strict=True))


def collapse(head: Head, output: Tensor) -> dict[str, float]:
    """Return how far a head's own choice has fallen back to few chains.

    Returns:
        `full_share` (chains that are full depth), `distinct_chains`, `mean_depth` (layers).
    """
    chains: list[Chain] = [ranked[0].chain for ranked in head.decode(output)]
    return {
        "full_share": sum(chain.is_full for chain in chains) / len(chains),
        "distinct_chains": float(len(set(chains))),
        "mean_depth": sum(chain.depth for chain in chains) / len(chains),
    }
