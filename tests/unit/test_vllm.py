"""Finding vLLM."""

import sys

from tangram import vllm


def test_a_python_that_the_environment_names_comes_first(monkeypatch, tmp_path):
    (tmp_path / "vllm").write_text("#!/bin/sh\n")
    (tmp_path / "vllm").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(vllm.PYTHON, raising=False)
    assert vllm.latency_benchmark() is None, "no Python stands beside the command"
    (tmp_path / "python").symlink_to(sys.executable)
    assert vllm.latency_benchmark() == [str(tmp_path / "python"), "-c", vllm.BENCHMARK]
    monkeypatch.setenv(vllm.PYTHON, sys.executable)
    assert vllm.latency_benchmark() == [sys.executable, "-c", vllm.BENCHMARK]
    monkeypatch.setenv(vllm.PYTHON, str(tmp_path / "none"))
    assert vllm.latency_benchmark() is None
    monkeypatch.delenv(vllm.PYTHON)
    (tmp_path / "vllm").unlink()
    assert vllm.latency_benchmark() is None
