"""The frozen model's states of samples on the disk: what routers read, kept by the run that computed them anyway.

A folder of safetensors files, one for each batch of samples; each tensor `<sample id>/<e>` is `hidden_states[e]`,
`[tokens, d_model]`, in the model's dtype. What the states are valid for stands in each file's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from router.files import replacing
from router.fingerprint import Fingerprints

VERSION = 1
"""Version of the files' format and of what the states are."""


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


def read_states(folder: Path, origin: StatesOrigin, sample_ids: Sequence[str], layer: int) -> list[Tensor] | None:
    """Return the states of each sample, or None where one is not there (or was made with something else).

    Args:
        folder: the folder.
        origin: what the states must depend on.
        sample_ids: the samples, in the order wanted.
        layer: e of `hidden_states[e]`.
    """
    wanted = {f"{sample_id}/{layer}": sample_id for sample_id in sample_ids}
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else []:
        try:
            with safe_open(path, framework="pt") as stream:
                if (stream.metadata() or {}).get("origin") == origin.as_text():
                    found |= {wanted[key]: stream.get_tensor(key) for key in stream.keys() if key in wanted}  # noqa: SIM118
        except SafetensorError:
            continue  # a damaged file counts as none
    return [found[sample_id] for sample_id in sample_ids] if found.keys() >= set(sample_ids) else None
