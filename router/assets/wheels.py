"""Offline assets: wheels on PyPI that carry a model or data, pinned by version and SHA-256, kept in a cache.

`assets.json` is the catalogue. Everything in the cache is complete or absent: it is made in a folder beside
its place, flushed to the disk and renamed, under a lock, so two processes may ask for one asset at once. A wheel's
folder that lacks members, for it was unpacked by an earlier catalogue, is completed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock
from tokenizers import normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from router.command import one_line
from router.files import fsync, read_json, settle, sha256_file, writable_directory, write_json
from router.validation import InputError

Entry = TypeVar("Entry")
CACHE_VARIABLE = "COLA_ROUTER_CACHE"
CONVERSION = 1
"""Version of `convert`'s result; part of the converted folder's name, so that no old one is taken."""
CATALOGUE = Path(__file__).parent / "assets.json"
TOKENIZER_PLACES = ("name_or_path", "is_local", "local_files_only")
"""Settings of a tokenizer that say where it was loaded from."""
_QUANTISED = (
    "hf_quantizer",
    "is_quantized",
    "quantization_method",
    "quantization_config",
    "_is_quantized",
    "_model_name_or_path",
)


@dataclass(frozen=True)
class Wheel:
    """One pinned wheel.

    Attributes:
        name: project name on PyPI; in the catalogue its key.
        version: exact version.
        file: file name of the wheel.
        sha256: the file's SHA-256, 64 hex digits.
        licence: licence of the content.
        members: files to unpack, as paths inside the wheel.
    """

    name: str
    version: str
    file: str
    sha256: str
    licence: str
    members: list[str]


@dataclass(frozen=True)
class Model:
    """A model inside one wheel or several.

    In the catalogue a model names one of the wheels there (`wheel`, `gguf`), or has `wheels` of its own, which
    are of no use alone and cannot be asked for, and `parts`.

    Attributes:
        name: name under which the model is asked for; in the catalogue its key.
        wheels: the wheels that it needs, in the order in which they are fetched.
        parts: members of these wheels that make the GGUF file, one after the other.
        split_digits: whether the original tokenizer splits numbers into digits first; transformers' reader
            of GGUF drops that step, and a run of white space before a digit would get other tokens.
        compose: whether the original tokenizer composes characters first (Unicode NFC), another step that is
            dropped: an accent typed apart from its letter would get other tokens.
        dtype: what the weights are stored in, "float32" or "bfloat16".
        sha256: SHA-256 of the GGUF file, or None where the wheel's own is enough: it checks the parts' order.
    """

    name: str
    wheels: list[Wheel]
    parts: list[str]
    split_digits: bool = False
    compose: bool = False
    dtype: str = "float32"
    sha256: str | None = None


def read_catalogue() -> tuple[dict[str, Wheel], dict[str, Model]]:
    """Read the wheels and the models of the catalogue, by name; a test checks that it is sound."""
    value = read_json(CATALOGUE)
    wheels = {name: Wheel(name, **entry) for name, entry in value["wheels"].items()}
    return wheels, {name: _model_of(name, entry, wheels) for name, entry in value["models"].items()}


def _model_of(name: str, entry: dict[str, Any], wheels: dict[str, Wheel]) -> Model:
    """Return the model of an entry of the catalogue."""
    rest = {key: value for key, value in entry.items() if key not in ("wheel", "gguf", "wheels", "parts")}
    if "wheel" in entry:
        return Model(name, [wheels[entry["wheel"]]], [entry["gguf"]], **rest)
    return Model(name, [Wheel(key, **wheel) for key, wheel in entry["wheels"].items()], entry["parts"], **rest)


def cache_directory() -> Path:
    """Return the cache: `$COLA_ROUTER_CACHE`, or `~/.cache/cola-router`."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/cola-router").expanduser()


def fetch(name: str) -> Path:
    """Return the folder of a wheel's unpacked members; download and check the wheel first where it is absent.

    Args:
        name: project name of a wheel of the catalogue.

    Raises:
        InputError: at an unknown name, a download that fails, or a wrong SHA-256. Nothing is left in the cache then.
    """
    wheels, _ = read_catalogue()
    return _unpacked(_entry(wheels, name, "asset"), _cache())


def model_directory(name: str = "smollm2-135m-instruct") -> Path:
    """Return a folder that `AutoModelForCausalLM` and `AutoTokenizer` load with `from_pretrained`.

    Its weights are float32 unless the catalogue says otherwise (a large model is stored in bfloat16, half the disk).
    The GGUF file is converted once (SmolLM2: about 20 seconds); reading it each time would cost 13 seconds a process.
    Wheels already fetched stay, so an interrupted download goes on where it was.

    Raises:
        InputError: at an unknown name, where `fetch` raises it, or where the parts do not make the file that the
            catalogue expects.
    """
    _, models = read_catalogue()
    model, cache = _entry(models, name, "model"), _cache()
    with _made_once(cache, f"{model.name}-{model.wheels[0].version}-v{CONVERSION}") as (folder, aside):
        if aside is not None:
            gguf = _gguf(model, cache, aside)
            print(f"converting {model.name} once, from {gguf.stat().st_size >> 20} MiB", file=sys.stderr)
            convert(model, gguf, aside / "content")
            origin = [
                {"wheel": wheel.name, "version": wheel.version, "sha256": wheel.sha256, "licence": wheel.licence}
                for wheel in model.wheels
            ]
            write_json(aside / "content" / "origin.json", {"wheels": origin, "gguf": model.parts, "dtype": model.dtype})
    return folder


