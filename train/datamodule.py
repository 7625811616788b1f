"""Search records and cached states as batches for the router."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning import LightningDataModule
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.records import SearchRecord, model_of, read_records
from data.sample import Sample, read_samples
from data.scoring import ChainScorer
from data.states import StatesOrigin, states_of
from data.tasks import TASKS_FILE, TaskSet, read_tasks
from router.decision import Router
from router.engine.load import DEFAULT_MODEL, ModelSettings
from router.files import require_directory, sha256_file
from router.fingerprint import Fingerprints
from router.heads.head import Head, StateEncoder, pad_states
from router.heads.menu import OUTCOMES, MenuHead
from router.storage import TRAINED_ON_FILE, WEIGHTS_FILE, load_router, trained_questions
from router.validation import SETTINGS, InputError, Positive, from_plain

if TYPE_CHECKING:
    from train.objectives import Objective


Example = tuple[Tensor, Tensor]
"""A sample's states, or what pooling made of them, and its target."""
Batch = tuple[Tensor, Tensor, Tensor]
"""Pooled states `[batch, places, d_model]`, which places are filled `[batch, places]`, and stacked targets."""
COMMON = ("fingerprints", "num_layers", "first_editable", "dtype", "reward_target", "search")
"""What all records of a training have in common."""
POOLED_AT_ONCE = 64
"""Samples pooled in one step."""
SPLITS = ("train", "validation")


class Examples(Dataset[Example]):
    """Samples that teach something: states and targets.

    Attributes:
        states: of each sample, `[tokens, d_model]`; after `pool` what the head's encoder pooled them to.
        targets: what the objective made of each sample's record.
        tokens: tokens of a sample, mean.
    """

    def __init__(self, states: list[Tensor], targets: list[Tensor]) -> None:
        """Keep them, in one order."""
        self.states, self.targets = states, targets
        self.tokens = max(1, sum(len(state) for state in states) // max(1, len(states)))

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, index: int) -> Example:
        return self.states[index], self.targets[index]

    @torch.inference_mode()
    def pool(self, encoder: StateEncoder) -> None:
        """Replace the states by what the encoder pools them to, once for the whole training."""
        pooled: list[Tensor] = []
        for start in range(0, len(self.states), POOLED_AT_ONCE):
            values, filled = encoder.pool(*pad_states(self.states[start : start + POOLED_AT_ONCE]))
            pooled += [value[places] for value, places in zip(values, filled, strict=True)]
        self.states = pooled


def collate(examples: list[Example]) -> Batch:
    """Join examples to a batch."""
    states, mask = pad_states([state for state, _ in examples])
    return states, mask, torch.stack([target for _, target in examples])


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class DataSettings:
    """What a router is trained on.

    Attributes:
        data: folder of `python -m data prepare`, with train.jsonl and validation.jsonl.
        records: folder of `python -m search`, with train.jsonl and validation.jsonl.
        model: the frozen base model: an offline asset, a local directory or a hub id; null: the one that the records
            were made with.
        revision: its hub revision.
        device: torch device for the states, or auto.
        read_layer: e of the `hidden_states[e]` that the router reads; chains that edit an earlier layer are no
            targets; at least the records' `first_editable`, but for a menu head; null: that.
        late_read_layer: e of the `hidden_states[e]` that a second menu head reads; it picks the chain where the first
            one likes a chain best that begins with all these layers; null: the router reads once.
        batch_size: samples in a training batch.
        states: folder for states that are computed here; null: `states` beside the records.
        limit: training samples to use, drawn by their ids, for learning curves; null: all.
    """

    data: Path
    records: Path
    model: str | None = None
    revision: str | None = None
    device: str = "auto"
    read_layer: Positive | None = None
    late_read_layer: Positive | None = None
    batch_size: Positive = 32
    states: Path | None = None
    limit: Positive | None = None


