"""The frozen model's hidden states of samples on the disk: what routers read, computed once.

A folder of safetensors files, one for each batch of samples; each tensor `<sample id>/<e>` is `hidden_states[e]`,
`[tokens, d_model]`, in the model's dtype. What the states are valid for stands in each file's metadata. A search keeps
the states that it has computed anyway; whoever needs others adds them. The folder can be deleted at any time.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from data.encoding import batches_by_length
from data.sample import Sample
from data.scoring import ChainScorer
from router.files import replacing, sha256_json
from router.fingerprint import Fingerprints
from router.progress import progress
from router.validation import InputError

VERSION = 1
"""Version of the files' format and of what the states are."""
BATCH_SAMPLES = 64
"""Samples whose states are computed together and stand in one file."""
READ_AT_ONCE = 256
"""Samples whose states are held in memory at once."""


@dataclass(frozen=True)
class StatesOrigin:
    """What kept states depend on, besides sample and layer.

    Attributes:
        fingerprints: base model, tokenizer and prompt.
        dtype: dtype of the base model.
    """

    fingerprints: Fingerprints
    dtype: str

    def as_text(self) -> str:
        """Return it as a file's metadata have it."""
        return json.dumps({"version": VERSION, **asdict(self)}, sort_keys=True)


def write_states(path: Path, origin: StatesOrigin, states: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Write the states of a batch, complete or not at all.

    Args:
        path: the file; its folder is made if need be.
        origin: what they depend on.
        states: by read layer and sample id.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{sample_id}/{layer}": state.detach().cpu().contiguous()
        for layer, of_layer in states.items()
        for sample_id, state in of_layer.items()
    }
    with replacing(path) as aside:
        save_file(tensors, aside, metadata={"origin": origin.as_text()})


def read_states(
    folders: Iterable[Path], origin: StatesOrigin, sample_ids: Iterable[str], layer: int
) -> dict[str, Tensor]:
    """Return by sample id the states that are there and were made with the same model, tokenizer and prompt.

    Folders that do not exist hold nothing.
    """
    return _read(_places(folders, origin), sample_ids, layer)


def _places(folders: Iterable[Path], origin: StatesOrigin) -> dict[str, Path]:
    """Return in which file each state of this origin is, by its tensor's name."""
    places: dict[str, Path] = {}
    for path in (path for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.safetensors"))):
        try:
            with safe_open(path, framework="pt") as stream:
                if (stream.metadata() or {}).get("origin") == origin.as_text():
                    places |= dict.fromkeys(stream.keys(), path)
        except SafetensorError:
            continue  # a damaged file counts as none
    return places


def _read(places: Mapping[str, Path], sample_ids: Iterable[str], layer: int) -> dict[str, Tensor]:
    """Return by sample id the states that are there; each file that holds one is opened once."""
    wanted: dict[Path, list[str]] = defaultdict(list)
    for sample_id in sample_ids:
        if path := places.get(f"{sample_id}/{layer}"):
            wanted[path].append(sample_id)
    found: dict[str, Tensor] = {}
    for path, ids in wanted.items():
        with safe_open(path, framework="pt") as stream:
            found |= {sample_id: stream.get_tensor(f"{sample_id}/{layer}") for sample_id in ids}
    return found


def kept_at_each(
    folder: Path, origin: StatesOrigin, sample_ids: Sequence[str], layers: Sequence[int], split: str
) -> Iterator[tuple[list[Tensor], ...]]:
    """Give the states that a search has kept of a split, in parts, so that they need not fit in memory.

    Args:
        folder: where they are.
        origin: what they must depend on.
        sample_ids: the samples, in order.
        layers: each e of `hidden_states[e]` that is read; a part has a list of each, side by side.
        split: the split's name, for the message.

    Raises:
        InputError: where some are missing.
    """
    places = _places([folder], origin)
    for start in range(0, len(sample_ids), READ_AT_ONCE):
        part = sample_ids[start : start + READ_AT_ONCE]
        read = []
        for layer in layers:
            found = _read(places, part, layer)
            if len(found) < len(part):
                raise InputError(
                    f"records: expected the states that the router reads (hidden_states[{layer}]) of {split} in "
                    f"{folder}, got none for some; run python -m search with --read_layers '[{layer}]'"
                )
            read.append([found[key] for key in part])
        yield tuple(read)


def states_of(
    folder: Path,
    origin: StatesOrigin,
    samples: Sequence[Sample],
    layer: int,
    scorer: Callable[[], ChainScorer],
    *,
    kept: Sequence[Path] = (),
    label: str = "states",
) -> list[Tensor]:
    """Return `hidden_states[layer]` of each sample, `[tokens, d_model]`, on the CPU; what is missing is computed.

    Args:
        folder: folder for states that are computed now, batch by batch; made if need be.
        origin: what the states depend on.
        samples: the samples.
        layer: e of `hidden_states[e]`.
        scorer: makes the scorer; called only where something is missing.
        kept: folders of states that others have kept.
        label: what the progress bar says.

    Raises:
        InputError: where a sample cannot be asked.
    """
    found = read_states([*kept, folder], origin, [sample.id for sample in samples], layer)
    missing = [sample for sample in samples if sample.id not in found]
    if missing:
        found |= compute_states(scorer(), missing, layer, label, lambda made: _keep(folder, origin, made, layer))
    return [found[sample.id] for sample in samples]


def _keep(folder: Path, origin: StatesOrigin, made: Mapping[str, Tensor], layer: int) -> None:
    name = sha256_json([sorted(made), layer, origin.as_text()])[:16]
    write_states(folder / f"{name}.safetensors", origin, {layer: made})


def compute_states(
    scorer: ChainScorer,
    samples: Sequence[Sample],
    layer: int,
    label: str,
    keep: Callable[[Mapping[str, Tensor]], object] = lambda _: None,
) -> dict[str, Tensor]:
    """Run layers 0..layer-1 on every sample; returns the states on the CPU by sample id, and gives `keep` each batch's.

    Raises:
        InputError: where a sample cannot be asked.
    """
    encoded = scorer.encode_all(samples)
    states: dict[str, Tensor] = {}
    with progress(len(samples), label, "sample") as bar:
        for batch in batches_by_length([sample.length for sample in encoded], BATCH_SAMPLES):
            block = scorer.load([encoded[i] for i in batch])
            made = {samples[i].id: one.cpu() for i, one in zip(batch, scorer.states(block, layer), strict=True)}
            keep(made)
            states |= made
            bar.update(len(batch))
    return states
