"""Estimates of each stage's time, memory and disk: operations and bytes from the config, over a device's rates."""

from __future__ import annotations

from collections.abc import Iterator

from tangram.blocks import KINDS
from tangram.blocks.base import FITTED_TOKENS, HEAD
from tangram.config import Config, Split
from tangram.engines import LLAMA_CPP, PARENT_TYPES, TORCH, VLLM, timed
from tangram.tools.rates import RATES, Rates, Stage
from tangram.tools.sizes import sizes_of
from tangram.tools.work import FORWARD, MASTER_BYTES, TRAINING, Work, trained_bytes

LOADS = {TORCH: 1, LLAMA_CPP: 3, VLLM: 1}  # copies of each stack in timing
QUESTION_TOKENS = 64  # of a question with its choices, roughly
CONTENDERS = 3  # pieces that a target's rounds score exactly, per layer; more targets share some
STARTUP = {VLLM: 20}  # seconds in which the engine starts, anew for every model in every measurement


class Stages(Work):
    """The stages of a run; each method that returns stages covers one part of the data flow."""

    def parent(self) -> Iterator[Stage]:
        """Yield the download and conversion of the parent.

        The fidelity check computes on a CPU, in float32: its budget of operations, or 64 tokens in each of six passes.
        """
        gate = max(1e12, FORWARD * 6 * 64 * self.sizes.total) / RATES["cpu"].flops
        seconds = self.rates.startup + 5 * self.model_bytes / self.rates.disk_bytes + gate
        yield Stage(
            "fetch_parent",
            1,
            1,
            seconds,
            max(2 * self.model_bytes, self.model_bytes + 4 * self.sizes.total),
            self.model_bytes,
        )

    def _sampling(self, split: Split) -> float:
        """Return the seconds in which the parent samples its share of a split."""
        sizes, rates = self.sizes, self.rates
        weight = sum(s.weight for s in split.sources if s.type == "parent-samples")
        share = weight / sum(s.weight for s in split.sources)
        batch = next((s.batch_size for s in split.sources if s.type == "parent-samples"), 1)
        # One step reads all weights and computes with them; the longer of the two counts.
        step = max(self.model_bytes / rates.decode_bytes, FORWARD * batch * (sizes.body + sizes.head) / rates.flops)
        return share * split.tokens / batch * step

    def corpus(self) -> Iterator[Stage]:
        """Yield the corpus' splits."""
        for split in self.splits.values():
            sampling = self._sampling(split)
            seconds = self.loading + sampling if sampling else self.rates.startup
            yield Stage("build_corpus", 1, 1, seconds, self.model_bytes if sampling else 1e9, 4 * split.tokens)

    def trials(self) -> Iterator[Stage]:
        """Yield the trials of texts: a child trained on every draw of each source, from streamed activations."""
        trials, sizes, heldout = self.config.text_trials, self.sizes, self.tokens["heldout"]
        remaining = (1 - trials.removed) * sizes.layers
        step = TRAINING * (remaining * sizes.layer + sizes.head) + FORWARD * (sizes.body + sizes.head)
        compared = trials.heldout_tokens + heldout
        states = self.forward(trials.heldout_tokens + heldout * self.stream, sizes.layers)
        # The trained child on both texts in every draw, the untrained one in the first; the parent's head beside it.
        measured = (1 + 1 / trials.draws) * (
            self.forward(compared, remaining, head=True) + self.forward(compared, 0, head=True)
        )
        for source in trials.sources.values():
            drawn = Split(tokens=trials.tokens + trials.heldout_tokens, sources=(source,))
            seconds = 2 * self.loading + self._sampling(drawn) + states + measured
            seconds += trials.tokens * step / self.rates.flops
            memory = self.model_bytes + self._finetune_bytes(1)
            yield Stage("try_text", trials.draws, 1, seconds, memory, 0)
        if trials.sources:
            yield Stage("try_texts", 1, 1, self.rates.startup, 1e9, 0)

    def activations(self) -> Iterator[Stage]:
        """Yield the capture of hidden states, unless they are streamed."""
        layers = self.sizes.layers
        for count in () if self.stream else self.tokens.values():
            hidden_bytes = 4 * (layers + 1) * count * self.sizes.hidden
            seconds = self.loading + self.forward(count, layers) + hidden_bytes / self.rates.disk_bytes
            yield Stage("capture_activations", 1, 1, seconds, self.loaded_bytes, hidden_bytes)

    def moments(self) -> Iterator[Stage]:
        """Yield the pass that measures moments, for each kind with a variant that uses them."""
        tokens, sizes, element = self.tokens["distill"], self.sizes, self.element
        before = self.forward(tokens, sizes.layers / 2) if self.stream else 0  # mean over shards
        pieces = self.blocks(self.config.library.distilled)
        for kind in sorted({piece.kind for piece in pieces if piece.uses_moments}):
            inner = sizes.inner if kind == "ffn" else sizes.hidden
            numbers = 2 * sizes.hidden**2 + inner**2
            local = FORWARD * tokens * (sizes.layer + 4 * sizes.hidden**2 + inner**2)  # the inputs' in float64
            seconds = self.loading + before + self.layers_per_shard * local / self.rates.flops
            states = 3 * element * tokens * sizes.hidden + FITTED_TOKENS // 4 * (4 * 8 * sizes.hidden + 3 * 4 * inner)
            memory = self.loaded_bytes + states + 2 * 8 * numbers
            yield Stage("measure_moments", self.shards, 1, seconds, memory, 4 * numbers * sizes.layers)

    def library(self) -> Iterator[Stage]:
        """Yield block distillation."""
        bld, tokens, sizes, element = self.config.library.bld, self.tokens["distill"], self.sizes, self.element
        trained = (1 - bld.holdout_fraction) * tokens
        stream_numbers = tokens * sizes.hidden
        states = 3 * element * stream_numbers  # inputs, middle and outputs
        pass_bytes = bld.batch_size * self.length("distill") * sizes.activations * element
        before = self.forward(tokens, sizes.layers / 2) if self.stream else 0  # mean over shards
        for piece in self.blocks(self.config.library.distilled):
            weights = self.weights_of(piece)
            frozen = sizes.ffn if piece.kind == "attention" else 0  # the parent's FFN, forward and backward
            passes = trained * bld.epochs if piece.trainable else 0
            local = passes * (TRAINING * weights + 2 * FORWARD * frozen)
            local += tokens * FORWARD * (2 * sizes.layer + piece.operations_to_fit())
            # Matrices of the moments' size in float64, or normed inputs and differences in float32.
            width = sizes.inner if piece.kind == "ffn" and piece.pruned else sizes.hidden
            fitting = 4 * 8 * width**2 if piece.uses_moments else (element + 4) * stream_numbers
            # Training needs a copy of the layer and of the piece's initial weights.
            training = pass_bytes + element * sizes.layer + 4 * weights + trained_bytes(weights, element)
            memory = self.loaded_bytes + states + max(fitting, training)
            seconds = self.loading + before + self.layers_per_shard * local / self.rates.flops
            yield Stage("distill_blocks", self.shards, 1, seconds, memory, self.bytes_of(piece) * sizes.layers)

    def coupled(self) -> Iterator[Stage]:
        """Yield the training of pairs: every weight of both variants."""
        bld, tokens, sizes, element = self.config.library.bld, self.tokens["distill"], self.sizes, self.element
        trained = (1 - bld.holdout_fraction) * tokens * bld.epochs
        before = self.forward(tokens, sizes.layers / 2) if self.stream else 0  # mean over shards
        states, pass_bytes = 3 * element * tokens * sizes.hidden, bld.batch_size * self.length("distill")
        named = {(p.kind, str(p.variant)): p for p in self.blocks(self.config.library.plain)}
        for pair in self.config.library.pairs():
            pieces = [named[piece] for piece in zip(KINDS, pair.split("+"), strict=True)]
            weights = sum(map(self.weights_of, pieces))
            local = trained * TRAINING * weights + tokens * FORWARD * 2 * (sizes.layer + weights)
            training = pass_bytes * sizes.activations * element + element * sizes.layer + 4 * weights
            memory = self.loaded_bytes + states + training + trained_bytes(weights, element)
            seconds = self.loading + before + self.layers_per_shard * local / self.rates.flops
            disk = sum(map(self.bytes_of, pieces)) * sizes.layers
            yield Stage("distill_pairs", self.shards, 1, seconds, memory, disk)

    def quantized(self) -> Iterator[Stage]:
        """Yield quantization: a forward pass for the inputs of the matrices, and one with the quantized piece."""
        sizes, element, tokens = self.sizes, self.element, self.tokens["distill"]
        states = 3 * element * tokens * sizes.hidden  # as in distillation
        for piece in self.blocks(self.config.library.quantized):
            jobs, layers = self.jobs_of(piece.kind), self.layers_of(piece.kind)
            before = self.forward(tokens, sizes.layers if piece.kind == HEAD else sizes.layers / 2)
            local = FORWARD * tokens * layers * (sizes.layer + self.weights_of(piece))
            seconds = self.loading + before * self.stream + local / self.rates.flops
            memory = self.loaded_bytes + states + (4 + element) * self.weights_of(piece)
            disk = self.bytes_of(piece) * layers * jobs
            yield Stage("quantize_blocks", jobs, 1, seconds, memory, disk)

    def scores(self) -> Iterator[Stage]:
        """Yield replace-1-block scores: those of all pieces, or estimates and the scores of contenders."""
        sizes, count, scores = self.sizes, self.tokens["score"], self.config.scores
        positions = count / scores.position_stride
        before = self.forward(count, sizes.layers) if self.stream else 0
        memory = self.loaded_bytes + 4 * 2 * count * sizes.hidden + 4 * positions * sizes.head / sizes.hidden
        pieces = self.blocks(self.config.library.variants)
        exact = self.exact_score
        if any(map(self.config.scores_layers, self.config.targets)):
            seconds = self.loading + before + self.layers_per_shard * exact
            yield Stage("score_layers", self.shards, 1, seconds, memory, 0)
        if scores.method == "screened":
            local = sum(FORWARD * count * self.weights_of(piece) for piece in pieces if piece.kind != HEAD)
            backward = (1 + scores.label_samples) * self.forward(count, sizes.layers, head=True)
            exact *= CONTENDERS * sizes.layers * len(self.config.targets) + len(self.config.library.variants(HEAD))
            seconds = backward + sizes.layers * local / self.rates.flops + before * sizes.layers / 2 + exact
            memory += 4 * (1 + scores.label_samples) * count * sizes.hidden
            yield Stage("score_screened", 1, 1, self.loading + seconds, memory, 0)
            return
        for _ in self.config.library.pairs():
            seconds = self.loading + before + self.layers_per_shard * exact
            yield Stage("score_blocks", self.shards, 1, seconds, memory, 0)
        for piece in pieces:
            layers = self.layers_of(piece.kind)
            one = self.forward(positions, 0, head=True) if piece.kind == HEAD else exact
            yield Stage("score_blocks", self.jobs_of(piece.kind), 1, self.loading + before + layers * one, memory, 0)
        asked = QUESTION_TOKENS * scores.tasks.questions if scores.tasks else 0
        for piece in pieces if asked else ():
            passes = 1 if piece.kind == HEAD else 1 + self.layers_of(piece.kind) / 2  # the parent's, and half for each
            seconds = self.loading + passes * self.forward(asked, sizes.layers)
            yield Stage("score_tasks", self.jobs_of(piece.kind), 1, seconds, memory, 0)

    def costs(self) -> Iterator[Stage]:
        """Yield the timing of pieces and of whole models, and the search."""
        costs, sizes, startup = self.config.costs, self.sizes, self.rates.startup
        stack = costs.stack_megabytes * 1e6
        for engine in self.config.engines:
            loads, start = LOADS[engine], STARTUP.get(engine, 0)
            for kind in (*KINDS, HEAD):
                size = self.element * getattr(sizes, kind)
                copies = loads * max(1.0, stack / size)
                seconds = startup + 2 * copies * self.timing(getattr(sizes, kind), 2 * costs.repeats)
                seconds += 4 * costs.repeats * start  # of two stacks of the parent's subblock and two of the variant
                jobs = 1 + len(timed(engine, kind, self.config.library.variants(kind)))
                memory = 2 * loads * max(stack, size) + self.cache_bytes / sizes.layers
                yield Stage("measure_costs", jobs, 1, seconds, memory, 0)
            seconds = startup + 4 * loads * self.timing(sizes.total, 3) + 4 * costs.calibration_repeats * start
            yield Stage("calibrate_costs", 1, 1, seconds, 2 * loads * self.model_bytes + self.cache_bytes, 0)
        yield Stage("solve_mip", len(self.config.targets), 1, 5, 1e9, 0)

    def child(self) -> Iterator[Stage]:
        """Yield the assembly of children."""
        seconds, memory = self.loading + self.model_bytes / self.rates.disk_bytes, self.model_bytes
        if self.config.assembly.compensate:  # parent and child run layer by layer
            tokens, sizes = self.tokens["distill"], self.sizes
            seconds += 2 * self.forward(tokens, sizes.layers)
            memory += self.loaded_bytes + 3 * self.element * tokens * sizes.hidden + 3 * 8 * sizes.inner**2
        yield Stage("assemble_child", self.children, 1, seconds, memory, self.children * self.model_bytes)

    def finetune(self) -> Iterator[Stage]:
        """Yield end-to-end distillation."""
        sizes, finetune = self.sizes, self.config.finetune
        devices = finetune.parallel.nodes * finetune.parallel.processes_per_node
        parts = devices if finetune.parallel.strategy == "fsdp" else 1
        step = TRAINING * (sizes.body + sizes.head) + FORWARD * (sizes.head + (sizes.body if self.stream else 0))
        step += FORWARD * sizes.body if parts > 1 else 0  # recomputation of layers
        budget, start = finetune.budget, self.loading + 2 * self.model_bytes / self.rates.disk_bytes
        count = budget.tokens or (budget.epochs or 1) * self.tokens["finetune"]
        training = 60 * budget.minutes if budget.minutes else count * step / self.rates.flops / devices
        memory, size = self._finetune_bytes(parts), self.model_bytes
        rounds = [target.rounds for target in self.config.targets.values() if target.rounds > 1]
        for number in rounds:  # all but the last one are one job
            before = (number - 1) * (training / number + self._scores_in_child())
            yield Stage("iterate_child", 1, 1, start + before, memory, size)
            yield Stage("finetune_child", 1, devices, start + training / number, memory, size)
        others = self.children - len(rounds)
        if others:
            yield Stage("finetune_child", others, devices, start + training, memory, others * size)

    def _scores_in_child(self) -> float:
        """Return the seconds in which a round scores pieces in a child: at most all pieces of all layers."""
        pieces = self.blocks(self.config.library.variants)
        number = sum(1 if piece.kind == HEAD else self.sizes.layers for piece in pieces)
        return number * self.exact_score + self.forward(self.tokens["score"], self.sizes.layers)

    def _finetune_bytes(self, parts: int) -> float:
        """Return the memory of one process if weights, gradients and moments are sharded into ``parts``."""
        sizes, element = self.sizes, self.element
        batch = self.config.finetune.micro_batch_size * self.length("finetune")
        layer, logits = batch * sizes.activations * element, batch * 4 * 4 * sizes.head / sizes.hidden
        ends = 2 * element * sizes.head  # the teacher's embedding and head, unsharded
        body = element * sizes.body if self.stream else 0
        if parts == 1:
            return trained_bytes(sizes.total, element) + body + ends + sizes.layers * layer + logits
        # Gathered: weights and gradients of embedding and head, and the larger of their communication buffers, in
        # float32, or two layers' weights, gradients and buffers. Layers are recomputed from their stored inputs.
        gathered = 2 * element * sizes.ends + max(4 * sizes.ends, (4 * element + 2 * 4) * sizes.layer)
        inputs = sizes.layers * batch * sizes.hidden * element
        return (MASTER_BYTES * sizes.total + body) / parts + ends + gathered + inputs + layer + logits

    def evaluation(self) -> Iterator[Stage]:
        """Yield the evaluation of children and parent: held-out text and throughput."""
        heldout = self.forward(self.tokens["heldout"], self.sizes.layers, head=True)
        yield Stage("evaluate_model", self.children, 1, 2 * (self.loading + heldout), 2 * self.model_bytes, 0)
        rounds = self.config.evaluation.throughput_repeats
        load = self.model_bytes / self.rates.disk_bytes + self.timing(self.sizes.total, 1, steps=True)

        def speed(models: int, start: float = 0) -> Stage:
            seconds = self.rates.startup + rounds * models * (start + load)
            return Stage("measure_speed", 1, 1, seconds, self.model_bytes + self.cache_bytes, 0)

        yield speed(self.children + 2)

        def exported(engine: str) -> int:
            targets = [name for name, target in self.config.targets.items() if target.engine == engine]
            return sum(len(self.config.exported(name)) for name in targets)

        if checkpoints := exported(VLLM):
            yield Stage(
                "evaluate_engine", checkpoints, 1, STARTUP[VLLM] + self.loading + heldout, 2 * self.model_bytes, 0
            )
            yield speed(checkpoints + 1, STARTUP[VLLM])
        if files := exported(LLAMA_CPP):
            parents, memory = len(PARENT_TYPES), 2 * self.model_bytes
            yield Stage("export_parent", parents, 1, self.loading, memory, parents * self.model_bytes)
            yield Stage("evaluate_parent_engine", 1, 1, self.loading + parents * heldout, memory, 0)
            yield Stage("evaluate_engine", files, 1, self.loading + heldout, memory, 0)
            yield speed(files + parents)


def stages(config: Config, rates: Rates) -> Iterator[Stage]:
    """Yield every stage of a run, in the order of the data flow.

    Args:
        config: the run's config.
        rates: rates of one device.
    """
    work = Stages(config, rates, sizes_of(config))
    parts = (
        work.parent, work.corpus, work.trials, work.activations, work.moments, work.library, work.coupled,
        work.quantized, work.scores, work.costs, work.child, work.finetune, work.evaluation,
    )  # fmt: skip
    for part in parts:
        yield from part()
