"""The Lightning module: trains a router head on per-layer classes."""

from __future__ import annotations

import torch
from lightning import LightningModule
from sklearn.metrics import f1_score
from torch import Tensor

from router.chain import Chain
from router.layerwise import CLASSES, LayerwiseHead
from train.datamodule import Batch, RouterData
from train.losses import effective_number_weights, focal_loss
from train.targets import layer_frequencies


class RouterModule(LightningModule):
    """A layerwise head with a class-balanced focal loss."""

    head: LayerwiseHead

    def __init__(
        self,
        hidden: int = 64,
        windows: int = 8,
        dropout: float = 0.1,
        learning_rate: float = 3e-4,
        weight_decay: float = 0.1,
        gamma: float = 2.0,
        beta: float = 0.99,
    ) -> None:
        """Set the training; the head is built when the data are known.

        Args:
            hidden: width of the head's bottleneck.
            windows: parts of a sample's tokens, each pooled by its mean.
            dropout: share of the bottleneck dropped in training.
            learning_rate: AdamW's, per optimizer step.
            weight_decay: AdamW's.
            gamma: focusing exponent of the focal loss; 0: cross-entropy.
            beta: class balancing by effective number, 0..1 (1 excluded); 0: none. Classes of more than about
                1 / (1 - beta) examples weigh alike.
        """
        super().__init__()
        if learning_rate <= 0:
            raise ValueError(f"learning_rate: expected a number above 0, got {learning_rate}")
        if gamma < 0 or weight_decay < 0:
            raise ValueError(f"gamma and weight_decay: expected at least 0, got {gamma} and {weight_decay}")
        self.head_settings = {"hidden": hidden, "windows": windows, "dropout": dropout}
        # Built once here for its checks: bad sizes are refused before any data is read.
        LayerwiseHead(2, 1, 1, hidden=hidden, windows=windows, dropout=dropout)
        effective_number_weights([1], beta)
        self._learning_rate, self._weight_decay, self._gamma, self._beta = learning_rate, weight_decay, gamma, beta
        self._validated: list[tuple[Tensor, Tensor]] = []

    def build(self, data: RouterData) -> None:
        """Build the head for the data's base model, and weigh the classes by the training targets."""
        origin = data.origin
        self.head = LayerwiseHead(origin.num_layers, origin.prefix_layers, data.d_model, **self.head_settings)  # type: ignore[arg-type]
        self.head.start_from(torch.tensor(layer_frequencies(data.examples["train"].targets, len(CLASSES))))
        self.register_buffer("class_weights", effective_number_weights(data.counts, self._beta), persistent=False)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Return the head's output."""
        output: Tensor = self.head(states, mask)
        return output

    def _loss(self, output: Tensor, targets: Tensor) -> Tensor:
        weights = self.get_buffer("class_weights")
        return focal_loss(output, targets, weights, self._gamma)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return the loss of a batch."""
        states, mask, targets = batch
        loss = self._loss(self(states, mask), targets)
        self.log("train/loss", loss, batch_size=len(targets), on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Keep a batch's outputs for the epoch's measures."""
        states, mask, targets = batch
        output = self(states, mask)
        self.log("validation/loss", self._loss(output, targets), batch_size=len(targets), prog_bar=True)
        self._validated.append((output.detach().cpu(), targets.cpu()))

    def on_validation_epoch_end(self) -> None:
        """Log F1 by class, and how far the router has collapsed."""
        output, targets = (torch.cat(parts) for parts in zip(*self._validated, strict=True))
        self._validated.clear()
        self.log_dict({f"validation/{name}": value for name, value in measures(self.head, output, targets).items()})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=self._learning_rate, weight_decay=self._weight_decay)


def measures(head: LayerwiseHead, output: Tensor, targets: Tensor) -> dict[str, float]:
    """Return F1 of each class over all layers and the collapse measures of the decoded chains.

    Args:
        head: the head that made the output.
        output: its output, `[batch, layers, classes]`.
        targets: classes, `[batch, layers]`.

    Returns:
        `f1_<class>`, `full_share` (chains that are full depth), `distinct_chains`, `mean_depth` (layers).
    """
    predicted = output.argmax(-1).reshape(-1).numpy()
    scores = f1_score(
        targets.reshape(-1).numpy(), predicted, labels=list(range(len(CLASSES))), average=None, zero_division=0.0
    )
    chains: list[Chain] = [ranked[0].chain for ranked in head.decode(output)]
    return {f"f1_{name}": float(score) for name, score in zip(CLASSES, scores, strict=True)} | {
        "full_share": sum(chain.is_full for chain in chains) / len(chains),
        "distinct_chains": float(len(set(chains))),
        "mean_depth": sum(chain.depth for chain in chains) / len(chains),
    }
