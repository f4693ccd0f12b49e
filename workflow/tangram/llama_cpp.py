"""llama.cpp through its C interface: find the shared library, load a GGUF, compute logits, quantize matrices.

The library comes from `llama-cpp-python` (compiled for the machine) or else from `xllamacpp` (prebuilt, AVX2). Only the
first fields of the parameter structs are declared; the library's own defaults fill the rest. The layout is that of
October 2026 (b11400 to b11740); `library` checks it by the documented defaults.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tangram.errors import TangramError

if TYPE_CHECKING:
    import numpy as np

INSTALL = "pip install --editable '.[engines]'"
# By package: patterns of its shared libraries in the order in which they must be loaded; the last has the interface.
PACKAGES = {
    "llama_cpp": ("lib/libggml-base.*", "lib/libggml-cpu.*", "lib/libggml.*", "lib/libllama.*"),
    "xllamacpp": ("xllamacpp*.so",),
}
F32, F16 = 0, 1  # ggml's numbers of the KV cache's types
ERROR = 4  # ggml's level of error messages
_UNKNOWN = 256  # bytes for fields behind the declared ones

_Log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class _ModelParams(ctypes.Structure):
    _fields_ = (
        ("devices", ctypes.c_void_p),
        ("buffer_types", ctypes.c_void_p),
        ("n_gpu_layers", ctypes.c_int32),
        ("rest", ctypes.c_char * _UNKNOWN),
    )


class _ContextParams(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq")),
        *((name, ctypes.c_uint32) for name in ("n_outputs_max", "n_outputs_max_per_seq")),
        *((name, ctypes.c_int32) for name in ("n_threads", "n_threads_batch", "context_type", "rope_scaling")),
        *((name, ctypes.c_int32) for name in ("pooling", "attention", "flash_attention")),
        ("rope_and_yarn", ctypes.c_float * 6),
        ("yarn_original_context", ctypes.c_uint32),
        ("defragmentation", ctypes.c_float),
        ("callback", ctypes.c_void_p),
        ("callback_data", ctypes.c_void_p),
        ("type_k", ctypes.c_int32),
        ("type_v", ctypes.c_int32),
        ("rest", ctypes.c_char * _UNKNOWN),
    )


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


# Result and arguments of each function that is called.
_POINTER = ctypes.c_void_p
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_backend_init": (None, ()),
    "llama_log_set": (None, (_Log, _POINTER)),
    "llama_print_system_info": (ctypes.c_char_p, ()),
    "llama_model_default_params": (_ModelParams, ()),
    "llama_context_default_params": (_ContextParams, ()),
    "llama_model_load_from_file": (_POINTER, (ctypes.c_char_p, _ModelParams)),
    "llama_model_free": (None, (_POINTER,)),
    "llama_model_get_vocab": (_POINTER, (_POINTER,)),
    "llama_vocab_n_tokens": (ctypes.c_int32, (_POINTER,)),
    "llama_tokenize": (
        ctypes.c_int32,
        (_POINTER, ctypes.c_char_p, ctypes.c_int32, _POINTER, ctypes.c_int32, ctypes.c_bool, ctypes.c_bool),
    ),
    "llama_init_from_model": (_POINTER, (_POINTER, _ContextParams)),
    "llama_free": (None, (_POINTER,)),
    "llama_batch_init": (_Batch, (ctypes.c_int32, ctypes.c_int32, ctypes.c_int32)),
    "llama_batch_free": (None, (_Batch,)),
    "llama_decode": (ctypes.c_int32, (_POINTER, _Batch)),
    "llama_get_logits": (ctypes.POINTER(ctypes.c_float), (_POINTER,)),
    "llama_get_memory": (_POINTER, (_POINTER,)),
    "llama_memory_clear": (None, (_POINTER, ctypes.c_bool)),
    "llama_memory_seq_rm": (ctypes.c_bool, (_POINTER, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32)),
    "llama_synchronize": (None, (_POINTER,)),
    "ggml_quantize_chunk": (
        ctypes.c_size_t,
        (ctypes.c_int, _POINTER, _POINTER, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, _POINTER),
    ),
    "llama_vocab_is_eog": (ctypes.c_bool, (_POINTER, ctypes.c_int32)),
    "llama_token_to_piece": (
        ctypes.c_int32,
        (_POINTER, ctypes.c_int32, ctypes.c_char_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_bool),
    ),
}
_errors: list[str] = []  # messages of the library since the last call of `_reason`


@_Log
def _log(level: int, text: bytes | None, data: int | None) -> None:
    if level == ERROR and text:
        _errors.append(" ".join(text.decode(errors="replace").split()))


def find() -> tuple[str, list[Path]] | None:
    """Return the installed package with llama.cpp, and its shared libraries in loading order; None without one.

    Nothing is imported.
    """
    for package, patterns in PACKAGES.items():
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec is not None else []:
            found = [min(Path(folder).glob(pattern), default=None) for pattern in patterns]
            if found[-1] is not None:
                return package, [path for path in found if path is not None]
    return None


@functools.cache
def library() -> Any:
    """Load llama.cpp once, and return its C functions as attributes.

    Raises:
        TangramError: no package with llama.cpp is installed, or its interface has another layout.
    """
    located = find()
    if located is None:
        raise TangramError(f"engine llama.cpp is not installed; install it: {INSTALL}")
    package, paths = located
    try:
        *_, functions = [ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL) for path in paths]
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(functions, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise TangramError(f"llama.cpp of package {package} cannot be loaded ({error}); install: {INSTALL}") from error
    functions.llama_log_set(_log, None)
    functions.llama_backend_init()
    defaults = functions.llama_context_default_params()
    if (defaults.n_ctx, defaults.n_ubatch, defaults.n_seq_max, defaults.type_k, defaults.type_v) != (512, 512, 1, 1, 1):
        raise TangramError(f"the C interface of package {package} is of an unknown version; install: {INSTALL}")
    return functions


def _reason() -> str:
    """Return the library's last error messages, and forget them."""
    reason = "; ".join(dict.fromkeys(_errors)) or "no reason given"
    _errors.clear()
    return reason


