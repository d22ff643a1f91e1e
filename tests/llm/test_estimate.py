"""Parameters exactly, activations exactly as autograd keeps them, FLOPs as PyTorch counts them, memory as a GPU has it."""

import gc
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from labkernels.errors import ArgumentError
from labkernels.llm.config import PRESETS, ModelConfig
from labkernels.llm.estimate import (
    activation_bytes, cache_bytes, flop_table, flops_per_token, inference_memory, loss_bytes, parameters, prompt_bytes, training_memory, weight_bytes,
    with_extras,
)  # fmt: skip
from labkernels.llm.kernels import OPERATIONS, chunk_tokens, resolve
from labkernels.llm.model import Transformer
from labkernels.llm.training import packed_attention, packed_swiglu
from labkernels.llm.training.train_parts import FASTEST

SHAPES = {
    "grouped": ModelConfig(vocab_size=97, embed_dim=32, num_layers=3, num_heads=4, num_kv_heads=2, ffn_dim=48, max_seq_len=32),
    "own head, wide heads": ModelConfig(
        vocab_size=70, embed_dim=24, num_layers=2, num_heads=3, num_kv_heads=1, head_dim=10, ffn_dim=40, tie_embeddings=False, max_seq_len=32
    ),
    "QK-norm, GELU": ModelConfig(
        vocab_size=64, embed_dim=32, num_layers=2, num_heads=2, num_kv_heads=2, ffn_dim=64, qk_norm=True, activation="gelu", max_seq_len=32
    ),
}
BATCH, SEQ = 2, 24


@pytest.mark.parametrize("config", [*PRESETS.values(), *SHAPES.values()], ids=[*PRESETS, *SHAPES])
def test_parameters_are_exact(config):
    with torch.device("meta"):
        model = Transformer(config)
    assert parameters(config) == sum(weight.numel() for weight in model.parameters())


def test_presets_have_the_size_that_they_are_named_after():
    want = {"10m": 10e6, "645m": 645e6, "730m": 730e6, "llama-3.2-1b": 1.236e9, "llama-3.2-3b": 3.213e9, "llama-2-7b": 6.738e9, "llama-2-13b": 13.016e9}
    want |= {"llama-3-8b": 8.030e9, "llama-3-70b": 70.554e9}
    assert {name: parameters(config) for name, config in PRESETS.items()} == pytest.approx(want, rel=0.005)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("training", [False, True])
def test_flops_are_those_that_pytorch_counts(name, training):
    config = SHAPES[name]
    model = Transformer(config, device="meta")
    tokens = torch.zeros(BATCH, SEQ, dtype=torch.long, device="meta")
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss = model(tokens, tokens)
        if training:
            loss.backward()
    table = flop_table(config, SEQ, training)
    whole_square = table["scores"] * 2 * SEQ / (SEQ + 1)  # PyTorch counts what is hidden, too
    assert counter.get_total_flops() == BATCH * SEQ * (sum(table.values()) - table["scores"] + whole_square)
    assert flops_per_token(config, SEQ, training) == sum(table.values())


def test_mfu_counts_as_the_published_ones():
    """6 N and attention over half of the square: 4.32 GFLOP a token for 645M at 2048."""
    config = PRESETS["645m"]
    assert flops_per_token(config, 2048) == pytest.approx(6 * parameters(config) + 6 * 24 * 1536 * 2048, rel=1e-3)


def kept_bytes(model, *inputs) -> int:
    """The bytes of all tensors that autograd keeps in the forward pass, each memory once, without parameters, tables and inputs."""
    fixed = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers(), *inputs)}
    seen = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in fixed:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(*inputs)
    del loss
    return sum(seen.values())


def tokens_of(config):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(config.vocab_size, (BATCH, SEQ), generator=generator) for _ in range(2)]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_our_kernels_keep_what_is_estimated(name, checkpointing):
    config, ours = SHAPES[name], resolve("labkernels")
    model = Transformer(config, "labkernels")
    model.checkpointing = checkpointing
    tokens = BATCH * SEQ
    gradients = loss_bytes(config, tokens, torch.float32, ours) - min(chunk_tokens(config.vocab_size, torch.float32), tokens) * config.vocab_size * 4
    factor = 4  # of the loss, and under full checkpointing nothing besides
    want = activation_bytes(config, tokens, torch.float32, ours, checkpointing) + gradients + factor
    assert kept_bytes(model, *tokens_of(config)) == want


@pytest.mark.parametrize("activation", ["labkernels", "fused", "kept"])
def test_what_the_trainer_packs_keeps_what_is_estimated(activation):
    config = SHAPES["grouped"]
    kernels = dict.fromkeys(OPERATIONS, "labkernels") | {"linear": "torch", "ffn": "torch"}
    model = packed_swiglu.convert(Transformer(config, kernels), activation != "labkernels", activation == "kept")
    if activation != "labkernels":
        packed_attention.convert(model, True)
    told, tokens = with_extras(kernels | {"activation": activation}), BATCH * SEQ
    chunk = min(chunk_tokens(config.vocab_size, torch.float32), tokens) * config.vocab_size * 4
    want = activation_bytes(config, tokens, torch.float32, told) + loss_bytes(config, tokens, torch.float32, told) - chunk + 4  # the loss
    assert kept_bytes(model, *tokens_of(config)) == want
    with pytest.raises(ArgumentError, match="kernels has 'activatoin'"):
        with_extras(kernels | {"activatoin": activation})


