"""Print accuracies on tasks, paired differences and the quality kept, from tables of `evaluate_tasks`.

python tests/benchmarks/show_tasks.py TABLE...
"""

import sys

import pandas as pd

from tangram.report.estimates import CONFIDENCE, PARENT_KEY
from tangram.report.samples import by_model, counted, mean_of, normalized, share_of_parent
from tangram.tables import SAMPLES, read_table


def main(paths: list[str]) -> None:
    """Print one line per model and metric of each task, then each model's quality kept with its 95 % interval."""
    frame = pd.concat([read_table(path, SAMPLES) for path in paths]).assign(target="", solution="")
    samples = by_model(frame)
    models = list(dict.fromkeys(key for key, _, _ in samples))
    for task in dict.fromkeys(task for _, task, _ in samples):
        for key, of_task, metric in samples:
            if of_task != task or metric.startswith("chance"):
                continue
            values = samples[key, task, metric]
            own, difference = mean_of(values).times(100), mean_of(values - samples[PARENT_KEY, task, metric]).times(100)
            paired = (
                "" if key == PARENT_KEY else f", - parent {difference.value:+.1f} ± {difference.standard_error:.1f}"
            )
            print(f"{task}, {key.model}, {metric}: {own.value:.1f} ± {own.standard_error:.1f} % of {own.n}{paired}")
    for key in models[1:]:
        for tasks in (*([task] for task in counted(samples, key)), list(counted(samples, key))):
            part = {name: values for name, values in samples.items() if name[1] in tasks}
            if kept := share_of_parent(part, normalized(part, key)):
                half = CONFIDENCE * (kept.standard_error or 0)
                interval = f"{100 * (kept.value - half):.1f} to {100 * (kept.value + half):.1f}"
                print(f"{key.model}, quality kept on {', '.join(tasks)}: {100 * kept.value:.1f} %, {interval}")


if __name__ == "__main__":
    main(sys.argv[1:])
