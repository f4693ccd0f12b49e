"""Export: a child in the formats of other engines.

- Input: `targets/{target}/{solution}/finetuned/`.
- Output: `targets/{target}/{solution}/export/`: `model.gguf` (llama.cpp), `decilm/` (vLLM), `hf/` (transformers),
  and the model card `README.md`; for targets in llama.cpp the parent's `engines/parent/{type}/model.gguf`.
- Steps: pack the child's subblocks into the layers of the format, write them with the tokenizer; write the card.
"""


rule export_gguf:
    """Write a child as a file for llama.cpp."""
    input:
        child="<results>/targets/{target}/{solution}/finetuned/model.safetensors",
    output:
        exported=EXPORTED["gguf"](f"{CHILD}/export"),
    log:
        "<logs>/export_gguf/{target}/{solution}.log",
    benchmark:
        "<benchmarks>/export_gguf/{target}/{solution}.tsv"
    params:
        **code_of("export_child", "gguf", "transformers"),
        format="gguf",
        folder=output_folder("exported"),
    conda:
        "../envs/tangram.yaml"
    message:
        "export_gguf: write a child for llama.cpp, {wildcards}"
    shell:
        command("export_child", without=("floats",))


rule export_decilm:
    """Write a child as a checkpoint for vLLM."""
    input:
        child="<results>/targets/{target}/{solution}/finetuned/model.safetensors",
    output:
        exported=EXPORTED["decilm"](f"{CHILD}/export"),
    log:
        "<logs>/export_decilm/{target}/{solution}.log",
    benchmark:
        "<benchmarks>/export_decilm/{target}/{solution}.tsv"
    params:
        **code_of("export_child", "transformers"),
        format="decilm",
        folder=output_folder("exported"),
    conda:
        "../envs/tangram.yaml"
    message:
        "export_decilm: write a child for vLLM, {wildcards}"
    shell:
        command("export_child", without=("floats",))


rule export_hf:
    """Write a child in transformers' own schema."""
    input:
        child="<results>/targets/{target}/{solution}/finetuned/model.safetensors",
    output:
        exported=EXPORTED["hf"](f"{CHILD}/export"),
    log:
        "<logs>/export_hf/{target}/{solution}.log",
    benchmark:
        "<benchmarks>/export_hf/{target}/{solution}.tsv"
    params:
        **code_of("export_child", "transformers"),
        format="hf",
        folder=output_folder("exported"),
    conda:
        "../envs/tangram.yaml"
    message:
        "export_hf: write a child in transformers' own schema, {wildcards}"
    shell:
        command("export_child", without=("floats",))


rule export_parent:
    """Write the parent as a file for llama.cpp, in a type that a user would take instead of a child."""
    input:
        child="<results>/parent/model.safetensors",
    output:
        exported=PARENT_FILE,
    log:
        "<logs>/export_parent/{type}.log",
    benchmark:
        "<benchmarks>/export_parent/{type}.tsv"
    params:
        **code_of("export_child", "gguf", "transformers", "xllamacpp"),
        format="gguf",
        folder=output_folder("exported"),
        floats="{type}",
    conda:
        "../envs/tangram.yaml"
    message:
        "export_parent: write the parent for llama.cpp, {wildcards}"
    shell:
        command("export_child")


rule write_card:
    """Write a child's model card."""
    input:
        parent="<results>/parent/model.safetensors",
        child="<results>/targets/{target}/{solution}/finetuned/model.safetensors",
        architecture=architecture_of,
        evaluation="<results>/targets/{target}/{solution}/evaluation.parquet",
        parent_evaluation="<results>/parent_evaluation.parquet",
        speeds="<results>/speeds/torch.parquet",
        engine=in_engines(f"{CHILD}/engine.parquet", *READ_BY),
        parent_engine=in_engines(f"{RESULTS}/parent_engine.parquet", LLAMA_CPP),
        engine_speeds=speeds_in_engine,
    output:
        EXPORTED["card"](f"{CHILD}/export"),
    log:
        "<logs>/write_card/{target}/{solution}.log",
    benchmark:
        "<benchmarks>/write_card/{target}/{solution}.tsv"
    params:
        **code_of("write_card", variants=variants_in_file(architecture_of)),
        settings=card_settings,
    conda:
        "../envs/tangram.yaml"
    message:
        "write_card: write a child's model card, {wildcards}"
    shell:
        command("write_card")
