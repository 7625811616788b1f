"""All programs of layer segments, and sums and maxima over them by dynamic programming. No parameters here.

A program (after PoLar, arXiv 2606.06574) cuts the layers after an unedited prefix into consecutive segments: one
layer run once, a block skipped, or a block run several times in a row. The recursions are those of a semi-Markov
conditional random field (Sarawagi and Cohen, "Semi-Markov Conditional Random Fields for Information Extraction",
NIPS 2004, section 2), from the last layer to the first.

Each expressible chain has exactly one program. Read a chain at the first layer not yet covered: if it does not come
next, a skip stands here; that skips in a row are cut greedily (only one of `max_block` layers may precede another)
fixes its length. If it comes next, follow the ascending run of layers from it: as a program never returns to a
segment that it left, the first step back says which block is repeated, where it starts and ends, and how often it
runs; layers before the block ran once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain as concatenated

import torch
from jaxtyping import Float, Int
from torch import Tensor

from router.chain import Chain, Segment

Program = tuple[int, ...]
"""A program: indices into `ProgramLattice.segments`, first layer first."""
_FLOOR = -1e30
"""Score of what is not there; finite, so that no gradient is 0 * inf."""


class ProgramLattice:
    """The segments of a model's layers and the programs that they make.

    Attributes:
        segments: every legal segment, in the order of a head's scores: by first layer; for one first layer the skips
            of 1, 2, .. layers, then the run, then the repeats by number of layers, then by times. `times` of a
            repeat counts all its runs, so one more run is 2.
        depths: layers that each segment executes, [segments].
    """

    def __init__(self, num_layers: int, prefix_layers: int, max_block: int, max_times: int) -> None:
        """List the segments.

        Args:
            num_layers: layers of the base model.
            prefix_layers: layers 0..prefix_layers-1, which every program leaves as they are.
            max_block: most layers that one segment skips or repeats.
            max_times: most times that a repeated block runs again.

        Raises:
            ValueError: where a bound is out of range.
        """
        if not 1 <= prefix_layers < num_layers:
            raise ValueError(f"prefix_layers: expected 1..{num_layers - 1}, got {prefix_layers}")
        for name, value in (("max_block", max_block), ("max_times", max_times)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        self.num_layers, self.prefix_layers = num_layers, prefix_layers
        self.max_block, self.max_times = max_block, max_times
        self.positions = num_layers - prefix_layers
        blocks, more = range(1, max_block + 1), range(2, max_times + 2)
        # One first layer's segments as (layers, times): skips, the run, repeats.
        self.options = [(k, 0) for k in blocks] + [(1, 1)] + [(k, times) for k in blocks for times in more]
        listed = [
            (cell, Segment(start, start + k, "skip" if times == 0 else "run" if times == 1 else "repeat", times))
            for cell, (start, (k, times)) in enumerate(
                (start, option) for start in range(prefix_layers, num_layers) for option in self.options
            )
            if start + k <= num_layers
        ]
        self.segments = tuple(segment for _, segment in listed)
        self._index = {segment: i for i, segment in enumerate(self.segments)}
        self._layers = [tuple(range(start, stop)) * times for start, stop, _, times in self.segments]
        self._numbers = {cell: i for i, (cell, _) in enumerate(listed)}
        self._cells = torch.tensor(list(self._numbers))
        self.depths = torch.tensor([len(layers) for layers in self._layers])
        self.starts = torch.tensor([segment.start for segment in self.segments])
        self._stops = torch.tensor([segment.stop for segment in self.segments])
        self.skips = torch.tensor([segment.times == 0 for segment in self.segments])
        self.short = self.skips & (self._stops - self.starts < max_block)

    def program_of(self, chain: Chain) -> Program | None:
        """Return a chain's one program; None where it has none (another order, an edited prefix, a longer repeat).

        Raises:
            ValueError: where the chain is one of another number of layers.
        """
        if chain.num_layers != self.num_layers:
            raise ValueError(f"chain: expected one of {self.num_layers} layers, got one of {chain.num_layers}")
        try:
            pieces = chain.to_segments()
        except ValueError:
            return None
        program: list[int] = []
        for start, stop, operation, times in pieces:
            if operation == "run":
                parts = [Segment(i, i + 1, "run", 1) for i in range(max(start, self.prefix_layers), stop)]
            elif start < self.prefix_layers:
                return None
            elif operation == "skip":
                cuts = range(start, stop, self.max_block)
                parts = [Segment(i, min(i + self.max_block, stop), "skip", 0) for i in cuts]
            else:
                parts = [Segment(start, stop, operation, times)]
            if any(part not in self._index for part in parts):
                return None
            program += [self._index[part] for part in parts]
        return tuple(program)

    def chain_of(self, program: Program) -> Chain:
        """Return the chain of a legal program."""
        layers = concatenated(range(self.prefix_layers), *(self._layers[i] for i in program))
        return Chain(tuple(layers), self.num_layers)

    def flat(self, programs: Sequence[Program]) -> tuple[Int[Tensor, " parts"], Int[Tensor, " parts"]]:
        """Return the segments of all programs one after the other, and whose each is.

        Raises:
            ValueError: where one is no legal program.
        """
        lengths = torch.tensor([len(program) for program in programs], dtype=torch.long)
        parts = torch.tensor(list(concatenated.from_iterable(programs)), dtype=torch.long)
        owner = torch.arange(len(programs)).repeat_interleave(lengths)
        bad = ((parts < 0) | (parts >= len(self.segments))).nonzero()[:, 0]
        if not len(bad) and bool((lengths > 0).all()):
            ends = lengths.cumsum(0) - 1
            before = self._stops[parts].roll(1)
            before[ends - lengths + 1] = self.prefix_layers
            wrong = self.starts[parts] != before
            wrong[ends] |= self._stops[parts[ends]] != self.num_layers
            wrong[1:] |= self.skips[parts[1:]] & self.short[parts[:-1]] & (owner[1:] == owner[:-1])
            bad = wrong.nonzero()[:, 0]
        elif not len(bad):
            raise ValueError("program: expected at least one segment, got none")
        if len(bad):
            raise ValueError(
                f"program: expected segments that cover layers {self.prefix_layers}..{self.num_layers - 1} in order, "
                f"only skips of {self.max_block} layers before another, got {programs[int(owner[bad[0]])]}"
            )
        return parts, owner

    def log_partition(self, scores: Float[Tensor, "batch segments"]) -> Float[Tensor, " batch"]:
        """Return the log of the sum over all programs of exp(sum of its segments' scores), nats; differentiable."""
        k, dense = self.max_block, self._dense(scores, _FLOOR)
        skips, repeats = dense[..., :k], dense[..., k + 1 :].reshape(*dense.shape[:2], k, -1).logsumexp(-1)
        # Segments of one first layer and one length that are not skips lead to the same place.
        firsts = torch.logaddexp(dense[..., k], repeats[..., 0])
        others = torch.cat([firsts[..., None], repeats[..., 1:]], dim=-1)
        # Log sums of the programs of the layers from i+1, i+2, .., i+k on; `barred`: that begin with no skip.
        free = torch.full_like(scores[:, :1], _FLOOR).repeat(1, k)
        free[:, 0] = 0
        barred = free
        for other, skip in zip(reversed(others.unbind(1)), reversed(skips.unbind(1)), strict=True):
            no_skip = (other + free).logsumexp(1, keepdim=True)
            after_skip = torch.cat([barred[:, :-1], free[:, -1:]], dim=1)
            every = torch.logaddexp(no_skip, (skip + after_skip).logsumexp(1, keepdim=True))
            free = torch.cat([every, free[:, :-1]], dim=1)
            barred = torch.cat([no_skip, barred[:, :-1]], dim=1)
        return free[:, 0]

    @torch.no_grad()
    def k_best(self, scores: Float[Tensor, "batch segments"], k: int) -> list[list[tuple[Program, float]]]:
        """Return for each row its `k` programs of greatest score, best first, with their scores; exact.

        Fewer where there are fewer programs; among equals the one whose first other segment comes first (a skip
        before a run before a repeat).
        """
        width, dense = self.max_block, self._dense(scores, float("-inf"))
        lengths = torch.tensor([size - 1 for size, _ in self.options[width:]], device=scores.device)
        # The k best programs of the layers from i+1, i+2, .. on, [batch, offset, rank]; `barred` as above.
        free = dense.new_full((len(scores), width, k), float("-inf"))
        free[:, 0, 0] = 0
        barred = free
        bests: list[Tensor] = []
        starts: list[Tensor] = []
        for i in reversed(range(self.positions)):
            candidates = dense[:, i, width:, None] + free[:, lengths]
            no_skip, origin = _top(candidates.flatten(1), k)
            starts.append(origin)
            after_skip = torch.cat([barred[:, :-1], free[:, -1:]], dim=1)
            skipped = (dense[:, i, :width, None] + after_skip).flatten(1)
            every, origin = _top(torch.cat([skipped, no_skip], dim=1), k)
            bests.append(origin)
            free = torch.cat([every[:, None], free[:, :-1]], dim=1)
            barred = torch.cat([no_skip[:, None], barred[:, :-1]], dim=1)
        best_rows, start_rows = (torch.stack(kept[::-1], 1).tolist() for kept in (bests, starts))
        return [
            [(self._walk(best, start, rank, k), value) for rank, value in enumerate(values) if value > float("-inf")]
            for values, best, start in zip(free[:, 0].tolist(), best_rows, start_rows, strict=True)
        ]

    def _walk(self, best: list[list[int]], start: list[list[int]], rank: int, k: int) -> Program:
        """Follow one row's pointers from its program of rank `rank` on."""
        program: list[int] = []
        i, barred = 0, False
        while i < self.positions:
            origin = start[i][rank] if barred else best[i][rank]
            option = self.max_block
            if barred:
                option += origin // k
            elif origin < self.max_block * k:
                option = origin // k
            else:
                origin = start[i][origin - self.max_block * k]
                option += origin // k
            rank = origin % k
            program.append(self._numbers[i * len(self.options) + option])
            size, times = self.options[option]
            barred = times == 0 and size < self.max_block
            i += size
        return tuple(program)

    @torch.no_grad()
    def best_by_depth(self, scores: Float[Tensor, "batch segments"]) -> Float[Tensor, "batch depths"]:
        """Return the greatest score of a program of each depth after the prefix, 0, 1, .. layers; -inf: none."""
        dense = self._dense(scores, float("-inf"))
        size = self.positions * (self.max_times + 1) + 1
        ended = dense.new_full((len(scores), size), float("-inf"))
        free = [torch.full_like(ended, float("-inf")) for _ in range(self.max_block)]
        free[0][:, 0] = 0
        barred = list(free)
        for i in reversed(range(self.positions)):
            no_skip = ended.clone()
            for option in range(self.max_block, len(self.options)):
                length, times = self.options[option]
                depth = length * times
                if i + length <= self.positions and depth < size:
                    reached = free[length - 1][:, : size - depth] + dense[:, i, option, None]
                    no_skip[:, depth:] = torch.maximum(no_skip[:, depth:], reached)
            every = no_skip
            for option, after in enumerate([*barred[:-1], free[-1]]):
                every = torch.maximum(every, after + dense[:, i, option, None])
            free, barred = [every, *free[:-1]], [no_skip, *barred[:-1]]
        return free[0]

    def log_frequencies(
        self, programs: Sequence[Program], weights: Sequence[float] | None = None, pseudocount: float = 1.0
    ) -> Float[Tensor, " segments"]:
        """Return scores under which programs are as likely as they are frequent; their log partition is 0.

        They are the log-probabilities of a Markov chain that chooses segment after segment, the maximum-likelihood
        model of these programs that ignores the sample (at pseudocount 0). A skip of fewer than `max_block` layers
        bars a skip after it, so its score also says by how much likelier the other segments become there.

        Args:
            programs: the programs, repeated as often as they count.
            weights: how much each counts; by default 1.
            pseudocount: programs' worth of prior at each first layer: the frequencies of the options (operation,
                layers, times) over all first layers, themselves smoothed by one of each.

        Raises:
            ValueError: where one is no legal program, or there is not one weight for each.
        """
        parts, owner = self.flat(programs)
        if weights is not None and len(weights) != len(programs):
            raise ValueError(f"weights: expected {len(programs)}, one for each program, got {len(weights)}")
        each = torch.tensor([1.0] * len(programs) if weights is None else weights, dtype=torch.float64)[owner]
        counts = torch.bincount(parts, each, len(self.segments))
        table = self._dense(counts[None], 0.0)[0]
        legal = self._dense(torch.ones_like(counts)[None], 0.0)[0]
        pooled = (table.sum(0) + 1) * legal
        table = table + pseudocount * pooled / pooled.sum(1, keepdim=True)
        # Skips compete where they may stand: not after a short skip.
        barred = torch.zeros(self.num_layers + 1, dtype=torch.float64)
        after = parts.roll(1)
        stands = self.short[after] & (owner == owner.roll(1)) & (self.starts[parts] > self.prefix_layers)
        barred.index_add_(0, self.starts[parts[stands]], each[stands])
        skips, others = table[:, : self.max_block], table[:, self.max_block :]
        free = table.sum(1, keepdim=True) - barred[self.prefix_layers : -1, None]
        no_skip = 1 - skips.sum(1, keepdim=True) / free
        table = torch.cat([skips / free, no_skip * others / others.sum(1, keepdim=True)], dim=1)
        after_short = torch.ones_like(barred)
        after_short[self.prefix_layers : -1] = no_skip[:, 0]
        scores = table.flatten()[self._cells].log()
        return scores - torch.where(self.short, after_short[self._stops].log(), 0.0)

    def _dense(self, scores: Tensor, missing: float) -> Tensor:
        """Return the scores as [batch, first layer after the prefix, option], `missing` where a block overhangs."""
        empty = scores.new_full((len(scores), self.positions * len(self.options)), missing)
        filled = empty.index_copy(1, self._cells.to(scores.device), scores)
        return filled.reshape(len(scores), self.positions, -1)


def _top(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the `k` greatest of each row and their places; among equals the first, on every machine."""
    ordered, places = values.sort(dim=1, descending=True, stable=True)
    return ordered[:, :k], places[:, :k]
