"""Train the embedded model: `python -m qwen3.tiny.train` writes config, tokenizer, weights and model card beside it.

The model is this project's own, run on the reference ops; each window of text is one prefill over pages.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from qwen3_kernels.backend import backend

from ..config.hf import from_hf
from ..load.loader import load_weights
from ..model.blocks import Routing
from ..model.footprint import footprint
from ..model.forward_batch import ForwardBatch
from ..model.kv_cache import KVCache
from ..model.qwen3 import Qwen3
from . import corpus

CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "vocab_size": corpus.VOCAB_SIZE,
    "hidden_size": 256,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "intermediate_size": 768,
    "moe_intermediate_size": 96,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "use_sliding_window": False,
    "eos_token_id": 0,
    "torch_dtype": "bfloat16",
}
ROUTER_LOSS_WEIGHT = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m qwen3.tiny.train", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder for the model")
    parser.add_argument("--steps", type=int, default=4000, help="optimizer steps")
    parser.add_argument("--batch", type=int, default=8, help="windows per step")
    parser.add_argument("--window", type=int, default=256, help="tokens per window")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="the highest, after warm-up")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start-from", type=Path, help="folder of an earlier run: its weights and its vocabulary")
    parser.add_argument("--save-every", type=int, default=500, help="steps between checkpoints")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    training_texts, held_out_texts = corpus.read_sources()
    if args.start_from:
        earlier = json.loads((args.start_from / "training.json").read_text())
        tokenizer = corpus.cut_by_pattern(Tokenizer.from_file(str(args.start_from / "tokenizer.json")))
    else:
        earlier, tokenizer = {}, corpus.train_tokenizer(training_texts)
    training, held_out = (corpus.encode(tokenizer, texts) for texts in (training_texts, held_out_texts))
    bigram = corpus.bigram_loss(training, held_out, corpus.VOCAB_SIZE)
    print(f"{len(training):,} training tokens, {len(held_out):,} held out; a bigram model gets {bigram:.3f} nats")

    config = from_hf(CONFIG)
    model = Qwen3(config, backend("reference"), config.max_positions, device=args.device)
    initialise(model)
    if args.start_from:
        load_weights(model, args.start_from)
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=args.learning_rate, betas=(0.9, 0.95))
    started = time.monotonic()
    for step in range(1, args.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * schedule(step, args.steps)
        starts = torch.randint(len(training) - args.window, (args.batch,))
        windows = torch.stack([training[s : s + args.window + 1] for s in starts]).to(args.device)
        text_loss, router_loss = losses(model, windows)
        (text_loss + ROUTER_LOSS_WEIGHT * router_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            speed = step * args.batch * args.window / (time.monotonic() - started)
            line = f"step {step} loss {text_loss.item():.3f} router {router_loss.item():.3f} {speed:,.0f} tokens/s"
            print(line, flush=True)
        if step % args.save_every == 0 or step == args.steps:
            loss = held_out_loss(model, held_out, args.window)
            tokens = earlier.get("trained_tokens", 0) + step * args.batch * args.window
            print(f"held-out loss {loss:.3f}, perplexity {math.exp(loss):.2f} after {tokens:,} tokens", flush=True)
            save(model, tokenizer, args.output)
            results = {"held_out_loss": loss, "perplexity": math.exp(loss), "bigram_loss": bigram}
            results |= {"trained_tokens": tokens, "held_out_tokens": len(held_out), "training_tokens": len(training)}
            results |= {"runs": earlier.get("runs", 0) + 1}
            results |= {"parameters": footprint(model).parameters, "active_parameters": footprint(model).active}
            (args.output / "training.json").write_text(json.dumps(results, indent=2) + "\n")
            (args.output / "README.md").write_text(card(results))


def initialise(model: Qwen3) -> None:
    """Normal with 0.02, the matrices that write to the residual stream smaller by its depth, norms at one."""
    depth = (2 * model.config.num_layers) ** -0.5
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(True)
        if parameter.dim() == 1:
            torch.nn.init.ones_(parameter)
        else:
            residual = name.endswith(("attention.o.data", "mlp.down.data", "experts.down_data"))
            torch.nn.init.normal_(parameter, std=0.02 * (depth if residual else 1.0))


def parameter_groups(model: Qwen3) -> list[dict]:
    """Weight decay on matrices, none on norms."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    norms = [p for p in model.parameters() if p.dim() == 1]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]


