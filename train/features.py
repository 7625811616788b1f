"""The frozen model's early states of a split's samples, computed once and kept on the disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from data.sample import Sample
from data.scoring import ChainScorer, batches_by_length
from data.states import StatesOrigin, read_states
from router.files import replacing, sha256_json
from router.fingerprint import Fingerprints

BATCH_SAMPLES = 64
VERSION = 1
"""Version of the cache file's format and of what the states are."""


@dataclass(frozen=True)
class FeatureKey:
    """What cached states depend on.

    Attributes:
        fingerprints: base model, tokenizer and prompt.
        dtype: dtype of the base model.
        read_layer: the states are `hidden_states[read_layer]`.
        sample_ids: the samples, in order.
    """

    fingerprints: Fingerprints
    dtype: str
    read_layer: int
    sample_ids: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the key, 16 hex digits."""
        return sha256_json({"version": VERSION, **asdict(self)})[:16]


def cached_states(
    folder: Path,
    split: str,
    samples: Sequence[Sample],
    key: FeatureKey,
    scorer: Callable[[], ChainScorer],
    kept: Path | None = None,
) -> list[Tensor]:
    """Return the states of each sample, `[tokens, d_model]`, from the cache or from the model.

    Args:
        folder: folder of the cache; made if need be.
        split: name of the split, for the file's name.
        samples: the samples, as in `key`.
        key: what the states depend on.
        scorer: makes the scorer; called only where the cache holds nothing.
        kept: folder of states that the search kept (`data.state_files`), which are taken first.
    """
    if kept is not None:
        origin = StatesOrigin(key.fingerprints, key.dtype)
        found = read_states(kept, origin, key.sample_ids, key.read_layer)
        if found is not None:
            return found
    path = folder / f"{split}-{key.digest}.safetensors"
    held = _read(path, key)
    if held is not None:
        return held
    folder.mkdir(parents=True, exist_ok=True)
    states = compute_states(scorer(), samples, key.read_layer, f"states {split}")
    lengths = torch.tensor([len(state) for state in states])
    with replacing(path) as aside:
        save_file({"states": torch.cat(states), "lengths": lengths}, aside, metadata={"key": json.dumps(asdict(key))})
    return states


def compute_states(scorer: ChainScorer, samples: Sequence[Sample], read_layer: int, label: str) -> list[Tensor]:
    """Run layers 0..read_layer-1 on every sample; returns the states on the CPU, in the samples' order.

    Raises:
        InputError: where a sample cannot be asked.
    """
    encoded = scorer.encode_all(samples)
    states: list[Tensor | None] = [None] * len(samples)
    with tqdm(total=len(samples), desc=label, unit="sample") as progress:
        for batch in batches_by_length([sample.length for sample in encoded], BATCH_SAMPLES):
            block = scorer.load([encoded[i] for i in batch])
            for i, state in zip(batch, scorer.states(block, read_layer), strict=True):
                states[i] = state.cpu()
            progress.update(len(batch))
    return [state for state in states if state is not None]


def _read(path: Path, key: FeatureKey) -> list[Tensor] | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as stream:
            if json.loads((stream.metadata() or {}).get("key", "null")) != json.loads(json.dumps(asdict(key))):
                return None
            states, lengths = stream.get_tensor("states"), stream.get_tensor("lengths")
    except SafetensorError:
        return None  # a damaged cache is made anew
    return list(torch.split(states, lengths.tolist()))
