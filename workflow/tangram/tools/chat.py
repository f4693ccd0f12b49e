"""Chat with an exported child in the terminal, as llama.cpp runs it: `tangram chat fast --beside q8_0`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tangram.cli import run
from tangram.config import load
from tangram.engines import PARENT_TYPES
from tangram.errors import TangramError, nearest

if TYPE_CHECKING:
    from tangram.llama_cpp import Model

Messages = list[dict[str, str]]


def exported_model(target: str, config: Path) -> Path:
    """Return the GGUF of a target's best child.

    Args:
        target: a target's name, or the path of a file that ends with ``.gguf``.
        config: the config that has the target.

    Raises:
        TangramError: the config has no such target, or the file does not exist.
    """
    if target.endswith(".gguf"):
        return Path(target)
    settings = load(config)
    if target not in settings.targets:
        raise TangramError(f"'{target}' is not a target{nearest(target, list(settings.targets))}")
    path = Path("results", settings.run, "targets", target, "0", "export", "model.gguf")
    if not path.exists():
        raise TangramError(f"{path} does not exist; set targets.{target}.export: [gguf] and run the pipeline")
    return path


def parent_model(name: str, config: Path) -> Path:
    """Return the parent's GGUF in a type of `engines.PARENT_TYPES`; or a path, as in `exported_model`.

    Raises:
        TangramError: there is no such type, or the file does not exist.
    """
    if name.endswith(".gguf"):
        return Path(name)
    if name not in PARENT_TYPES:
        raise TangramError(f"--beside: '{name}' is not a type of the parent's files{nearest(name, PARENT_TYPES)}")
    path = Path("results", load(config).run, "engines", "parent", name, "model.gguf")
    if not path.exists():
        raise TangramError(f"{path} does not exist; set engine: llama.cpp for a target and run the pipeline")
    return path


def template_of(path: str | Path) -> Any:
    """Return the chat template of a GGUF.

    Raises:
        TangramError: it has none.
    """
    import gguf
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    field = gguf.GGUFReader(path).get_field("tokenizer.chat_template")
    if field is None:
        raise TangramError(f"{path} has no chat template; its parent is no chat model")
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)  # as in transformers
    return environment.from_string(field.contents())


class Chat:
    """A conversation, of which the KV cache holds the tokens that stay the same.

    Args:
        model: a loaded model.
        template: its chat template.
        positions: largest number of tokens of the conversation.
        threads: threads.
    """

    def __init__(self, model: Model, template: Any, positions: int, threads: int):
        from tangram.llama_cpp import Context

        self._model, self._template, self._positions = model, template, positions
        self._context = Context(model, positions, threads=threads)
        self._cached: list[int] = []
        self.messages: Messages = []
        self.speeds = (0.0, 0.0)  # tokens per second of the last prefill and of the last answer

    def answer(self, text: str, most: int) -> Iterator[bytes]:
        """Yield the greedy answer to a message, token by token.

        Args:
            text: the message.
            most: largest number of tokens of the answer.

        Raises:
            TangramError: the conversation is longer than the context.
        """
        self.messages.append({"role": "user", "content": text})
        prompt = self._template.render(messages=self.messages, add_generation_prompt=True)
        tokens = self._model.tokenize(prompt)
        if len(tokens) >= self._positions:
            raise TangramError(f"the conversation has {len(tokens)} tokens, more than --context {self._positions}")
        shared = next((i for i, (a, b) in enumerate(zip(self._cached, tokens, strict=False)) if a != b), None)
        shared = min(len(self._cached), len(tokens) - 1) if shared is None else shared
        self._context.truncate(shared)
        start = time.perf_counter()
        token = self._next(tokens[shared:], shared)
        first = time.perf_counter()
        said: list[bytes] = []
        position = len(tokens)
        while not self._model.ends(token) and len(said) < most and position < self._positions:
            said.append(self._model.piece(token))
            yield said[-1]
            tokens.append(token)
            token = self._next([token], position)
            position += 1
        self._cached = tokens
        self.messages.append({"role": "assistant", "content": b"".join(said).decode(errors="replace")})
        self.speeds = (position - len(said) - shared) / (first - start), len(said) / (time.perf_counter() - first)

    def _next(self, tokens: list[int], first: int) -> int:
        """Return the likeliest token after some more tokens."""
        self._context.decode([tokens], first, logits=False)
        return int(self._context.logits(1, self._model.vocabulary)[0].argmax())

    def close(self) -> None:
        """Free the memory."""
        self._context.close()


def chat(
    target: Annotated[str, typer.Argument(help="target whose child answers, or the path of a .gguf")],
    config: Annotated[Path, typer.Option(help="config file")] = Path("config/config.yaml"),
    beside: Annotated[
        str,
        typer.Option(help="let the parent answer, too: a type of its files, such as `q8_0`, or the path of a .gguf"),
    ] = "",
    context: Annotated[int, typer.Option(help="tokens of a whole conversation")] = 2048,
    tokens: Annotated[int, typer.Option(help="tokens of an answer")] = 256,
    threads: Annotated[int, typer.Option(help="threads; by default all cores")] = 0,
) -> None:
    """Answer every line of the standard input, and show the tokens per second."""
    from tangram.llama_cpp import Model

    paths = [exported_model(target, config), *([parent_model(beside, config)] if beside else [])]
    templates = [template_of(path) for path in paths]
    with ExitStack() as opened:
        chats = []
        for path, template in zip(paths, templates, strict=True):
            model = opened.enter_context(Model(path))
            chats.append(opened.enter_context(closing(Chat(model, template, context, threads or os.cpu_count() or 1))))
            print(path, file=sys.stderr)
        print("an empty line ends the chat", file=sys.stderr)
        while text := _read_line():
            for path, conversation in zip(paths, chats, strict=True):
                if len(chats) > 1:
                    print(f"{path}:", flush=True)
                _answer(conversation, text, tokens)


def _answer(conversation: Chat, text: str, tokens: int) -> None:
    """Print an answer as it is made, and its speed."""
    for piece in conversation.answer(text, tokens):
        sys.stdout.buffer.write(piece)
        sys.stdout.flush()
    prefill, decode = conversation.speeds
    print(f"\n[{prefill:.0f} tokens/s of the prompt, {decode:.0f} of the answer]", flush=True)


def _read_line() -> str:
    """Return the next line of the standard input, empty at its end."""
    print("> ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip()


if __name__ == "__main__":
    run(chat)
