"""Search records and cached states as batches for the router."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.models import load_model
from data.records import SearchRecord, read_records
from data.sample import Sample, read_samples
from data.scoring import ChainScorer
from data.task_files import TASKS_FILE, TaskSet, read_tasks
from router.command import InputError
from router.durable import require_directory
from router.fingerprint import Fingerprints
from router.head import pad_states
from router.layerwise import CLASSES
from train.features import FeatureKey, cached_states
from train.targets import TargetRule, class_counts, layer_classes

Example = tuple[Tensor, Tensor]
Batch = tuple[Tensor, Tensor, Tensor]
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Origin:
    """What the records were made with; a router trained on them inherits it.

    Attributes:
        fingerprints: base model, tokenizer and prompt.
        num_layers: layers of the base model.
        prefix_layers: layers that run in every chain.
        dtype: dtype of the base model.
        reward_target: must be "gold"; a control's records train nothing.
        search: hash of the search settings.
    """

    fingerprints: Fingerprints
    num_layers: int
    prefix_layers: int
    dtype: str
    reward_target: str
    search: str

    @classmethod
    def of(cls, record: SearchRecord) -> Origin:
        """Return the origin of one record."""
        return cls(**{name: getattr(record, name) for name in cls.__dataclass_fields__})


class Examples(Dataset[Example]):
    """States and per-layer classes of the samples that have a target."""

    def __init__(self, states: list[Tensor], targets: list[tuple[int, ...]]) -> None:
        """Keep both, in one order."""
        self.states = states
        self.targets = targets

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, index: int) -> Example:
        return self.states[index], torch.tensor(self.targets[index])


def collate(examples: list[Example]) -> Batch:
    """Return states `[batch, tokens, d_model]`, mask `[batch, tokens]` and targets `[batch, layers]`."""
    states, mask = pad_states([state for state, _ in examples])
    return states, mask, torch.stack([target for _, target in examples])


class RouterData(LightningDataModule):
    """Train and validation examples from `python -m search`'s records."""

    def __init__(
        self,
        data: Path,
        records: Path,
        base_model: str = "smollm2-135m-instruct",
        revision: str | None = None,
        device: str = "auto",
        prefix_layers: int | None = None,
        target: TargetRule = "shortest",
        batch_size: int = 32,
        features: Path | None = None,
    ) -> None:
        """Set what is read; nothing is read yet.

        Args:
            data: directory with train.jsonl and validation.jsonl of `python -m data prepare`.
            records: directory with train.jsonl and validation.jsonl of `python -m search`.
            base_model: the frozen model: an offline asset, a local directory or a hub id.
            revision: its hub revision.
            device: torch device for the states, or auto.
            prefix_layers: read layer that the records must have; null: any.
            target: which right chain is the target, "shortest" or "margin".
            batch_size: samples in a training batch.
            features: folder of the states' cache; null: `features` beside the records.
        """
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        self.base_model, self.revision = base_model, revision
        self._data, self._records, self._device = data, records, device
        self._prefix_layers, self._target, self._batch_size = prefix_layers, target, batch_size
        self._features = features or records / "features"
        self._generator = torch.Generator().manual_seed(0)
        self._scorer: ChainScorer | None = None
        self._loaded = False
        self.tasks: TaskSet
        self.origin: Origin
        self.d_model: int
        self.examples: dict[str, Examples] = {}
        self.without_target: dict[str, int] = {}
        self.counts: list[int] = []
        self.split_hashes: set[str] = set()

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002
        """Read records and samples, check that they fit each other and the base model, and get the states.

        Raises:
            InputError: where anything is missing or was made for something else.
        """
        if self._loaded:
            return
        require_directory(self._data, "data.data")
        require_directory(self._records, "data.records")
        self.tasks = read_tasks(self._data)
        pairs = {split: self._read(split) for split in SPLITS}
        self.split_hashes = {sample.split_hash for pair in pairs.values() for _, sample in pair}
        self.origin = self._common_origin([record for pair in pairs.values() for record, _ in pair])
        for split, pair in pairs.items():
            targets = [(sample, layer_classes(record, self._target)) for record, sample in pair]
            kept = [(sample, target) for sample, target in targets if target is not None]
            self.without_target[split] = len(targets) - len(kept)
            if not kept:
                raise InputError(f"data.records: expected a sample with a right chain in {split}, got none")
            samples = [sample for sample, _ in kept]
            key = FeatureKey(
                self.origin.fingerprints,
                self.origin.dtype,
                self.origin.prefix_layers,
                tuple(sample.id for sample in samples),
            )
            states = cached_states(self._features, split, samples, key, self._open_scorer)
            self.examples[split] = Examples(states, [target for _, target in kept])
        self.d_model = self.examples["train"].states[0].shape[1]
        self.counts = class_counts(self.examples["train"].targets, len(CLASSES))
        self._loaded = True
        self._scorer = None

    def files(self) -> dict[str, Path]:
        """Return the files that decide the examples: records and samples of both splits, and their tasks."""
        files = {"samples/tasks": self._data / TASKS_FILE}
        for split in SPLITS:
            files[f"records/{split}"] = self._records / f"{split}.jsonl"
            files[f"samples/{split}"] = self._data / f"{split}.jsonl"
        return files

    def _read(self, split: str) -> list[tuple[SearchRecord, Sample]]:
        samples = {s.id: s for s in read_samples(self.files()[f"samples/{split}"], f"data.data: {split}")}
        path = self.files()[f"records/{split}"]
        records = read_records(path, f"data.records: {split}")
        for record in records:
            if record.split != split:
                raise InputError(f"{path}: expected records of the split {split}, got one of {record.split}")
            if record.sample_id not in samples:
                raise InputError(f"{path}: expected records of the samples in {self._data}, got {record.sample_id}")
        return [(record, samples[record.sample_id]) for record in sorted(records, key=lambda r: r.sample_id)]

    def _common_origin(self, records: list[SearchRecord]) -> Origin:
        first = Origin.of(records[0])
        for record in records[1:]:
            other = Origin.of(record)
            for name in Origin.__dataclass_fields__:
                if getattr(other, name) != getattr(first, name):
                    raise InputError(
                        f"data.records: expected records of one search, got {name} "
                        f"{getattr(first, name)!s:.80} and {getattr(other, name)!s:.80}"
                    )
        if first.reward_target != "gold":
            raise InputError(f"data.records: expected the reward target gold, got {first.reward_target}")
        if self._prefix_layers not in (None, first.prefix_layers):
            raise InputError(
                f"data.prefix_layers: expected {first.prefix_layers} as in the records, got {self._prefix_layers}"
            )
        if first.prefix_layers < 1:
            raise InputError("data.records: expected prefix_layers of at least 1 for a router to read, got 0")
        if any(record.mode != self.tasks[record.task].mode for record in records):
            raise InputError(f"data.records: expected the modes of {self._data / TASKS_FILE}, got another")
        self._check_model(first)
        return first

    def _check_model(self, origin: Origin) -> None:
        scorer = self._open_scorer(origin.dtype)
        origin.fingerprints.require(scorer.fingerprints, f"records in {self._records}")

    def _open_scorer(self, dtype: str | None = None) -> ChainScorer:
        if self._scorer is None:
            model, tokenizer = load_model(
                self.base_model, dtype=dtype or self.origin.dtype, device=self._device, revision=self.revision
            )
            self._scorer = ChainScorer(model, tokenizer, self.tasks)
        return self._scorer

    def train_dataloader(self) -> DataLoader[Example]:
        """Return shuffled training batches."""
        return DataLoader(
            self.examples["train"],
            batch_size=self._batch_size,
            shuffle=True,
            collate_fn=collate,
            generator=self._generator,
        )

    def val_dataloader(self) -> DataLoader[Example]:
        """Return validation batches in a fixed order."""
        return DataLoader(self.examples["validation"], batch_size=self._batch_size, collate_fn=collate)