def _unpacked(wheel: Wheel, cache: Path) -> Path:
    with _made_once(cache, f"{wheel.name}-{wheel.version}", wheel.members) as (folder, aside):
        if aside is not None:
            _unpack(wheel, _download(wheel, aside / "download"), aside / "content")
    return folder


def _gguf(model: Model, cache: Path, aside: Path) -> Path:
    """Fetch a model's wheels and return its GGUF file, written to `aside` where it comes in parts."""
    places: dict[str, Path] = {}
    for i, wheel in enumerate(model.wheels, start=1):
        if len(model.wheels) > 1:
            print(f"{model.name}: wheel {i} of {len(model.wheels)}", file=sys.stderr)
        folder = _unpacked(wheel, cache)
        places |= {member: folder / member for member in wheel.members}
    file = places[model.parts[0]]
    if len(model.parts) > 1:
        file = aside / "joined.gguf"
        with file.open("wb") as stream:
            for part in model.parts:
                with places[part].open("rb") as source:
                    shutil.copyfileobj(source, stream, 2**20)
    digest = model.sha256 and sha256_file(file)
    if digest != model.sha256:
        raise InputError(f"{model.name}: expected a GGUF file with sha256 {model.sha256}, got {digest}")
    return file


def _entry(entries: dict[str, Entry], name: str, kind: str) -> Entry:
    if name not in entries:
        raise InputError(f"{kind}: expected one of {', '.join(sorted(entries))}, got {name!r}")
    return entries[name]


def _cache() -> Path:
    return writable_directory(cache_directory(), CACHE_VARIABLE)


@contextmanager
def _made_once(cache: Path, name: str, members: Sequence[str] = ()) -> Iterator[tuple[Path, Path | None]]:
    """Give the folder `cache/name` and, where it or a member is absent, one aside: its `content` goes to the folder."""
    folder = cache / name

    def is_whole() -> bool:
        return folder.is_dir() and all((folder / member).is_file() for member in members)

    if is_whole():
        yield folder, None
        return
    with FileLock(cache / f".{name}.lock"):
        if is_whole():
            yield folder, None
            return
        aside = cache / f".{name}.partial"
        shutil.rmtree(aside, ignore_errors=True)  # a killed process may have left one
        try:
            (aside / "content").mkdir(parents=True)
            yield folder, aside
            settle(aside / "content")
            _move(aside / "content", folder)
            fsync(cache)
        except OSError as error:
            raise InputError(f"{folder}: expected to write it, got {one_line(error)}") from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _move(content: Path, folder: Path) -> None:
    """Make `content` the folder; where that is there, add the files that it lacks."""
    if not folder.is_dir():
        content.rename(folder)
        return
    for path in content.rglob("*"):
        target = folder / path.relative_to(content)
        if path.is_file() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
            fsync(target.parent)


def _download(wheel: Wheel, folder: Path) -> Path:
    """Download a wheel with pip and check its SHA-256."""
    pinned = f"{wheel.name}=={wheel.version}"
    shown = os.isatty(2)  # pip draws its progress bar on a terminal only
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(folder), pinned]
    done = subprocess.run(
        command if shown else [*command, "--quiet"], stdout=2, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR:")] or lines or [f"exit status {done.returncode}"]
        raise InputError(f"{pinned}: expected pip to download it, got: {errors[-1]}")
    file = folder / wheel.file
    if not file.is_file():
        got = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise InputError(f"{pinned}: expected pip to download {wheel.file}, got {got}")
    digest = sha256_file(file)
    if digest != wheel.sha256:
        raise InputError(f"{wheel.file}: expected sha256 {wheel.sha256}, got {digest}")
    return file


def _unpack(wheel: Wheel, file: Path, folder: Path) -> None:
    """Write the members named in the catalogue as plain files, and nothing else."""
    with zipfile.ZipFile(file) as archive:
        for member in wheel.members:
            target = folder / member
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, target.open("wb") as stream:
                shutil.copyfileobj(source, stream)


def convert(model: Model, gguf: Path, folder: Path) -> None:
    """Write a GGUF model as safetensors in the model's dtype; in that dtype the logits stay the same to the bit.

    Args:
        model: which dtype, and what the tokenizer needs.
        gguf: the file.
        folder: where model and tokenizer go; it exists.

    Raises:
        OSError: where a file cannot be read or written.
        ValueError: where the file's architecture is unknown to transformers.
    """
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        network = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=model.dtype)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        forget_quantisation(network)
        forget_quantisation(network.config)
        network.config._name_or_path = model.name
        network.save_pretrained(folder)
    finally:
        if bars:
            logging.enable_progress_bar()
    _restore_steps(model, tokenizer)
    tokenizer.model_max_length = network.config.max_position_embeddings
    for key in TOKENIZER_PLACES:
        tokenizer.init_kwargs.pop(key, None)
    tokenizer.save_pretrained(folder)


def _restore_steps(model: Model, tokenizer: PreTrainedTokenizerBase) -> None:
    """Put the steps back that transformers' reader of GGUF drops from the tokenizer."""
    backend = tokenizer.backend_tokenizer
    if model.split_digits:
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
    if model.compose:
        backend.normalizer = normalizers.NFC()


def forget_quantisation(holder: Any) -> None:
    """Remove the marks of an unpacked GGUF file from a model or its configuration; with them it cannot be saved."""
    for name in _QUANTISED:
        vars(holder).pop(name, None)
