"""The Lightning module: trains a router head of any kind."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from lightning import LightningModule
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from router.decision import HEADS, Hidden, Windows
from router.heads.head import Head, Pooling, StateEncoder
from router.validation import SETTINGS, NotNegative
from train.datamodule import Batch, RouterData, WarmStart
from train.objectives import (
    HeadName,
    LayerwiseObjective,
    LayerwiseSettings,
    MenuObjective,
    MenuSettings,
    Objective,
    collapse,
)


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class HeadSettings:
    """The router's head, and how it is trained.

    Attributes:
        kind: the head: "layerwise" or "menu" (docs/concepts.md).
        hidden: width of the head's bottleneck.
        pooling: how a sample's tokens become one vector: "windows" or "ends" (last token and mean).
        windows: parts of a sample's tokens, each pooled by its mean.
        dropout: share of the bottleneck dropped in training.
        learning_rate: AdamW's, per optimizer step.
        weight_decay: AdamW's.
        layerwise: what only a layerwise head needs.
        menu: what only a menu head needs.
    """

    kind: HeadName = "layerwise"
    hidden: Hidden = 64
    pooling: Pooling = "windows"
    windows: Windows = 8
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    weight_decay: NotNegative = 0.1
    layerwise: LayerwiseSettings = LayerwiseSettings()
    menu: MenuSettings = MenuSettings()

    @property
    def encoder(self) -> dict[str, Any]:
        """Settings of the head's encoder (`router.heads.head.StateEncoder`)."""
        return {name: getattr(self, name) for name in ("hidden", "pooling", "windows", "dropout")}

    def objective(self) -> Objective:
        """Return what the head is taught."""
        return LayerwiseObjective(self.layerwise) if self.kind == "layerwise" else MenuObjective(self.menu)


class RouterModule(LightningModule):
    """A head, what it is taught, and how."""

    head: Head

    def __init__(self, settings: HeadSettings, objective: Objective) -> None:
        """Set the training, and what is taught; the head is built when the data are known."""
        super().__init__()
        StateEncoder(1, **settings.encoder)  # draws random numbers: without it a seed would give another router
        self.objective = objective
        self.head_settings: dict[str, Any] = settings.encoder
        self._settings = settings
        self._validated: list[tuple[Tensor, Tensor]] = []

    def build(self, data: RouterData, warm_start: WarmStart | None = None) -> None:
        """Build the head for the data's base model, and let it start from what the training targets say on average.

        Args:
            data: the data, set up.
            warm_start: a router whose weights the head takes over instead; None: none.

        Raises:
            InputError: where the head cannot start from that router.
        """
        origin = data.origin
        self.head_settings = {**self._settings.encoder, **data.head_settings}
        kind = HEADS[self.objective.name]
        self.head = kind(origin.num_layers, data.read_layer, data.d_model, **self.head_settings)
        self.objective.start(self.head, torch.stack(data.examples["train"].targets))
        if warm_start is not None:
            warm_start.require(self.objective.name, self.head_settings, data.read_layer, origin.fingerprints)
            print(warm_start.give(self.head))
        data.pool(self.head.encoder)

    def forward(self, pooled: Tensor, filled: Tensor) -> Tensor:
        """Return the head's output for pooled states (`StateEncoder.pool`)."""
        output: Tensor = self.head.respond(self.head.encoder.narrow(pooled, filled))
        return output

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return the loss of a batch."""
        pooled, filled, targets = batch
        loss = self.objective.loss(self.head, self(pooled, filled), targets)
        self.log("train/loss", loss, batch_size=len(pooled), on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Keep a batch's outputs for the epoch's measures."""
        pooled, filled, targets = batch
        output = self(pooled, filled)
        loss = self.objective.loss(self.head, output, targets)
        self.log("validation/loss", loss, batch_size=len(pooled), prog_bar=True)
        # In float32 whatever `trainer.precision`, and finite: an epoch that diverged says so by its loss alone.
        wanted = targets.float() if targets.is_floating_point() else targets
        self._validated.append((output.detach().float().nan_to_num().cpu(), wanted.cpu()))

    def on_validation_epoch_end(self) -> None:
        """Log how good the head is on held-out samples, and how far it has collapsed."""
        output, targets = (torch.cat(parts) for parts in zip(*self._validated, strict=True))
        self._validated.clear()
        self.log_dict({f"validation/{name}": value for name, value in self.measures(output, targets).items()})

    def measures(self, output: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the head's measures on samples with these targets."""
        return {**self.objective.measures(self.head, output, targets), **collapse(self.head, output)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(
            self.parameters(), lr=self._settings.learning_rate, weight_decay=self._settings.weight_decay
        )
