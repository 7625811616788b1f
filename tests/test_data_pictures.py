"""Samples with pictures: made, stored, encoded and scored, and all the way to a routed model."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from data.__main__ import main as data
from data.generation import Generator, Request
from data.pictures import FOLDER, read_picture, store_picture
from data.records import read_records
from data.sample import Sample, read_samples
from data.scoring import ChainScorer, open_scorer
from data.shapes import CELLS, COLOURS, ShapesSource, shape_rows
from data.tasks import TaskSet, load_task, read_tasks
from eval.__main__ import main as evaluate
from eval.results import RESULTS_FILE, read_results
from router.engine.load import ModelSettings, load_model, load_processor
from router.engine.view import chain_view
from router.routed import RoutedModel
from router.storage import save_router
from router.validation import InputError
from search.__main__ import main as search
from tests.conftest import Refusal
from tests.pictures import save_pictured
from tests.routed_folders import router_for
from tests.tiny import FULL, NUM_LAYERS, save_tiny, tiny_samples
from train.__main__ import main as train

SMALL = "--override={shapes: {size: 60, pixels: 48}}"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny image-text model in `model/`, and questions about drawn pictures in `data/`."""
    folder = tmp_path_factory.mktemp("pictured")
    save_pictured(folder / "model")
    sizes = ["--train.size=16", "--validation.size=8", "--test.size=6"]
    data(["prepare", "--task=shapes", f"--out={folder / 'data'}", SMALL, *sizes])
    return folder


@pytest.fixture(scope="module")
def stock(project: Path) -> tuple[PreTrainedModel, ProcessorMixin]:
    model, _ = load_model(str(project / "model"))
    return model, load_processor(str(project / "model"))


def given(processor: ProcessorMixin, folder: Path, sample: Sample, text: str) -> Any:
    """What the processor makes of a sample's picture in front of a text, as a user would call it."""
    pictures = [Image.open(folder / FOLDER / name) for name in sample.images]
    if not pictures:
        return processor.tokenizer(text, return_tensors="pt")
    return processor(images=pictures, text="<image>\n" * len(pictures) + text, return_tensors="pt")


def logprobs(model: PreTrainedModel, batch: Any, tokens: list[int]) -> list[float]:
    """Log-probability of tokens after a prompt, one after the other, as the model itself says by generating them."""
    batch, found = dict(batch), []
    for token in tokens:
        options = {"max_new_tokens": 1, "output_logits": True, "return_dict_in_generate": True, "pad_token_id": 0}
        logits = model.generate(**batch, **options).logits[0][0]
        found.append(float(logits.log_softmax(-1)[token]))
        batch["input_ids"] = torch.cat([batch["input_ids"], torch.tensor([[token]])], 1)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    return found


def test_from_preparation_to_a_routed_model(project: Path, stock: tuple[PreTrainedModel, ProcessorMixin]) -> None:
    # Oracles: the stock model and the chains' views with what the processor makes of picture and text; the deployed
    # model routes as the evaluation did.
    paths = [f"--{name}={project / name}" for name in ("data", "records", "router", "model")]
    searched = ["--splits=[train,validation,test]", "--first_editable=2", "--search.simulations=4", "--dtype=float32"]
    search([paths[0], f"--out={project / 'records'}", paths[3], *searched])
    quiet = ["--trainer.enable_progress_bar=false", "--tracking.mode=disabled", "--trainer.max_epochs=2"]
    train([*paths[:2], f"--out={project / 'router'}", paths[3], *quiet])
    evaluate([*paths, f"--out={project / 'eval'}", "--tracking.mode=disabled"])

    model, processor = stock
    task = read_tasks(project / "data")["shapes"]
    samples = {one.id: one for one in read_samples(project / "data" / "test.jsonl")}
    letters = [processor.tokenizer(f" {letter}", add_special_tokens=False)["input_ids"][0] for letter in "ABCD"]
    batches = {}
    for record in read_records(project / "records" / "test.jsonl"):
        sample = samples[record.sample_id]
        query = task.query(sample)
        batches[sample.id] = batch = given(processor, project / "data", sample, f"{query.asked}\n{query.lead}")
        result = record.results[-1]
        view = chain_view(model, result.chain)
        want = [logprobs(view, batch, [letter])[0] for letter in letters]
        assert [result.scores[choice] for choice in query.order] == pytest.approx(want[: len(query.order)], abs=1e-3)
    routed = RoutedModel.from_pretrained(project / "router")
    routed.budget = None  # the head's own choice, as in the evaluation
    evaluated = {
        one.sample_id: one for one in read_results(project / "eval" / RESULTS_FILE, NUM_LAYERS) if one.arm == "router"
    }
    assert len(evaluated) == len(samples) == 6
    for sample_id, one in evaluated.items():
        batch = batches[sample_id]
        assert routed.route(**batch)[0].chain == one.chain
        options = {"max_new_tokens": 4, "min_new_tokens": 4, "pad_token_id": 0}
        want = chain_view(routed.plain_model(), one.chain).generate(**batch, **options)
        width = batch["input_ids"].shape[1]
        assert torch.equal(routed.generate(**batch, **options), want[:, : width + 1] if one.one_token else want)
    assert type(routed.processor) is type(processor)


