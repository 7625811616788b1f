"""The chain executor: many (row, chain) pairs at once, each shared chain prefix of a row computed once.

Rows wait at their next layer. The lowest waiting layer runs first, for all rows that wait there, so rows that were
separated by a skip or a repeat meet again. Where the model allows it (router/engine/sharing.py), tokens that many rows
begin with run once for all. A plan says what one run must compute, and in which order. Results equal the chain view's
(router/engine/view.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from router.chain import Chain
from router.engine.block import Block, MaskRules, StateCache, StateNode
from router.engine.capture import LayerCapture
from router.engine.copies import make_view, unrouted
from router.engine.decoder import find_decoder
from router.engine.inputs import prefill
from router.engine.makeup import Makeup
from router.engine.readout import HeadReader, free_accelerator_memory
from router.engine.rows import Row, pack_row, separate_rows
from router.engine.sharing import REFUSALS, SharedLayers, stacked
from router.engine.trial import bound_of, difference, nasty_chain, require_chains
from router.validation import InputError

KEYS = 8
"""Keys in one call of a layer, those of shared tokens included, in times `batch_tokens`."""


@dataclass(frozen=True)
class Job:
    """One row to be run through one chain.

    Attributes:
        row: index of the row in its block.
        chain: the chain.
    """

    row: int
    chain: Chain


class ChainExecutor:
    """Runs chains of a model's layers over blocks of rows.

    Attributes:
        num_layers: layers of the model.
        can_pack: whether packed rows are possible; otherwise use separate rows.
    """

    def __init__(self, model: PreTrainedModel, *, batch_tokens: int = 2048, state_bytes: int = 2**30) -> None:
        """Prepare a model, which is not changed, once it was tried (`router.engine.trial`).

        Not safe for use by several threads at once.

        Args:
            model: a decoder-only model in evaluation mode.
            batch_tokens: tokens in one call of a layer at most (a longer row still runs alone).
            state_bytes: bytes of computed states, keys and values kept for reuse.

        Raises:
            ValueError: where the layers are not found, the model is in training mode, a bound is not positive, or the
                model cannot run edited chains.
        """
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens: expected at least 1, got {batch_tokens}")
        self._model = unrouted(model)
        self._cache = StateCache(state_bytes)
        self._batch_tokens = batch_tokens
        self._prepare(Makeup(self._model))

    def _prepare(self, now: Makeup) -> None:
        """Learn how the model, as it is now, runs its layers."""
        self._made: Makeup | None = None  # until all is learnt, which can fail
        decoder = find_decoder(self._model)
        require_chains(self._model, now)
        self._capture, self._pictures_tried = LayerCapture(self._model, decoder), -1
        self.num_layers = decoder.num_layers
        with torch.inference_mode():
            self._rules = MaskRules(self._capture, decoder.num_layers)
            self._layers = SharedLayers(self._capture, decoder.num_layers)
        self._head = HeadReader(self._capture)
        self._rules.can_pack = self._rules.can_pack and self._packs()
        self._made = now

    def follow(self) -> None:
        """Prepare the model anew where it was changed since; errors as when it is made."""
        if (now := Makeup(self._model)) != self._made:
            self._prepare(now)

    def _packs(self) -> bool:
        """Whether a packed row gives what separate rows give: not where layers carry a state along the row."""
        prompt, *ends = [[(start + 7 * i) % self._capture.vocabulary for i in range(3)] for start in (5, 30, 60)]
        chain = nasty_chain(self.num_layers)
        try:
            packed = self.logits(self._block([pack_row(prompt, ends)], share=False), [Job(0, chain)])[0]
            alone = self.logits(self._block(separate_rows(prompt, ends), share=False), [Job(0, chain), Job(1, chain)])
        except torch.OutOfMemoryError:
            raise
        except REFUSALS:
            return False
        finally:
            self._cache.clear()
        own = [slice(3, 5), slice(5, 7)]
        return all(difference(packed[at], one[3:]) <= bound_of(self._model) for at, one in zip(own, alone, strict=True))

    @property
    def can_pack(self) -> bool:
        """Whether packed rows are possible."""
        return self._rules.can_pack

    @property
    def can_share(self) -> bool:
        """Whether tokens that many rows begin with run once for all of them."""
        return self._layers.supported

    @property
    def state_bytes_held(self) -> int:
        """Bytes of computed states, keys and values held now."""
        return self._cache.bytes

    def load(self, rows: Sequence[Row], *, share: bool = True, beside: bool = False) -> Block:
        """Capture rows, so that jobs can run on them.

        Args:
            rows: the rows.
            share: whether tokens that many rows begin with run once for all of them, where that is possible and pays.
            beside: whether states of blocks loaded before are kept too; else they are dropped.

        Raises:
            InputError: where a row has pictures that the model hands to its layers in a way of its own.
        """
        if not beside:
            self._cache.clear()
        self.follow()
        block = self._block(rows, share=share)
        follows = {len(row.tokens) - 1 - _first_read(row): i for i, row in enumerate(rows) if row.inputs}
        if follows and min(1, most := max(follows)) > self._pictures_tried:
            self._try_pictures(block, follows[most])
            self._cache.clear()
            self._pictures_tried = min(1, most)
        return block

    @torch.inference_mode()
    def _try_pictures(self, block: Block, row: int) -> None:
        """Compare an edited chain on a row with pictures with what the chain's view makes of its prompt.

        Once for rows of a prompt alone, once where an answer's tokens follow, which the prompt must not see.

        Raises:
            InputError: where they differ.
        """
        chain, own = nasty_chain(self.num_layers), block.rows[row]
        last = _first_read(own)
        (by_hand,) = self.logits(block, [Job(row, chain)], [last])
        ids = torch.tensor([own.tokens[: last + 1]], device=self._capture.device)
        whole = prefill(make_view(self._model, chain, cached=False), ids, torch.ones_like(ids), own.inputs)
        if (error := difference(by_hand, whole)) > bound_of(self._model):
            raise InputError(
                f"{type(self._model).__name__}: expected a model whose layers get pictures in their hidden states, got "
                f"one where a chain run as a model and its layers called one by one differ by {error:.2g} of the "
                "logits' spread"
            )

    def _block(self, rows: Sequence[Row], *, share: bool) -> Block:
        with torch.inference_mode():
            share = share and self._layers.may_share(max(len(row.tokens) for row in rows))
            return Block(self._capture, self._rules, rows, share=share)

    @torch.inference_mode()
    def states(self, block: Block, jobs: Sequence[Job]) -> list[Float[Tensor, "_ ..."]]:
        """Return the output of each job's last layer, before the final norm; one tensor a job."""
        return self._states(block, jobs, for_head=False)

    def _states(self, block: Block, jobs: Sequence[Job], *, for_head: bool) -> list[Tensor]:
        """Return each job's output; `for_head`: as the head gets it, with what the model adds after the last layer."""
        plan, ends = self._run(block, jobs, whole=True)
        states = []
        try:
            for job, end in zip(jobs, ends, strict=True):
                last = block.incoming(job.row, end) if for_head else end.state
                front = None if end.shared is None else end.shared.state
                states.append(torch.cat([state for state in (front, last) if state is not None]))
        finally:
            plan.keep_ends()
        return states

    @torch.inference_mode()
    def logits(
        self, block: Block, jobs: Sequence[Job], tokens: Sequence[int] | None = None
    ) -> list[Float[Tensor, "_ vocabulary"]]:
        """Return the logits of each job at every token of its row, or at one token of each (one line)."""
        states = self._states(block, jobs, for_head=True)
        if tokens is not None:
            states = [state[token : token + 1] for state, token in zip(states, tokens, strict=True)]
        return [self._capture.head(state) for state in states]

    def target_logprobs(self, block: Block, jobs: Sequence[Job]) -> list[Float[Tensor, " _"]]:
        """Return the log-probability (nats, float32) of each target of each job's row."""
        return [reading[:, 0] for reading in self.target_readings(block, jobs, compare=False)]

    @torch.inference_mode()
    def target_readings(self, block: Block, jobs: Sequence[Job], *, compare: bool = True) -> list[Float[Tensor, "_ 3"]]:
        """Return for each target of each job's row: what tells whether greedy decoding would emit it.

        The columns (float32) are the target's log-probability in nats, its logit minus the best other token's, and
        the id of the token with the highest logit; the last two are 0 unless asked for (`compare`).
        """
        plan, ends = self._run(block, jobs, whole=False)
        hidden, pairs, counts = [], [], []
        offset = 0
        try:
            for job, end in zip(jobs, ends, strict=True):
                row, part = block.rows[job.row], block.parts[job.row]
                hidden.append(block.incoming(job.row, end)[[index - part.start for index in row.readout]])
                at = {index: offset + i for i, index in enumerate(row.readout)}
                pairs += [(at[target.index], target.token) for target in row.targets]
                counts.append(len(row.targets))
                offset += len(row.readout)
        finally:
            plan.keep_ends()
        states = torch.cat(hidden)
        asked = torch.tensor(pairs, device=states.device).reshape(-1, 2)
        return list(torch.split(self._head.read(states, asked, compare=compare), counts))

    def _run(self, block: Block, jobs: Sequence[Job], *, whole: bool) -> tuple[Plan, list[StateNode]]:
        """Compute what the jobs need; returns the node at each job's end, held until the plan's `keep_ends`."""
        plan = Plan(block, self._cache)
        try:
            ends = [self._want(plan, block, job, whole) for job in jobs]
            plan.start()
            while (waiting := plan.next_layer()) is not None:
                layer, steps = waiting
                for alike in _alike(block, steps):
                    for batch in self._batches(block, alike):
                        self._step_or_halve(block, layer, batch)
                        for step in batch:
                            plan.finish(step)
        except BaseException:
            plan.abandon()
            raise
        return plan, ends

    def _want(self, plan: Plan, block: Block, job: Job, whole: bool) -> StateNode:
        """Plan a job; returns the node at its end.

        Args:
            plan: the plan.
            block: the rows.
            job: the job.
            whole: whether the states of shared tokens in front are wanted too.
        """
        if not 0 <= job.row < len(block.rows):
            raise ValueError(f"job: expected a row below {len(block.rows)}, got {job.row}")
        if job.chain.num_layers != self.num_layers:
            raise ValueError(f"chain: expected num_layers={self.num_layers}, got {job.chain.num_layers}")
        node = block.roots[job.row]
        for layer in job.chain.layers:
            node = node.child(layer)
        plan.want(job.row, node)
        if whole and node.shared is not None:
            prefix = block.parts[job.row].prefix
            assert prefix is not None
            plan.want(prefix, node.shared)
        return node

    def _batches(self, block: Block, steps: list[Step]) -> Iterable[list[Step]]:
        """Split steps of one layer into batches of at most `batch_tokens` padded tokens, by length.

        Keys and values of shared tokens stand in front of each row's own: they are bounded too, by KEYS as many.
        """
        batch: list[Step] = []
        for step in sorted(steps, key=lambda step: block.parts[step.part].length):
            part, rows = block.parts[step.part], len(batch) + 1
            own, seen = part.length * rows, (part.start + part.length) * rows
            if batch and (own > self._batch_tokens or seen > KEYS * self._batch_tokens):
                yield batch
                batch = []
            batch.append(step)
        yield batch

    def _step_or_halve(self, block: Block, layer: int, batch: list[Step]) -> None:
        """Run one layer for a batch; where the accelerator's memory ends, for its halves, and stay at their size."""
        try:
            self._step(block, layer, batch)
            return
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        # Outside the handler, so that the failed call's tensors are free before the next one is made.
        half = len(batch) // 2
        tokens = max(block.parts[step.part].length for step in batch)
        self._batch_tokens = min(self._batch_tokens, half * tokens)
        free_accelerator_memory()
        self._step_or_halve(block, layer, batch[:half])
        self._step_or_halve(block, layer, batch[half:])

    def _step(self, block: Block, layer: int, batch: list[Step]) -> None:
        """Run one layer for a batch of alike steps and set what their nodes hold."""
        parts, nodes = [block.parts[step.part] for step in batch], [step.node for step in batch]
        lengths = [part.length for part in parts]
        start, shared = parts[0].start, _is_shared(block, batch[0])
        # Padding stands on the right, where no real token looks; zeros keep it finite.
        inputs = [block.incoming(step.part, step.node.parent) for step in batch if step.node.parent is not None]
        hidden = pad_sequence(inputs, batch_first=True)
        call = block.arguments.tokens(layer, [part.row for part in parts], start, start + max(lengths))
        before = stacked([node.shared.memory for node in nodes if node.shared is not None])
        memory = None
        if shared:
            output, memory = self._layers.record(layer, hidden, call)
        else:
            output = self._layers.run(layer, hidden, call, before)
        # Memory can end in the copies as well: nothing is set or counted before all of them are made.
        states = [output[i, :length].clone() for i, length in enumerate(lengths)]
        memories = [None if memory is None else memory.row(i, length) for i, length in enumerate(lengths)]
        for node, step, state, held in zip(nodes, batch, states, memories, strict=True):
            node.state, node.memory = state, held
            if not shared:
                block.executed[step.part] += 1


