"""The script that trained the embedded model: the same model, differentiable through the reference ops."""

import torch

from qwen3.config.hf import from_hf
from qwen3.model.qwen3 import Qwen3
from qwen3.tiny import train
from qwen3_kernels import reference


def test_every_parameter_gets_a_gradient_and_a_step_lowers_the_loss():
    torch.manual_seed(0)
    config = from_hf(train.CONFIG | {"num_hidden_layers": 2, "vocab_size": 64})
    model = Qwen3(config, reference, 32)
    train.initialise(model)
    deviations = {name: p.std().item() for name, p in model.named_parameters() if p.dim() > 1}
    residual = {name for name, deviation in deviations.items() if deviation < 0.015}
    assert residual == {f"layers.{i}.{part}" for i in (0, 1) for part in ("attention.o.data", "mlp.experts.down_data")}
    optimizer = torch.optim.AdamW(train.parameter_groups(model), lr=1e-3)
    windows = torch.randint(64, (2, 17))
    losses = []
    for _ in range(8):
        text_loss, router_loss = train.losses(model, windows)
        (text_loss + 0.01 * router_loss).backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
        assert all(bool(p.grad.any()) for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(text_loss.item())
    assert losses[-1] < losses[0]
