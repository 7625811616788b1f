"""What comes from elsewhere runs no code, fills no memory and lands nowhere else; what is secret is written nowhere."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import resource
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.__main__ import main as eval_main
from router.engine.load import load_model, outline_of
from router.storage import load_router, save_router
from router.validation import InputError
from search.__main__ import main as search_main
from tests.evaluation import vouch
from tests.routed_folders import small_router
from tests.tiny import edit_json, save_tiny, write_project
from tests.wandb_runs import run_files
from train.__main__ import main as train_main

ROOT = Path(__file__).parent.parent


class Writes:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "ran")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickled_base_model_is_refused_unread(tmp_path: Path, name: str) -> None:
    # Oracle: a pickle that leaves a file behind once it is loaded, as it does here first.
    marker = tmp_path / "marker"
    folder = save_tiny(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Writes(marker)}, folder / name)
    with (folder / name).open("rb") as stream:
        torch.load(stream, weights_only=False)
    assert marker.exists()
    marker.unlink()
    with pytest.raises(InputError, match="model: expected a local directory or a hub id that loads") as caught:
        load_model(str(folder))
    assert "\n" not in str(caught.value)
    assert not marker.exists()


CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
Path({marker!r}).write_text("ran")
class Settings(LlamaConfig):
    model_type = "{kind}"
class Model(LlamaForCausalLM):
    config_class = Settings
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""
MODEL_MAP = {"AutoConfig": "own.Settings", "AutoModelForCausalLM": "own.Model"}
TOKENIZER_MAP = {"AutoTokenizer": ["own.Tokenizer", "own.Tokenizer"]}
CUSTOM = {
    "unknown model": {"config.json": {"model_type": "own", "auto_map": MODEL_MAP}},
    "known model": {"config.json": {"auto_map": MODEL_MAP}},
    "unknown tokenizer": {"tokenizer_config.json": {"tokenizer_class": "OwnTokenizer", "auto_map": TOKENIZER_MAP}},
    "known tokenizer": {"tokenizer_config.json": {"auto_map": TOKENIZER_MAP}},
    "generation": {},
}
"""What a model's folder says of code of its own; a known class goes before it."""


