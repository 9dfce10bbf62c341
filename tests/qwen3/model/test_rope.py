"""The rotary table, against transformers', over a grid in which every parameter changes the table."""

import itertools

import pytest
import torch

from qwen3 import Qwen3Error
from qwen3.config.hf import from_hf
from qwen3.engine.assemble import load_model
from qwen3.model.rope import rope_table, rope_table_bytes
from qwen3_kernels import reference

from ..config.published import changed
from ..conftest import SMALL
from .test_parity import OWN_YARN, YARN

# Shapes at which the ramp of YaRN has pairs below, on and above it.
SHAPE = {"head_dim": 128, "max_position_embeddings": 4096, "rope_theta": 1e6}
BASE = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
# Each with values that are not its default.
CHANGES = {
    "factor": [1.0, 1.5, 32],
    "original_max_position_embeddings": [64, 1024],
    "beta_fast": [8, 64.0],
    "beta_slow": [2, 0.5],
    "attention_factor": [0.9, 1.0],
    "truncate": [False],
    "mscale, mscale_all_dim": [(0.7, 1.0), (1.0, 0.5)],
    "rope_theta": [1e4, 5e6, 1e7],
}
GRID = [
    *({name: value} for name, values in CHANGES.items() for value in values),
    *({a: CHANGES[a][-1], b: CHANGES[b][-1]} for a, b in itertools.combinations(CHANGES, 2)),
    # Without effect: one of the two mscales alone, defaults that are written out, 0 and null.
    {"beta_fast": 1, "beta_slow": 32},
    {"beta_fast": 1, "beta_slow": 1},
    # A ramp of no width that begins between two pairs; one that ends beyond the last pair.
    {"beta_fast": 4, "beta_slow": 4, "truncate": False},
    {"beta_slow": 1e-3, "rope_theta": 1e4},
]
DEFAULTS = {
    "beta_fast": 32,
    "beta_slow": 1,
    "attention_factor": None,
    "truncate": True,
    "mscale": 0.7,
    "rope_theta": 1e6,
}


def block(changes):
    flat = {}
    for name, value in changes.items():
        names = name.split(", ")
        flat |= dict(zip(names, value if len(names) > 1 else [value], strict=True))
    return BASE | flat


def ours(**changes):
    return rope_table(from_hf(changed(**SHAPE | changes)), 300)


def theirs(**changes):
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    config = transformers.Qwen3MoeConfig.from_dict(changed(**SHAPE | changes))
    rotary = transformers.models.qwen3_moe.modeling_qwen3_moe.Qwen3MoeRotaryEmbedding(config)
    cos, sin = rotary(torch.zeros(1), torch.arange(300)[None])
    return torch.cat((cos[0, :, :64], sin[0, :, :64]), dim=-1)


@pytest.mark.parametrize("changes", GRID, ids=str)
def test_yarn(changes):
    values = block(changes)
    expected = theirs(rope_scaling=dict(values))
    assert (expected - theirs(rope_scaling=dict(BASE))).abs().max() > 1e-2, "this parameter changes nothing here"
    assert (ours(rope_scaling=values) - expected).abs().max() < 5e-5


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_default_that_is_written_out_changes_nothing(name):
    written = BASE | {name: DEFAULTS[name]}
    assert torch.equal(ours(rope_scaling=written), ours(rope_scaling=BASE))
    assert torch.equal(theirs(rope_scaling=dict(written)), theirs(rope_scaling=dict(BASE)))
    if name.startswith("beta"):
        for nothing in (0, None):
            assert torch.equal(ours(rope_scaling=BASE | {name: nothing}), ours(rope_scaling=BASE))


@pytest.mark.parametrize("theta", [1e4, 1e6, 5e6, 1e7])
def test_without_yarn(theta):
    assert (ours(rope_theta=theta) - theirs(rope_theta=theta)).abs().max() < 5e-5
    assert (ours(rope_theta=theta) - ours(rope_theta=theta * 1.1)).abs().max() > 1e-2


@pytest.mark.parametrize("name", OWN_YARN)
def test_the_parameters_of_the_parity_test_change_its_table(name):
    small = {"head_dim": SMALL["head_dim"], "max_position_embeddings": SMALL["max_position_embeddings"]}
    less = {k: v for k, v in OWN_YARN.items() if k != name}
    with_all, without = (ours(**small, rope_scaling=YARN | more) for more in (OWN_YARN, less))
    assert (with_all[:150] - without[:150]).abs().max() > 1e-2


def test_the_table_counts_in_the_memory_that_a_model_needs():
    config = from_hf(changed(**SHAPE | {"num_hidden_layers": 1, "max_position_embeddings": 2**31 - 1}))
    device = torch.device("cpu")
    with pytest.raises(Qwen3Error, match=r"out of memory: .* needs 2,7.* GB"):
        load_model(config, reference, config.max_context, torch.float32, device, None)
    # The table, its halves, and the angles are alive at once.
    table = rope_table(config, 100)
    angles = table[:, : config.head_dim // 2]
    assert rope_table_bytes(config, 100) == 2 * table.nbytes + angles.nelement() * angles.element_size()
