"""Sampling: the distribution is the sorted definition's, a draw depends on its row alone, and every edge has an answer."""

import math

import pytest
import torch
from torch.library import opcheck

from labkernels.cuda import sanitizing
from labkernels.cuda.variants import kernel
from labkernels.errors import ArgumentError
from labkernels.lab.check import check
from labkernels.lab.failure import CheckFailed
import labkernels.torch_extension  # noqa: F401  defines the operator
from labkernels.sampling import sample_tokens
from labkernels.sampling.peers import Drawn
from labkernels.sampling.reference import draw, kept, noise, philox, probabilities
from labkernels.sampling.sample_tokens_op import OP, decode
from labkernels.sampling.sample_tokens_variants import CLUSTER_KERNELS, FOLDER, VARIANTS, configured, row_held, row_raced, row_read, slice_of
from tests.recorded_resources import taken

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def in_four_blocks(version):
    return lambda logits, **settings: configured(version, 4, 64, logits, **settings)


CLUSTERED = {f"{version} in four blocks": in_four_blocks(version) for version in CLUSTER_KERNELS}
EVERY = {**{name: variant.fn for name, variant in VARIANTS.items()}, **CLUSTERED}


def random(rows: int, vocab: int, device: str = "cpu") -> torch.Tensor:
    return 2 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(vocab)).to(device)


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_passes_the_check(name):
    assert check("sample_tokens", name, seeds=(0,), dtypes=["float32"], quiet=True).sanitizer == "clean"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_highest_variant_takes_16_bits(dtype):
    check("sample_tokens", "v5_race", seeds=(0,), dtypes=[dtype], quiet=True)


def test_philox_gives_the_published_words():
    def words(*counter, seed):
        return [int(word) for word in philox([torch.tensor(word) for word in counter], torch.tensor(seed))]

    assert words(0, 0, 0, 0, seed=0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert words(*[0xFFFFFFFF] * 4, seed=-1) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_noise_is_gumbels():
    sample = noise(50, 4000, seed=3, position=0, device="cpu").flatten()
    assert abs(sample.mean() - 0.5772) < 0.01 and abs(sample.var() - math.pi**2 / 6) < 0.03


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"top_k": 6, "top_p": 0.8},
        {"temperature": 0.6, "min_p": 0.05},
        {"top_p": 0.7, "temperature": 1.5},
        {"repetition_penalty": 1.8, "previous": torch.tensor([[0, 3, 5, 5, -1]])},
    ],
    ids=lambda settings: "+".join(settings) or "softmax",
)
@pytest.mark.parametrize("name", ["v2_radix", "v5_race in four blocks"])
def test_chi_square_against_the_exact_distribution(name, settings, device):
    draws = 4000
    row = random(1, 24, device)
    settings = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in settings.items()}
    want = probabilities(row.double(), **settings)[0] * draws
    if "previous" in settings:
        settings["previous"] = settings["previous"].expand(draws, -1)
    tokens = EVERY[name](row.expand(draws, -1).contiguous(), **settings, seed=11)
    found = torch.bincount(tokens, minlength=24)
    assert found[want == 0].sum() == 0
    common = want >= 5
    chi_square = ((found - want)[common] ** 2 / want[common]).sum() + (found - want)[~common].sum() ** 2 / want[~common].sum().clamp(min=5)
    freedom = int(common.sum())
    assert chi_square < freedom + 4.5 * (2 * freedom) ** 0.5  # by chance once in some thousand seeds; this one is fixed


def test_the_chi_square_test_can_fail():
    row, draws = random(1, 24), 4000
    want = probabilities(row.double())[0] * draws
    found = torch.bincount(VARIANTS["v2_radix"].fn(row.expand(draws, -1).contiguous(), temperature=0.9), minlength=24)
    assert ((found - want) ** 2 / want).sum() > 24 + 4.5 * 48**0.5


def test_probabilities_are_hugging_faces():
    """By transformers' own steps, on logits without ties."""
    logits = random(5, 40).double() / 0.7
    scores = logits.masked_fill(logits < logits.topk(12).values[:, -1:], -torch.inf)
    ranked, order = scores.sort(descending=False)
    remove = ranked.softmax(-1).cumsum(-1) <= 1 - 0.75
    scores = scores.masked_fill(torch.zeros_like(remove).scatter(1, order, remove), -torch.inf)
    chances = scores.softmax(-1)
    scores = scores.masked_fill(chances < 0.1 * chances.amax(-1, keepdim=True), -torch.inf)
    mine = probabilities(logits * 0.7, 0.7, 12, 0.75, 0.1)
    torch.testing.assert_close(mine, scores.softmax(-1), rtol=1e-6, atol=1e-9)  # a temperature is rounded to float32


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", EVERY)
def test_a_draw_depends_on_its_row_alone(name, device):
    logits = random(9, 130, device)
    seed = torch.arange(9, device=device) * 10**12
    settings = {"top_k": 20, "top_p": 0.9, "seed": seed, "position": torch.full((9,), 7, device=device)}
    together = EVERY[name](logits, **settings)
    order = torch.tensor([4, 2, 8, 0], device=device)
    alone = EVERY[name](logits[order], **{**settings, "seed": seed[order], "position": settings["position"][order]})
    assert torch.equal(together[order], alone)
    later = EVERY[name](logits, **{**settings, "position": settings["position"] + 1})
    assert not torch.equal(later, together)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", EVERY)