@pytest.mark.parametrize("kind", CUSTOM)
def test_code_beside_a_model_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    # Oracle: code that leaves a file behind; who pipes something into a command has not asked for it to run.
    marker = tmp_path / "marker"
    folder = save_tiny(tmp_path / "model")
    for name in ("own.py", "custom_generate/generate.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(CODE.format(marker=str(marker), kind=kind.replace(" ", "_")))
    for name, changed in CUSTOM[kind].items():
        edit_json(folder / name, **changed)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    if kind.startswith("unknown"):
        with pytest.raises(InputError, match="model: expected a local directory or a hub id that loads") as caught:
            load_model(str(folder))
        assert "\n" not in str(caught.value)
    else:
        model, _ = load_model(str(folder))
        model.generate(torch.tensor([[3, 4]]), max_new_tokens=1)
    if kind == "unknown model":
        with pytest.raises(InputError, match="model: expected a local directory or a hub id that loads"):
            outline_of(str(folder))
    else:
        assert outline_of(str(folder)).num_layers == 5
    assert not marker.exists()


def saved(folder: Path, weights: bytes) -> Path:
    """A router whose config vouches for any weights."""
    save_router(folder, small_router())
    (folder / "router.safetensors").write_bytes(weights)
    edit_json(folder / "config.json", weights_sha256=hashlib.sha256(weights).hexdigest())
    return folder


@pytest.mark.parametrize("kind", ["pickle", "torch pickle", "truncated", "longer", "endless header", "empty"])
def test_weights_that_are_no_safetensors_are_refused(tmp_path: Path, kind: str) -> None:
    # Oracle: files that the config's own hash vouches for, made wrong by hand.
    marker = tmp_path / "marker"
    save_router(tmp_path / "good", small_router())
    good = (tmp_path / "good" / "router.safetensors").read_bytes()
    stream = io.BytesIO()
    torch.save(Writes(marker), stream)
    weights = {
        "pickle": pickle.dumps(Writes(marker)),
        "torch pickle": stream.getvalue(),
        "truncated": good[:-4],
        "longer": good + bytes(2**20),
        "endless header": (2**62).to_bytes(8, "little") + good[8:],
        "empty": b"",
    }[kind]
    with pytest.raises(InputError, match="router: ") as caught:
        load_router(saved(tmp_path / "router", weights))
    assert "\n" not in str(caught.value)
    assert not marker.exists()


HUGE = 10**12
ABSURD = {
    "head_settings.hidden: expected at most 65536, got 1000000000000": {"head_settings": {"hidden": HUGE}},
    "head_settings.hidden: expected an integer, got '8'": {"head_settings": {"hidden": "8"}},
    "windows: expected at most": {"head_settings": {"hidden": 8, "windows": HUGE}},
    "pooling: expected one of windows, ends": {"head_settings": {"hidden": 8, "pooling": "attention"}},
    "encoder.bottleneck.weight of shape [8, 1048576], got [8, 16]": {"d_model": 2**20},
    "classify.weight of shape [12, 65536], got [12, 8]": {"head_settings": {"hidden": 2**16}, "d_model": 2**20},
    "d_model: expected at most": {"d_model": HUGE},
    "num_layers: expected at most 1024": {"head": "menu", "head_settings": {"chains": ["0-5"]}, "num_layers": HUGE},
    "chains: expected at most 4096 entries": {"head": "menu", "head_settings": {"chains": ["0*4096"] * 20000}},
    "head: expected one of layerwise, menu": {"head": "program"},
    "chains[0]: expected text, got 5": {"head": "menu", "head_settings": {"chains": [5]}},
    "head_settings: expected an object": {"head_settings": [1]},
    "budget_points: expected a list, got 7": {"budget_points": 7},
}
"""What the message names, and the changes of a config that ask for it."""


def load_with_little_memory(folders: list[Path]) -> list[str]:
    """Load routers where half a gigabyte more may be taken than is; returns what each refusal says."""
    used = re.search(r"VmSize:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert used is not None
    limit = (int(used[1]) << 10) + 2**29
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    said = []
    for folder in folders:
        try:
            load_router(folder)
            said.append("loaded")
        except InputError as error:
            said.append(str(error))
    return said


def test_a_config_that_asks_for_absurd_sizes_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    # Oracle: a process that may take little memory; what is wrong is named, not the memory.
    folders = [tmp_path / str(i) for i in range(len(ABSURD))]
    for folder, changed in zip(folders, ABSURD.values(), strict=True):
        save_router(folder, small_router())
        edit_json(folder / "config.json", **changed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # threads of other tests' libraries do nothing that matters here
        child = os.fork()
    if child == 0:
        try:
            (tmp_path / "said.json").write_text(json.dumps(load_with_little_memory(folders)))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    for wanted, line in zip(ABSURD, json.loads((tmp_path / "said.json").read_text()), strict=True):
        assert wanted in line
        assert line.startswith("router: ")


def test_a_directory_here_is_not_taken_for_an_asset_or_a_hub_id(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Oracle: the shelf is empty and the hub switched off, so only the directory can answer.
    monkeypatch.chdir(tmp_path)
    for name in ("smollm2-135m-instruct", "us/model"):
        save_tiny(tmp_path / name)
    with pytest.raises(InputError, match="got both"):
        load_model("smollm2-135m-instruct")
    assert load_model("./smollm2-135m-instruct")[0].config.num_hidden_layers == 5
    assert load_model("us/model")[0].config.num_hidden_layers == 5
    (tmp_path / "us" / "empty").mkdir()
    with pytest.raises(InputError, match=r"model: expected a directory with config\.json, got 'us/empty'"):
        load_model("us/empty")


SECRETS = {
    "WANDB_API_KEY": "9d0wandb" * 5,
    "HF_TOKEN": "hf_" + "h4token1" * 5,
    "HUGGING_FACE_HUB_TOKEN": "hf_" + "h5token2" * 5,
    "OPENAI_API_KEY": "sk-" + "0penkey3" * 5,
}
"""Each says one word five times: files of records may cut a text in two."""
WORDS = ("9d0wandb", "h4token1", "h5token2", "0penkey3")


def test_no_secret_of_the_environment_is_written_or_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # Oracle: every byte below the folder, W&B's own files and caches included, and all that was printed; that the
    # look finds what is there is told by the runs' name, which W&B's records hold.
    project = write_project(tmp_path / "project")
    vouch(project / "data")
    names = {name: str(project / name) for name in ("data", "records", "router", "model", "report", "home")}
    Path(names["home"]).mkdir()
    tracked = ["--tracking.mode=offline", "--tracking.name=fabulous-run"]
    arguments = {
        "search": [
            f"--data={names['data']}", f"--out={names['records']}", f"--model={names['model']}",
            "--splits=[train,validation,test]", "--first_editable=2", "--dtype=float32", "--search.simulations=4",
        ],
        "train": [
            f"--data={names['data']}", f"--records={names['records']}", f"--model={names['model']}",
            f"--out={names['router']}", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", *tracked,
        ],
        "eval": [
            *(f"--{name}={names[name]}" for name in ("data", "records", "router", "model")), f"--out={names['report']}",
            "--dtype=float32", "--static_pool=1", "--static_trials=1", "--control_samples=1", *tracked,
        ],
    }  # fmt: skip
    environment = SECRETS | {"HOME": names["home"], "WANDB_MODE": "offline"}
    environment |= {f"WANDB_{kind}_DIR": f"{names['home']}/{kind}" for kind in ("CACHE", "DATA", "CONFIG")}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(project)
    search_main(arguments["search"])
    train_main(arguments["train"])
    eval_main(arguments["eval"])
    runs = run_files(project)
    printed = capfd.readouterr()
    assert not [word for word in WORDS if word in printed.out + printed.err]
    files = [path for path in project.rglob("*") if path.is_file()]
    assert len(runs) == 2
    assert all(b"fabulous-run" in path.read_bytes() for path in runs)
    for name in ("router/config.json", "router/train.json", "report/report.json", "report/run.json"):
        assert project / name in files
    assert not [(path, word) for path in files for word in WORDS if word.encode() in path.read_bytes()]