def test_a_copied_routed_model_has_its_processor(project: Path, tmp_path: Path) -> None:
    # Oracle: what the original's processor makes of a picture.
    model, _ = load_model(str(project / "model"))
    router = router_for(model)
    points = router.head.budget_points
    config = dataclasses.replace(router.config, base_model=str(project / "model"), budget_points=points)
    save_router(tmp_path / "router", dataclasses.replace(router, config=config))
    routed = RoutedModel.from_pretrained(tmp_path / "router", budget=4.0, verify=False, token="hf_secret")
    asked = {"images": [Image.new("RGB", (20, 10), "green")], "text": "<image>\nWhich?", "return_tensors": "pt"}
    pickled = pickle.dumps(routed)
    assert b"hf_secret" not in pickled
    for one in (copy.deepcopy(routed), copy.copy(routed), pickle.loads(pickled)):
        got, wanted = one.processor(**asked), routed.processor(**asked)
        assert torch.equal(got["pixel_values"], wanted["pixel_values"])
        assert torch.equal(got["input_ids"], wanted["input_ids"])
        assert one.processor is one.processor
        assert one.processor.tokenizer.padding_side == "left"


@pytest.mark.parametrize("mode", ["continuation", "letter"])
@pytest.mark.parametrize("style", ["base", "chat"])
def test_scores_are_the_stock_models_with_its_processor(
    project: Path, stock: tuple[PreTrainedModel, ProcessorMixin], mode: str, style: str
) -> None:
    # Oracle: the chain's view, one choice after the other, with what the processor makes of picture and text.
    model, processor = stock
    tasks = TaskSet({"shapes": load_task("shapes", mode, prompt={"style": style})}, project / "data")
    scorer = ChainScorer(model, processor.tokenizer, tasks, processor=processor)
    samples = read_samples(project / "data" / "train.jsonl")[:3]
    samples.append(dataclasses.replace(samples[0], images=()))  # a question without a picture beside the others
    samples.append(dataclasses.replace(samples[1], images=samples[1].images + samples[2].images))
    chain = FULL.skip(2, 1).repeat(1, 2, 1)
    block = scorer.load(scorer.encode_all(samples))
    results = scorer.score(block, [(i, chain) for i in range(len(samples))])
    view = chain_view(model, chain)
    for sample, encoded, result in zip(samples, block.samples, results, strict=True):
        query = encoded.query
        text = f"{query.asked}\n{query.lead}"
        batch = given(processor, project / "data", sample, text)
        if style == "chat":
            pictures = [Image.open(project / "data" / FOLDER / name) for name in sample.images]
            parts = [{"type": "image"}] * len(pictures) + [{"type": "text", "text": query.asked}]
            rendered = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
            if pictures:
                batch = processor(images=pictures, text=rendered, return_tensors="pt", add_special_tokens=False)
            else:
                batch = processor.tokenizer(rendered, return_tensors="pt", add_special_tokens=False)
        for place, choice in enumerate(query.order):
            own = processor.tokenizer(query.continuations[place], add_special_tokens=False)["input_ids"]
            assert result.scores[choice] == pytest.approx(sum(logprobs(view, batch, own)), abs=1e-3)


def test_answers_are_generated_with_their_pictures(
    project: Path, stock: tuple[PreTrainedModel, ProcessorMixin]
) -> None:
    # Oracle: the chain's view with what the processor makes of picture and text; other pictures give other answers.
    model, processor = stock
    tasks = TaskSet({"shapes": load_task("shapes", "generate", max_new_tokens=8)}, project / "data")
    scorer = ChainScorer(model, processor.tokenizer, tasks, processor=processor)
    samples = read_samples(project / "data" / "train.jsonl")[:3]
    samples += [dataclasses.replace(samples[0], images=one.images) for one in samples[1:]]
    block, chain = scorer.load(scorer.encode_all(samples)), FULL.skip(2, 1)
    requests = [
        Request(one.prompt, chain, 8, lambda _: None, block.block.rows[rows[0]].inputs)
        for one, rows in zip(block.samples, block.rows, strict=True)
    ]
    answers = Generator(model, processor.tokenizer).generate(requests)
    for sample, encoded, answer in zip(samples, block.samples, answers, strict=True):
        batch = given(processor, project / "data", sample, f"{encoded.query.asked}\n{encoded.query.lead}")
        new = chain_view(model, chain).generate(**batch, max_new_tokens=8, pad_token_id=0)[0]
        assert new[len(encoded.prompt) :][: len(answer.tokens)].tolist() == list(answer.tokens)
    assert len({answers[place].tokens for place in (0, 3, 4)}) > 1
    results = scorer.judge(block, [(i, chain) for i in range(len(samples))])
    assert [one.chain for one in results] == [chain] * len(samples)