def schedule(step: int, steps: int, warmup: int = 100) -> float:
    """Linear warm-up, then a cosine down to a twentieth."""
    if step < warmup:
        return step / warmup
    return 0.05 + 0.475 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def forward(model: Qwen3, tokens: Tensor, keep_routing: bool = False) -> tuple[Tensor, list[Routing]]:
    """Logits of every token, and the routing. tokens [B, L] -> float32 [B * L, V]; each window is one block."""
    batch_size, length = tokens.shape
    device = tokens.device
    cache = KVCache(model.config, batch_size, length, model.dtype, device)
    batch = ForwardBatch(
        token_ids=tokens.flatten(),
        positions=torch.arange(length, device=device).repeat(batch_size),
        slot_mapping=torch.arange(batch_size * length, device=device),
        num_decodes=0,
        block_tables=torch.arange(batch_size, device=device)[:, None],
        seq_lens=torch.full((batch_size,), length, device=device),
        query_start_loc=torch.arange(batch_size + 1, device=device) * length,
    )
    states, routing = model(batch, cache, keep_routing)
    return model.logits(states), routing


def losses(model: Qwen3, windows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy in nats, and the router's load-balancing loss. windows [B, L + 1] token ids.

    The second is E * sum over experts of (share of choices) * (mean probability), mean over layers
    (Switch Transformers, Fedus et al., 2021): 1 when every expert gets the same load.
    """
    logits, routing = forward(model, windows[:, :-1], keep_routing=True)
    balance = []
    for router_logits, expert_ids in routing:
        experts = router_logits.shape[1]
        share = expert_ids.flatten().bincount(minlength=experts) / expert_ids.numel()
        balance.append(experts * (share * router_logits.softmax(-1).mean(0)).sum())
    return F.cross_entropy(logits, windows[:, 1:].flatten()), torch.stack(balance).mean()


@torch.no_grad()
def held_out_loss(model: Qwen3, tokens: Tensor, window: int) -> float:
    """Mean nats per token over all whole windows of the held-out text."""
    count = (len(tokens) - 1) // window
    inputs, targets = (tokens[i : i + count * window].view(count, window) for i in (0, 1))
    device = model.norm.device
    total = 0.0
    for x, y in zip(inputs.split(8), targets.split(8)):
        logits, _ = forward(model, x.to(device))
        total += F.cross_entropy(logits, y.flatten().to(device), reduction="sum").item()
    return total / (count * window)


def save(model: Qwen3, tokenizer: Tokenizer, folder: Path) -> None:
    """The model under Hugging Face's names in bfloat16; each file appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().to(torch.bfloat16).cpu().contiguous() for name, t in model.published().items()}
    temporary = folder / "model.safetensors.part"
    save_file(tensors, temporary, metadata={"format": "pt"})
    temporary.replace(folder / "model.safetensors")
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": corpus.END_OF_TEXT, "model_max_length": CONFIG["max_position_embeddings"]}
    for name, values in (
        ("config.json", CONFIG),
        ("generation_config.json", {"eos_token_id": 0, "do_sample": True, "temperature": 0.6, "top_p": 0.95}),
        ("tokenizer_config.json", settings),
    ):
        (folder / name).write_text(json.dumps(values, indent=2) + "\n")


def card(results: dict) -> str:
    """The model card, from what training measured."""
    r, bits = results, math.log2(math.e)
    return f"""# tiny: a Qwen3-MoE small enough to come with the code

A mixture of experts of Qwen3's architecture, {r["parameters"] / 1e6:.1f} M parameters of which a token uses
{r["active_parameters"] / 1e6:.1f} M: {CONFIG["num_hidden_layers"]} layers, hidden size {CONFIG["hidden_size"]},
{CONFIG["num_experts"]} experts of {CONFIG["moe_intermediate_size"]} with {CONFIG["num_experts_per_tok"]} per token,
byte-level BPE of {CONFIG["vocab_size"]:,} tokens, context {CONFIG["max_position_embeddings"]:,} (trained on windows
of 256).
It continues Python source; it is a base model and does not chat. It knows nothing: do not rely on what it writes.

- **Trained on** the source of the Python standard library without its tests, encodings and topic tables:
  {r["training_tokens"]:,} tokens, {r["trained_tokens"]:,} seen in training, on a CPU, by `python -m qwen3.tiny.train`
  (runs: {r["runs"]}; a later one starts from the weights and the vocabulary of the one before, `--start-from`).
  The library is under the PSF License Agreement, which allows derivative works; copyright 2001 the Python Software
  Foundation, all rights reserved.
- **Held out:** one file in forty, {r["held_out_tokens"]:,} tokens, chosen by a hash of its name.
  Loss {r["held_out_loss"]:.3f} nats per token, {r["held_out_loss"] * bits:.2f} bits, perplexity
  {r["perplexity"]:.1f}. A bigram model of the same tokens (Witten-Bell smoothing) gets
  {r["bigram_loss"]:.3f} nats, perplexity {math.exp(r["bigram_loss"]):.1f}.
- **Router:** load-balancing loss of Switch Transformers with weight {ROUTER_LOSS_WEIGHT}.
"""


if __name__ == "__main__":
    main()
