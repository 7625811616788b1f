"""Train a router on search records.

    python -m train --config configs/demo/train.yaml
    python -m train --config configs/demo/train.yaml --head.hidden 128 --trainer.max_epochs 50

Writes the router (`<out>/config.json`, `router.safetensors`, `trained_on.json`), `train.json` (settings, measures)
and the W&B run under `<out>/wandb`. With other settings or records the same folder is trained anew; with the same ones
nothing is left to do. `--warm_start ROUTER` starts from another router's weights; its task may be another.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from lightning import Callback, Trainer, seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import WandbLogger
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from data.tracking import TrackingSettings, log_files, start_run
from router.command import one_line, provenance, refusals_of, require_unique_keys, run_command, settings_of
from router.decision import HeadSettings as HeadConfig
from router.decision import LateConfig, Router, RouterConfig
from router.files import read_json, sha256_file, sha256_json, writable_directory, write_json
from router.heads.menu import MenuHead
from router.storage import CONFIG_FILE, TRAINED_ON_FILE, WEIGHTS_FILE, load_router, save_router
from router.validation import SETTINGS, InputError
from train import calibrate
from train.datamodule import DataSettings, Example, Examples, RouterData, WarmStart, collate
from train.module import HeadSettings, RouterModule
from train.operating import calibrate_in_scope, measure_accuracy
from train.scope import ScopeSettings, fit_scope

DONE_FILE = "train.json"
LEFT = {"layerwise": {"target": "shortest"}, "menu": {"softness": 0.0}}
"""What the head's settings once had too, at its default: so that routers from before keep their key."""
VERSION = 2
"""Version of what training makes of the same settings and records; another one trains a folder anew."""
TRAINER = {"max_epochs": 100, "accelerator": "cpu", "log_every_n_steps": 1, "enable_model_summary": False}
"""Our defaults of Lightning's trainer."""
NOTED_ERRORS = 0.02
"""Share of answers whose end is told wrongly on the validation split from which a note is printed."""
MEASURED_AT_ONCE = 64
"""Validation samples in one forward of the head."""


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class TrainSettings(DataSettings):
    """Settings of `python -m train`.

    Attributes:
        out: folder for the router.
        head: the router's head, and how it is trained.
        scope: the scope that is fitted after training; null: none, every prompt runs under the head's choice.
        warm_start: folder of a router to start from; its task may be another; null: none.
        seed_everything: seed of all that training draws but the order of the batches, which is the same for every seed.
        tracking: where the run is tracked.
    """

    out: Path
    head: HeadSettings = HeadSettings()
    scope: ScopeSettings | None = ScopeSettings()
    warm_start: Path | None = None
    seed_everything: Annotated[int, Field(ge=0, lt=2**32)] = 0
    tracking: TrackingSettings = TrackingSettings()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        InputError: at bad input.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    if given[:1] == ["calibrate"]:
        calibrate.main(given[1:])
        return
    _quiet_lightning()
    settings, early_stopping, make_trainer, plain = _parse(given)
    out = writable_directory(settings.out, "out")
    data = RouterData(settings, settings.head.objective())
    start = None if settings.warm_start is None else WarmStart.read(settings.warm_start, out)
    data.setup()
    late_data = _late_data(settings, data)
    sources = {name: sha256_file(path) for name, path in data.files().items()}
    if start is not None:
        sources["warm_start"] = start.weights_sha256
    key = sha256_json({"settings": _deciding(plain), "sources": sources, "version": VERSION})
    if _trained_before(out, key):
        print(f"router: {out} was trained with these settings on these records already; remove it to train anew")
        return
    run = start_run(settings.tracking, out, plain)

    def train(of: RouterData, start: WarmStart | None, place: Path, prefix: str) -> RouterModule:
        seed_everything(settings.seed_everything, workers=True, verbose=False)
        module = RouterModule(settings.head, of.objective)
        module.build(of, start)
        print(_describe(of))
        loggers = [] if run is None else [WandbLogger(experiment=run, log_model=False, prefix=prefix)]
        _fit(module, of, place, lambda best: make_trainer(list(loggers), [copy.deepcopy(early_stopping), best]))
        return module

    stages = [Stage(train(data, start, out / "checkpoints", ""), data)]
    if late_data is not None:
        stages.append(Stage(train(late_data, None, out / "checkpoints" / "late", "late"), late_data))
    seen = data.split_hashes | (start.split_hashes if start else frozenset())
    told = {"key": key, "sources": sources, "prompts": {name: task.form for name, task in data.tasks.tasks.items()}}
    final = _finish(stages, settings.scope, out, plain, told, seen)
    _log_artifacts(run, data, out, final)
    # Last of all: a run killed before this line is made again.
    write_json(out / DONE_FILE, {**provenance(plain), "key": key, "validation": final})
    print("on validation: " + ", ".join(f"{name} {value:.4g}" for name, value in final.items()))
    print(f"router: {out}")


