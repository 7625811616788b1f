"""Loading base models: what is damaged, or lacks weights, ends in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from data.__main__ import main as data
from router.engine.load import has_chat_template, load_model, outline_of, resolve_device
from router.fingerprint import model_fingerprint
from router.validation import InputError
from tests.conftest import Refusal
from tests.tiny import edit_json, save_tiny, tiny_model, write_project

DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a layer more than weights": (
        lambda folder: edit_json(folder / "config.json", num_hidden_layers=6),
        r"no weights for 9 of its parameters, such as model\.layers\.5\.",
    ),
    "other shapes": (lambda folder: edit_json(folder / "config.json", num_key_value_heads=4), "RuntimeError: "),
    "a setting of another type": (lambda folder: edit_json(folder / "config.json", hidden_size="x"), "expected int"),
    "no heads": (lambda folder: edit_json(folder / "config.json", num_attention_heads=0), "ZeroDivisionError: "),
    "an unknown activation": (lambda folder: edit_json(folder / "config.json", hidden_act="nope"), "KeyError: 'nope'"),
    "no configuration": (lambda folder: (folder / "config.json").write_text("null"), "TypeError: "),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "KeyError: "),
    "cut weights": (lambda folder: (folder / "model.safetensors").write_bytes(b"1234"), "header too small"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_model_is_one_line(tmp_path: Path, damage: str) -> None:
    # Oracle: the words of each refusal. Without weights the library would make some up.
    spoil, wanted = DAMAGED[damage]
    folder = save_tiny(tmp_path / "model")
    spoil(folder)
    with pytest.raises(InputError, match=f"^model: expected a local directory or a hub id that loads, got .*{wanted}"):
        load_model(str(folder), device="cpu")
    for look in (outline_of, has_chat_template):  # they read less, and refuse as clearly what they read
        with contextlib.suppress(InputError):
            look(str(folder))


def test_a_model_that_cannot_run_chains_ends_a_command_in_one_line(tmp_path: Path, refusal: Refusal) -> None:
    # Oracle: RoBERTa's positions begin after its padding, so chains of it differ from its layers by hand.
    write_project(tmp_path)
    save_tiny(tmp_path / "roberta", "roberta")
    words = [f"--data={tmp_path / 'data'}", f"--out={tmp_path / 'out'}", f"--model={tmp_path / 'roberta'}"]
    line = refusal(data, ["accuracy", *words])
    assert line.startswith("error: RobertaForCausalLM: expected a model whose layers run in any order, got one where")


@pytest.mark.parametrize("device", ["meta", "hpu", "privateuseone", "no such"])
def test_a_device_that_holds_nothing_here_is_refused(device: str) -> None:
    with pytest.raises(InputError, match=f"^device: expected auto, cpu or a device of this machine, got '{device}'$"):
        resolve_device(device)


def test_what_a_caller_wants_to_be_returned_makes_no_other_model(tmp_path: Path) -> None:
    # Oracle: the fingerprint of the model as it was saved; one whose settings decide results is another.
    folder = save_tiny(tmp_path / "model")

    def loaded(**options: object) -> str:
        return model_fingerprint(load_model(str(folder), device="cpu", **options)[0])

    wanted = model_fingerprint(tiny_model("llama"))
    assert loaded() == loaded(output_hidden_states=True, return_dict=False) == loaded(dtype="bfloat16") == wanted
    assert loaded(rms_norm_eps=1e-3) != wanted