def _first_read(row: Row) -> int:
    """Return the index of the first token that a target is read after; the last one's where there are no targets."""
    return min(row.readout, default=len(row.tokens) - 1)


def _is_shared(block: Block, step: Step) -> bool:
    """Whether a step's tokens are those that rows share, so that their keys and values are needed."""
    return step.part >= len(block.rows)


def _alike(block: Block, steps: Sequence[Step]) -> Iterable[list[Step]]:
    """Group steps of one layer by what one batch must have in common: tokens in front, and whether it is shared."""
    groups: dict[tuple[int, bool], list[Step]] = defaultdict(list)
    for step in steps:
        groups[block.parts[step.part].start, _is_shared(block, step)].append(step)
    return groups.values()


class Step(NamedTuple):
    """One layer for one part of a row.

    Attributes:
        part: index of the part in its block.
        node: what is computed.
    """

    part: int
    node: StateNode


class Plan:
    """The steps of a run: each as soon as what it reads is there, the lowest layer first.

    What is still to be read is kept out of the cache, so that nothing drops it.
    """

    def __init__(self, block: Block, cache: StateCache) -> None:
        """Make an empty plan."""
        self._block = block
        self._cache = cache
        self._parts: dict[StateNode, int] = {}
        self._readers: dict[StateNode, int] = defaultdict(int)
        self._ends: dict[StateNode, None] = {}
        self._waiting: dict[StateNode, list[Step]] = defaultdict(list)
        self._ready: dict[int, list[Step]] = defaultdict(list)

    def want(self, part: int, node: StateNode) -> None:
        """Plan a part's node, and all before it that is not held; call `keep_ends` when it has been used."""
        self._ends[node] = None
        if node.state is not None:
            self._cache.release(node)
        else:
            self._plan(part, node)

    def _plan(self, part: int, node: StateNode) -> None:
        prefix = self._block.parts[part].prefix
        while node not in self._parts:
            self._parts[node] = part
            parent, shared = node.parent, node.shared
            assert parent is not None
            self._readers[parent] += 1
            if shared is not None:
                assert prefix is not None
                self._readers[shared] += 1
                if shared.memory is None:
                    self._plan(prefix, shared)
                else:
                    self._cache.release(shared)
            if parent.state is not None:
                self._cache.release(parent)
                return
            node = parent

    def start(self) -> None:
        """Find the steps that can run at once; nothing more can be planned then."""
        for node, part in self._parts.items():
            step, missing = Step(part, node), _missing(node)
            for read in missing:
                self._waiting[read].append(step)
            if not missing:
                self._ready[node.layer].append(step)

    def next_layer(self) -> tuple[int, list[Step]] | None:
        """Return the lowest layer that steps wait at, and these; None when all are done."""
        if not self._ready:
            return None
        layer = min(self._ready)
        return layer, self._ready.pop(layer)

    def finish(self, step: Step) -> None:
        """Let the steps that waited for this one run, and what it read be dropped once nothing else reads it."""
        for after in self._waiting.pop(step.node, ()):
            if not _missing(after.node):
                self._ready[after.node.layer].append(after)
        for read in (step.node.parent, step.node.shared):
            if read is None:
                continue
            self._readers[read] -= 1
            if not self._readers[read] and read not in self._ends:
                self._cache.keep(read)

    def keep_ends(self) -> None:
        """Give the wanted nodes to the cache."""
        for node in self._ends:
            self._cache.keep(node)

    def abandon(self) -> None:
        """Give all that is held to the cache, after an error."""
        for node in (*self._readers, *self._parts, *self._ends):
            self._cache.keep(node)


def _missing(node: StateNode) -> list[StateNode]:
    """Return what a node's step reads and is not there yet."""
    missing = []
    if node.parent is not None and node.parent.state is None:
        missing.append(node.parent)
    if node.shared is not None and node.shared.memory is None:
        missing.append(node.shared)
    return missing
