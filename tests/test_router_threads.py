"""Threads on a busy machine: how they wait, how many there are, and that nothing of it touches what a user chose."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from router import threads
from router.threads import CHOSEN, SPINS, Threads, counts, rate, sleep_when_waiting


@pytest.fixture
def four() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [({}, SPINS), ({"OMP_WAIT_POLICY": "ACTIVE"}, None), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OTHER": "1"}, SPINS)],
)
def test_waiting_threads_sleep_early_unless_the_user_chose(given: dict[str, str], wanted: str | None) -> None:
    environment = dict(given)
    sleep_when_waiting(environment)
    assert environment.get("GOMP_SPINCOUNT") == wanted


@pytest.mark.parametrize("package", ["router", "data", "search", "train", "eval"])
def test_every_package_says_so_before_torch_is_there(package: str) -> None:
    # Oracle: a fresh process, in which the package alone is imported.
    code = f"import {package}, os, sys; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], env={}, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [SPINS, "False"]


def test_the_numbers_that_are_tried() -> None:
    assert [counts(n) for n in (1, 2, 3, 6, 16)] == [[1], [2, 1], [3, 1], [6, 3, 1], [16, 8, 4, 2, 1]]


@pytest.mark.parametrize(
    ("speeds", "taken"),
    [
        ({4: 400.0, 2: 210.0, 1: 100.0}, 4),  # an idle machine
        ({4: 60.0, 2: 70.0, 1: 90.0}, 1),
        ({4: 95.0, 2: 100.0, 1: 90.0}, 4),  # not worth a change
    ],
)
@pytest.mark.usefixtures("four")
def test_the_fastest_number_is_taken(speeds: dict[int, float], taken: int) -> None:
    assert Threads({}, speeds.__getitem__).settle() == taken
    assert torch.get_num_threads() == taken


@pytest.mark.usefixtures("four")
def test_it_is_measured_again_when_time_has_passed_and_goes_back_up(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {4: 60.0, 2: 70.0, 1: 90.0}
    asked: list[int] = []

    def measure(count: int) -> float:
        asked.append(count)
        return speeds[count]

    ours = Threads({}, measure)
    assert ours.settle() == 1
    speeds |= {4: 400.0, 2: 200.0}
    assert ours.settle() == 1
    assert asked == [4, 2, 1]
    monkeypatch.setattr(threads, "EVERY", 0.0)
    assert ours.settle() == 4


@pytest.mark.parametrize("name", CHOSEN)
@pytest.mark.usefixtures("four")
def test_a_users_number_stays(name: str) -> None:
    def never(count: int) -> float:
        raise AssertionError(f"measured {count}")

    assert Threads({name: "4"}, never).settle() == 4


@pytest.mark.usefixtures("four")
def test_the_rate_is_of_real_products() -> None:
    assert rate(2, seconds=0.02) > 0
    assert torch.get_num_threads() == 2
