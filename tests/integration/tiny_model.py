"""Write a language model of 0.5 MB with random weights: ``tiny_model.py FILE``. Needs gguf.

llama.cpp loads it as a complete Llama model, so the tests run against real inference. It generates nonsense, always the
same.
"""

from __future__ import annotations

import sys
from typing import Any

import gguf
import numpy as np

WIDTH, LAYERS, HEADS, INNER, CONTEXT = 64, 2, 4, 128, 2048
SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LETTERS = ["▁", *(chr(code) for code in range(33, 127))]  # ▁ is the space
WORDS = ["▁the", "▁of", "▁and", "▁to", "▁in", "▁is", "▁that", "▁for", "▁it", "▁was", "▁he", "▁on", "▁are"]
PLAIN = [*LETTERS, *WORDS]
TOKENS = [*SPECIAL, *BYTES, *PLAIN]

_random = np.random.default_rng(seed=7)


def weights(*shape: int, spread: float = 0.15) -> Any:
    """Return random weights."""
    return (_random.standard_normal(shape) * spread).astype(np.float32)


def describe(writer: gguf.GGUFWriter) -> None:
    """Add the model's parameters."""
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))


def add_vocabulary(writer: gguf.GGUFWriter) -> None:
    """Add words and letters; the tokens of other characters are their bytes."""
    kinds = gguf.TokenType
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_scores([0.0] * (len(TOKENS) - len(PLAIN)) + [-1.0 - rank for rank in range(len(PLAIN))])
    writer.add_token_types(
        [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL] + [kinds.BYTE] * 256 + [kinds.NORMAL] * len(PLAIN)
    )
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def add_layer(writer: gguf.GGUFWriter, layer: str) -> None:
    """Add the attention and feed-forward weights of a layer."""
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"{layer}.{name}.weight", np.ones(WIDTH, np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        writer.add_tensor(f"{layer}.{name}.weight", weights(WIDTH, WIDTH))
    for name, shape in {"gate": (INNER, WIDTH), "up": (INNER, WIDTH), "down": (WIDTH, INNER)}.items():
        writer.add_tensor(f"{layer}.ffn_{name}.weight", weights(*shape))


def main(path: str) -> None:
    """Write the file."""
    writer = gguf.GGUFWriter(path, "llama")
    describe(writer)
    add_vocabulary(writer)
    writer.add_tensor("token_embd.weight", weights(len(TOKENS), WIDTH, spread=1.0))
    for number in range(LAYERS):
        add_layer(writer, f"blk.{number}")
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    output = weights(len(TOKENS), WIDTH, spread=1.0)
    output[: len(SPECIAL) + len(BYTES)] = 0  # never generate single bytes, which are not valid text, or an early end
    writer.add_tensor("output.weight", output)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(sys.argv[1])
