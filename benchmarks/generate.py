"""How fast is the CPU path beside Hugging Face transformers?

Both run the same random weights in one process and take turns: prefill of 512 tokens, decode at batch 1 and 8 after a
prompt of 128. Transformers gets its fastest attention and experts implementation for each cell, found first.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import torch
import transformers

from qwen3 import LLM, SamplingParams

from .common import copy_bandwidth, save, seconds, side_by_side

SHAPES = {
    "small": {
        "vocab_size": 32768, "hidden_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 16,
        "num_key_value_heads": 4, "head_dim": 64, "num_experts": 64, "num_experts_per_tok": 8,
        "moe_intermediate_size": 384, "intermediate_size": 3072, "norm_topk_prob": True,
        "max_position_embeddings": 4096, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "tie_word_embeddings": False,
    },
    "tiny": {
        "vocab_size": 4096, "hidden_size": 256, "num_hidden_layers": 5, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 64, "num_experts": 16, "num_experts_per_tok": 4,
        "moe_intermediate_size": 96, "intermediate_size": 768, "norm_topk_prob": True,
        "max_position_embeddings": 2048, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        "tie_word_embeddings": True,
    },
}  # fmt: skip
ATTENTION = ("sdpa", "eager")
EXPERTS = ("grouped_mm", "batched_mm", "eager")
# batched_mm copies the weights of every token's experts: 19 GB for a prompt of 512 at the small shape.
PREFILL_EXPERTS = ("grouped_mm", "eager")
PREFILL, PROMPT = 512, 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=SHAPES, default="small", help="model shape")
    parser.add_argument("--rounds", type=int, default=5, help="turns that each side takes")
    parser.add_argument("--new-tokens", type=int, default=24, help="tokens that a decode turn generates")


class Ours:
    """This engine, through the calls that a user makes."""

    def __init__(self, folder: str, dtype: torch.dtype):
        self.llm = LLM(folder, device="cpu", dtype=str(dtype)[6:])

    def prefill(self, prompt: list[int]) -> float:
        params = SamplingParams(max_new_tokens=1, temperature=0, ignore_eos=True)
        return seconds(lambda: self.llm.generate([prompt], params))

    def decode(self, prompts: list[list[int]], new_tokens: int) -> float:
        """Seconds per step, prompts not counted."""
        before = self.llm.stats.decode_seconds
        params = SamplingParams(max_new_tokens=new_tokens + 1, temperature=0, ignore_eos=True)
        self.llm.generate(prompts, params)
        return (self.llm.stats.decode_seconds - before) / new_tokens


class Theirs:
    """Transformers' model in the leanest greedy loop: no generate(), no sampling code, only forward and argmax."""

    def __init__(self, folder: str, dtype: torch.dtype):
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    def use(self, attention: str, experts: str) -> None:
        self.attention, self.experts = attention, experts
        self.model.set_attn_implementation(attention)
        self.model.set_experts_implementation(experts)

    @torch.inference_mode()
    def prefill(self, prompt: list[int]) -> float:
        tokens = torch.tensor([prompt])
        return seconds(lambda: self.model(tokens, use_cache=True, logits_to_keep=1).logits.argmax(-1).tolist())

    @torch.inference_mode()
    def decode(self, prompts: list[list[int]], new_tokens: int) -> float:
        # The prompt is not what is measured, and batched_mm would copy gigabytes of weights for it.
        self.model.set_experts_implementation("eager")
        out = self.model(torch.tensor(prompts), use_cache=True, logits_to_keep=1)
        self.model.set_experts_implementation(self.experts)
        started = time.perf_counter()
        for _ in range(new_tokens):
            tokens = out.logits[:, -1:].argmax(-1)
            tokens.tolist()
            out = self.model(tokens, past_key_values=out.past_key_values, use_cache=True)
        return (time.perf_counter() - started) / new_tokens

    def best(self, measure, experts_implementations: tuple[str, ...]) -> str:
        """Switches to the fastest implementation for `measure` and names it; each is tried twice, first to warm up."""
        tried = {}
        for attention, experts in itertools.product(ATTENTION, experts_implementations):
            self.use(attention, experts)
            measure()
            tried[attention, experts] = measure()
        fastest = min(tried, key=tried.get)
        self.use(*fastest)
        return " + ".join(fastest)


def run(args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    shape = SHAPES[args.shape]
    bandwidth = copy_bandwidth()
    print(f"a large copy reads {bandwidth / 1e9:.1f} GB/s")
    result = {"question": "cpu", "shape": args.shape, "copy_bytes_per_second": bandwidth, "cells": []}
    result["transformers"] = transformers.__version__
    for dtype in (torch.float32, torch.bfloat16):
        with tempfile.TemporaryDirectory() as folder:
            config = transformers.Qwen3MoeConfig(**shape)
            transformers.Qwen3MoeForCausalLM(config).to(dtype).save_pretrained(folder)
            write_tokenizer(Path(folder))
            ours, theirs = Ours(folder, dtype), Theirs(folder, dtype)
            for cell in cells(ours, theirs, shape["vocab_size"], args, dtype):
                if cell["cell"] == "decode, batch 1":
                    cell["bandwidth_fraction"] = bytes_per_token(ours.llm) / cell["ours_seconds"] / bandwidth
                result["cells"].append(cell)
                line = f"{cell['dtype']:9} {cell['cell']:16} {cell['ratio']:.2f} times transformers"
                line += f" ({cell['theirs']}; ours {cell['ours_seconds'] * 1e3:.1f} ms)"
                if "bandwidth_fraction" in cell:
                    line += f", {cell['bandwidth_fraction']:.2f} of the copy bandwidth"
                print(line, flush=True)
    save(f"cpu_{args.shape}", result)


def cells(ours: Ours, theirs: Theirs, vocab_size: int, args: argparse.Namespace, dtype: torch.dtype):
    prompt = torch.randint(vocab_size, (PREFILL,)).tolist()
    eight = torch.randint(vocab_size, (8, PROMPT)).tolist()
    n = args.new_tokens
    questions = {
        "decode, batch 1": lambda side: side.decode(eight[:1], n),
        "decode, batch 8": lambda side: side.decode(eight, n),
        f"prefill, {PREFILL}": lambda side: side.prefill(prompt),
    }
    for name, question in questions.items():
        implementations = PREFILL_EXPERTS if name.startswith("prefill") else EXPERTS
        implementation = theirs.best(lambda: question(theirs), implementations)
        question(ours)
        times = side_by_side({"ours": lambda: question(ours), "theirs": lambda: question(theirs)}, args.rounds)
        yield {
            "dtype": str(dtype)[6:],
            "cell": name,
            "ratio": times["theirs"] / times["ours"],
            "ours_seconds": times["ours"],
            "theirs_seconds": times["theirs"],
            "theirs": implementation,
        }


def bytes_per_token(llm: LLM) -> int:
    """What one token must read: all weights but the experts that are not chosen and the rows of the embedding."""
    _, active = llm.config.parameters()
    if not llm.config.tie_word_embeddings:
        active -= llm.config.vocab_size * llm.config.hidden_size
    return active * llm.dtype.itemsize


def write_tokenizer(folder: Path) -> None:
    """Single bytes: the engine wants a tokenizer, the benchmark only token ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
