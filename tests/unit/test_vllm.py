"""Finding vLLM."""

import sys

from tangram import vllm


def test_a_python_that_the_environment_names_comes_first(monkeypatch, tmp_path):
    (tmp_path / "vllm").write_text("#!/bin/sh\n")
    (tmp_path / "vllm").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(vllm.PYTHON, raising=False)
    assert vllm.command() == ["vllm"]
    monkeypatch.setenv(vllm.PYTHON, sys.executable)
    assert vllm.command() == [sys.executable, "-m", "vllm.entrypoints.cli.main"]
    monkeypatch.setenv(vllm.PYTHON, str(tmp_path / "none"))
    assert vllm.command() is None
    monkeypatch.delenv(vllm.PYTHON)
    (tmp_path / "vllm").unlink()
    assert vllm.command() is None
