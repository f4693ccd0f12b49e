"""A mistake in the config ends `snakemake` before any work: exit status 1 and one clear line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_run import ROOT, snakemake

MISTAKES = {
    "an unknown key": ({"sede": 1}, "error: config.sede: unknown key; did you mean 'seed'?"),
    "an unknown variant": (
        {"library": {"attention": ["gqa-1"], "ffn": ["ffn_60"]}},
        "error: config: library.ffn[0]: 'ffn_60' is not a known variant; did you mean 'width-0.6'?",
    ),
    "KV heads that do not divide": (
        {"library": {"attention": ["gqa-3"]}},
        "error: config: library.attention[0]: 'gqa-3': 3 KV heads do not divide the parent's 2; valid: gqa-1",
    ),
    "a seed beyond all generators": (
        {"seed": 2**64},
        f"error: config: seed: {2**64} is beyond the largest integer, {2**63 - 1}",
    ),
    "layers dropped without no-op": (
        {"library": {"attention": ["gqa-1"], "ffn": ["linear", "no-op"]}},
        "error: config: targets.small.compare_layers_dropped: whole layers cannot be dropped without 'no-op'; add it "
        "to library.attention, or set compare_layers_dropped: false",
    ),
    "a variant larger than the parent's": (
        {"library": {"attention": ["no-op"], "ffn": ["no-op", "lowrank-100000"]}},
        "error: config.library.ffn[1]: 'lowrank-100000' has no fewer weights than the parent's matrices of 32 x 64; "
        "choose a smaller number",
    ),
    "a scenario beyond the parent's positions": (
        {"scenarios": {"long": {"prefill": 120, "generate": 9, "batch_sizes": [1]}}},
        "error: config.scenarios.long: prefill + generate: 129 tokens exceed the parent's 128 positions "
        "(max_position_embeddings); lower it",
    ),
    "a parent that is not there": (
        {
            "parent": {
                "source": {"type": "local", "path": "no/where"},
                "num_layers": 3,
                "num_attention_heads": 4,
                "num_kv_heads": 2,
            }
        },
        "error: config.parent.source.path: folder 'no/where' does not exist",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_config_is_one_line(mistake: str, tiny_config: dict, tmp_path: Path) -> None:
    change, message = MISTAKES[mistake]
    done = snakemake(tmp_path, tiny_config | change, "--cores", "2")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [message]
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_a_key_twice_in_any_config_file_is_one_line(tiny_config: dict, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("seed: 2\nfinetune:\n  batch_size: 2\n  micro_batch_size: 2\n  batch_size: 4\n")
    done = snakemake(tmp_path, tiny_config, str(other), "--cores", "2", "-n")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"error: {other}: 'finetune.batch_size' appears twice, in lines 3 and 5; keep one"
    ]
    done = snakemake(tmp_path, tiny_config, "--cores", "2", "-n", "--config", "seed=1", "seed=7")
    assert done.stderr.splitlines() == ["error: --config: 'seed' appears twice; keep one"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a GPU")
def test_a_missing_device_ends_a_run_before_its_first_job(tiny_config: dict, tmp_path: Path) -> None:
    library = {  # int8 is refused at once, as it needs a CPU
        kind: [name for name in names if "@int8" not in name] if isinstance(names, list | tuple) else names
        for kind, names in tiny_config["library"].items()
    }
    config = tiny_config | {"device": "cuda", "library": library}
    assert snakemake(tmp_path, config, "--cores", "2", "-n").returncode == 0, "a plan needs no GPU"
    done = snakemake(tmp_path, config, "--cores", "2")
    assert done.returncode == 1
    assert "error: config.device: cuda needs a GPU, and torch" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "results" / "tiny" / "parent").exists()
    corpus = [sys.executable, "-m", "tangram.commands.build_corpus", "--settings", "{}", "--split", "score"]
    corpus += ["--parent", "nowhere", "--output", str(tmp_path / "score.parquet"), "--runtime", "device=cuda"]
    job = subprocess.run(corpus, capture_output=True, text=True)
    assert job.returncode == 1
    assert job.stderr.startswith("error: config.device: cuda needs a GPU")
    assert len(job.stderr.splitlines()) == 1


@pytest.mark.slow
def test_make_takes_a_config_whose_name_has_spaces_and_quotes(tiny_config: dict, tmp_path: Path) -> None:
    """`make run` passes one config file of any name to Snakemake; the error shows that it was read."""
    path = tmp_path / "it's my config (v2) & $HOME.yaml"
    path.write_text(yaml.safe_dump(tiny_config | {"sede": 1}))
    ready = tmp_path / "ready"
    ready.touch()
    command = ["make", "--no-print-directory", "run", f"CONFIG={path}", f"READY={ready}", "CORES=2"]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert "error: config.sede: unknown key; did you mean 'seed'?" in done.stderr
