"""Section `parent`: the model to make faster."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tangram.config.base import Filled, PackageFile, RepositoryId, Section


class HubParent(Section):
    """A checkpoint on the Hugging Face hub."""

    type: Literal["hub"]
    repo: RepositoryId = Field(description="Repository id, such as `meta-llama/Llama-3.1-8B-Instruct`.")
    revision: Filled = Field(description="Commit, tag or branch; a commit makes the run reproducible.")


class LocalParent(Section):
    """A checkpoint in a local folder, in the Hugging Face layout."""

    type: Literal["local"]
    path: Filled = Field(description="Folder with `config.json`, safetensors weights and a tokenizer.")


class GgufParent(PackageFile):
    """A GGUF file inside a Python package; its weights are dequantized to float32."""

    type: Literal["gguf-package"]
    member: Filled = Field(description="Path of the GGUF file inside the archive.")


class Sizes(Section):
    """Sizes of a parent that is not fetched yet, for the planner (`tangram plan`); no job reads them."""

    hidden_size: int = Field(gt=0, description="Width of the residual stream.")
    intermediate_size: int = Field(gt=0, description="Channels of the FFN.")
    vocab_size: int = Field(gt=0, description="Rows of the embedding.")
    head_dim: int | None = Field(None, gt=0, description="Width of a head; hidden_size / heads by default.")
    tie_word_embeddings: bool = Field(False, description="Whether embedding and LM head are one matrix.")


class Parent(Section):
    """The trained decoder to make faster."""

    source: HubParent | LocalParent | GgufParent = Field(discriminator="type", description="Source of the checkpoint.")
    num_layers: int = Field(gt=0, le=10_000, description="Decoder layers; checked against the checkpoint.")
    num_attention_heads: int = Field(gt=0, description="Query heads; checked against the checkpoint.")
    num_kv_heads: int = Field(gt=0, description="Key-value heads; checked against the checkpoint.")
    by_layer: bool = Field(
        False,
        description="Load one layer's weights at a time in jobs of the library, for parents larger than a device.",
    )
    sizes: Sizes | None = Field(None, description="Sizes for the planner.")

    @model_validator(mode="after")
    def _heads(self) -> Parent:
        heads = self.num_attention_heads
        if heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads ({self.num_kv_heads}) must divide num_attention_heads ({heads})")
        if self.sizes is not None and self.sizes.head_dim is None and self.sizes.hidden_size % heads:
            raise ValueError(
                f"num_attention_heads ({heads}) must divide sizes.hidden_size ({self.sizes.hidden_size}); correct "
                "them, or set sizes.head_dim"
            )
        return self
