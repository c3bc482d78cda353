from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib.util
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from transformers.models.olmo2.modeling_olmo2 import Olmo2Model

from creason_torch.rollout import Engine, make_engine, readback, vllm_options
from creason_torch.rollout.vllm import VllmEngine
from parity.families import COMMON, FAMILIES, random_network
from shared.backend import Probe, Sampling, Workload
from shared.errors import InputError
from shared.policy import families
from tests.support import rollouts
from tests.support.rollouts import CLOSE, CPU, GREEDY, SAMPLED, World, assert_same, rollout_config, weights
from tests.support.tiny import tiny_phi3

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed"),
    pytest.mark.filterwarnings("ignore"),  # vLLM's and its dependencies'
]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return rollouts.make_world(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module", autouse=True)
def process_group() -> None:
    """One process over gloo, as the learner makes it before the engine is built."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


@pytest.fixture(scope="module")
def engine(world) -> Engine:
    return world.engine("vllm")


@rollouts.every_check
def test_vllm_in_process(world, engine, check):
    check(world, engine)


def test_a_prefix_cache_that_is_not_reset_shows(world, engine, monkeypatch):
    @contextlib.contextmanager
    def without_reset() -> Iterator[None]:
        with monkeypatch.context() as patched:
            patched.setattr(engine.llm, "reset_prefix_cache", lambda: True)
            yield

    rollouts.check_stale_caches_show(world, engine, without_reset)


def test_a_prefix_cache_that_vllm_does_not_reset_ends_the_run(world, engine, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(engine.llm, "reset_prefix_cache", lambda: False)
        with pytest.raises(InputError, match="did not reset"):
            engine.load(weights(world.folder))
    engine.load(weights(world.folder))


@pytest.mark.parametrize("family", ["phi3-partial", "qwen2-tied", "qwen3", "mistral"])
def test_what_vllm_holds_is_read_back(tmp_path, family):
    """Its CPU build packs the matrices of layers and drops them; the rest keeps its values, under names that we know."""
    kind, fields = FAMILIES[family]
    networks = [random_network(kind, COMMON | fields | {"num_hidden_layers": 1}, seed=seed).eval() for seed in (0, 1)]
    networks[0].save_pretrained(tmp_path)
    engine = make_engine(rollout_config("vllm"), tmp_path, stop_tokens=[3], device=CPU)
    for version, network in enumerate(networks):
        weights_of = dict(network.named_parameters())
        engine.load(((name, weight.detach()) for name, weight in weights_of.items()), version=version)
        names = engine.readable()
        norms = {name for name in weights_of if "norm" in name}
        assert norms | {"model.embed_tokens.weight"} <= names.keys() <= weights_of.keys() and norms
        assert all(names[name] == len(weights_of[name]) for name in names)
        probes = [Probe(name, (0, names[name] - 1)) for name in names]
        assert engine.digests(probes) == readback.digests(weights_of, probes)
        assert engine.digests(probes) != readback.digests(dict(networks[1 - version].named_parameters()), probes)
        assert engine.version == version


@pytest.mark.parametrize("family", ["phi3-partial", "qwen2-tied", "qwen3", "mistral"])  # vLLM computes phi3 as llama
def test_new_weights_reach_a_head_that_is_tied(world, tmp_path, family):
    """vLLM's CPU build keeps a packed copy of the head: at first and after each load it is that of the new weights."""
    kind, fields = FAMILIES[family]
    fields = COMMON | fields | {"tie_word_embeddings": True, "num_hidden_layers": 1}
    networks = [random_network(kind, fields, seed=seed).eval() for seed in (0, 1)]
    networks[0].save_pretrained(tmp_path)
    engine = make_engine(rollout_config("vllm"), tmp_path, stop_tokens=[3], device=CPU)
    for network in (*networks, networks[0]):
        engine.load((name, weight.detach()) for name, weight in network.named_parameters())
        rollouts.assert_scored(network, world.prompts[:4], engine.generate(world.prompts[:4], GREEDY, None))


def test_a_family_that_vllm_computes_by_transformers_is_refused(tmp_path):
    """It would give Transformers' class another `__init__` and another `__call__`, and the learner's network is of that class."""
    kind, fields = FAMILIES["olmo2"]
    random_network(kind, COMMON | fields, seed=0).save_pretrained(tmp_path)
    before = Olmo2Model.__init__, Olmo2Model.__bases__
    with pytest.raises(InputError, match="vLLM has no code of its own for model_type 'olmo2'.*choose 'server'"):
        make_engine(rollout_config("vllm"), tmp_path, stop_tokens=[3], device=CPU)
    assert (Olmo2Model.__init__, Olmo2Model.__bases__) == before


def test_the_table_says_for_which_families_vllm_has_code_of_its_own():
    from vllm.model_executor.models.registry import ModelRegistry

    for family in families.FAMILIES.values():
        module = ModelRegistry.models[family.architecture].module_name
        assert family.vllm_has_own_code == (".transformers" not in module), family.architecture


def test_no_option_of_the_checkpoint_is_left_in_a_request(engine):
    """vLLM's server fills in what a request leaves out; every option that it knows of is said."""
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    own = {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.5, "temperature": 0.3, "top_k": 3,
           "top_p": 0.6, "min_p": 0.2, "max_tokens": 4}  # fmt: skip
    asked = [
        vllm_options.options(SAMPLED, np.zeros(12, np.float32), [3]),
        vllm_options.options(GREEDY, None, [3]),
        vllm_options.scoring_options([5, 6]),
    ]
    for options in asked:
        request = CompletionRequest(model="policy", prompt=[5], **options)
        assert request._DEFAULT_SAMPLING_PARAMS.keys() <= options.keys()
        assert request.max_tokens == options["max_tokens"]
        found = request.to_sampling_params(request.max_tokens, own)
        assert found == request.to_sampling_params(request.max_tokens, {})
        for name in ("repetition_penalty", "temperature", "top_k", "top_p", "min_p", "stop_token_ids", "min_tokens"):
            assert getattr(found, name) == options[name]


def test_global_random_states_and_threads_are_left_alone(world):
    """A second instance in the same process, which scores at the sampling temperature."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    set_threads, threads = torch.set_num_threads, torch.get_num_threads()
    other = world.engine("vllm", grpo={"score_temperature": "sampling"})
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]  # noqa: NPY002
    assert torch.set_num_threads is set_threads and torch.get_num_threads() == threads

    found = other.generate(world.prompts, SAMPLED, world.uniforms)
    for prompt, group in zip(world.prompts, found, strict=True):
        for completion in group:
            expected = rollouts.plain_logprobs(world.network, prompt, completion.tokens, temperature=0.9)
            np.testing.assert_allclose(completion.logprobs, expected, rtol=0, atol=CLOSE)
    rollouts.check_greedy(world, other)
    rollouts.check_next_tokens(world, other)  # at temperature 1 here too
    with pytest.raises(InputError, match="score_temperature = 'sampling' with top_k"):
        other.generate(world.prompts, dataclasses.replace(SAMPLED, top_k=5), world.uniforms)


def test_more_prompts_than_vllm_computes_at_once(world):
    """Seeded samples of long prompts, more tokens together than one step of vLLM takes."""
    other = world.engine("vllm", rollout={"slots": 16})
    many = [world.prompts[5]] * 16
    uniforms = np.random.default_rng(3).random((16, rollouts.GROUP, rollouts.LIMIT), np.float32)
    budget = other.llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens
    assert sum(map(len, many)) * rollouts.GROUP > budget
    rollouts.assert_scored(world.network, many, other.generate(many, SAMPLED, uniforms))


def test_room_is_made_for_the_prompts_at_hand(world):
    """A limit of 9,000 tokens needs no more than the prompts do, but where it chooses among longrope's factors."""
    rollout = {"max_prompt_tokens": 9_000, "max_new_tokens": 20}
    config = rollout_config("vllm", rollout=rollout)
    workload = Workload(prompt_tokens=300, questions=7, scored_tokens=10)
    other = make_engine(config, world.folder, stop_tokens=world.stops, device=CPU, workload=workload)
    settings = other.llm.llm_engine.vllm_config
    assert settings.model_config.max_model_len == 300 + 20 + 10
    model = other.llm.llm_engine.model_config.hf_config
    token = 2 * model.num_hidden_layers * model.num_key_value_heads * (128 // 4) * 4
    # Three groups of two: two full blocks of a prompt for both samples, one block of its own for each; one block is vLLM's.
    assert settings.cache_config.kv_cache_memory_bytes == (1 + 3 * (2 + 2)) * 128 * token
    other.load(weights(world.folder))
    rollouts.assert_scored(world.network, world.prompts, other.generate(world.prompts, SAMPLED, world.uniforms))
    with pytest.raises(InputError, match="prompt 0 has 301 tokens"):
        other.generate([np.ones(301, np.int32)], GREEDY, None)


def test_caches_that_memory_does_not_hold_are_refused(world, monkeypatch):
    monkeypatch.setattr("creason_torch.plan.memory.free_bytes", lambda device, sharers: 2**20)
    with pytest.raises(
        InputError, match=r"the free memory, 1 MiB for weights of \d+ MiB and caches, holds no sequence of 312"
    ):
        world.engine("vllm")


def test_an_engine_that_is_gone_leaves_the_process_group_and_other_engines_alone(world, engine):
    other = world.engine("vllm")
    other.generate(world.prompts[:1], GREEDY, None)
    del other
    gc.unfreeze()
    gc.collect()
    total = torch.ones(3)
    dist.all_reduce(total)
    assert torch.equal(total, torch.full((3,), float(dist.get_world_size())))
    rollouts.check_greedy(world, engine)


def test_longer_completions_than_it_was_made_for_are_refused(world, engine):
    with pytest.raises(InputError, match="13 new tokens are asked for; this engine was made for 12"):
        engine.generate(world.prompts, Sampling(group_size=1, temperature=0.0, max_new_tokens=13), None)


def test_on_a_gpu_it_sleeps_until_new_weights_come(world, monkeypatch):
    """The order of the calls; what they do to a GPU's memory is vLLM's."""
    calls: list[Any] = []

    class Recorder:
        def sleep(self, level: int) -> None:
            calls.append(("sleep", level))

        def wake_up(self, tags: list[str]) -> None:
            calls.append(("wake up", *tags))

        def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
            calls.append((method, len(list(kwargs["weights_iterator"]))))

        def reset_prefix_cache(self) -> bool:
            calls.append("reset")
            return True

    monkeypatch.setattr(VllmEngine, "_prepare", lambda self: None)  # vLLM itself is not started
    engine = VllmEngine(rollout_config("vllm"), world.folder, stop_tokens=[3], device=torch.device("cuda"))
    engine.llm, engine.asleep = Recorder(), False
    engine.load(weights(world.folder))
    assert calls == [("reload_weights", 15), "reset"] and engine.loaded
    calls.clear()
    engine.sleep()
    engine.sleep()
    assert calls == [("sleep", 2)]
    with pytest.raises(InputError, match="no weights yet"):
        engine.generate(world.prompts, GREEDY, None)
    engine.load(weights(world.folder))
    assert calls[1:] == [("wake up", "weights"), ("reload_weights", 15), ("wake up", "kv_cache"), "reset"]


def test_time_is_counted(world, engine):
    engine.seconds()
    engine.generate(world.prompts[:1], GREEDY, None)
    found = engine.seconds()
    assert found.keys() == {"decode"} and found["decode"] > 0
    assert not engine.seconds()


def test_a_model_that_vllm_does_not_compute_ends_with_one_line(tmp_path):
    tiny_phi3(tmp_path, max_position_embeddings=64, original_max_position_embeddings=64)
    with pytest.raises(InputError) as caught:
        make_engine(rollout_config("vllm"), tmp_path, stop_tokens=[3], device=CPU)
    assert "vLLM does not start with it" in str(caught.value) and "\n" not in str(caught.value)


def test_processes_share_the_prompts(world, engine, tmp_path):
    """Each process has an instance of its own beside the common process group."""
    expected = engine.generate(world.prompts, SAMPLED, world.uniforms)
    for found in rollouts.draw_in_processes(world, "vllm", tmp_path, processes=2):
        assert_same(found, expected)
