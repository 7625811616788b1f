"""Settings of the search: bounds, rewards and the shipped presets."""

import dataclasses
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from router.command import parse_settings, plain_values
from router.files import sha256_json
from search.__main__ import SearchRun
from search.actions import ActionSpace
from search.settings import SearchSettings

PRESETS = Path(__file__).parent.parent / "configs" / "search" / "presets"


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("simulations", 0),
        ("exploration", math.nan),
        ("skip_share", 1.0),
        ("below_block", 5),
        ("depth_shares", (0.5, 0.9)),
        ("depth_shares", (1.1, 1.2)),
        ("edit_weights", ()),
        ("edit_weights", (1.0, -1.0)),
        ("edit_weights", (0.0, 0.0)),
        ("edit_weights", (1.0,) * 9),
    ],
)
def test_values_out_of_bounds_are_refused(field, bad):
    with pytest.raises(ValueError, match=field):
        SearchSettings(**{field: bad})


def test_edit_weights_are_a_tuple():
    # Oracle: equality; a list, as YAML gives it, becomes a tuple, so settings can be hashed.
    assert SearchSettings(edit_weights=[1, 2]) == SearchSettings(edit_weights=(1.0, 2.0))
    assert hash(SearchSettings(edit_weights=[1, 2])) == hash(SearchSettings(edit_weights=(1.0, 2.0)))


@given(st.booleans(), st.floats(allow_nan=False), st.floats(0.01, 100))
def test_margin_reward_is_bounded_and_puts_right_above_wrong(correct, margin, scale):
    # Oracle: the documented bounds; every right chain is worth at least 0.5, every wrong one at most 0.5.
    reward = SearchSettings(reward="margin", margin_scale=scale).reward_for(correct, margin)
    assert 0.0 <= reward <= 1.0
    assert reward >= 0.5 if correct else reward <= 0.5


@given(st.booleans(), st.floats(-50, 50), st.floats(0.01, 10))
def test_margin_reward_grows_with_the_margin(correct, margin, step):
    # Oracle: monotonicity; strict within the margins that a float can tell apart.
    settings = SearchSettings(reward="margin")
    low, high = settings.reward_for(correct, margin), settings.reward_for(correct, margin + step)
    assert low <= high
    assert low < high or abs(margin) > 10


def test_rewards_by_hand():
    # Oracle: (correct + sigmoid(margin / scale)) / 2 with sigmoid(1) = 1 / (1 + 1/e).
    sigmoid = 1 / (1 + math.exp(-1))
    settings = SearchSettings(reward="margin", margin_scale=2.0)
    assert settings.reward_for(True, 2.0) == pytest.approx(0.5 + sigmoid / 2)
    assert settings.reward_for(False, -2.0) == pytest.approx((1 - sigmoid) / 2)
    assert settings.reward_for(False, 0.0) == 0.25
    correct = SearchSettings(reward="correct")
    assert (correct.reward_for(True, -9.0), correct.reward_for(False, 9.0)) == (1.0, 0.0)


def test_what_decides_a_search_is_as_before_the_younger_settings():
    # Oracle: the hash of the default at commit 561e8de, of `sha256_json(to_plain(SearchSettings()))`; a younger setting
    # decides where it has another value.
    assert sha256_json(SearchSettings().decisive) == "1ff5349748e06ac0a0582a709cd41b073d9f35b8dd75767866ed1eb5a7ec0af5"
    changed = SearchSettings(max_runs=2, depth_shares=(0.5, 1.5))
    assert changed.decisive == {**SearchSettings().decisive, "max_runs": 2, "depth_shares": [0.5, 1.5]}


def test_each_sample_has_its_own_generator():
    # Oracle: equal for equal seed and sample, different otherwise; the first number is a golden of this line:
    # python -c "import random; print(random.Random('0/a').random())"
    numbers = {(seed, name): SearchSettings(seed=seed).rng_for(name).random() for seed in (0, 1) for name in ("a", "b")}
    assert len(set(numbers.values())) == 4
    assert numbers[0, "a"] == SearchSettings(seed=0).rng_for("a").random()
    assert numbers[0, "a"] == pytest.approx(0.9327985644569078, abs=1e-15)


NAMES = ["cola", "drllm", "polar", "random", "summary"]


@pytest.mark.parametrize("name", NAMES)
def test_presets_parse(name):
    # Oracle: the dataclass made of plain YAML: what a preset does not name is the default.
    path = PRESETS / f"{name}.yaml"
    settings = SearchSettings(**yaml.safe_load(path.read_text()))
    parsed, _ = parse_settings(SearchSettings, ["--config", str(path)], "search", "test")
    assert parsed == settings
    needed = ["--data", "data", "--out", "out", "--first_editable", "1"]
    run, resolved = parse_settings(SearchRun, ["--search", str(path), *needed], "search", "test")
    assert run.search == settings
    assert resolved["search"] == plain_values(settings)


def test_presets_hold_the_published_numbers():
    # Oracle: CoLa (arXiv 2507.07996), Dr.LLM (arXiv 2510.12773), the released search of PoLar (arXiv 2606.06574), the
    # summary in shared/DESIGN.md.
    presets = {path.stem: SearchSettings(**yaml.safe_load(path.read_text())) for path in PRESETS.glob("*.yaml")}
    assert sorted(presets) == NAMES
    cola, drllm, summary = presets["cola"], presets["drllm"], presets["summary"]
    assert (cola.simulations, cola.depth_penalty, cola.random_share) == (200, 5, 0.1)
    assert (drllm.simulations, drllm.exploration, drllm.depth_penalty) == (50, 1.8, 3)
    assert drllm.random_share == 0.1
    assert (summary.exploration, summary.depth_penalty) == (2, 0.1)
    assert 50 <= summary.simulations <= 100
    polar = presets["polar"]
    assert (polar.simulations, polar.exploration, polar.depth_penalty) == (100, pytest.approx(math.sqrt(2)), 5)
    assert (polar.random_share, polar.max_times, polar.max_runs) == (0.1, 1, 2)
    assert (polar.max_block, polar.below_block, polar.action_set) == (4, 1, "both")
    space = ActionSpace(polar, 28)
    assert (space.min_depth, space.max_depth) == (16, 32)
    for name in ("cola", "drllm", "polar", "summary"):
        preset = presets[name]
        assert (preset.algorithm, preset.backup, preset.depth_in) == ("uct", "mean", "selection")


def test_random_chains_differ_from_the_default_in_what_is_their_own():
    # Oracle: cost, rewards and actions as in the default, so the two can be compared.
    default, preset = SearchSettings(), SearchSettings(**yaml.safe_load((PRESETS / "random.yaml").read_text()))
    own = {"algorithm": "random", "edit_weights": preset.edit_weights, "skip_share": None}
    assert preset == dataclasses.replace(default, **own)
