from __future__ import annotations

import dataclasses
import importlib.metadata
from itertools import chain

import jax
import numpy as np
import pytest
import torch

from creason_jax.mesh import sharding
from creason_jax.model import DecoderConfig, load_params
from creason_jax.rollout.engine import Engine as JaxEngine
from creason_torch.rollout import Engine, engine_kind, make_engine, vllm_options
from creason_torch.rollout.hf import Caches, HfEngine
from shared.backend import Sampling
from shared.config import JaxConfig
from shared.errors import InputError
from shared.policy.families import FAMILIES
from tests.support import rollouts
from tests.support.families import tiny_network
from tests.support.rollouts import CLOSE, CPU, GREEDY, SAMPLED, World, assert_same, rollout_config, weights
from tests.support.tiny import tiny_phi3

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return rollouts.make_world(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def engine(world) -> Engine:
    return world.engine("hf")


@rollouts.every_check
def test_the_plain_engine(world, engine, check):
    check(world, engine)


def test_draws_follow_the_uniforms(world, engine):
    found = engine.generate(world.prompts, SAMPLED, world.uniforms)
    for prompt, group, uniforms in zip(world.prompts, found, world.uniforms, strict=True):
        for completion, numbers in zip(group, uniforms, strict=True):
            ids = torch.tensor(np.concatenate([prompt, completion.tokens])[None]).long()
            with torch.no_grad():
                logits = world.network(ids).logits[0, len(prompt) - 1 : -1].double()
            reached = (logits / SAMPLED.temperature).softmax(-1).cumsum(-1).numpy()
            expected = [np.searchsorted(row, u, side="right") for row, u in zip(reached, numbers)]
            np.testing.assert_array_equal(completion.tokens, expected)


@pytest.mark.parametrize("score_temperature", ["one", "sampling"])
def test_completions_are_those_of_the_jax_engine(world, score_temperature):
    options = {"grpo": {"score_temperature": score_temperature}, "rollout": {"max_prompt_tokens": 32}}
    model = DecoderConfig.read(world.folder)
    mesh = sharding.make_mesh(JaxConfig(), jax.devices()[:1])
    other = JaxEngine(rollout_config("hf", **options), model, mesh, stop_tokens=world.stops)
    other.load(load_params(world.folder, model, sharding.param_shardings(model, mesh)))
    ours = world.engine("hf", **options)
    prompts, uniforms = world.prompts[:4], world.uniforms[:4]
    filtered = dataclasses.replace(SAMPLED, top_k=40, top_p=0.8, min_p=0.05)
    for sampling in [SAMPLED, filtered] if score_temperature == "one" else [SAMPLED]:
        found = ours.generate(prompts, sampling, uniforms)
        assert_same(found, other.generate(prompts, sampling, uniforms))


def test_numbers_of_later_tokens_do_not_move_earlier_ones(world, engine):
    expected = engine.generate(world.prompts, SAMPLED, world.uniforms)
    uniforms = world.uniforms.copy()
    uniforms[:, :, 3:] = 1 - uniforms[:, :, 3:]
    found = engine.generate(world.prompts, SAMPLED, uniforms)
    moved = 0
    for ours, other in zip(chain(*found), chain(*expected), strict=True):
        np.testing.assert_array_equal(ours.tokens[:3], other.tokens[:3])
        moved += not np.array_equal(ours.tokens, other.tokens)
    assert moved > 3


@pytest.mark.parametrize(
    "rollout",
    [{"slots": 1, "prefill_batch": 2, "decode_steps": 1}, {"slots": 8, "prefill_batch": 3, "decode_steps": 7}],
    ids=str,
)
def test_slots_and_batching_do_not_matter(world, engine, rollout):
    other = world.engine("hf", rollout=rollout)
    expected = engine.generate(world.prompts, SAMPLED, world.uniforms)
    assert_same(other.generate(world.prompts, SAMPLED, world.uniforms), expected)
    assert_same(other.generate(world.prompts, GREEDY, None), engine.generate(world.prompts, GREEDY, None))


def test_evaluation_has_its_own_slots(world, monkeypatch):
    engine = world.engine("hf", evaluation={"slots": 2})
    widths = []
    original = HfEngine._slots

    def counted(self, prompts, *arguments):
        widths.append(len(prompts))
        return original(self, prompts, *arguments)

    monkeypatch.setattr(HfEngine, "_slots", counted)
    engine.generate(world.prompts, GREEDY, None)
    assert widths == [2, 2, 2, 1]
    engine.generate(world.prompts, SAMPLED, world.uniforms)
    assert widths[4:] == [3, 3, 1]


def test_as_many_slots_as_the_memory_holds(world, engine, monkeypatch, caplog):
    """The same completions from fewer slots, said so; none, and the request is refused before anything is computed."""
    widths = []
    original = HfEngine._slots

    def counted(self, prompts, *arguments):
        widths.append(len(prompts))
        return original(self, prompts, *arguments)

    monkeypatch.setattr(HfEngine, "_slots", counted)
    expected = engine.generate(world.prompts, SAMPLED, world.uniforms)
    free = 2**30
    monkeypatch.setattr("creason_torch.plan.memory.free_bytes", lambda device, sharers: free)
    other = world.engine("hf")
    each, prefill = other._of_slot(rollouts.LONGEST, SAMPLED), other._of_texts(1, rollouts.LONGEST)
    free = prefill + 2 * each
    assert_same(other.generate(world.prompts, SAMPLED, world.uniforms), expected)
    assert widths == [3, 3, 1, 2, 2, 2, 1]
    assert "2 of 3 slots fit the memory" in caplog.text
    free = prefill + each - 1
    with pytest.raises(InputError, match=r"hold no group with a prompt of 300 and 3 x 12 new tokens; what helps: "):
        other.generate(world.prompts, SAMPLED, world.uniforms)
    free = 2**20
    with pytest.raises(InputError, match=r"its weights take \d+ MiB of the 1 MiB that are free"):
        world.engine("hf")


@pytest.mark.parametrize(("group", "completion"), [(1, 2_000), (7, 300)])
def test_a_slot_takes_what_its_caches_take(engine, group, completion):
    """Told before they are made: never less, and not twice as much where they are most of it."""
    sampling = Sampling(group_size=group, temperature=0.9, max_new_tokens=completion)
    caches = Caches(engine.network, torch.tensor([400, 500]), 500, sampling)
    held = sum(each.nbytes for name in ("prompt_k", "prompt_v", "own_k", "own_v") for each in getattr(caches, name))
    assert held / 2 < engine._of_slot(500, sampling) < 2.5 * held / 2


def test_a_cpus_bfloat16_products_have_few_shapes(world):
    """oneDNN keeps a program for each shape, which a shape for each token makes gigabytes of; what is read beyond is hidden."""
    network = world.engine("hf", learner={"compute_dtype": "bfloat16"}).network
    sampling = Sampling(group_size=2, temperature=0.9, max_new_tokens=300)
    heads, kv_heads, size = 4, network.config.num_key_value_heads, 32
    rng = np.random.default_rng(0)
    caches = Caches(network, torch.tensor([4]), 4, sampling)
    for cache in (*caches.prompt_k, *caches.prompt_v, *caches.own_k, *caches.own_v):
        cache.copy_(torch.from_numpy(rng.normal(0, 1, cache.shape)))  # nothing of it may be seen before it is written
    seen = set()
    q, k, v = (
        torch.from_numpy(rng.normal(0, 1, (1, each, 2, size))).bfloat16() for each in (heads, kv_heads, kv_heads)
    )
    for place in range(1, 301):
        caches.place = place
        seen.add(caches._columns(q))
        if place in (1, 64, 65, 299):
            found = caches.attend(0, q, k, v, 0.2)[0].float()  # [G, H, N]
            for sample in range(2):
                for head in range(heads):
                    pair = head * kv_heads // heads
                    keys = torch.cat([caches.prompt_k[0][0, pair], caches.own_k[0][0, pair, sample, :place]]).double()
                    values = torch.cat([caches.prompt_v[0][0, pair], caches.own_v[0][0, pair, sample, :place]]).double()
                    expected = (keys @ q[0, head, sample].double() * 0.2).softmax(0) @ values
                    torch.testing.assert_close(found[sample, head].double(), expected, rtol=0, atol=0.05)
    assert seen == {64, 128, 192, 256, 300}


def test_one_token_scored_at_the_sampling_temperature(world):
    """The limit is reached by the prompt's own pass; a stop token there is not a truncation."""
    engine = world.engine("hf", grpo={"score_temperature": "sampling"})
    prompts, uniforms = world.prompts[:2], world.uniforms[:2, :, :1].copy()
    with torch.no_grad():
        logits = world.network(torch.tensor(prompts[0][None]).long()).logits[0, -1].double()
    law = (logits / SAMPLED.temperature).softmax(-1).numpy()
    stop = world.stops[0]
    uniforms[0, 1, 0] = law[:stop].sum() + law[stop] / 2
    found = engine.generate(prompts, dataclasses.replace(SAMPLED, max_new_tokens=1), uniforms)
    assert found[0][1].tokens == [stop]
    for prompt, group in zip(prompts, found, strict=True):
        for completion in group:
            assert len(completion.tokens) == 1
            assert completion.truncated == (completion.tokens[0] not in world.stops)
            expected = rollouts.plain_logprobs(world.network, prompt, completion.tokens, temperature=0.9)
            np.testing.assert_allclose(completion.logprobs, expected, rtol=0, atol=CLOSE)


def test_seeds_for_vllm_are_a_function_of_the_samples_numbers(world):
    seeds = [[vllm_options.seed(numbers) for numbers in group] for group in world.uniforms]
    assert len(set(chain(*seeds))) == world.uniforms.shape[0] * world.uniforms.shape[1]
    assert all(0 <= seed < 2**63 for seed in chain(*seeds))
    backwards = world.uniforms[::-1]
    assert [[vllm_options.seed(numbers) for numbers in group] for group in backwards] == seeds[::-1]
    assert vllm_options.options(GREEDY, None, world.stops)["seed"] is None
    assert vllm_options.options(SAMPLED, world.uniforms[1, 2], world.stops)["seed"] == seeds[1][2]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_every_family_draws_what_hugging_face_generates(tmp_path, family, tied):
    network = tiny_network(family, tie_word_embeddings=tied).eval()
    network.save_pretrained(tmp_path)
    engine = make_engine(rollout_config("hf"), tmp_path, stop_tokens=[3], device=CPU)
    stream = dict(network.named_parameters()) | ({"lm_head.weight": network.lm_head.weight} if tied else {})
    engine.load(stream.items())
    rng = np.random.default_rng(1)
    prompts = [rng.integers(4, 320, length).astype(np.int32) for length in (1, 7, 40)]
    found = engine.generate(prompts, GREEDY, None)
    rollouts.assert_scored(network, prompts, found)
    assert [c.tokens.tolist() for (c,) in found] == [rollouts.generated(network, prompt, (3,)) for prompt in prompts]


def test_a_sliding_window_is_refused(tmp_path):
    tiny_phi3(tmp_path, sliding_window=40)
    engine = make_engine(rollout_config("hf"), tmp_path, stop_tokens=[3], device=CPU)
    engine.load(weights(tmp_path))
    inside, outside = np.ones(28, np.int32), np.ones(29, np.int32)
    assert engine.generate([inside], GREEDY, None)
    with pytest.raises(InputError, match="sliding_window is 40"):
        engine.generate([outside], GREEDY, None)


def test_bfloat16_weights_give_float32_scores(world):
    engine = world.engine("hf", learner={"compute_dtype": "bfloat16"})
    assert {weight.dtype for weight in engine.network.parameters()} == {torch.bfloat16}
    assert engine.network.model.rotary_emb.inv_freq.dtype == torch.float32
    found = engine.generate(world.prompts, SAMPLED, world.uniforms)
    assert max(rollouts.gaps(world.network, world.prompts, found)) < 0.03
    # Values that bfloat16 cannot hold: its spacing is 2**-6 from 2 to 4 and 2**-5 beyond.
    scores = np.concatenate([completion.logprobs for completion in chain(*found)])
    assert (np.abs(scores * 64 - np.round(scores * 64)) > 1e-3).mean() > 0.9


def test_the_loaded_weights_are_a_copy(world, engine):
    stream = {name: weight.clone() for name, weight in weights(world.folder)}
    engine.load(stream.items())
    for weight in stream.values():
        weight.zero_()
    rollouts.check_greedy(world, engine)


def test_time_is_counted_by_phase(world, engine):
    engine.seconds()
    engine.generate(world.prompts[:1], GREEDY, None)
    found = engine.seconds()
    assert found.keys() == {"prefill", "decode"} and min(found.values()) > 0
    assert not engine.seconds()


def test_an_engine_needs_weights_and_a_stop_token(world):
    with pytest.raises(InputError, match="stop token"):
        make_engine(rollout_config("hf"), world.folder, stop_tokens=[], device=CPU)
    for engine in ("hf", "vllm", "server"):  # before vLLM is imported, or a server asked
        options = {"server_url": "http://localhost:9", "server_weights": "x"} if engine == "server" else {}
        config = rollout_config(engine, torch_options=options)
        with pytest.raises(
            InputError, match="stop tokens: token id 320 is beyond the model's embedding, which has 320"
        ):
            make_engine(config, world.folder, stop_tokens=[3, 320], device=CPU)
    bare = make_engine(rollout_config("hf"), world.folder, stop_tokens=[3], device=CPU)
    with pytest.raises(InputError, match="no weights yet"):
        bare.generate(world.prompts, GREEDY, None)


def test_building_an_engine_leaves_the_random_state_alone(world):
    before = torch.get_rng_state()
    make_engine(rollout_config("hf"), world.folder, stop_tokens=[3], device=CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_auto_takes_vllm_where_it_is_installed_and_else_the_plain_engine(world, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = make_engine(rollout_config("auto"), world.folder, stop_tokens=[3], device=CPU)
    assert isinstance(found, HfEngine)
    with pytest.raises(InputError, match="vllm is not installed"):
        make_engine(rollout_config("vllm"), world.folder, stop_tokens=[3], device=CPU)


def test_processes_share_the_prompts(world, engine, tmp_path):
    expected = engine.generate(world.prompts, SAMPLED, world.uniforms)
    for found in rollouts.draw_in_processes(world, "hf", tmp_path, processes=3):
        assert_same(found, expected)


@pytest.mark.parametrize(("gpu", "cpu_build", "kind"), [
    (False, True, "vllm"), (True, False, "vllm"), (False, False, "hf"), (True, True, "hf"),
])  # fmt: skip
def test_vllm_is_taken_where_its_build_is_the_devices(gpu, cpu_build, kind, monkeypatch):
    """With --device=cpu on a machine with a GPU, vLLM's own build is there and has no device to run on."""

    def distribution(name):
        if not cpu_build:
            raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    assert engine_kind(rollout_config("auto")) == kind
    if kind == "hf":
        with pytest.raises(InputError, match="its CPU build" if gpu else "is for GPUs, and none is used"):
            engine_kind(rollout_config("vllm"))
