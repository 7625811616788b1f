"""What each head is taught: its targets, its loss and its measures, behind one interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from pydantic.dataclasses import dataclass
from sklearn.metrics import f1_score, roc_auc_score
from torch import Tensor
from torch.nn import functional

from data.records import ChainResult, SearchRecord, mean_agreement, shared_chains
from router.chain import Chain
from router.heads.budget import best_mixture, operating_points, priced_choice
from router.heads.head import Head
from router.heads.layerwise import CLASSES, LayerwiseHead, classes_of
from router.heads.menu import AGREE, CORRECT, OUTCOMES, MenuHead
from router.validation import SETTINGS, InputError, NotNegative, Share

HeadName = Literal["layerwise", "menu"]
CONFIDENCE_SCALE = 4.0
"""Margin of full depth, in nats, that counts as one unit of the auxiliary target."""


class Objective(ABC):
    """How one kind of head learns from records. Targets of several samples are stacked: `[samples, ...]`.

    Attributes:
        name: the head's name, a key of `router.decision.HEADS`.
    """

    name: HeadName

    @abstractmethod
    def target(self, record: SearchRecord, read_layer: int) -> Tensor | None:
        """Return what a record teaches, or None where it teaches nothing.

        Args:
            record: what was found for a sample.
            read_layer: layers that the router's chains begin with.
        """

    def settings(self, records: Sequence[SearchRecord], read_layer: int) -> dict[str, Any]:  # noqa: ARG002
        """Return the settings of the head that hang on the records (a menu's chains); none for most."""
        return {}

    @abstractmethod
    def start(self, head: Head, targets: Tensor) -> None:
        """Let the untrained head answer as is best without reading anything, given the training targets."""

    @abstractmethod
    def loss(self, head: Head, output: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch."""

    @abstractmethod
    def measures(self, head: Head, output: Tensor, targets: Tensor) -> dict[str, float]:
        """Return what is worth knowing of a head's output on held-out samples, besides the collapse measures."""

    @abstractmethod
    def describe(self, targets: Tensor) -> str:
        """Return a line on the training targets."""


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class LayerwiseSettings:
    """How a layerwise head is trained.

    Attributes:
        gamma: focusing exponent of the focal loss; 0: cross-entropy.
        beta: class balancing by effective number, 0..1 (1 excluded); 0: none. Classes of more than about
            1 / (1 - beta) examples weigh alike.
    """

    gamma: NotNegative = 2.0
    beta: Annotated[float, Field(ge=0, lt=1)] = 0.99


class LayerwiseObjective(Objective):
    """Per-layer classes `[samples, layers]` of the shortest right chain, with a class-balanced focal loss."""

    name: HeadName = "layerwise"

    def __init__(self, settings: LayerwiseSettings) -> None:
        """Set the training."""
        self._settings = settings
        self._weights = torch.ones(len(CLASSES))

    def target(self, record: SearchRecord, read_layer: int) -> Tensor | None:
        """Return the classes of the record's target chain by layer."""
        classes = layer_classes(record, read_layer)
        return None if classes is None else torch.tensor(classes)

    def start(self, head: Head, targets: Tensor) -> None:
        """Start from the classes' frequencies at each layer, and weigh the classes by those in all."""
        assert isinstance(head, LayerwiseHead)
        head.start_from(layer_frequencies(targets))
        self._weights = effective_number_weights(class_counts(targets), self._settings.beta)

    def loss(self, head: Head, output: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG002
        """Return the focal loss over all layers of all rows."""
        return focal_loss(output, targets, self._weights.to(output), self._settings.gamma)

    def measures(self, head: Head, output: Tensor, targets: Tensor) -> dict[str, float]:  # noqa: ARG002
        """Return F1 of each class over all layers."""
        predicted = output.argmax(-1).reshape(-1).numpy()
        labels = list(range(len(CLASSES)))
        scores = f1_score(targets.reshape(-1).numpy(), predicted, labels=labels, average=None, zero_division=0.0)
        return {f"f1_{name}": float(score) for name, score in zip(CLASSES, scores, strict=True)}

    def describe(self, targets: Tensor) -> str:
        """Return the classes' shares."""
        counts = class_counts(targets)
        shares = [count / sum(counts) for count in counts]
        return "training targets: " + ", ".join(f"{n} {s:.3f}" for n, s in zip(CLASSES, shares, strict=True))


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class MenuSettings:
    """How a menu head is trained (on a menu table).

    Attributes:
        agreement: weight, 0..1, of agreement with full depth in a chain's value; the rest weighs being right.
        auxiliary: weight of the loss of full depth's confidence and entropy, at least 0.
    """

    agreement: Share = 0.5
    auxiliary: NotNegative = 0.1


class MenuObjective(Objective):
    """For each chain of the menu: was it right, did it agree with full depth; and what full depth's confidence was.

    Targets are `[samples, chains * outcomes + 2]`.
    """

    name: HeadName = "menu"

    def __init__(self, settings: MenuSettings) -> None:
        """Set the training."""
        self._settings = settings
        self._chains: tuple[Chain, ...] = ()

    def settings(self, records: Sequence[SearchRecord], read_layer: int) -> dict[str, Any]:
        """Return the menu: all chains that every record tried and that keep the prefix.

        Raises:
            InputError: where a record lacks a chain of the menu, or the menu is the full chain alone.
        """
        self._chains = tuple(chain for chain in shared_chains(records) if chain.unedited_prefix >= read_layer)
        if len(self._chains) < 2:
            raise InputError(
                "records: expected a menu table (python -m search --menu ...) with chains that begin with layers "
                f"0..{read_layer - 1}, got {len(self._chains)} chains that all records have in common"
            )
        return {"chains": [str(chain) for chain in self._chains], "agreement": self._settings.agreement}

    def target(self, record: SearchRecord, read_layer: int) -> Tensor:  # noqa: ARG002
        """Return a record's outcomes, chain by chain, and behind them full depth's confidence and entropy."""
        known = {result.chain: result for result in record.results}
        missing = [chain for chain in self._chains if chain not in known]
        if missing:
            raise InputError(
                f"records: expected every chain of the menu for every sample, got none of {missing[0]} "
                f"for {record.sample_id}"
            )
        rows = [self._outcomes(known[chain], record) for chain in self._chains]
        return torch.tensor([*(value for row in rows for value in row), *confidence_of(record.full)])

    def _outcomes(self, result: ChainResult, record: SearchRecord) -> tuple[float, float]:
        """Return how far a chain is right, and agrees with full depth: the mean over the sample's variants."""
        return result.mean_correct(record.variants), mean_agreement(result, record.full)

    def start(self, head: Head, targets: Tensor) -> None:
        """Start from the outcomes' rates (Laplace)."""
        assert isinstance(head, MenuHead)
        table = targets[:, : len(self._chains) * len(OUTCOMES)]
        rates = (table.sum(0) + 1) / (len(table) + 2)
        head.start_from(rates.reshape(len(self._chains), len(OUTCOMES)))

    def loss(self, head: Head, output: Tensor, targets: Tensor) -> Tensor:
        """Return the mean binary cross-entropy of the outcomes (nats) plus the weighted auxiliary squared error."""
        assert isinstance(head, MenuHead)
        split = len(head.chains) * len(OUTCOMES)
        loss = functional.binary_cross_entropy_with_logits(output[:, :split], targets[:, :split])
        if self._settings.auxiliary:
            loss = loss + self._settings.auxiliary * functional.mse_loss(output[:, split:], targets[:, split:])
        return loss

    def measures(self, head: Head, output: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the mean area under the ROC curve over chains of both outcomes, and the accuracy of the own choice."""
        assert isinstance(head, MenuHead)
        logits = head.outcome_logits(output).flatten(1)
        truth = (targets[:, : logits.shape[1]] > 0.5).float()
        measured: dict[str, float] = {}
        for place, name in ((CORRECT, "correct"), (AGREE, "agree")):
            areas = [
                roc_auc_score(truth[:, i].numpy(), logits[:, i].numpy())
                for i in range(place, logits.shape[1], len(OUTCOMES))
                if 0 < float(truth[:, i].mean()) < 1
            ]
            if areas:
                measured[f"auc_{name}"] = float(sum(areas) / len(areas))
        places = {chain: i for i, chain in enumerate(head.chains)}
        chosen = torch.tensor([places[one.chain] for one in head.decode_at(output, 0.0)])
        right = self._right(targets, len(head.chains))
        measured["gain"] = frontier_gain(head.values(output), right, head.depths)
        measured["accuracy"] = float(right.gather(1, chosen[:, None]).mean())
        measured["full_accuracy"] = float(right[:, 0].mean())
        return measured

    def describe(self, targets: Tensor) -> str:
        """Return how right the menu's chains are."""
        right = self._right(targets, len(self._chains))
        means = right.mean(0)
        best = int(means.argmax())
        return (
            f"menu of {len(self._chains)} chains: full depth right on {means[0]:.3f} of the training samples, "
            f"the best chain ({self._chains[best]}) on {means[best]:.3f}, some chain on {right.amax(1).mean():.3f}"
        )

    def _right(self, targets: Tensor, chains: int) -> Float[Tensor, "samples chains"]:
        """Return whether each chain is right, or in which share of the variants."""
        return targets[:, CORRECT : chains * len(OUTCOMES) : len(OUTCOMES)]


def layer_classes(record: SearchRecord, read_layer: int) -> tuple[int, ...] | None:
    """Return a record's target as one class (skip, run, repeat) for each layer after the prefix.

    It is the shortest right chain, of greatest margin among equals (the target of Dr.LLM, arXiv 2510.12773).
    Only right chains that skip layers or run them once or twice in a row can be written so; block repeats and layers
    run three times cannot. A chain that did not stand its verification is no target.

    Args:
        record: what the search found.
        read_layer: layers that every chain begins with.

    Returns:
        The classes, or None where no right chain can be written so.
    """
    candidates = [
        (result, classes)
        for result in record.results
        if result.stands and (classes := classes_of(result.chain, read_layer)) is not None
    ]
    if not candidates:
        return None

    def rank(candidate: tuple[ChainResult, tuple[int, ...]]) -> tuple[int, float]:
        result = candidate[0]
        return result.chain.depth, -result.margin

    return min(candidates, key=rank)[1]


def class_counts(targets: Int[Tensor, "samples layers"]) -> list[int]:
    """Return how often each class stands in the targets."""
    counts: list[int] = torch.bincount(targets.flatten(), minlength=len(CLASSES)).tolist()
    return counts


def layer_frequencies(targets: Int[Tensor, "samples layers"]) -> Float[Tensor, "layers classes"]:
    """Return the share of each class at each layer, with one more of each counted so that none is 0 (Laplace)."""
    counts = functional.one_hot(targets, len(CLASSES)).sum(0).double()
    return ((counts + 1) / (len(targets) + len(CLASSES))).float()


def effective_number_weights(counts: Sequence[int], beta: float) -> Float[Tensor, " classes"]:
    """Return class weights (1 - beta) / (1 - beta^n), scaled to a mean of 1 over the classes that occur.

    Class-balanced loss, Cui et al. 2019 (arXiv 1901.05555), equation 3; beta 0 weighs all classes alike, beta -> 1 by
    inverse frequency. A class that does not occur gets weight 0.
    """
    weights = torch.tensor([(1 - beta) / (1 - beta**n) if n else 0.0 for n in counts], dtype=torch.float64)
    return (weights * sum(n > 0 for n in counts) / weights.sum()).float()


def focal_loss(
    logits: Float[Tensor, "batch layers classes"],
    targets: Int[Tensor, "batch layers"],
    weights: Float[Tensor, " classes"],
    gamma: float,
) -> Float[Tensor, ""]:
    """Return the mean of -w_t (1 - p_t)^gamma ln p_t over all layers of all rows (nats).

    Focal loss, Lin et al. 2017 (arXiv 1708.02002), equation 5; gamma 0 is weighted cross-entropy (not divided by the
    sum of the weights).
    """
    logprobs = functional.log_softmax(logits, dim=-1).gather(-1, targets[..., None])[..., 0]
    return (-weights[targets] * (1 - logprobs.exp()) ** gamma * logprobs).mean()


def collapse(head: Head, output: Tensor) -> dict[str, float]:
    """Return how far a head's own choice has fallen back to few chains.

    Returns:
        `full_share` (chains that are full depth), `distinct_chains`, `mean_depth` (layers).
    """
    chains: list[Chain] = [one.chain for one in head.decode_at(output, 0.0)]
    return {
        "full_share": sum(chain.is_full for chain in chains) / len(chains),
        "distinct_chains": float(len(set(chains))),
        "mean_depth": sum(chain.depth for chain in chains) / len(chains),
    }


def frontier_gain(
    values: Float[Tensor, "samples chains"], right: Float[Tensor, "samples chains"], depths: Float[Tensor, " chains"]
) -> float:
    """Return what choosing by sample adds to accuracy over the best static mixture of the same mean depth.

    The mean over operating points, up to the depth of the most accurate chain. The mixtures are the best for these
    very samples, which favours them a little.

    Args:
        values: value of each chain, as the head thinks.
        right: 1 where a chain answers rightly.
        depths: depth of each chain, layers.
    """
    rates = right.mean(0)
    most = float(depths[rates == rates.max()].min())
    gains = []
    for point in operating_points(values, depths.expand_as(values)):
        chosen = priced_choice(values, depths.expand_as(values), point.offset)
        depth = float(depths[chosen].mean())
        static = best_mixture(rates.tolist(), depths.tolist(), depth)
        if static is not None and depth <= most:
            gains.append(float(right.gather(1, chosen[:, None]).mean()) - static.mean(rates.tolist()))
    return sum(gains) / len(gains) if gains else 0.0


def confidence_of(full: ChainResult) -> tuple[float, float]:
    """Return full depth's margin between its two best choices, in `CONFIDENCE_SCALE`, and its entropy (nats).

    A free answer has no choices: its confidence is the mean log-probability of the right answer's tokens.
    """
    if not isinstance(full.prediction, int) or len(full.scores) < 2:
        mean = sum(full.scores) / max(1, len(full.scores))
        return mean / CONFIDENCE_SCALE, 0.0
    ordered = sorted(full.scores, reverse=True)
    chances = torch.tensor(full.scores).softmax(0)
    entropy = float(-(chances * chances.clamp(min=1e-12).log()).sum())
    return min((ordered[0] - ordered[1]) / CONFIDENCE_SCALE, 4.0), entropy
