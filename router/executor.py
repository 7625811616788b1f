"""The chain executor: many (row, chain) pairs at once, each shared chain prefix of a row computed once.

Rows wait at their next layer. The lowest waiting layer runs first, for all rows that wait there, so rows that were
separated by a skip or a repeat meet again. Results equal the chain view's (router/view.py).
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from router.block import Block, MaskRules
from router.capture import LayerCapture
from router.chain import Chain
from router.decoder import find_decoder
from router.rows import Row
from router.states import StateCache, StateNode

HEAD_LOGITS = 16 * 2**20
"""Logits computed at once, which bounds the head's memory (64 MiB in float32)."""


@dataclass(frozen=True)
class Job:
    """One row to be run through one chain.

    Attributes:
        row: index of the row in its block.
        chain: the chain.
    """

    row: int
    chain: Chain


@dataclass
class _Plan:
    """What one run must still compute.

    Attributes:
        waiting: for each node the children that are to be computed from its state (a dict as an ordered set).
        frontier: by layer, the (row, node) pairs whose parent's state is there.
    """

    waiting: dict[StateNode, dict[StateNode, None]] = field(default_factory=lambda: defaultdict(dict))
    frontier: dict[int, list[tuple[int, StateNode]]] = field(default_factory=lambda: defaultdict(list))