def test_rows_without_a_distribution_are_told_and_spoil_no_other(name, device):
    logits = random(5, 100, device)
    want = EVERY[name](logits, top_k=5, return_logprobs=True)
    logits[0, 3], logits[1], logits[2, 99] = torch.nan, -torch.inf, torch.inf
    tokens, logprobs = EVERY[name](logits, top_k=5, return_logprobs=True)
    assert tokens[:3].tolist() == [-1, -1, -1] and logprobs[:3].isnan().all()
    assert torch.equal(tokens[3:], want[0][3:]) and torch.equal(logprobs[3:], want[1][3:])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", EVERY)
def test_edges(name, device):
    fn, logits = EVERY[name], random(6, 90, device)
    largest = logits.argmax(1)
    assert torch.equal(fn(logits, temperature=0.0), largest)
    assert torch.equal(fn(logits, top_k=1), largest)
    assert torch.equal(fn(logits, top_p=1e-9), largest) and torch.equal(fn(logits, top_p=0.0), largest)
    assert torch.equal(fn(logits, min_p=1.0), largest)
    assert torch.equal(fn(logits, top_k=90), fn(logits)) and torch.equal(fn(logits, top_k=1000), fn(logits))
    assert fn(torch.full((3, 70), -2.5, device=device), temperature=0.0).tolist() == [0, 0, 0]
    one = torch.full((2, 50), -torch.inf, device=device)
    one[:, 31] = -1000.0
    assert fn(one, top_k=7, top_p=0.5).tolist() == [31, 31] and fn(one).tolist() == [31, 31]
    assert fn(logits[:0]).shape == (0,)


@pytest.mark.parametrize("name", EVERY)
def test_equal_logits_stay_or_go_together(name):
    row = torch.tensor([[3.0, 1.0, 2.0, 2.0, 1.0, 0.0, -0.0, 2.0]])
    many = row.expand(300, -1).contiguous()
    drawn = lambda **settings: set(EVERY[name](many, temperature=5.0, **settings).tolist())
    assert drawn(top_k=2) == {0, 2, 3, 7}
    assert drawn(top_k=5) == {0, 1, 2, 3, 4, 7}
    assert drawn(top_k=7) == set(range(8))  # 0 and -0 are equal
    assert drawn(top_k=7, top_p=0.2) == {0, 2, 3, 7}


