"""The teacher's hidden states: cached, streamed, and as transformers itself reports them."""

import numpy as np
import pytest
import torch

from tangram.activations import CachedActivations, StreamedActivations, capture, open_activations
from tangram.errors import TangramError
from tangram.models.loading import load_model


@pytest.fixture(params=["llama", "mistral", "qwen2", "qwen3"])
def model(request, tiny_parent):
    return load_model(tiny_parent(request.param), "float32", "cpu")


@pytest.fixture
def tokens(model):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, model.config.vocab_size, (5, 12), generator=generator)


def test_cache_equals_stream_bit_for_bit(model, tokens, tmp_path):
    capture(model, tokens, 2, tmp_path / "states.npy", "test")
    cached = CachedActivations(tmp_path / "states.npy", model, tokens)
    streamed = StreamedActivations(model, tokens, 2)
    for layer in [*range(model.config.num_hidden_layers + 1), 1]:  # and back down
        assert torch.equal(cached.hidden(layer), streamed.hidden(layer)), layer


def test_states_are_those_of_transformers(model, tokens, tmp_path):
    capture(model, tokens, 5, tmp_path / "states.npy", "test")
    cached = CachedActivations(tmp_path / "states.npy", model, tokens)
    with torch.inference_mode():
        expected = model(tokens, output_hidden_states=True).hidden_states
        for layer in range(model.config.num_hidden_layers):
            torch.testing.assert_close(cached.hidden(layer), expected[layer])
        torch.testing.assert_close(model.model.norm(cached.hidden(model.config.num_hidden_layers)), expected[-1])


def test_a_copy_in_the_temporary_folder_is_read_and_removed(model, tokens, tmp_path, monkeypatch):
    capture(model, tokens, 2, tmp_path / "states.npy", "test")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    copied = open_activations(tmp_path / "states.npy", model, tokens, 2, local_copy=True)
    shared = open_activations(tmp_path / "states.npy", model, tokens, 2)
    (tmp_path / "states.npy").unlink()
    assert torch.equal(copied.hidden(2), shared.hidden(2))
    assert list(scratch.iterdir()) == []
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    capture(model, tokens, 2, tmp_path / "states.npy", "test")
    with pytest.raises(TangramError, match=r"activations\.local_copy to false"):
        open_activations(tmp_path / "states.npy", model, tokens, 2, local_copy=True)


def test_states_of_some_sequences_are_rows_of_the_whole(model, tokens, tmp_path):
    capture(model, tokens, 5, tmp_path / "states.npy", "test")
    chosen = torch.tensor([3, 0])
    for states in (CachedActivations(tmp_path / "states.npy", model, tokens), StreamedActivations(model, tokens, 5)):
        for layer, found in zip((1, 3), states.of_sequences(chosen, (1, 3)), strict=True):
            torch.testing.assert_close(found, states.hidden(layer)[chosen])


def test_without_a_file_states_are_streamed(model, tokens):
    assert isinstance(open_activations(None, model, tokens, 2), StreamedActivations)


def test_truncated_and_foreign_caches_are_refused(model, tokens, tmp_path):
    path = tmp_path / "states.npy"
    capture(model, tokens, 2, path, "test")
    with pytest.raises(TangramError, match="expected"):
        CachedActivations(path, model, tokens[:, :4])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TangramError, match="delete it and run again"):
        CachedActivations(path, model, tokens)


def test_nan_weights_are_named_and_nothing_is_left_behind(model, tokens, tmp_path):
    with torch.no_grad():
        model.model.norm.weight.fill_(1.0)
        next(model.model.layers[0].mlp.parameters()).fill_(float("nan"))
    with pytest.raises(TangramError, match="not finite"):
        capture(model, tokens, 2, tmp_path / "states.npy", "test")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_too_small_is_said_before_the_pass(model, tokens, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(TangramError, match=r"activations\.mode to 'stream'"):
        capture(model, tokens, 2, tmp_path / "states.npy", "test")
    assert not np.any([path.suffix == ".npy" for path in tmp_path.iterdir()])
