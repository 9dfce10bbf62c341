"""The same logits and the same greedy tokens as Hugging Face transformers, from the files that transformers writes."""

import pytest
import torch

from qwen3 import LLM, SamplingParams

from ..conftest import write_checkpoint

YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}
# Each changes the table of this shape: see test_rope.py.
OWN_YARN = {"attention_factor": 0.9, "beta_fast": 2, "beta_slow": 0.5, "truncate": False}

# Each differs from conftest.SMALL (8 experts, top-2, renormalized, GQA groups of 2, head_dim 32, untied, theta 1e6).
CONFIGS = {
    "moe": {},
    "weights not renormalized": {"norm_topk_prob": False, "num_experts_per_tok": 4},
    "top-1 of 4 experts, not renormalized": {"num_experts": 4, "num_experts_per_tok": 1, "norm_topk_prob": False},
    "top-4 of 16 experts": {"num_experts": 16, "num_experts_per_tok": 4},
    "top-8 of 128 experts": {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 16},
    "groups of 1": {"num_key_value_heads": 4},
    "groups of 4": {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16},
    "groups of 8, head_dim 128": {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 128},
    "head_dim 64, not hidden / heads": {"head_dim": 64},
    "tied embeddings": {"tie_word_embeddings": True},
    "mlp_only_layers": {"mlp_only_layers": [1]},
    "decoder_sparse_step 2": {"decoder_sparse_step": 2},
    "attention bias": {"attention_bias": True},
    "YaRN factor 4": {"rope_parameters": YARN},
    "YaRN with its own parameters": {"rope_parameters": YARN | OWN_YARN},
    "rms_norm_eps 1e-2": {"rms_norm_eps": 1e-2},
    "theta 1e7": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e7}},
    "dense": {"dense": True},
    "dense, tied, groups of 4": {"dense": True, "tie_word_embeddings": True, "num_key_value_heads": 1},
    "shards": {"shard_size": "100KB"},
    "dense, shards, bias": {"dense": True, "shard_size": "50KB", "attention_bias": True},
}


def random_tokens(count, seed=1):
    return torch.randint(320, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def peer_logits(peer, tokens):
    return peer(torch.tensor([tokens])).logits[0].float()


@pytest.mark.parametrize("name", CONFIGS)
def test_float32_logits_and_greedy_tokens(name, tmp_path):
    peer = write_checkpoint(tmp_path, **CONFIGS[name])
    llm = LLM(tmp_path, device="cpu", dtype="float32")
    tokens = random_tokens(150)  # beyond YaRN's original 64 positions
    difference = (llm.logits(tokens) - peer_logits(peer, tokens)).abs().max().item()
    assert difference <= 2e-5  # the contract allows 1e-4; the largest seen is 7.3e-6

    prompt = tokens[:20]
    expected = peer.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, 20, dtype=torch.long),
        max_new_tokens=64,
        do_sample=False,
        pad_token_id=0,
    )[0, 20:].tolist()
    assert llm.generate([prompt], SamplingParams(max_new_tokens=64, temperature=0))[0].token_ids == expected


BFLOAT16 = ["moe", "weights not renormalized", "top-8 of 128 experts", "attention bias", "YaRN factor 4", "dense"]


@pytest.mark.parametrize("name", BFLOAT16)
def test_bfloat16_error_is_near_that_of_transformers(name, tmp_path):
    """Error means RMS distance from the float32 logits of the same bfloat16 weights: one flipped expert is a real error
    of either side, so single elements say nothing."""
    peer = write_checkpoint(tmp_path, **CONFIGS[name], initializer_range=0.05).to(torch.bfloat16)
    peer.save_pretrained(tmp_path)
    ours, theirs = 0.0, 0.0
    llm = LLM(tmp_path, device="cpu")
    assert llm.dtype == torch.bfloat16
    exact = LLM(tmp_path, device="cpu", dtype="float32")
    for seed in range(4):
        tokens = random_tokens(150, seed)
        truth = exact.logits(tokens)
        ours += (llm.logits(tokens) - truth).square().mean().item()
        theirs += (peer_logits(peer, tokens) - truth).square().mean().item()
    assert 0 < ours <= 1.5**2 * theirs  # the contract allows twice its error; the largest ratio seen is 1.19
