"""The program head: sums, maxima and training over all programs of layer segments."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import torch

from router.chain import Chain
from router.head import pad_states
from router.program import ProgramHead
from router.program_lattice import Program, ProgramLattice

SHAPES = [(5, 1, 2, 1), (6, 2, 3, 2), (5, 1, 1, 2), (4, 2, 4, 1)]
"""Layers, prefix, largest block, most times again; the last has blocks longer than what there is."""


def every_chain(num_layers: int, prefix: int, max_block: int, max_times: int) -> set[tuple[int, ...]]:
    """All chains that skips, runs and repeats of blocks can make, without any canonical form: the oracle."""

    def rests(start: int) -> set[tuple[int, ...]]:
        if start == num_layers:
            return {()}
        found = {(start, *rest) for rest in rests(start + 1)}
        for stop in range(start + 1, min(start + max_block, num_layers) + 1):
            for times in (0, *range(2, max_times + 2)):
                found |= {tuple(range(start, stop)) * times + rest for rest in rests(stop)}
        return found

    return {(*range(prefix), *rest) for rest in rests(prefix)}


def every_program(lattice: ProgramLattice) -> list[Program]:
    chains = every_chain(lattice.num_layers, lattice.prefix_layers, lattice.max_block, lattice.max_times)
    programs = [lattice.program_of(Chain(layers, lattice.num_layers)) for layers in sorted(chains)]
    return [program for program in programs if program is not None]


def totals(scores: torch.Tensor, programs: list[Program]) -> torch.Tensor:
    return torch.stack([scores[:, list(program)].sum(1) for program in programs], dim=1)


def random_scores(lattice: ProgramLattice, rows: int = 3, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, len(lattice.segments), generator=generator, dtype=torch.float64)


def make_head(seed: int = 0, beam: int = 5) -> ProgramHead:
    torch.manual_seed(seed)
    return ProgramHead(6, 2, 8, hidden=8, max_block=3, beam=beam).eval()


def states(count: int, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2 + i % 5, 8, generator=generator) for i in range(count)]


@pytest.mark.parametrize("shape", SHAPES)
def test_each_expressible_chain_has_one_program_and_each_legal_program_one_chain(
    shape: tuple[int, int, int, int],
) -> None:
    # Oracle: all chains made without a canonical form, and all legal sequences of segments, listed from the rules.
    lattice = ProgramLattice(*shape)
    n, prefix, max_block, _ = shape

    def legal(start: int, barred: bool) -> list[Program]:
        if start == n:
            return [()]
        found: list[Program] = []
        for i, segment in enumerate(lattice.segments):
            if segment.start == start and not (barred and segment.operation == "skip"):
                short = segment.operation == "skip" and segment.stop - start < max_block
                found += [(i, *rest) for rest in legal(segment.stop, short)]
        return found

    programs = legal(prefix, False)
    chains = [lattice.chain_of(program) for program in programs]
    assert {chain.layers for chain in chains} == every_chain(*shape)
    assert len({chain.layers for chain in chains}) == len(programs)
    assert [lattice.program_of(chain) for chain in chains] == programs
    lattice.flat(programs)  # all are let in
    for depth, segment in zip(lattice.depths.tolist(), lattice.segments, strict=True):
        assert depth == (segment.stop - segment.start) * segment.times


def test_the_order_of_the_segments_is_as_written() -> None:
    # Oracle: by hand; layers 1 and 2 after a prefix of one.
    listed = [tuple(segment) for segment in ProgramLattice(3, 1, 2, 2).segments]
    assert listed == [
        *[(1, 2, "skip", 0), (1, 3, "skip", 0), (1, 2, "run", 1)],
        *[(1, 2, "repeat", 2), (1, 2, "repeat", 3), (1, 3, "repeat", 2), (1, 3, "repeat", 3)],
        *[(2, 3, "skip", 0), (2, 3, "run", 1), (2, 3, "repeat", 2), (2, 3, "repeat", 3)],
    ]


def test_periodic_chains_and_long_skips_are_cut_as_the_form_says() -> None:
    # Oracle: by hand; (first layer, layers, times) of each segment.
    lattice = ProgramLattice(10, 2, 4, 3)

    def cut(*layers: int) -> list[tuple[int, int, int]] | None:
        program = lattice.program_of(Chain(layers, 10))
        if program is None:
            return None
        return [(s.start, s.stop - s.start, s.times) for s in (lattice.segments[i] for i in program)]

    assert cut(0, 1, 5, 5, 5, 5) == [(2, 3, 0), (5, 1, 4), (6, 4, 0)]
    assert cut(0, 1, 5, 6, 5, 6) == [(2, 3, 0), (5, 2, 2), (7, 3, 0)]
    assert cut(0, 1) == [(2, 4, 0), (6, 4, 0)]
    assert cut(0, 1, 9) == [(2, 4, 0), (6, 3, 0), (9, 1, 1)]
    assert cut(0, 1, 2, 3, 4, 3, 4, 5, 5) == [(2, 1, 1), (3, 2, 2), (5, 1, 2), (6, 4, 0)]
    for bad in [(0, 1, 5, 5, 5, 5, 5), (0, 1, 3, 2), (0, 2, 3), (0, 1, 1, 2), (0, 1, 2, 1, 2), (5, 6), (0, 0, 1)]:
        assert cut(*bad) is None
    assert cut(0, 1, *range(2, 7), *range(2, 7)) is None  # a block of five
    with pytest.raises(ValueError, match="expected one of 10 layers, got one of 9"):
        lattice.program_of(Chain.full(9))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_partition_is_the_sum_over_all_programs(shape: tuple[int, int, int, int]) -> None:
    # Oracle: brute force.
    lattice = ProgramLattice(*shape)
    for scale in (1.0, 300.0):
        scores = random_scores(lattice, scale=scale)
        every = totals(scores, every_program(lattice))
        assert torch.allclose(lattice.log_partition(scores), every.logsumexp(1), rtol=0, atol=1e-9)
    narrow = lattice.log_partition(random_scores(lattice).float())
    assert torch.allclose(narrow.double(), lattice.log_partition(random_scores(lattice)), atol=1e-4)


def test_probabilities_sum_to_one() -> None:
    head = make_head()
    output = random_scores(head.lattice, 1)
    programs = every_program(head.lattice)
    logs = head.log_probability(output.expand(len(programs), -1), programs)
    assert logs.exp().sum().item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("k", [1, 7, 5000])
def test_the_best_programs_are_those_of_a_sort_of_all(shape: tuple[int, int, int, int], k: int) -> None:
    # Oracle: brute force; 5000 is more than there are.
    lattice = ProgramLattice(*shape)
    scores = random_scores(lattice)
    programs = every_program(lattice)
    every = totals(scores, programs)
    for row, found in zip(every, lattice.k_best(scores, k), strict=True):
        values, order = row.sort(descending=True)
        assert [program for program, _ in found] == [programs[i] for i in order[:k].tolist()]
        assert [value for _, value in found] == pytest.approx(values[:k].tolist(), abs=1e-9)


def test_equal_programs_come_in_the_order_of_their_segments() -> None:
    # Oracle: Python's sort of tuples.
    lattice = ProgramLattice(6, 2, 3, 2)
    (found,) = lattice.k_best(torch.zeros(1, len(lattice.segments)), 20)
    assert [program for program, _ in found] == sorted(every_program(lattice))[:20]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_best_score_at_each_depth_is_the_maximum_over_programs_of_that_depth(
    shape: tuple[int, int, int, int],
) -> None:
    # Oracle: brute force.
    lattice = ProgramLattice(*shape)
    scores = random_scores(lattice)
    programs = every_program(lattice)
    every = totals(scores, programs)
    found = lattice.best_by_depth(scores)
    depths = torch.tensor([lattice.chain_of(program).depth - lattice.prefix_layers for program in programs])
    assert found.shape[1] == int(depths.max()) + 1
    for depth in range(found.shape[1]):
        there = every[:, depths == depth]
        expected = there.max(1).values if there.shape[1] else torch.full((3,), float("-inf"), dtype=torch.float64)
        assert torch.allclose(found[:, depth], expected, atol=1e-9)


def test_decoding_at_a_budget_takes_the_best_at_its_price_and_scores_without_it() -> None:
    # Oracle: brute force over all chains at the interpolated price.
    head = make_head()
    output = random_scores(head.lattice, 30)
    head.calibrate(output)
    programs = every_program(head.lattice)
    chains = [head.lattice.chain_of(program) for program in programs]
    logs = totals(output, programs).log_softmax(1)
    depths = torch.tensor([chain.depth for chain in chains])
    for budget in (None, 2.5, 4.0, 6.0):
        price = head.offset_for(budget)
        order = (logs - price * depths).sort(dim=1, descending=True).indices[:, :5].tolist()
        found = head.decode(output, budget)
        assert [[one.chain for one in row] for row in found] == [[chains[i] for i in row] for row in order]
        for row, (chosen, ranked) in enumerate(zip(order, found, strict=True)):
            assert [one.score for one in ranked] == pytest.approx([logs[row, i].item() for i in chosen], abs=1e-9)


@pytest.mark.parametrize("likes", ["depth", "runs", "skips"])
def test_budgets_are_met_on_what_was_calibrated_from_the_shortest_to_the_full_depth(likes: str) -> None:
    # Oracle: the decoded chains' own depths.
    head = make_head(beam=1)
    output = random_scores(head.lattice, 80)
    output += {"depth": 0.0, "runs": -1.0, "skips": -3.0}[likes] * head.lattice.depths
    head.calibrate(output)
    points = head.budget_points
    assert 16 <= len(points) <= 160
    depths = [point.mean_depth for point in points]
    assert depths == sorted(depths, reverse=True)
    assert [point.offset for point in points] == sorted(point.offset for point in points)
    assert depths[-1] == 2
    assert depths[0] >= 6
    assert (points[0].offset < 0) == (likes != "depth")
    if likes != "depth":
        assert depths[0] < 6.2

    def mean_depth(budget: float) -> float:
        return sum(row[0].chain.depth for row in head.decode(output, budget)) / len(output)

    for point in points:
        assert mean_depth(point.mean_depth) == pytest.approx(point.mean_depth, abs=1e-9)
    for budget in torch.linspace(2, 6, 23).tolist():
        assert mean_depth(budget) == pytest.approx(budget, abs=0.15)
    with pytest.raises(ValueError, match="budget: expected a mean depth in 2"):
        head.decode(output, 1.9)
    with pytest.raises(ValueError, match="expected a calibrated head"):
        make_head().decode(output, 4.0)


def test_a_row_is_the_same_alone_and_beside_longer_ones() -> None:
    # Oracle: each row alone.
    head, many = make_head(), states(7)
    together = head(*pad_states(many))
    assert together.shape == (7, len(head.lattice.segments))
    for row, state in enumerate(many):
        alone = head(*pad_states([state]))
        assert torch.allclose(alone[0], together[row], atol=1e-5)
        (expected,) = head.decode(alone)
        found = head.decode(together)[row]
        assert [one.chain for one in found] == [one.chain for one in expected]
        assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-4)


def test_the_loss_is_the_mean_of_minus_log_of_the_valid_mass() -> None:
    # Oracle: by hand. Of 2 layers one is edited; all scores 0 but the skip's log 5: skip 5/7, run 1/7, twice 1/7.
    head = ProgramHead(2, 1, 4, hidden=2, max_block=1, max_times=1)
    output = torch.tensor([[math.log(5.0), 0.0, 0.0]]).repeat(2, 1)
    skip, run, twice = (head.program_of(Chain(layers, 2)) for layers in [(0,), (0, 1), (0, 1, 1)])
    assert skip is not None
    assert run is not None
    assert twice is not None
    expected = -(math.log(6 / 7) + math.log(1 / 7)) / 2
    assert head.loss(output, [[skip, run], [twice]]).item() == pytest.approx(expected, abs=1e-6)
    expected = -(math.log(0.5 * 5 / 7 + 0.25 / 7) + math.log(2 / 7)) / 2
    weighted = head.loss(output, [[skip, run], [twice]], [[0.5, 0.25], [2.0]])
    assert weighted.item() == pytest.approx(expected, abs=1e-6)
    assert head.log_probability(output, [skip, twice]).exp().tolist() == pytest.approx([5 / 7, 1 / 7], abs=1e-6)


def test_gradients_are_those_of_finite_differences() -> None:
    # Oracle: torch.autograd.gradcheck; the last block overhangs, one weight is 0.
    head = ProgramHead(5, 2, 4, hidden=2, max_block=2)
    programs = every_program(head.lattice)
    targets = [programs[:3], programs[5:6]]
    output = random_scores(head.lattice, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda scores: head.loss(scores, targets, [[1.0, 0.0, 0.3], [2.0]]), output)


def test_extreme_scores_give_finite_losses_and_gradients() -> None:
    head = make_head()
    programs = every_program(head.lattice)
    output = random_scores(head.lattice, 2, scale=1e4).float().requires_grad_()
    loss = head.loss(output, [programs[:9], programs[-1:]])
    loss.backward()
    assert math.isfinite(loss.item())
    assert output.grad is not None
    assert output.grad.isfinite().all()


def test_a_head_started_from_programs_answers_with_their_frequencies() -> None:
    # Oracle: a Markov chain drawn from; and with no pseudocount the likelihood is at a maximum (gradient 0).
    head = make_head()
    lattice, every = head.lattice, every_program(head.lattice)
    programs = random.Random(0).choices(every, weights=[1 + 5 * (i % 7 == 0) for i in range(len(every))], k=400)
    weights = [1.0 + i % 3 for i in range(400)]
    for pseudocount in (1.0, 0.3):
        scores = lattice.log_frequencies(programs, weights, pseudocount)
        assert scores.isfinite().all()
        assert lattice.log_partition(scores[None]).item() == pytest.approx(0, abs=1e-9)
    bias = lattice.log_frequencies(programs, weights, 1e-9).requires_grad_()
    share = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    (head.log_probability(bias.expand(400, -1), programs) * share).sum().backward()
    assert bias.grad is not None
    assert bias.grad.abs().max() < 1e-6
    head.start_from(programs[:1] * 50 + [every[0]])
    output = head(*pad_states(states(3)))
    assert torch.equal(output[0], output[2])
    assert all(row[0].chain == lattice.chain_of(programs[0]) for row in head.decode(output))


def learn(targets: Callable[[bool], list[Program]], head: ProgramHead) -> torch.Tensor:
    """Train for 200 optimizer steps on samples whose first state's sign decides; return held-out states' signs."""
    generator = torch.Generator().manual_seed(3)

    def draw(rows: int) -> tuple[torch.Tensor, list[bool]]:
        drawn = torch.randn(rows, 3, 8, generator=generator)
        sign = torch.randint(0, 2, (rows,), generator=generator) * 2.0 - 1
        drawn[:, :, 0] = 1.5 * sign[:, None]
        return drawn, (sign > 0).tolist()

    mask = torch.ones(64, 3, dtype=torch.bool)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    head.train()
    for _ in range(200):
        drawn, signs = draw(64)
        optimizer.zero_grad()
        head.loss(head(drawn, mask), [targets(sign) for sign in signs]).backward()
        optimizer.step()
    head.eval()
    drawn, signs = draw(64)
    output: torch.Tensor = head(drawn, mask).detach()
    ranked = head.decode(output)
    right = [head.program_of(row[0].chain) in targets(sign) for row, sign in zip(ranked, signs, strict=True)]
    assert sum(right) / 64 > 0.95
    return torch.stack(
        [
            torch.stack([head.log_probability(output[i : i + 1], [program])[0].exp() for program in targets(sign)])
            for i, sign in enumerate(signs)
        ]
    )


def test_a_head_learns_to_route_by_the_sign_of_a_state() -> None:
    # Oracle: the toy's known answers, on held-out samples.
    head = make_head()
    skip, loop = (head.program_of(Chain(layers, 6)) for layers in [(0, 1, 4, 5), (0, 1, 2, 3, 4, 3, 4, 5)])
    assert skip is not None
    assert loop is not None
    head.start_from([skip, loop])
    learn(lambda sign: [skip] if sign else [loop], head)


def test_a_head_puts_its_mass_on_the_valid_chains_of_each_row() -> None:
    # Oracle: the toy's known valid chains; the mass is summed over them.
    head = make_head(seed=1)
    chains = [(0, 1, 4, 5), (0, 1, 2, 5), (0, 1, 2, 2, 3, 4, 5)], [(0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 3, 4, 5), (0, 1)]
    programs = [[head.program_of(Chain(layers, 6)) for layers in row] for row in chains]
    targets = [[program for program in row if program is not None] for row in programs]
    assert [len(row) for row in targets] == [3, 3]
    masses = learn(lambda sign: targets[sign], head).sum(1)
    assert masses.median() > 0.9


def test_flops_count_the_encoder_and_the_scores() -> None:
    head = make_head()
    assert head.forward_flops(10) == head.encoder.forward_flops(10) + 2 * 8 * len(head.lattice.segments)


def test_bad_settings_programs_and_targets_are_refused() -> None:
    bad: list[tuple[dict[str, object], str]] = [
        ({"max_block": 0}, "max_block: expected at least 1, got 0"),
        ({"max_times": 0}, "max_times: expected at least 1, got 0"),
        ({"beam": 0}, "beam: expected at least 1, got 0"),
        ({"hidden": 0}, "hidden: expected at least 1, got 0"),
        ({"dropout": 1.0}, "dropout: expected"),
    ]
    for settings, message in bad:
        with pytest.raises(ValueError, match=message):
            ProgramHead(6, 2, 8, **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"prefix_layers: expected 1\.\.5, got 6"):
        ProgramHead(6, 6, 8)
    head = make_head()
    output = random_scores(head.lattice, 1)
    one, two = (next(i for i, s in enumerate(head.lattice.segments) if s.start == start) for start in (2, 3))
    full = head.program_of(Chain.full(6))
    assert full is not None
    for program in [(), full[:-1], full[1:], full[::-1], (*full, full[-1]), (999,), (-1,), (one, two, *full[2:])]:
        with pytest.raises(ValueError, match="program: expected"):
            head.log_probability(output, [program])
    with pytest.raises(ValueError, match="programs: expected 1, one for each row, got 2"):
        head.log_probability(output, [full, full])
    wrong: list[list[list[Program]]] = [[], [[]], [[full], [full]]]
    for targets in wrong:
        with pytest.raises(ValueError, match="targets: expected at least one for each of 1 rows"):
            head.loss(output, targets)
    for weights in ([[0.0]], [[-1.0]], [[1.0, 1.0]], []):
        with pytest.raises(ValueError, match="weights: expected"):
            head.loss(output, [[full]], weights)
    with pytest.raises(ValueError, match="weights: expected 1, one for each program, got 2"):
        head.start_from([full], [1.0, 1.0])