def quantize(matrix: np.ndarray, kind: Any) -> np.ndarray:
    """Return a matrix in one of ggml's types, as llama.cpp's quantizer rounds it without an importance matrix.

    Args:
        matrix: ``(rows, columns)`` float32, whose columns are whole blocks of the type.
        kind: the type, a `gguf.GGMLQuantizationType`.

    Returns:
        ``(rows, bytes of a row)``, uint8.

    Raises:
        TangramError: llama.cpp is not installed.
    """
    import gguf
    import numpy as np

    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows, columns = matrix.shape
    source, data = np.ascontiguousarray(matrix, np.float32), np.empty((rows, columns // block * size), np.uint8)
    library().ggml_quantize_chunk(int(kind), source.ctypes.data, data.ctypes.data, 0, rows, columns, None)
    return data


class Context:
    """A model's KV cache and buffers for several sequences at a time.

    Args:
        model: the model, which must stay loaded.
        tokens: largest number of tokens of a sequence.
        sequences: number of sequences.
        threads: threads of prefill and decode.
        cache: type of the KV cache, `F32` or `F16`.

    Raises:
        TangramError: llama.cpp refuses the model, or memory is short.
    """

    def __init__(self, model: Model, tokens: int, sequences: int = 1, threads: int = 1, cache: int = F16):
        self.library = library()
        self.sequences = sequences
        settings = self.library.llama_context_default_params()
        settings.n_ctx = -(-tokens // 256) * 256 * sequences  # the cache of a sequence has a multiple of 256 cells
        settings.n_seq_max = sequences
        settings.n_batch = max(settings.n_batch, tokens * sequences)
        settings.n_threads = settings.n_threads_batch = threads
        settings.type_k = settings.type_v = cache
        if cache == F32:  # flash attention on CPUs rounds queries to float16
            settings.flash_attention = 0
        _errors.clear()
        self._pointer = self.library.llama_init_from_model(model.pointer, settings)
        if not self._pointer:
            raise TangramError(f"llama.cpp cannot run {model.path}: {_reason()}")

    def clear(self) -> None:
        """Empty the KV cache."""
        self.library.llama_memory_clear(self.library.llama_get_memory(self._pointer), False)

    def batch(self, tokens: Sequence[Sequence[int]], first: int, logits: bool = True) -> Any:
        """Return a batch of equally many tokens of each sequence, for `run`; the caller frees it with `free`.

        Args:
            tokens: ``(sequences, tokens)``.
            first: position of the first token.
            logits: compute logits of every position, else of the last one of each sequence.
        """
        rows = [
            (token, first + step, sequence, logits or step == len(row) - 1)
            for sequence, row in enumerate(tokens)
            for step, token in enumerate(row)
        ]
        batch = self.library.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        return batch

    def run(self, batch: Any) -> None:
        """Run one pass over the tokens of a batch.

        Raises:
            TangramError: the pass failed.
        """
        _errors.clear()
        if status := self.library.llama_decode(self._pointer, batch):
            raise TangramError(f"llama.cpp failed with status {status}: {_reason()}")

    def free(self, batch: Any) -> None:
        """Free a batch."""
        self.library.llama_batch_free(batch)

    def truncate(self, length: int) -> None:
        """Wait for the last pass, and remove the tokens from a position on from the KV cache of every sequence."""
        self.library.llama_synchronize(self._pointer)
        self.library.llama_memory_seq_rm(self.library.llama_get_memory(self._pointer), -1, length, -1)

    def decode(self, tokens: Sequence[Sequence[int]], first: int, logits: bool = True) -> None:
        """Run one pass over equally many tokens of each sequence; see `batch` and `run`."""
        batch = self.batch(tokens, first, logits)
        self.run(batch)
        self.free(batch)

    def logits(self, rows: int, vocabulary: int) -> np.ndarray:
        """Return the logits of the last pass, ``(rows, vocabulary)`` float32, in the order of its tokens."""
        import numpy as np

        return np.ctypeslib.as_array(self.library.llama_get_logits(self._pointer), (rows, vocabulary)).copy()

    def close(self) -> None:
        """Free the memory."""
        self.library.llama_free(self._pointer)


class Model:
    """A loaded GGUF; a context manager that frees it.

    Args:
        path: the file.

    Raises:
        TangramError: llama.cpp is missing or cannot load the file.
    """

    def __init__(self, path: str | Path):
        self.library = library()
        self.path = Path(path)
        settings = self.library.llama_model_default_params()
        settings.n_gpu_layers = 0
        _errors.clear()
        self.pointer = self.library.llama_model_load_from_file(str(path).encode(), settings)
        if not self.pointer:
            raise TangramError(f"llama.cpp cannot load {path}: {_reason()}")
        self.vocabulary: int = self.library.llama_vocab_n_tokens(self.library.llama_model_get_vocab(self.pointer))

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.library.llama_model_free(self.pointer)

    def tokenize(self, text: str) -> list[int]:
        """Return a text's tokens, with special tokens where the text has their names; nothing is added in front."""
        raw = text.encode()
        tokens = (ctypes.c_int32 * (len(raw) + 1))()
        vocabulary = self.library.llama_model_get_vocab(self.pointer)
        count = self.library.llama_tokenize(vocabulary, raw, len(raw), tokens, len(tokens), False, True)
        return list(tokens[:count])

    def piece(self, token: int) -> bytes:
        """Return a token's text; it may be a part of a character. Special tokens have none."""
        text = ctypes.create_string_buffer(256)
        vocabulary = self.library.llama_model_get_vocab(self.pointer)
        length = self.library.llama_token_to_piece(vocabulary, token, text, len(text), 0, False)
        return text.raw[: max(0, length)]

    def ends(self, token: int) -> bool:
        """Return whether a token ends an answer."""
        return bool(self.library.llama_vocab_is_eog(self.library.llama_model_get_vocab(self.pointer), token))

    def logits(
        self, tokens: Sequence[Sequence[int]], passes: Iterable[int] | None = None, cache: int = F32, threads: int = 1
    ) -> np.ndarray:
        """Return the logits at all positions of sequences of equal length, ``(sequences, tokens, vocabulary)``.

        Args:
            tokens: ``(sequences, tokens)``.
            passes: tokens of each pass; later passes read the KV cache. By default one pass.
            cache: type of the KV cache.
            threads: threads.

        Raises:
            TangramError: llama.cpp refuses the model or failed.
        """
        import numpy as np

        length = len(tokens[0])
        context = Context(self, length, len(tokens), threads, cache)
        parts, first = [], 0
        for size in passes or (length,):
            context.decode([row[first : first + size] for row in tokens], first)
            parts.append(context.logits(len(tokens) * size, self.vocabulary).reshape(len(tokens), size, -1))
            first += size
        context.close()
        return np.concatenate(parts, axis=1)