@pytest.mark.parametrize("name", SHAPES)
def test_pytorch_keeps_what_is_estimated_and_what_only_its_cpu_operations_keep(name):
    config, c = SHAPES[name], SHAPES[name]
    tokens, q, kv = BATCH * SEQ, c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    scaled = (2 * c.num_layers + 1) * c.embed_dim + (c.num_layers * (q + kv) if c.qk_norm else 0)  # x * rstd of each norm: fused on a GPU
    joined = c.num_layers * q  # heads in a copy
    logits, count = c.vocab_size, 4  # of float32; and how many targets count
    want = activation_bytes(config, tokens, torch.float32, resolve("torch")) + 4 * tokens * (scaled + joined + logits) + count
    found = kept_bytes(Transformer(config), *tokens_of(config))
    assert found == want


def test_selective_checkpointing_keeps_the_products_and_the_streams():
    config = SHAPES["grouped"]
    from torch.utils._python_dispatch import TorchDispatchMode

    from labkernels.llm import recompute

    model, kept = Transformer(config), {}
    model.checkpointing = "selective"

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            found = op(*args, **(kwargs or {}))
            if op in recompute._kept():
                for tensor in found if isinstance(found, tuple) else (found,):
                    if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32:
                        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return found

    tokens, target = tokens_of(config)
    with Count():
        hidden = model.hidden(tokens)
    streams = 4 * config.num_layers * hidden.numel()
    norm = 4 * (2 * hidden.numel() + BATCH * SEQ)  # the last one, outside of all blocks
    want = activation_bytes(config, BATCH * SEQ, torch.float32, resolve("torch"), "selective")
    assert sum(kept.values()) + streams + norm == want


def test_checkpointing_and_accumulation_say_what_they_change():
    config, given = PRESETS["645m"], {"batch": 16, "seq_len": 2048}
    none, selective, full = (training_memory(config, **given, checkpointing=mode) for mode in ("none", "selective", "full"))
    assert none["activations"] > selective["activations"] > full["activations"] > 0 and none["weights"] == full["weights"]
    assert none.peak > selective.peak > full.peak
    assert training_memory(config, **given, accumulate=True).peak == none.peak + none["gradients"]
    assert training_memory(config, **given, kernels="torch")["loss"] == 3 * 4 * 16 * 2048 * config.vocab_size
    muon = training_memory(config, **given, optimizer="muon")
    assert none["optimizer"] == 8 * parameters(config) and none["optimizer"] / 2 < muon["optimizer"] < none["optimizer"]
    with pytest.raises(ArgumentError, match="optimizer is 'lion'"):
        training_memory(config, **given, optimizer="lion")


def test_peaks_are_those_that_an_h200_had():
    """In GB, of the ablation's rows; and of six layers where little is kept, so that the peak is where the backward pass ends."""
    config, few = PRESETS["645m"], ModelConfig.preset("645m", num_layers=6)
    bare = {"master_weights": False, "state_dtype": torch.bfloat16}
    for want, options in ((42.1, {}), (39.8, {"checkpointing": "selective"}), (36.9, bare)):
        assert training_memory(config, 16, 2048, **options).peak / 1e9 == pytest.approx(want, rel=0.01)
    for want, activation in ((33.6, "fused"), (40.3, "kept")):
        assert training_memory(config, 16, 2048, kernels=FASTEST | {"activation": activation}, **bare).peak / 1e9 == pytest.approx(want, rel=0.015)
    full = training_memory(few, 8, 1024, checkpointing="full", **bare)
    assert full.peak / 1e9 == pytest.approx(2.306, rel=0.03)
    begins = full["activations"] + max(full["loss"], full["workspace"])
    assert full.peak > 1.1 * (full["weights"] + full["optimizer"] + begins), "what gradients have grown to counts"


@pytest.mark.parametrize("scheme", ["int4", "nf4", "int8", "fp8"])
@pytest.mark.parametrize("shape", [(64, 256), (33, 200)])
def test_quantised_weights_take_what_is_estimated(scheme, shape):
    from labkernels.nn import QuantLinear

    rows, columns = shape
    layer = QuantLinear(columns, rows, scheme)
    found = sum(buffer.nbytes for buffer in layer.buffers())
    assert weight_bytes(rows, columns, torch.bfloat16, scheme) == found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int8])
def test_the_cache_takes_what_is_estimated(dtype):
    from labkernels.kvcache.caches import ContiguousKVCache

    config = SHAPES["grouped"]
    cache = ContiguousKVCache(config.num_layers, 3, config.num_kv_heads, 40, config.head_dim, dtype, "cpu")
    assert inference_memory(config, 3, 40, cache_dtype=dtype)["cache"] == cache.nbytes
    assert cache_bytes(128, torch.int8) == 132