def test_drawn_questions_have_their_answers() -> None:
    # Oracle: the picture's pixels: cells that are not white, their colours, the share of its square that each fills.
    shares = {"circle": 0.785, "square": 1.0, "triangle": 0.5, "cross": 5 / 9, "bar": 1 / 3}
    names = {tuple(bytes.fromhex(code[1:])): name for name, code in COLOURS.items()}
    source = ShapesSource(size=60, pixels=600)
    rows, kinds = list(shape_rows(source, "train")), set()
    assert [row["image"].tobytes() for row in rows[:9]] == [
        row["image"].tobytes() for row, _ in zip(shape_rows(source, "train"), range(9), strict=False)
    ]
    assert rows[0]["image"].tobytes() != next(shape_rows(source, "test"))["image"].tobytes()
    for row in rows:
        found = []
        for place in range(CELLS * CELLS):
            left, top = place % CELLS * 200, place // CELLS * 200
            cell = row["image"].crop((left, top, left + 200, top + 200))
            colours = {colour: count for count, colour in cell.getcolors() if colour != (255, 255, 255)}
            if colours:
                ((colour, count),) = colours.items()
                shape = min(shares, key=lambda name: abs(shares[name] - count / 140**2))
                found.append((shape, names[colour]))
        asked = row["question"].rstrip("?").split()
        if row["kind"] == "count":
            answers = [str(len(found))]
        elif row["kind"] == "colour":
            answers = [colour for shape, colour in found if shape == asked[-1]]
        else:
            answers = [shape for shape, colour in found if colour == asked[-1]]
        assert answers == [row["answer"]]
        assert row["difficulty"] == len(found)
        assert len(set(row["choices"])) == 4
        assert row["answer"] in row["choices"]
        kinds.add(row["kind"])
    assert kinds == {"count", "colour", "shape"}


TASK = """
name: hues
columns: {question: question, image: image, choices: choices, answer: answer}
answer_kind: text
mode: letter
"""


def arguments(folder: Path, images: list[Any], **more: str) -> list[str]:
    """Write a local file with pictures beside it, a row each; returns arguments that prepare it."""
    for i, colour in enumerate(("red", "blue")):
        Image.new("RGB", (20 + i, 10), colour).save(folder / f"{i}.png")
    rows = [
        {"question": f"Which colour, {i}?", "choices": ["red", "blue"], "answer": "red", "image": image}
        for i, image in enumerate(images)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "task.yaml").write_text(TASK)
    settings = {"task": folder / "task.yaml", "path": folder / "rows.jsonl", "out": folder / "data"} | more
    sizes = {"train.size": len(images), "validation.size": 0, "test.size": 0}
    return ["prepare", *(f"--{name}={value}" for name, value in (settings | sizes).items())]


def test_pictures_of_a_local_file_are_kept_beside_the_samples(tmp_path: Path) -> None:
    # Oracle: the pixels of the files themselves; the manifest vouches for the pictures that samples have, and no more.
    stale = tmp_path / "data" / FOLDER
    data(arguments(tmp_path, ["0.png", ["0.png", "1.png"], None]))
    samples = {one.question[-2]: one for one in read_samples(tmp_path / "data" / "train.jsonl")}
    assert [len(samples[key].images) for key in "012"] == [1, 2, 0]
    assert samples["1"].images[0] == samples["0"].images[0]
    assert len({one.id for one in samples.values()}) == len({one.split_key for one in samples.values()}) == 3
    kept = read_picture(tmp_path / "data", samples["1"].images[1])
    assert (kept.size, kept.getpixel((3, 3))) == ((21, 10), (0, 0, 255))
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    named = {name for name in manifest["files"] if name.startswith(FOLDER)}
    assert (
        named == {f"{FOLDER}/{name}" for name in samples["1"].images} == {f"{FOLDER}/{p.name}" for p in stale.iterdir()}
    )