class RouterData(LightningDataModule):
    """Train and validation examples from `python -m search`'s records."""

    def __init__(self, settings: DataSettings, objective: Objective) -> None:
        """Set what is read, and what it is to teach; nothing is read yet."""
        super().__init__()
        self._settings, self.objective = settings, objective
        self._generator = torch.Generator().manual_seed(0)
        self._scorer: ChainScorer | None = None
        self._loaded = False
        self.model: str
        self.tasks: TaskSet
        self.origin: SearchRecord
        self.pairs: dict[str, list[tuple[SearchRecord, Sample]]] = {}
        self.d_model: int
        self.layer_parameters: int
        self.examples: dict[str, Examples] = {}
        self.has_target: dict[str, list[bool]] = {}
        self.read_layer: int
        self.head_settings: dict[str, Any] = {}
        self.split_hashes: set[str] = set()

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002
        """Read records and samples, check that they fit each other and the base model, and get the states.

        Raises:
            InputError: where anything is missing or was made for something else.
        """
        if self._loaded:
            return
        require_directory(self._settings.data, "data")
        require_directory(self._settings.records, "records")
        self.tasks = read_tasks(self._settings.data)
        self.pairs = pairs = {split: self._read(split) for split in SPLITS}
        if self._settings.limit is not None:
            pairs["train"] = pairs["train"][: self._settings.limit]
        self.split_hashes = {sample.split_hash for pair in pairs.values() for _, sample in pair}
        records = [record for pair in pairs.values() for record, _ in pair]
        self.origin = self._common_origin(records)
        self._make_examples()
        self.d_model = self.examples["train"].states[0].shape[1]
        self._loaded = True
        self._scorer = None

    def read_later(self, layer: int, objective: Objective) -> RouterData:
        """Return the same records and samples for a head that reads another layer; they are not read again.

        Args:
            layer: e of the `hidden_states[e]` that it reads.
            objective: what it is taught.

        Raises:
            InputError: as in `setup`.
        """
        later = copy.copy(self)
        later.objective, later.read_layer, later._generator = objective, layer, torch.Generator().manual_seed(0)
        later.examples, later.has_target = {}, {}
        later._make_examples()
        later._scorer = None
        return later

    def _make_examples(self) -> None:
        self.head_settings = self.objective.settings(
            [record for pair in self.pairs.values() for record, _ in pair], self.read_layer
        )
        for split, pair in self.pairs.items():
            targets = [(sample, self.objective.target(record, self.read_layer)) for record, sample in pair]
            kept = [(sample, target) for sample, target in targets if target is not None]
            self.has_target[split] = [target is not None for _, target in targets]
            if not kept:
                raise InputError(f"records: expected a sample with a right chain in {split}, got none")
            samples = [sample for sample, _ in kept]
            states = self.states(split, samples)
            self.examples[split] = Examples(states, [target for _, target in kept])

    def states(self, split: str, samples: list[Sample]) -> list[Tensor]:
        """Return the samples' states at the read layer: kept by the search, kept here, or from the model."""
        origin = StatesOrigin(self.origin.fingerprints, self.origin.dtype)
        records, layer = self._settings.records, self.read_layer
        kept = [records / f"{split}.states"]
        folder = self._settings.states or records / "states"
        return states_of(folder, origin, samples, layer, self.open_scorer, kept=kept, label=f"states {split}")

    def pool(self, encoder: StateEncoder) -> None:
        """Pool the states once for the whole training; see `Examples.pool`."""
        for examples in self.examples.values():
            examples.pool(encoder)

    def files(self) -> dict[str, Path]:
        """Return the files that decide the examples: records and samples of both splits, and their tasks."""
        files = {"samples/tasks": self._settings.data / TASKS_FILE}
        for split in SPLITS:
            files[f"records/{split}"] = self._settings.records / f"{split}.jsonl"
            files[f"samples/{split}"] = self._settings.data / f"{split}.jsonl"
        return files

    def _read(self, split: str) -> list[tuple[SearchRecord, Sample]]:
        samples = {s.id: s for s in read_samples(self.files()[f"samples/{split}"], f"data: {split}")}
        path = self.files()[f"records/{split}"]
        records = read_records(path, f"records: {split}")
        for record in records:
            if record.split != split:
                raise InputError(f"{path}: expected records of the split {split}, got one of {record.split}")
            if record.sample_id not in samples:
                raise InputError(
                    f"{path}: expected records of the samples in {self._settings.data}, got {record.sample_id}"
                )
        return [(record, samples[record.sample_id]) for record in sorted(records, key=lambda r: r.sample_id)]

    def _common_origin(self, records: list[SearchRecord]) -> SearchRecord:
        """Return the first record, for what all have in common: what they were made with, which a router inherits."""
        first = records[0]
        for record in records[1:]:
            for name in COMMON:
                known, other = getattr(first, name), getattr(record, name)
                if other != known:
                    raise InputError(
                        f"records: expected records of one search, got {name} {known!s:.80} and {other!s:.80}"
                    )
        first.require_gold("records")
        self.read_layer = first.first_editable if self._settings.read_layer is None else self._settings.read_layer
        # A menu's chains are those of the records, so it may be read before the first layer that they edit.
        least = min(1, first.first_editable) if self.objective.name == "menu" else first.first_editable
        if not least <= self.read_layer < first.num_layers:
            raise InputError(
                f"read_layer: expected {least} (as in the records) to {first.num_layers - 1}, got {self.read_layer}"
            )
        if self.read_layer < 1:
            raise InputError(
                "records: expected first_editable of at least 1 for a router to read, or a read_layer, got 0"
            )
        if any(record.mode != self.tasks[record.task].mode for record in records):
            raise InputError(f"records: expected the modes of {self._settings.data / TASKS_FILE}, got another")
        self._check_model(first)
        return first

    def _check_model(self, origin: SearchRecord) -> None:
        self.model = self._settings.model or model_of(self.files()["records/train"]) or DEFAULT_MODEL
        scorer = self.open_scorer(origin.dtype)
        self.layer_parameters = scorer.layer_parameters
        origin.fingerprints.require(scorer.fingerprints, f"records in {self._settings.records}")

    def open_scorer(self, dtype: str | None = None) -> ChainScorer:
        """Return a scorer of the base model, which is loaded now; None: in the records' dtype."""
        if self._scorer is None:
            settings = self._settings
            given = {"model": self.model, "revision": settings.revision, "device": settings.device}
            origin = from_plain(ModelSettings, given | {"dtype": dtype or self.origin.dtype}, "records")
            self._scorer = ChainScorer.open(origin, self.tasks)
        return self._scorer

    def train_dataloader(self) -> DataLoader[Example]:
        """Return shuffled training batches."""
        return DataLoader(
            self.examples["train"],
            batch_size=self._settings.batch_size,
            shuffle=True,
            collate_fn=collate,
            generator=self._generator,
        )

    def val_dataloader(self) -> DataLoader[Example]:
        """Return validation batches in a fixed order."""
        return DataLoader(self.examples["validation"], batch_size=self._settings.batch_size, collate_fn=collate)


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """A router to start from.

    Attributes:
        router: the router.
        weights_sha256: hash of its weights, which decides what training makes of it.
        split_hashes: the questions (`Sample.split_hash`) that it was trained and chosen on; whatever starts from it has
            seen them too.
    """

    router: Router
    weights_sha256: str
    split_hashes: frozenset[str]

    @classmethod
    def read(cls, folder: Path, out: Path) -> WarmStart:
        """Read a router's folder.

        Args:
            folder: the router's folder.
            out: the folder that training will write.

        Raises:
            InputError: where it holds no router, none that says what it was trained on, or is `out`.
        """
        if folder.resolve() == out.resolve():
            raise InputError(f"warm_start: expected another folder than out, got {str(folder)!r}")
        with torch.random.fork_rng(devices=[]):  # a head draws when it is built; the new one draws as without this one
            router = load_router(folder)
        seen = trained_questions(folder)
        if seen is None:
            raise InputError(
                f"warm_start: expected a router with {TRAINED_ON_FILE}, so that nobody evaluates on questions that it "
                f"has seen, got {str(folder)!r} without"
            )
        return cls(router, sha256_file(folder / WEIGHTS_FILE), seen)

    def require(self, name: str, head_settings: Mapping[str, Any], read_layer: int, fingerprints: Fingerprints) -> None:
        """Check that a new head can start from this one; the prompt and the chains of a menu may be others.

        Args:
            name: the new head's kind, a key of `router.decision.HEADS`.
            head_settings: its settings.
            read_layer: its read layer.
            fingerprints: what its records were made for.

        Raises:
            InputError: at the first that differs; the message names it and both values.
        """
        config = self.router.config
        config.fingerprints.require(dataclasses.replace(fingerprints, prompt=config.fingerprints.prompt), "warm_start")
        pairs: dict[str, tuple[Any, Any]] = {"head": (name, config.head), "read_layer": (read_layer, config.read_layer)}
        for key in (*head_settings, *(key for key in config.head_settings if key not in head_settings)):
            if key != "chains":
                pairs[key] = (head_settings.get(key), config.head_settings.get(key))
        for key, (wanted, got) in pairs.items():
            if wanted != got:
                raise InputError(f"warm_start: expected a router with {key} {wanted}, as set here, got {got}")

    def give(self, head: Head) -> str:
        """Copy the weights into a head that was started from its own targets, and return a line on what was copied.

        Of a menu head, chains that the old menu lacks keep what they started with, the rates among the targets.
        """
        old = self.router.head
        if isinstance(head, MenuHead) and isinstance(old, MenuHead) and head.chains != old.chains:
            head.encoder.load_state_dict(old.encoder.state_dict())
            count = _copy_shared_rows(head, old)
            return f"warm start: encoder, and {count} of {len(head.chains)} chains of the menu, from {self._told}"
        head.load_state_dict(old.state_dict())
        return f"warm start: all weights from {self._told}"

    @property
    def _told(self) -> str:
        return f"a router of {self.router.config.task} (weights {self.weights_sha256[:12]})"


@torch.no_grad()
def _copy_shared_rows(head: MenuHead, old: MenuHead) -> int:
    """Copy the rows of chains that both menus have, and of the auxiliary values; returns the number of chains."""
    places = {chain: i for i, chain in enumerate(old.chains)}
    width = len(OUTCOMES)
    pairs = [(i, places[chain]) for i, chain in enumerate(head.chains) if chain in places]
    for to, source in ((head.predict.weight, old.predict.weight), (head.predict.bias, old.predict.bias)):
        for i, j in pairs:
            to[i * width : (i + 1) * width] = source[j * width : (j + 1) * width]
        to[len(head.chains) * width :] = source[len(old.chains) * width :]
    return len(pairs)