class Living(TorchDispatchMode):
    """The most bytes of tensors made inside that are there at a time."""

    def __init__(self):
        super().__init__()
        self.made, self.peak = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        def storages(tensors) -> dict[int, int]:
            return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if isinstance(t, torch.Tensor)}

        result = function(*args, **(kwargs or {}))
        own = storages(made() for made in self.made)
        others = storages(tree_leaves((args, kwargs))).keys() - own.keys()
        new = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in others]
        self.made = [made for made in self.made if made() is not None] + [weakref.ref(t) for t in new]
        self.peak = max(self.peak, sum(storages(made() for made in self.made).values()))
        return result


def test_a_pass_over_prompts_has_as_much_at_a_time_as_is_estimated():
    from tests.llm.inference.random_models import Engine, prompts_of, random_model

    config = ModelConfig(80, 64, 3, 4, 2, 512, head_dim=16, max_seq_len=128)
    engine, prompts = Engine(random_model(config), runner="fused"), prompts_of(60, 60)
    step = engine.cache.step({engine.cache.add(())[0]: prompt for prompt in prompts})
    with Living() as living:
        engine.runner.prefill(torch.tensor(sum(prompts, [])), step, [59, 119])
    logits = 2 * 80 * 6  # which are made when all else is gone
    assert living.peak == prompt_bytes(config, 2, 60, 120, torch.bfloat16) - logits


def test_a_head_of_its_own_is_counted_beside_the_embedding():
    tied, untied = ModelConfig.preset("llama-3.2-1b"), PRESETS["llama-3-8b"]
    plain, own = (inference_memory(tied, 1, 64, head=head)["weights"] for head in (None, "int8"))
    assert own - plain == weight_bytes(tied.vocab_size, tied.embed_dim, torch.bfloat16, "int8")
    plain, own = (inference_memory(untied, 1, 64, head=head)["weights"] for head in (None, "int8"))
    assert plain - own == untied.vocab_size * (untied.embed_dim - 4), "in the place of the one that there was"


@pytest.mark.gpu
@pytest.mark.parametrize("name, scheme, context, cache", [("llama-3.2-1b", None, 8192, None), ("llama-3.2-1b", "int4", 8192, "int8"), ("llama-2-7b", "int4", 4096, None)])
def test_the_peak_of_an_engine_is_within_a_twentieth(name, scheme, context, cache):
    from labkernels.llm.inference.bench_engine import random_model
    from labkernels.llm.inference.engine import Engine

    config = PRESETS[name]
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    model = random_model(config, torch.bfloat16, "cuda", scheme)
    torch.cuda.reset_peak_memory_stats()
    engine = Engine(model, max_batch=4, max_seq_len=context, cache_dtype=cache)
    for again in range(3):  # the passes over prompts of the third are captured ones
        engine.generate([[again + token for token in range(1, 3000)]] * 4, 40, ignore_eos=True)
    found = torch.cuda.max_memory_allocated() - before
    want = inference_memory(config, 4, context, quantize=scheme, cache_dtype=engine.cache.k.dtype)
    print(f"{name} {scheme} {cache}: {found / 1e9:.3f} GB, estimated {want.peak / 1e9:.3f}")
    assert found == pytest.approx(want.peak, rel=0.05), str(want)


def test_llama_3_8b_at_inference():
    """Half a byte a weight and its scales; 128 KiB of cache a token, as lab 11 has it."""
    config = PRESETS["llama-3-8b"]
    plain, int4 = inference_memory(config, 1, 8192), inference_memory(config, 1, 8192, quantize="int4")
    assert plain["weights"] == 2 * parameters(config) and plain["cache"] == 8192 * 131_072
    assert int4["weights"] == pytest.approx(0.53125 * 6.98e9 + 2 * 1.05e9, rel=0.01)
    assert plain.peak == sum(plain.values()) and "GB" in str(plain)


@pytest.mark.gpu
@pytest.mark.parametrize("kernels", ["torch", "labkernels"])
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_the_peak_of_a_training_step_is_within_a_tenth(kernels, checkpointing):
    config, batch, seq_len = ModelConfig.preset("645m", num_layers=6), 8, 1024
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    model = Transformer(config, kernels, device="cuda", dtype=torch.bfloat16)
    model.checkpointing = checkpointing
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    tokens = torch.randint(config.vocab_size, (batch, seq_len + 1), device="cuda")
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        model(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    found = torch.cuda.max_memory_allocated() - before
    given = {"kernels": kernels, "checkpointing": checkpointing, "master_weights": False, "state_dtype": torch.bfloat16}
    want = training_memory(config, batch, seq_len, **given)
    print(f"{kernels} {checkpointing}: {found / 1e9:.3f} GB, estimated {want.peak / 1e9:.3f}")
    assert found == pytest.approx(want.peak, rel=0.1), str(want)
