"""A small dense checkpoint that walks given tokens in a circle, greedily, whatever came before."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer

from benchmarks.byte_tokenizer import write_tokenizer

SIZE, VOCABULARY, CONTEXT = 64, 320, 64
# Special tokens, the first ids after the bytes.
END, MORE = 256, 257


def write_walk(folder: Path, walk: list[int | str], tokenizer: dict | None = None, **config) -> Path:
    """Writes a checkpoint that answers walk[i] with walk[i + 1]; characters in `walk` are their tokens.

    tokenizer: the values of tokenizer_config.json. config: more values of config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("<end>", "<more>")])
    backend.save(str(folder / "tokenizer.json"))
    if tokenizer is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    values = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": VOCABULARY, "hidden_size": SIZE,
        "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
        "head_dim": 32, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "tie_word_embeddings": False, "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(values | config))
    layer = {
        "input_layernorm": [SIZE], "post_attention_layernorm": [SIZE], "self_attn.q_norm": [32],
        "self_attn.k_norm": [32], "self_attn.q_proj": [64, SIZE], "self_attn.k_proj": [64, SIZE],
        "self_attn.v_proj": [64, SIZE], "self_attn.o_proj": [SIZE, 64], "mlp.gate_proj": [32, SIZE],
        "mlp.up_proj": [32, SIZE], "mlp.down_proj": [SIZE, 32],
    }  # fmt: skip
    # Layers that add nothing: what a token is says which comes next.
    weights = {f"model.layers.0.{name}.weight": torch.zeros(shape) for name, shape in layer.items()}
    embedding, head = torch.zeros(VOCABULARY, SIZE), torch.zeros(VOCABULARY, SIZE)
    ids = [backend.encode(token).ids[0] if isinstance(token, str) else token for token in walk]
    for i, token in enumerate(ids):
        embedding[token, i], head[ids[(i + 1) % len(ids)], i] = 1.0, 10.0
    weights |= {"model.embed_tokens.weight": embedding, "lm_head.weight": head, "model.norm.weight": torch.ones(SIZE)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
