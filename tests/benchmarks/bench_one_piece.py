"""Children that have one piece in the layers where it costs least: sum of scores beside the true KL on held-out text.

``python tests/benchmarks/bench_one_piece.py results/mine --variants window-256,heads-6 --layers 10,20,30``, after
``snakemake collect_scores``. Children are not finetuned; KL in nats per token, at every fourth position.
``--questions 12`` prints instead what parent and children answer about long texts (`evaluation.long_context`): right
answers, and the change of the margin of the right answer, paired by question.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.child.assemble import assemble_state, build_child, build_config, load_parent
from tangram.cli import Runtime
from tangram.config import LongContext, Scores
from tangram.evaluation.long_context import Generator, margins, read_sentences
from tangram.models.loading import load_model, load_tokenizer
from tangram.models.packed import pack
from tangram.tables import SCORES, read_table
from tangram_studies.search_fidelity import library_of, texts_of


class Questions:
    """What models answer about long texts, beside the parent.

    Args:
        results: folder of a run.
        settings: the questions.
    """

    def __init__(self, results: Path, settings: LongContext) -> None:
        tokenizer = load_tokenizer(results / "parent")
        sentences = read_sentences(results / "corpus" / "heldout.parquet", tokenizer)
        generator = Generator(settings, tokenizer, sentences, seed=0)
        self._cases = [(task, length) for task in settings.tasks for length in settings.lengths]
        self._asked = {case: generator.questions(*case) for case in self._cases}
        self._tokenizer = tokenizer
        self._library = library_of(results)
        self._config, self._state = load_parent(results / "parent")
        self._parent = self._answers(load_model(str(results / "parent"), "float32"))

    def _answers(self, model: torch.nn.Module) -> list[np.ndarray]:
        pack(model)
        return [np.array(margins(model, self._tokenizer, self._asked[case], str(case))) for case in self._cases]

    def header(self) -> str:
        """Return the table's head and the parent's row."""
        names = [f"{task}, {length} tokens: right | margin" for task, length in self._cases]
        right = [f"{(values > 0).sum()} of {len(values)} | {values.mean():.2f}" for values in self._parent]
        rule = "|---|---|" + "---|---|" * len(names)
        return f"| layers | piece | {' | '.join(names)} |\n{rule}\n| 0 | parent | {' | '.join(right)} |"

    def row(self, child: Architecture) -> str:
        """Return a child's cells: right answers, and the change of the margin with its standard error."""
        state = assemble_state(self._state, child, self._library)
        model = build_child(build_config(self._config, child), state)
        cells = []
        for own, parents in zip(self._answers(model), self._parent, strict=True):
            change = own - parents
            error = change.std(ddof=1) / len(change) ** 0.5
            cells.append(f"{(own > 0).sum()} of {len(own)} | {change.mean():+.2f} ± {error:.2f}")
        return " | ".join(cells)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--variants", default="window-64,window-256,heads-6", help="of attention")
    parser.add_argument("--layers", default="10,20,30", help="numbers of layers that have the piece")
    parser.add_argument("--sequences", type=int, default=2, help="held-out sequences")
    parser.add_argument("--questions", type=int, help="questions per task and length, instead of KL")
    parser.add_argument("--lengths", default="512,1536", help="lengths of the questions in tokens")
    parser.add_argument("--tasks", default="needle,variable-tracking", help="of the questions")
    options = parser.parse_args()
    torch.set_num_threads(1)
    scores = read_table(options.results / "scores.parquet", SCORES)
    scores = scores[(scores["kind"] == "attention") & (scores["metric"] == "kl")]
    layers = sorted(set(scores["layer"]))
    if options.questions:
        asked = {"lengths": options.lengths.split(","), "tasks": options.tasks.split(",")}
        questions = Questions(options.results, LongContext(**asked, questions=options.questions))
        print(questions.header(), flush=True)
    else:
        text = texts_of(options.results, Scores(batch_size=1), options.sequences, Runtime())["heldout"]
        print("| layers | piece | sum of scores | KL | KL by sequence |\n|---|---|---|---|---|")
    for count in map(int, options.layers.split(",")):
        for variant in options.variants.split(","):
            smallest = scores[scores["variant"] == variant].nsmallest(count, "value")
            chosen = set(smallest["layer"])
            child = Architecture(
                tuple(LayerChoice(attention=variant) if i in chosen else LayerChoice() for i in layers)
            )
            if options.questions:
                cells = questions.row(child)
            else:
                values = text.look([child])[0]
                each = ", ".join(f"{value:.3f}" for value in values)
                cells = f"{smallest['value'].sum():.3f} | {values.mean():.3f} | {each}"
            print(f"| {count} | `{variant}` | {cells} |", flush=True)


if __name__ == "__main__":
    main()
