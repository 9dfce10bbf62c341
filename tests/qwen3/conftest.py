"""Checkpoints with random weights, written by transformers, each with a tokenizer of single bytes."""

import pytest
import torch

from benchmarks.byte_tokenizer import write_tokenizer

SMALL = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "moe_intermediate_size": 48, "num_experts": 8, "num_experts_per_tok": 2,
    "norm_topk_prob": True, "max_position_embeddings": 256, "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    # Wider than the usual 0.02, so that logits differ by more than rounding does.
    "initializer_range": 0.15,
}  # fmt: skip


def write_checkpoint(folder, shard_size="50GB", dense=False, seed=0, **changes):
    """A random model of SMALL's shape with `changes`, saved by transformers into `folder`; returns that model."""
    transformers = pytest.importorskip("transformers")
    values = SMALL | changes
    if dense:
        kind, model = transformers.Qwen3Config, transformers.Qwen3ForCausalLM
        values = {k: v for k, v in values.items() if not k.startswith(("num_experts", "norm_topk_prob", "moe_"))}
    else:
        kind, model = transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM
    config = kind(**values)
    config._attn_implementation = config._experts_implementation = "eager"
    torch.manual_seed(seed)
    peer = model(config).eval()
    with torch.no_grad():
        # Norms and biases that are not the identity, so that leaving one out would show.
        for parameter in peer.parameters():
            if parameter.dim() == 1:
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
    peer.save_pretrained(folder, max_shard_size=shard_size)
    write_tokenizer(folder)
    return peer


def eager_recorder(run):
    """Stands in for a CUDA graph where there is no GPU: repeats the work into the same memory."""
    logits = run()
    return lambda: logits.copy_(run()), logits


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """One small mixture-of-experts checkpoint for tests that only need some model."""
    folder = tmp_path_factory.mktemp("small")
    write_checkpoint(folder)
    return folder
