"""Tangram turns a trained decoder into a faster heterogeneous child and reports on it.

The stages below follow the data flow, one file each in `rules/`.
"""

from snakemake.utils import min_version

min_version("9.27")

# Only without `--configfile`, as Snakemake would merge the two.
if not workflow.configfiles:

    configfile: workflow.current_basedir.join("config/config.yaml").get_path_or_uri(secret_free=False)


report: "workflow/report/workflow.rst"


include: "rules/common.smk"
include: "rules/parent.smk"
include: "rules/corpus.smk"
include: "rules/activations.smk"
include: "rules/trials.smk"
include: "rules/library.smk"
include: "rules/scores.smk"
include: "rules/costs.smk"
include: "rules/search.smk"
include: "rules/selection.smk"
include: "rules/rounds.smk"
include: "rules/child.smk"
include: "rules/finetune.smk"
include: "rules/export.smk"
include: "rules/evaluation.smk"
include: "rules/report.smk"
# Reproductions of papers, not part of `all`: `snakemake study_ntk`.
include: "rules/studies.smk"


rule all:
    """Request every output of a run, so that any deleted file is rebuilt."""
    default_target: True
    input:
        checkpoint_of(PARENT),
        library_files("safetensors", "parquet", "curves.parquet"),
        [*SCORE_FILES, *COST_FILES, *SEARCH_FILES],
        of_children("architecture.json", "evaluation.parquet"),
        [checkpoint_of(f"{child}/{stage}") for child in CHILDREN for stage in ("child", "finetuned")],
        [*exported(), *of_engines()],
        f"{RESULTS}/speeds/torch.parquet",
        f"{RESULTS}/report.html",
    message:
        "all: the run is complete"


onsuccess:
    shell("python -m tangram.commands.print_summary --results {RESULTS:q} --settings {REPORT_SETTINGS:q}")


onerror:
    logger.error(f"a job failed, see {RESULTS}/logs; the same command goes on (after Ctrl-C: `tangram recover` first)")