def test_a_turned_picture_is_read_upright_and_ones_own_pictures_stay(tmp_path: Path) -> None:
    # Oracle: the file's own note (EXIF orientation 6: a quarter turn to the right), and the file itself.
    turned = Image.new("RGB", (20, 10))
    note = turned.getexif()
    note[0x0112] = 6
    (tmp_path / FOLDER).mkdir()
    turned.save(tmp_path / FOLDER / "mine.png", exif=note)
    data(arguments(tmp_path, [f"{FOLDER}/mine.png"], out=str(tmp_path)))
    (sample,) = read_samples(tmp_path / "train.jsonl")
    assert read_picture(tmp_path, sample.images[0]).size == (10, 20)
    assert (tmp_path / FOLDER / "mine.png").is_file()


def test_a_hub_column_of_pictures_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Oracle: the pixels that went into the data set, as the hub stores them (an image column in Parquet).
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    table = {
        "image": [*pictures, None],
        "question": ["Which, one?", "Which, two?", "Which, three?"],
        "choices": [["a", "b"]] * 3,
        "answer": [0, 1, 0],
        "subject": ["s"] * 3,
        "topic": ["t"] * 3,
        "grade": ["g"] * 3,
    }
    kept = datasets.Dataset.from_dict(table).cast_column("image", datasets.Image())
    kept.to_parquet(tmp_path / "set" / "train.parquet")
    task = f"--override={{hub: {{path: {tmp_path / 'set'}}}}}"
    sizes = ["--train.size=3", "--validation.size=0", "--test.size=0"]
    data(["prepare", "--task=science_qa", "--source=hub", task, f"--out={tmp_path / 'data'}", *sizes])
    samples = {one.question: one for one in read_samples(tmp_path / "data" / "train.jsonl")}
    for question, picture in zip(table["question"], pictures, strict=False):
        (name,) = samples[question].images
        assert read_picture(tmp_path / "data", name).tobytes() == picture.tobytes()
    assert samples["Which, three?"].images == ()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("../0.png", "column 'image': expected a picture file below"),
        ("9.png", "column 'image': expected a picture file, got"),
        ("rows.jsonl", "column 'image': expected a picture file, got"),
        ({"bytes": "x"}, "column 'image': expected a picture or a picture file's path, got dict"),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path: Path, image: object, message: str, refusal: Refusal) -> None:
    (tmp_path / "below").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "0.png")
    assert message in refusal(data, arguments(tmp_path / "below", [image]))


def test_shots_and_too_many_pixels_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="shots: expected 0 for hues, whose questions have pictures, got 1"):
        data(arguments(tmp_path, ["0.png"], shots="1"))
    monkeypatch.setattr("data.pictures.MOST_PIXELS", 100)
    with pytest.raises(InputError, match="20 x 10 pixels, more than 100"):
        data(arguments(tmp_path, ["0.png"]))
    with pytest.raises(ValueError, match="picture: expected at most 100 pixels, got 20 x 10"):
        store_picture(tmp_path, Image.new("RGB", (20, 10)))


def test_pictures_that_are_missing_or_others_are_refused(tmp_path: Path, project: Path) -> None:
    data(arguments(tmp_path, ["0.png"]))
    scorer, samples = open_scorer(
        ModelSettings(model=str(project / "model"), dtype="float32"), tmp_path / "data", "train"
    )
    encoded = scorer.encode_all(samples)
    (name,) = samples[0].images
    Image.new("RGB", (20, 10), "green").save(tmp_path / "data" / FOLDER / name)
    with pytest.raises(InputError, match="data: expected the picture that was prepared as"):
        scorer.load(encoded)
    (tmp_path / "data" / FOLDER / name).unlink()
    with pytest.raises(InputError, match="data: expected a picture file, got"):
        scorer.load(encoded)


def test_a_model_without_pictures_is_refused_before_it_is_loaded(tmp_path: Path, project: Path) -> None:
    save_tiny(tmp_path / "text")
    with pytest.raises(InputError, match="model: expected one with a processor for pictures, got"):
        open_scorer(ModelSettings(model=str(tmp_path / "text")), project / "data", "train")
    model, tokenizer = load_model(str(project / "model"))
    scorer = ChainScorer(model, tokenizer, read_tasks(project / "data"))
    with pytest.raises(InputError, match="expected a model with a processor for samples with pictures, got none"):
        scorer.encode_all(read_samples(project / "data" / "test.jsonl"))


def test_a_chat_template_that_leaves_out_what_is_asked_is_refused(project: Path) -> None:
    # Oracle: the template takes lists alone; of a plain text, as models without pictures get it, it writes nothing.
    model, tokenizer = load_model(str(project / "model"))
    task = load_task("arc_easy", prompt={"style": "chat"})
    with pytest.raises(InputError, match="expected a chat template that writes what is asked, got one that leaves it"):
        ChainScorer(model, tokenizer, task).encode_all(tiny_samples("test", 1))