def _late_data(settings: TrainSettings, data: RouterData) -> RouterData | None:
    """Return the data of the head that reads late; None: there is none.

    Raises:
        InputError: where the router's head cannot have one beside it, or it would not read later.
    """
    layer = settings.late_read_layer
    if layer is None:
        return None
    if settings.head.kind != "menu" or settings.warm_start is not None:
        got = f"a {settings.head.kind} head" if settings.head.kind != "menu" else "warm_start"
        raise InputError(f"late_read_layer: expected head.kind menu and no warm_start beside it, got {got}")
    if not data.read_layer < layer < data.origin.num_layers:
        raise InputError(
            f"late_read_layer: expected {data.read_layer + 1} (after read_layer) to {data.origin.num_layers - 1}, "
            f"got {layer}"
        )
    return data.read_later(layer, settings.head.objective())


def _fit(
    module: RouterModule, data: RouterData, checkpoints: Path, make_trainer: Callable[[ModelCheckpoint], Trainer]
) -> None:
    """Train a head, and give it the weights that were best on the validation split."""
    best = ModelCheckpoint(checkpoints, "best", monitor="validation/loss", save_weights_only=True)
    best.STARTING_VERSION = 0
    best._enable_version_counter = False
    trainer = make_trainer(best)
    try:
        with _refusals_as("trainer"):
            trainer.fit(module, data)
    except SystemExit:
        # Lightning turns Ctrl-C into an exit of its own; the commands here end alike.
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    except RuntimeError as error:
        if "Early stopping conditioned on metric" in str(error):
            raise InputError(f"early_stopping.monitor: {one_line(error)}") from error
        raise
    if not best.best_model_path:
        raise InputError("trainer.max_epochs: expected at least one epoch with a validation loss, got none")
    module.load_state_dict(torch.load(best.best_model_path, weights_only=True)["state_dict"])
    module.float()  # whatever `trainer.precision`: a router's head is float32


MakeTrainer = Callable[[list[Any], list[Callback]], Trainer]
"""Makes the trainer of some loggers and callbacks."""


