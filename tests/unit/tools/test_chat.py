import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tangram import llama_cpp
from tangram.commands.export_child import export_child
from tangram.errors import TangramError
from tangram.models.loading import load_model, load_tokenizer
from tangram.tools.chat import Chat, exported_model, parent_model, template_of

ROOT = Path(__file__).parents[3]
needs_llama_cpp = pytest.mark.skipif(llama_cpp.find() is None, reason=f"llama.cpp: {llama_cpp.INSTALL}")


@pytest.fixture(scope="module")
def parent(tiny_parent):
    return tiny_parent("llama")


@pytest.fixture(scope="module")
def exported(parent, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    export_child(str(parent), "gguf", str(folder))
    return folder / "model.gguf"


@needs_llama_cpp
def test_answers_are_greedy_as_in_transformers(parent, exported):
    model, tokenizer = load_model(parent), load_tokenizer(parent)
    messages = []
    with llama_cpp.Model(exported) as loaded:
        chat = Chat(loaded, template_of(exported), positions=100, threads=1)
        for text in ("The number 3.", "And 4?"):  # the second reads the first from the cache
            answer = b"".join(chat.answer(text, most=5))
            messages.append({"role": "user", "content": text})
            ids = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            ends = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])  # llama.cpp stops at both
            output = model.generate(**ids, max_new_tokens=5, do_sample=False, eos_token_id=ends)
            expected = tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
            assert answer.decode(errors="replace") == expected
            messages.append({"role": "assistant", "content": expected})
            assert all(speed > 0 for speed in chat.speeds)
        assert chat.messages == messages
        with pytest.raises(TangramError, match="more than --context 100"):
            next(chat.answer("number " * 100, most=1))
        chat.close()


@needs_llama_cpp
def test_a_terminal_shows_answers_with_their_speed(exported):
    command = [sys.executable, "-m", "tangram", "chat", str(exported), "--tokens", "4", "--threads", "1"]
    for others in ([], ["--beside", str(exported)]):
        run = subprocess.run(
            [*command, *others], input="The parent\n", capture_output=True, text=True, errors="replace"
        )
        assert run.returncode == 0, run.stderr
        *answers, end = run.stdout.split("tokens/s of the prompt")
        assert len(answers) == (2 if others else 1)
        assert end.strip().endswith("of the answer]")
    assert answers[0].count(f"{exported}:") == 1
    assert answers[0].split(":\n")[1].rpartition("[")[0] == answers[1].split(":\n")[1].rpartition("[")[0]


def test_a_target_without_a_file_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load((ROOT / "config" / "smollm2-structure.yaml").read_text())
    target = next(iter(config["targets"]))
    with pytest.raises(TangramError, match=rf"model.gguf does not exist; set targets.{target}.export: \[gguf\]"):
        exported_model(target, ROOT / "config" / "smollm2-structure.yaml")
    with pytest.raises(TangramError, match=r"'nothing' is not a target; valid: "):
        exported_model("nothing", ROOT / "config" / "smollm2-structure.yaml")
    with pytest.raises(TangramError, match=r"engines/parent/q8_0/model.gguf does not exist; set engine: llama.cpp"):
        parent_model("q8_0", ROOT / "config" / "smollm2-structure.yaml")
    with pytest.raises(TangramError, match=r"--beside: 'q8' is not a type of the parent's files; did you mean"):
        parent_model("q8", ROOT / "config" / "smollm2-structure.yaml")