class ChainExecutor:
    """Runs chains of a model's layers over blocks of rows.

    Attributes:
        num_layers: layers of the model.
        can_pack: whether packed rows are possible; otherwise use separate rows.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        batch_tokens: int = 2048,
        state_bytes: int = 2**30,
    ) -> None:
        """Prepare a model, which is not changed. Not safe for use by several threads at once.

        Args:
            model: a decoder-only model in evaluation mode.
            batch_tokens: tokens in one call of a layer at most (a longer row still runs alone).
            state_bytes: bytes of computed states kept for reuse.

        Raises:
            ValueError: where the layers are not found, the model is in training mode or a bound is not positive.
        """
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens: expected at least 1, got {batch_tokens}")
        decoder = find_decoder(model)
        self.num_layers = decoder.num_layers
        self._capture = LayerCapture(model, decoder)
        with torch.inference_mode():
            self._rules = MaskRules(self._capture, decoder.num_layers)
        self._cache = StateCache(state_bytes)
        self._batch_tokens = batch_tokens
        self._head_logits = HEAD_LOGITS

    @property
    def can_pack(self) -> bool:
        """Whether packed rows are possible."""
        return self._rules.can_pack

    @property
    def state_bytes_held(self) -> int:
        """Bytes of computed states held now."""
        return self._cache.bytes

    def load(self, rows: Sequence[Row]) -> Block:
        """Capture rows, so that jobs can run on them; states of blocks loaded before are dropped."""
        self._cache.clear()
        with torch.inference_mode():
            return Block(self._capture, self._rules, rows)

    @torch.inference_mode()
    def states(self, block: Block, jobs: Sequence[Job]) -> list[Float[Tensor, "_ d_model"]]:
        """Return the output of each job's last layer, before the final norm; one tensor a job."""
        ends = self._run(block, jobs)
        states = [end.state for end in ends]
        for end in ends:
            self._cache.keep(end)
        assert all(state is not None for state in states)
        return states  # type: ignore[return-value]

    @torch.inference_mode()
    def logits(self, block: Block, jobs: Sequence[Job]) -> list[Float[Tensor, "_ vocabulary"]]:
        """Return the logits of each job at every token of its row."""
        return [self._capture.head(state) for state in self.states(block, jobs)]

    def target_logprobs(self, block: Block, jobs: Sequence[Job]) -> list[Float[Tensor, " _"]]:
        """Return the log-probability (nats, float32) of each target of each job's row."""
        return [reading[:, 0] for reading in self._target_readings(block, jobs, compare=False)]

    def target_readings(self, block: Block, jobs: Sequence[Job]) -> list[Float[Tensor, "_ 3"]]:
        """Return for each target of each job's row: what tells whether greedy decoding would emit it.

        The columns (float32) are the target's log-probability in nats, its logit minus the best other token's, and
        the id of the token with the highest logit.
        """
        return self._target_readings(block, jobs, compare=True)

    @torch.inference_mode()
    def _target_readings(self, block: Block, jobs: Sequence[Job], *, compare: bool) -> list[Tensor]:
        states = self.states(block, jobs)
        readouts = [block.rows[job.row].readout for job in jobs]
        hidden = torch.cat([state[list(readout)] for state, readout in zip(states, readouts, strict=True)])
        token_lists = []
        offset = 0
        for job, readout in zip(jobs, readouts, strict=True):
            at = {index: offset + i for i, index in enumerate(readout)}
            token_lists.append([(at[target.index], target.token) for target in block.rows[job.row].targets])
            offset += len(readout)
        pairs = torch.tensor([pair for pairs in token_lists for pair in pairs], device=hidden.device).reshape(-1, 2)
        values = self._read_head(hidden, pairs, compare=compare)
        return list(torch.split(values, [len(pairs) for pairs in token_lists]))

    def _read_head(self, hidden: Tensor, pairs: Tensor, *, compare: bool) -> Tensor:
        """Return what `target_readings` says of token `pairs[i, 1]` after state `pairs[i, 0]`; pairs ascend by state.

        Token ids below 2**24 are exact in float32.
        """
        values = torch.zeros(len(pairs), 3, dtype=torch.float32, device=hidden.device)
        start = 0
        while start < len(hidden):
            stop = min(len(hidden), start + max(1, self._head_logits // self._capture.vocabulary))
            inside = (pairs[:, 0] >= start) & (pairs[:, 0] < stop)
            try:
                logits = self._capture.head(hidden[start:stop]).float()
                rows, tokens = pairs[inside, 0] - start, pairs[inside, 1]
                chosen = logits[rows, tokens]
                values[inside, 0] = chosen - logits.logsumexp(dim=-1)[rows]
                if compare:
                    best, second = logits.topk(2, dim=-1).values[rows].unbind(dim=-1)
                    # Where the token is the only one with the highest logit, the best other one is the second.
                    values[inside, 1] = chosen - torch.where(chosen == best, second, best)
                    values[inside, 2] = logits.argmax(dim=-1)[rows].float()
                start = stop
                continue
            except torch.OutOfMemoryError:
                if stop - start == 1:
                    raise
            self._head_logits = (stop - start) // 2 * self._capture.vocabulary
            _free_accelerator_memory()
        return values

    def _run(self, block: Block, jobs: Sequence[Job]) -> list[StateNode]:
        """Compute every state that the jobs need; returns the node at each job's end, its state still held."""
        plan = _Plan()
        ends = [self._request(block, job, plan) for job in jobs]
        in_use = set(ends)
        while plan.frontier:
            layer = min(plan.frontier)
            for batch in self._batches(block, plan.frontier.pop(layer)):
                self._step_or_halve(block, layer, batch)
                for row, node in batch:
                    for child in plan.waiting.get(node, ()):
                        plan.frontier[child.layer].append((row, child))
                    parent = node.parent
                    assert parent is not None
                    del plan.waiting[parent][node]
                    if not plan.waiting[parent] and parent not in in_use:
                        self._cache.keep(parent)
        return ends

    def _request(self, block: Block, job: Job, plan: _Plan) -> StateNode:
        """Plan what a job needs beyond the deepest state that is held; returns the node at its end."""
        if not 0 <= job.row < len(block.rows):
            raise ValueError(f"job: expected a row below {len(block.rows)}, got {job.row}")
        if job.chain.num_layers != self.num_layers:
            raise ValueError(f"chain: expected num_layers={self.num_layers}, got {job.chain.num_layers}")
        path = [block.roots[job.row]]
        for layer in job.chain.layers:
            path.append(path[-1].child(layer))
        start = max(i for i, node in enumerate(path) if node.state is not None)
        self._cache.release(path[start])
        for parent, node in itertools.pairwise(path[start:]):
            if node in plan.waiting[parent]:
                continue
            plan.waiting[parent][node] = None
            if parent.state is not None:
                plan.frontier[node.layer].append((job.row, node))
        return path[-1]

    def _batches(self, block: Block, nodes: list[tuple[int, StateNode]]) -> Iterable[list[tuple[int, StateNode]]]:
        """Split the nodes of one layer into batches of at most `batch_tokens` padded tokens, by length."""
        batch: list[tuple[int, StateNode]] = []
        for row, node in sorted(nodes, key=lambda item: len(block.rows[item[0]].tokens)):
            if batch and len(block.rows[row].tokens) * (len(batch) + 1) > self._batch_tokens:
                yield batch
                batch = []
            batch.append((row, node))
        yield batch

    def _step_or_halve(self, block: Block, layer: int, batch: list[tuple[int, StateNode]]) -> None:
        """Run one layer for a batch; where the accelerator's memory ends, for its halves, and stay at their size."""
        try:
            self._step(block, layer, batch)
            return
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        # Outside the handler, so that the failed call's tensors are free before the next one is made.
        half = len(batch) // 2
        tokens = max(len(block.rows[row].tokens) for row, _ in batch)
        self._batch_tokens = min(self._batch_tokens, half * tokens)
        _free_accelerator_memory()
        self._step_or_halve(block, layer, batch[:half])
        self._step_or_halve(block, layer, batch[half:])

    def _step(self, block: Block, layer: int, batch: list[tuple[int, StateNode]]) -> None:
        """Run one layer for a batch of nodes and set their states."""
        rows = [row for row, _ in batch]
        inputs = [node.parent.state for _, node in batch if node.parent is not None]
        lengths = [len(block.rows[row].tokens) for row in rows]
        # Padding stands on the right, where no real token looks; zeros keep it finite.
        hidden = pad_sequence([state for state in inputs if state is not None], batch_first=True)
        call = block.call_for(layer, rows, max(lengths))
        output = self._capture.run_layer(layer, hidden, call)
        for i, (row, node) in enumerate(batch):
            node.state = output[i, : lengths[i]].clone()
            block.executed[row] += 1


def _free_accelerator_memory() -> None:
    """Give cached blocks back, so that a smaller batch finds room."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