def _parse(argv: Sequence[str]) -> tuple[TrainSettings, EarlyStopping, MakeTrainer, dict[str, Any]]:
    """Read the command line: our settings, and Lightning's own under `trainer` and `early_stopping`.

    Returns:
        The settings, the early stopping, what makes the trainer, and all settings as plain data.
    """
    require_unique_keys(argv)
    parser = LightningArgumentParser(
        prog="python -m train", description="Train a router.", exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--config", action="config", help="YAML file of settings; later options override it")
    parser.add_class_arguments(TrainSettings, as_group=False)
    parser.add_lightning_class_args(EarlyStopping, "early_stopping")
    parser.add_class_arguments(
        Trainer, "trainer", skip={"logger", "callbacks", "enable_checkpointing"}, instantiate=False
    )
    parser.set_defaults({"early_stopping.monitor": "validation/loss", "early_stopping.patience": 10})
    parser.set_defaults({f"trainer.{name}": value for name, value in TRAINER.items()})
    with refusals_of(TrainSettings):
        config = parser.parse_args(list(argv))
        settings = settings_of(TrainSettings, config)
        seed_everything(settings.seed_everything, workers=True, verbose=False)
        with _refusals_as("early_stopping"):
            made = parser.instantiate(config)
    plain: dict[str, Any] = json.loads(parser.dump(config, format="json", skip_none=False))
    plain.pop("config", None)

    def make_trainer(loggers: list[Any], callbacks: list[Callback]) -> Trainer:
        with _refusals_as("trainer"):
            return Trainer(**made["trainer"].as_dict(), logger=loggers, callbacks=callbacks)

    return settings, made["early_stopping"], make_trainer, plain


@contextmanager
def _refusals_as(setting: str) -> Iterator[None]:
    """Turn what Lightning refuses into one line of ours that begins with the setting.

    Raises:
        InputError: in place of its errors.
    """
    try:
        yield
    except InputError:
        raise
    except (ArithmeticError, ValueError, TypeError, MisconfigurationException) as error:
        raise InputError(f"{setting}: {one_line(error)}") from error


def _quiet_lightning() -> None:
    """Drop Lightning's advice that does not fit here, and warnings about its own use of other libraries."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers",  # the examples lie in memory
        ".*Checkpoint directory .* exists and is not empty",
        ".*The number of training batches .* is smaller",
        ".*LightningCLI's args parameter is intended to run from within Python",
        ".*LeafSpec.* is deprecated",
        r"[\s\S]*(add_instantiator|instantiate_classes|skip_none|JSONARGPARSE_DEPRECATION_WARNINGS)",
    ):
        warnings.filterwarnings("ignore", message=message)


def _deciding(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that decide the router: not where things lie or are tracked."""
    places = ("out", "tracking", "warm_start", "data", "records", "states", "device")
    deciding = {name: value for name, value in settings.items() if name not in places}
    head = settings["head"]
    deciding["head"] = head | {name: value | head[name] for name, value in LEFT.items()}
    if deciding["late_read_layer"] is None:  # so that routers from before there was such a setting keep their key
        del deciding["late_read_layer"]
    return deciding


def _trained_before(out: Path, key: str) -> bool:
    if not (out / DONE_FILE).exists():
        return False
    try:
        with torch.random.fork_rng(devices=[]):  # a head draws when it is built; what was here before must not matter
            trained = load_router(out).config.training.get("key")
    except InputError:
        return False  # torn by a kill between its files: made again
    return trained == key == read_json(out / DONE_FILE).get("key")


def _describe(data: RouterData) -> str:
    lines = [f"base model {data.model}, {data.origin.num_layers} layers, read after {data.read_layer} of them"]
    for split, examples in data.examples.items():
        lines.append(f"{split}: {len(examples)} samples with a target, {data.has_target[split].count(False)} without")
    return "\n".join([*lines, data.objective.describe(torch.stack(data.examples["train"].targets))])


@dataclasses.dataclass(frozen=True)
class Stage:
    """A trained head, and the data that it was trained on."""

    module: RouterModule
    data: RouterData

    def output(self) -> Tensor:
        """Return the head's output on the validation examples.

        Raises:
            InputError: where it is not finite.
        """
        output = torch.cat([self.module(*collate(part)[:2]) for part in _parts(self.data.examples["validation"])])
        if not output.isfinite().all():
            raise InputError("head.learning_rate: expected training that stays finite, got infinite weights")
        return output


@torch.inference_mode()
def _finish(
    stages: Sequence[Stage],
    wanted: ScopeSettings | None,
    out: Path,
    settings: dict[str, Any],
    training: dict[str, Any],
    seen: set[str],
) -> dict[str, float]:
    """Fit the scope, measure the best weights on the validation split, calibrate the budget and write the router."""
    module, data = stages[0].module, stages[0].data
    late = stages[1] if len(stages) > 1 else None
    head, *others = (stage.module.head.eval().cpu() for stage in stages)
    late_head = cast(MenuHead, others[0]) if others else None
    output = stages[0].output()
    scope, inside, wrong = (None, None, 0.0) if wanted is None else fit_scope(data, wanted)
    validation = data.examples["validation"]
    final = module.measures(output, torch.stack(validation.targets))
    late_values = None
    if late is not None and late_head is not None:
        late_output = late.output()
        late_values = late_head.scores_of(late_output, cast(MenuHead, head).chains)
        of_late = late.module.measures(late_output, torch.stack(late.data.examples["validation"].targets))
        final |= {f"late_{name}": of_late[name] for name in of_late if name.startswith(("auc_", "gain"))}
    calibrate_in_scope(head, output, data, inside, late_values)
    origin = data.origin
    config = RouterConfig(
        head=module.objective.name,
        head_settings=cast(HeadConfig, module.head_settings),
        num_layers=origin.num_layers,
        read_layer=data.read_layer,
        d_model=data.d_model,
        task=data.tasks.name,
        mode=data.tasks.mode,
        base_model=data.model,
        revision=settings["revision"],
        dtype=origin.dtype,
        fingerprints=origin.fingerprints,
        late=None if late is None else LateConfig(late.data.read_layer, cast(HeadConfig, late.module.head_settings)),
    )
    router = Router(config, head, scope=scope, late=late_head)
    figures, head.budget_points = measure_accuracy(router, data, None if late is None else late.data)
    final |= figures
    if scope is not None and scope.config.one_token:
        final["one_token_errors"] = wrong
        if wrong > NOTED_ERRORS:
            print(f"note: for {wrong:.3f} of a kind of answers the router is wrong about whether they are one token")
    elif scope is None and "letter" in data.tasks.judged_mode.split("+"):
        print("note: scope: null, so the router will not end texts after letters, by which their answers are judged")
    flops = router.forward_flops(validation.tokens)
    final["head_mflops"] = flops / 1e6
    # The layers' multiply-adds alone: attention, embedding and output come on top, so the share is an upper bound.
    final["head_share_of_forward"] = flops / (2 * data.layer_parameters * validation.tokens)
    told = {**training, "settings": settings, "search": origin.search, "validation": final}
    config = dataclasses.replace(config, budget_points=head.budget_points, training=told)
    save_router(out, dataclasses.replace(router, config=config))
    write_json(out / TRAINED_ON_FILE, {"split_hashes": sorted(seen)})
    return final


def _parts(examples: Examples) -> list[list[Example]]:
    """Cut examples into batches that fit in memory."""
    every = [examples[i] for i in range(len(examples))]
    return [every[start : start + MEASURED_AT_ONCE] for start in range(0, len(every), MEASURED_AT_ONCE)]


def _log_artifacts(run: Any, data: RouterData, out: Path, final: dict[str, float]) -> None:
    records = [path for name, path in data.files().items() if name.startswith("records/")]
    digest = log_files(run, "search-records", "records", records, {"search": data.origin.search})
    files = [out / CONFIG_FILE, out / WEIGHTS_FILE]
    log_files(run, "router", "router", files, {"records": digest, **final})
    if run is not None:
        run.finish()


if __name__ == "__main__":
    raise SystemExit(run_command(main))