def test_log_probabilities_are_those_before_anything_is_left_out():
    logits = random(8, 60)
    settings = {"temperature": 0.8, "top_k": 4, "repetition_penalty": 1.4, "previous": torch.arange(30).expand(8, -1)}
    for fn in EVERY.values():
        tokens, logprobs = fn(logits, **settings, return_logprobs=True)
        want = draw(logits.double(), **settings)
        assert torch.equal(tokens, want[0])
        torch.testing.assert_close(logprobs.double(), want[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [{"top_k": 3, "top_p": 0.9}, {"top_k": 200, "top_p": 0.9, "return_logprobs": True}], ids=str)
@pytest.mark.parametrize("fn", CLUSTERED.values(), ids=list(CLUSTERED))
def test_clusters_of_several_blocks_are_clean(fn, settings):
    logits = random(2, 700)
    with sanitizing():
        found = fn(logits, **settings)
    want = draw(logits.double(), **{name: value for name, value in settings.items() if name != "return_logprobs"})
    assert torch.equal(found[0] if isinstance(found, tuple) else found, want[0])


@pytest.mark.parametrize("fn", CLUSTERED.values(), ids=list(CLUSTERED))
def test_more_candidates_than_fit_go_the_long_way(fn):
    logits = torch.zeros(2, 3000)
    logits[:, 1500:] = 1.0  # 1500 largest ones
    for seed in range(3):
        assert torch.equal(fn(logits, top_k=40, seed=seed), draw(logits.double(), top_k=40, seed=seed)[0])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("top_p", [0.5, 0.05, 0.002])  # at 0.002 some ten races would be needed: after seven the threshold is searched for
def test_a_race_is_run_until_its_winner_is_in_the_nucleus(top_p, device):
    logits = 0.05 * random(8, 2000, device)
    for fn in (VARIANTS["v5_race"].fn, EVERY["v5_race in four blocks"]):
        for settings in ({"seed": 3}, {"seed": 4, "top_k": 900, "min_p": 0.95}):
            tokens, logprobs = fn(logits, top_p=top_p, return_logprobs=True, **settings)
            want = draw(logits.double(), top_p=top_p, **settings)
            assert torch.equal(tokens, want[0])
            torch.testing.assert_close(logprobs.double(), want[1], rtol=1e-5, atol=1e-5)


def test_what_is_kept_by_others_random_numbers_counts_as_right():
    inputs = OP.make_inputs(torch.Generator().manual_seed(0), "cpu", torch.float32, rows=4, vocab=50, top_k=5, top_p=0.7)
    mask = kept(inputs["logits"], 1.0, 5, 0.7, 0.0)
    want = OP.reference(**inputs)
    assert torch.equal(decode(Drawn(mask.int().argmax(1)), **inputs), want)
    assert not torch.equal(decode(Drawn(mask.int().argmin(1)), **inputs), want)


def test_classic_mistakes_fail():
    def without_top_p(logits, top_p=1.0, **settings):
        return VARIANTS["v2_radix"].fn(logits, **settings)

    def same_noise_for_all_rows(logits, seed=0, **settings):
        return VARIANTS["v2_radix"].fn(logits, seed=torch.full((len(logits),), seed) if isinstance(seed, int) else seed, **settings)

    for mistake in (without_top_p, same_noise_for_all_rows):
        with pytest.raises(CheckFailed) as failure:
            check("sample_tokens", mistake, dtypes=["float32"], seeds=(0,), layout="contiguous", quiet=True)
        assert failure.value.reason == "mismatch"


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"top_p": 1.5}, "top_p is 1.5; it must be from 0.0 to 1.0"),
        ({"top_k": 2.0}, "top_k is 2.0; it must be an int or a tensor"),
        ({"temperature": -1}, "temperature is -1; it must be at least 0.0"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; it must be above 0"),
        ({"min_p": torch.zeros(3)}, r"min_p has shape \(3,\); it must be a number or have one for each row, \(2,\)"),
        ({"seed": torch.zeros(2)}, "seed is float32; it must be int32 or int64"),
        ({"previous": torch.zeros(2, 5)}, "previous is float32; it must be int64, int32 or bool"),
        ({"previous": torch.zeros(2, 5, dtype=torch.bool)}, r"a bool mask \(2, 9\)"),
    ],
)
def test_wrong_inputs_are_named(settings, words):
    with pytest.raises(ArgumentError, match="sample_tokens: .*" + words):
        sample_tokens(random(2, 9), **settings)
    with pytest.raises(ArgumentError, match="logits has shape"):
        sample_tokens(torch.zeros(9))


def test_the_operator_is_whole():
    logits = random(3, 40)
    opcheck(torch.ops.labkernels.sample_tokens.default, (logits, 1.0, 5, 0.9))
    opcheck(torch.ops.labkernels.sample_tokens.default, (logits,), {"top_ks": torch.tensor([1, 2, 3]), "previous": torch.tensor([[1], [2], [3]])})


def test_compiles_as_one_graph():
    logits, top_k = random(3, 40), torch.tensor([1, 5, 0])
    call = lambda logits, top_k: sample_tokens(logits, 0.9, top_k, 0.8, seed=5, return_logprobs=True)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")(logits, top_k)
    assert all(torch.equal(one, other) for one, other in zip(compiled, call(logits, top_k)))


def test_configurations_cover_the_row():
    for vocab in (1, 8, 4096, 4097, 32_000, 128_256, 262_144):
        for blocks, threads in (row_held(vocab), *(fn(rows, vocab, 132) for fn in (row_read, row_raced) for rows in (1, 64))):
            assert blocks * slice_of(vocab, blocks) >= vocab and threads % 32 == 0 and 64 <= threads and blocks * threads <= 4096


@pytest.mark.gpu
def test_a_cuda_graph_draws_anew_with_a_new_position():
    logits, position = random(4, 5000, "cuda"), torch.zeros(4, dtype=torch.int64, device="cuda")
    sample_tokens(logits, top_k=50, position=position)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens = sample_tokens(logits, top_k=50, top_p=0.9, seed=1, position=position)
    for step in range(3):
        position.fill_(step)
        graph.replay()
        assert torch.equal(tokens, draw(logits, top_k=50, top_p=0.9, seed=1, position=step)[0])


@pytest.mark.parametrize("arch, files", [("sm_80", ("v1_naive", "v2_radix")), ("sm_90a", ("v1_naive", "v2_radix", "v3_cluster", "v4_look_again", "v5_race"))])
def test_compiles_for_gpus_without_spills(arch, files):
    names = {"v1_naive": "sample_naive", "v2_radix": "sample_radix", **CLUSTER_KERNELS}
    for file in files:
        resources = taken(kernel(FOLDER / f"{file}.cu", names[file], torch.bfloat16, *([8] if file in CLUSTER_KERNELS else [])), arch)
        assert resources.spill_stores == resources.stack == 0, resources
