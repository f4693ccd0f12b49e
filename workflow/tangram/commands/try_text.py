"""One trial of a text: finetune the parent without some layers on one draw of a source."""

from typing import Annotated

import typer

from tangram.cli import ONE_THREAD, RuntimeOption, reads, reads_model, run, writes
from tangram.config import Finetune, Packing, TextSource


class Settings(Packing):
    """The slice of the config that this command needs: that of one candidate."""

    source: TextSource
    tokens: int
    heldout_tokens: int
    removed: float
    finetune: Finetune


def try_text(
    settings: Annotated[str, typer.Option(help="the candidate's source, tokens and finetuning as JSON")],
    draw: Annotated[int, typer.Option(help="number of the draw; the first measures the untrained child, too")],
    parent: Annotated[str, reads_model("parent")],
    corpus: Annotated[str, reads("held-out split")],
    output: Annotated[str, writes("SAMPLES table of the held-out sequences")],
    activations: Annotated[str | None, reads("held-out split's cached activations; recomputed if omitted")] = None,
    source_files: Annotated[str, typer.Option(help="fingerprint of the local texts, to record")] = "none",
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Write KL, loss and agreement of the trained child on the run's held-out text and on that of its source.

    Training text comes from the source's documents of the finetune split, its held-out text from those of the held-out
    split, so they share no document with each other or with the run's held-out text.
    """
    runtime.start()
    import json
    from pathlib import Path

    import torch

    from tangram.activations import Activations, StreamedActivations, open_activations
    from tangram.config import Split
    from tangram.config.limits import check_length
    from tangram.config.sources import METADATA
    from tangram.corpus.build import build_split
    from tangram.corpus.tokens import read_tokens
    from tangram.evaluation.text import compare_on_text, sequence_rows
    from tangram.files import check_writable
    from tangram.finetune import finetune
    from tangram.models.families import decoder_layers
    from tangram.models.loading import load_model
    from tangram.provenance import provenance
    from tangram.tables import SAMPLES, write_table
    from tangram.trials.trial import middle_layers, remove_layers
    from tangram.trials.verdicts import COMMON, OWN

    section = Settings.model_validate_json(settings)
    check_writable(output)
    check_length("corpus.sequence_length", section.sequence_length, json.loads(Path(parent, "config.json").read_text()))
    label = f"try_text {Path(output).parent.name} draw {draw}"

    def tokens_of(split: str, tokens: int, seed: int) -> torch.Tensor:
        content = Split(tokens=tokens, sources=(section.source,))
        rows = build_split(split, content, section, parent, seed, runtime.dtype, runtime.device)
        return torch.tensor([row["input_ids"] for row in rows])

    training = tokens_of("finetune", section.tokens, runtime.seed + draw)
    own = tokens_of("heldout", section.heldout_tokens, runtime.seed)  # the same in every draw
    teacher, child = (load_model(parent, runtime.dtype, runtime.device) for _ in range(2))
    layers = len(decoder_layers(teacher))
    remove_layers(child, middle_layers(layers, section.removed))
    batch = section.finetune.micro_batch_size
    common = read_tokens(corpus)
    states: dict[str, tuple[torch.Tensor, Activations]] = {
        COMMON: (common, open_activations(activations, teacher, common, batch, runtime.local_copy)),
        OWN: (own, StreamedActivations(teacher, own, batch)),
    }
    final = {name: (ids, activations.hidden(layers)) for name, (ids, activations) in states.items()}

    def measure(model: str) -> list[dict[str, object]]:
        rows = []
        for name, (ids, hidden) in final.items():
            metrics = compare_on_text(child, teacher, hidden, ids, batch, f"{label}: {model} on {name}")
            rows += sequence_rows(model, name, metrics)
        return rows

    rows = measure("child") if draw == 0 else []
    seed = runtime.seed + draw
    finetune(child, teacher, StreamedActivations(teacher, training, batch), training, section.finetune, seed, label)
    rows += measure("finetuned")
    metadata = provenance("tangram.commands.try_text", settings, runtime.device)
    write_table(rows, SAMPLES, output, {**metadata, METADATA: source_files})


if __name__ == "__main__":
    run(try_text)
