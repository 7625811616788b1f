"""The program head: a distribution over programs of layer segments (after PoLar, arXiv 2606.06574).

PoLar lets a frozen model's layers be skipped or looped in blocks. Here one head reads one state and scores every
legal segment; a program's probability is exp(sum of its segments' scores) / Z, with Z over all legal programs: a
semi-Markov conditional random field (Sarawagi and Cohen, NIPS 2004). So the likeliest program, its runners-up and the
best at a price on depth are exact, and programs that share most segments share what is learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from router.budget import operating_points, priced_choice
from router.chain import Chain
from router.encoder import Pooling, StateEncoder
from router.head import Head, ScoredChain
from router.program_lattice import Program, ProgramLattice


class ProgramHead(Head):
    """Encoded states to one score for each legal segment of the layers after the prefix.

    Attributes:
        lattice: the segments, in the order of the scores, and the programs that they make.
        beam: chains that `decode` returns for a row, at most.
    """

    def __init__(
        self,
        num_layers: int,
        prefix_layers: int,
        d_model: int,
        *,
        hidden: int = 64,
        pooling: Pooling = "ends",
        windows: int = 8,
        dropout: float = 0.1,
        max_block: int = 4,
        max_times: int = 2,
        beam: int = 16,
    ) -> None:
        """Build the network.

        Args:
            num_layers: layers of the base model.
            prefix_layers: layers that run in every chain.
            d_model: width of the states.
            hidden: width of the encoder's features.
            pooling: how the encoder pools a sample's tokens.
            windows: parts of the tokens, or learned weightings of them.
            dropout: share of the features dropped in training.
            max_block: most layers that one segment skips or repeats.
            max_times: most times that a repeated block runs again.
            beam: chains that `decode` returns for a row, at most.

        Raises:
            ValueError: where a size is below 1, the dropout outside 0..1 or the pooling unknown.
        """
        super().__init__(num_layers, prefix_layers, d_model)
        if beam < 1:
            raise ValueError(f"beam: expected at least 1, got {beam}")
        self.beam = beam
        self.lattice = ProgramLattice(num_layers, prefix_layers, max_block, max_times)
        self.encoder = StateEncoder(d_model, hidden=hidden, pooling=pooling, windows=windows, dropout=dropout)
        self.score = nn.Linear(hidden, len(self.lattice.segments))

    def start_from(self, programs: Sequence[Program], weights: Sequence[float] | None = None) -> None:
        """Make the untrained head answer with the programs' smoothed frequencies, whatever it reads.

        So training begins at the best answer that ignores the sample, and moves only for what the states say (the
        prior initialisation of focal loss, arXiv 1708.02002, section 3.3). Segments never seen stay possible.

        Args:
            programs: the training rows' programs.
            weights: how much each counts, for example 1 / number of its row's programs; by default 1.

        Raises:
            ValueError: where one is no legal program, or there is not one weight for each.
        """
        scores = self.lattice.log_frequencies(programs, weights)
        with torch.no_grad():
            self.score.weight.zero_()
            self.score.bias.copy_(scores)

    def respond(self, features: Float[Tensor, "batch hidden"]) -> Float[Tensor, "batch segments"]:
        """Return the scores of all legal segments, in the order of `lattice.segments`; any scale, nats."""
        scores: Tensor = self.score(features)
        return scores

    def program_of(self, chain: Chain) -> Program | None:
        """Return a chain's one program; None where it has none (another order, an edited prefix, a longer repeat).

        Raises:
            ValueError: where the chain is one of another number of layers.
        """
        return self.lattice.program_of(chain)

    def log_probability(
        self, output: Float[Tensor, "batch segments"], programs: Sequence[Program]
    ) -> Float[Tensor, " batch"]:
        """Return the log-probability of one program for each row, nats.

        Raises:
            ValueError: where one is no legal program, or there is not one for each row.
        """
        if len(programs) != len(output):
            raise ValueError(f"programs: expected {len(output)}, one for each row, got {len(programs)}")
        output = output.double()
        return self._totals(output, list(range(len(output))), programs) - self.lattice.log_partition(output)

    def loss(
        self,
        output: Float[Tensor, "batch segments"],
        targets: Sequence[Sequence[Program]],
        weights: Sequence[Sequence[float]] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the mean over rows of -log(sum over k of w_k P(program_k)), nats: no matter which valid one is right.

        Args:
            output: what `forward` returned.
            targets: for each row its valid programs, at least one, each once.
            weights: how much each counts, at least 0 and not all 0; by default 1.

        Raises:
            ValueError: where a row has no target, one is no legal program, or the weights do not fit.
        """
        counts = [len(row) for row in targets]
        if len(targets) != len(output) or not all(counts):
            raise ValueError(f"targets: expected at least one for each of {len(output)} rows, got {counts}")
        rows = [row for row, count in enumerate(counts) for _ in range(count)]
        output = output.double()
        totals = self._totals(output, rows, [program for row in targets for program in row])
        if weights is not None:
            given = [len(row) for row in weights]
            flat = torch.tensor([weight for row in weights for weight in row], dtype=totals.dtype)
            if given != counts or bool((flat < 0).any()) or not all(any(row) for row in weights):
                raise ValueError(f"weights: expected {counts} of at least 0, not all 0 in a row, got {weights}")
            totals = totals + flat.to(totals.device).log()
        places = torch.tensor([place for count in counts for place in range(count)])
        padded = totals.new_full((len(targets), max(counts)), float("-inf"))
        padded = padded.index_put((torch.tensor(rows), places), totals)
        return (self.lattice.log_partition(output) - padded.logsumexp(1)).mean()

    def decode_at(self, output: Float[Tensor, "batch segments"], offset: float) -> list[list[ScoredChain]]:
        """Return for each row the `beam` chains of greatest log-probability - price * depth, best first; exact.

        The offset is the price of a layer; scores are log-probabilities without it.
        """
        output, price = output.detach().double(), offset
        # Depth adds up over segments, so the search itself is exact at any price.
        ranked = self.lattice.k_best(output - price * self.lattice.depths.to(output), self.beam)
        partitions = self.lattice.log_partition(output).tolist()
        return [
            [self._scored(program, value - partition, price) for program, value in row]
            for row, partition in zip(ranked, partitions, strict=True)
        ]

    def scores_of(
        self, output: Float[Tensor, "batch segments"], chains: Sequence[Chain]
    ) -> Float[Tensor, "batch chains"]:
        """Return the log-probability of each chain's program."""
        output = output.detach()
        scores = output.new_full((len(output), len(chains)), float("-inf"), dtype=torch.float64)
        for i, chain in enumerate(chains):
            program = self.program_of(chain)
            if program is not None:
                scores[:, i] = self.log_probability(output, [program] * len(output))
        return scores

    def calibrate(self, output: Float[Tensor, "batch segments"]) -> None:
        """Set the operating points: which price of a layer gives which mean depth on these (validation) outputs.

        The greatest score at each depth says each row's choice at every price. Prices run from where every row takes
        its shortest chain down to 0 and, where the mean depth there is below `num_layers`, on below 0 until it is
        reached: the last point lies at `num_layers` or one change of mind above. A chain is then as deep as the head
        likes best, which may be by repeats and not by the full model.
        """
        values = self.lattice.best_by_depth(output.detach().double())
        depths = (self.prefix_layers + torch.arange(values.shape[1]).to(values)).expand_as(values)
        bonus = self._bonus(values, depths)
        points = operating_points(values + bonus * depths, depths)
        self.budget_points = tuple(replace(point, offset=point.offset - bonus) for point in points)

    def _bonus(self, values: Tensor, depths: Tensor) -> float:
        """Return the least reward of a layer, to a part in a million, at which the mean depth is `num_layers`."""

        def deep(reward: float) -> bool:
            chosen = priced_choice(values, depths, -reward)
            return bool(depths.gather(1, chosen[:, None]).mean() >= self.num_layers)

        if deep(0.0):
            return 0.0
        low, high = 0.0, 1.0
        while not deep(high):  # ends: the deepest chain is deeper than the full one
            low, high = high, 2 * high
        while high - low > 1e-6 * high:
            middle = (low + high) / 2
            low, high = (low, middle) if deep(middle) else (middle, high)
        return high

    def _scored(self, program: Program, value: float, price: float) -> ScoredChain:
        chain = self.lattice.chain_of(program)
        return ScoredChain(chain, value + price * (chain.depth - self.prefix_layers))

    def _totals(self, output: Tensor, rows: Sequence[int], programs: Sequence[Program]) -> Tensor:
        """Return the sum of the segments' scores of each program, read from the row of `output` named for it."""
        parts, owner = (found.to(output.device) for found in self.lattice.flat(programs))
        read = output[torch.tensor(rows, device=output.device)[owner], parts]
        return output.new_zeros(len(programs)).index_add(0, owner, read)
