from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from transformers import Phi3ForCausalLM

from creason_jax.learner.learner import Learner
from creason_jax.mesh import memory, sharding
from creason_jax.model import DecoderConfig, load_params
from creason_jax.rollout import decoding
from creason_jax.rollout.engine import Engine
from shared.backend import Completion, Sampling, Workload
from shared.config import JaxConfig, OptimizerConfig
from shared.errors import InputError
from shared.evaluation.options import GenerationOptions
from shared.grpo import GroupLayout, pack
from shared.runs import model_engine
from tests.support.tiny import run_config, tiny_phi3

pytestmark = pytest.mark.slow

LIMIT, GROUP = 12, 3
ROLLOUT = {"max_prompt_tokens": 40, "max_new_tokens": LIMIT}
GREEDY = Sampling(group_size=1, temperature=0.0, max_new_tokens=LIMIT)
SAMPLED = Sampling(group_size=GROUP, temperature=0.9, max_new_tokens=LIMIT)


@dataclasses.dataclass(frozen=True)
class World:
    """A model, prompts, and stop tokens that end some of its completions early and others not at all."""

    folder: Path
    torch: Phi3ForCausalLM
    config: DecoderConfig
    mesh: jax.sharding.Mesh
    prompts: list[np.ndarray]
    stops: tuple[int, ...]
    uniforms: np.ndarray  # [prompts, GROUP, LIMIT]

    def params(self, mesh: jax.sharding.Mesh | None = None) -> Any:
        return load_params(self.folder, self.config, sharding.param_shardings(self.config, mesh or self.mesh))

    def engine(
        self,
        mesh: jax.sharding.Mesh | None = None,
        grpo: dict[str, Any] | None = None,
        together: int = 0,
        free_bytes: Callable[[], int] | None = None,
        **rollout,
    ) -> Engine:
        config = run_config(rollout=ROLLOUT | rollout, grpo=grpo or {}, jax={"rollout_mesh_tensor": together})
        engine = Engine(config, self.config, mesh or self.mesh, stop_tokens=self.stops, free_bytes=free_bytes)
        engine.load(self.params(mesh))
        return engine


def by_hand(
    model: Phi3ForCausalLM, prompt: np.ndarray, stops: tuple[int, ...], uniforms: np.ndarray | None = None
) -> tuple[list[int], list[float]]:
    """Tokens and log-probabilities, one whole pass for each; greedy, or by the inverse cumulative distribution."""
    tokens, logprobs = list(prompt), []
    while len(logprobs) < LIMIT and (not logprobs or tokens[-1] not in stops):
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[0, -1].double()
        if uniforms is None:
            token = int(logits.argmax())
        else:
            reached = (logits / SAMPLED.temperature).softmax(-1).cumsum(-1).numpy()
            token = int(np.searchsorted(reached, uniforms[len(logprobs)], side="right"))
        logprobs.append(float(logits.log_softmax(-1)[token]))
        tokens.append(token)
    return tokens[len(prompt) :], logprobs


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    folder = tmp_path_factory.mktemp("model")
    model = tiny_phi3(folder)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(4, 320, n).astype(np.int32) for n in (1, 5, 17, 32, 37, 9)]
    paths = [by_hand(model, prompt, ())[0] for prompt in prompts]
    return World(
        folder=folder,
        torch=model,
        config=DecoderConfig.read(folder),
        mesh=sharding.make_mesh(JaxConfig(), jax.devices()[:1]),
        prompts=prompts,
        stops=(paths[0][0], paths[1][5], paths[3][LIMIT - 1]),
        uniforms=rng.random((len(prompts), GROUP, LIMIT), np.float32),
    )


@pytest.fixture(scope="module")
def shared_engine(world) -> Engine:
    return world.engine(slots=3, prefill_batch=2, decode_steps=4)


@pytest.fixture
def engine(world, shared_engine) -> Engine:
    shared_engine.load(world.params())
    return shared_engine


@pytest.fixture(scope="module")
def short(world) -> list[int]:
    """Prompts that fit into the smallest bucket: one program serves them all."""
    return [index for index, prompt in enumerate(world.prompts) if len(prompt) <= 32]


@pytest.fixture(scope="module")
def sampled(world, shared_engine, short) -> list[list[Completion]]:
    shared_engine.load(world.params())
    return shared_engine.generate([world.prompts[i] for i in short], SAMPLED, world.uniforms[short])


def assert_same(found: list[list[Completion]], expected: list[list[Completion]]) -> None:
    assert [len(group) for group in found] == [len(group) for group in expected]
    for ours, other in zip(chain(*found), chain(*expected), strict=True):
        np.testing.assert_array_equal(ours.tokens, other.tokens)
        np.testing.assert_allclose(ours.logprobs, other.logprobs, rtol=0, atol=1e-5)
        assert ours.truncated == other.truncated


def assert_greedy(
    world: World, model: Phi3ForCausalLM, found: list[list[Completion]], prompts: list[np.ndarray]
) -> None:
    for prompt, (completion,) in zip(prompts, found, strict=True):
        tokens, logprobs = by_hand(model, prompt, world.stops)
        np.testing.assert_array_equal(completion.tokens, tokens)
        np.testing.assert_allclose(completion.logprobs, logprobs, rtol=0, atol=1e-5)


def test_greedy_equals_hugging_face_generate(world, engine):
    found = engine.generate(world.prompts, GREEDY, None)
    for prompt, (completion,) in zip(world.prompts, found, strict=True):
        ids = torch.tensor(prompt[None])
        with torch.no_grad():
            expected = world.torch.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=LIMIT,
                eos_token_id=list(world.stops),
                pad_token_id=0,
            )
        np.testing.assert_array_equal(completion.tokens, expected[0, len(prompt) :])
        assert completion.tokens.dtype == np.int32 and completion.logprobs.dtype == np.float32
        assert completion.truncated == (completion.tokens[-1] not in world.stops)
        assert not np.isin(completion.tokens[:-1], world.stops).any()
    assert_greedy(world, world.torch, found, world.prompts)
    # First token, middle, exactly at the limit; the others are cut off.
    assert [len(completion.tokens) for (completion,) in found] == [1, 6, LIMIT, LIMIT, LIMIT, LIMIT]
    assert [completion.truncated for (completion,) in found] == [False, False, True, False, True, True]


def test_draws_follow_the_uniforms(world, short, sampled):
    lengths = set()
    for index, group in zip(short, sampled, strict=True):
        for sample, completion in enumerate(group):
            tokens, logprobs = by_hand(world.torch, world.prompts[index], world.stops, world.uniforms[index, sample])
            np.testing.assert_array_equal(completion.tokens, tokens)
            np.testing.assert_allclose(completion.logprobs, logprobs, rtol=0, atol=1e-5)
            assert completion.truncated == (tokens[-1] not in world.stops)
            lengths.add(len(tokens))
    assert len(lengths) > 1  # samples of a group end apart


def test_logprobs_equal_the_learners(world, short, sampled):
    config = run_config(rollout=ROLLOUT, grpo={"group_size": GROUP})
    learner = Learner(config, world.folder, world.mesh, optimizer=OptimizerConfig(), steps=1, reference=False)
    batch = pack(
        [world.prompts[i] for i in short],
        [[completion.tokens for completion in group] for group in sampled],
        GroupLayout(prompt=40, group=GROUP, completion=LIMIT),
        advantages=np.zeros((len(short), GROUP)),
        rollout_logprobs=[[completion.logprobs for completion in group] for group in sampled],
    )
    found = learner.logprobs(batch, "policy")
    assert batch.completion_mask.sum() > 100
    np.testing.assert_allclose(batch.rollout_logprobs, found, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "rollout",
    [{"slots": 1, "prefill_batch": 2, "decode_steps": 1}, {"slots": 8, "prefill_batch": 3, "decode_steps": 7}],
    ids=str,
)
def test_slots_and_batching_do_not_matter(world, short, sampled, rollout):
    found = world.engine(**rollout).generate([world.prompts[i] for i in short], SAMPLED, world.uniforms[short])
    assert_same(found, sampled)


def test_order_and_company_do_not_matter(world, engine, short, sampled):
    backwards = short[::-1]
    found = engine.generate([world.prompts[i] for i in backwards], SAMPLED, world.uniforms[backwards])
    assert_same(found, sampled[::-1])
    again = [short[1]] * 4  # the same request four times, more often than there are slots
    found = engine.generate([world.prompts[i] for i in again], SAMPLED, world.uniforms[again])
    assert_same(found, [sampled[1]] * 4)
    assert engine.generate([], SAMPLED, world.uniforms[:0]) == []


def test_a_completion_depends_on_its_own_numbers_alone(world, engine, short, sampled):
    uniforms = world.uniforms[short].copy()
    uniforms[1, 2] = 1 - uniforms[1, 2]
    found = engine.generate([world.prompts[i] for i in short], SAMPLED, uniforms)
    assert not np.array_equal(found[1][2].tokens, sampled[1][2].tokens)
    found[1][2] = sampled[1][2]
    assert_same(found, sampled)


def test_numbers_of_later_tokens_do_not_move_earlier_ones(world, engine, short, sampled):
    uniforms = world.uniforms[short].copy()
    uniforms[:, :, 3:] = 1 - uniforms[:, :, 3:]
    found = engine.generate([world.prompts[i] for i in short], SAMPLED, uniforms)
    moved = 0
    for ours, other in zip(chain(*found), chain(*sampled), strict=True):
        np.testing.assert_array_equal(ours.tokens[:3], other.tokens[:3])
        moved += not np.array_equal(ours.tokens, other.tokens)
    assert moved > 3


@pytest.mark.parametrize("axes", [(2, 2, 2), (1, 2, 4)], ids=str)  # the second has fewer key-value heads than parts
def test_eight_devices_give_the_same(world, short, sampled, axes):
    mesh = sharding.make_mesh(JaxConfig(**dict(zip(("mesh_data", "mesh_fsdp", "mesh_tensor"), axes))))
    engine = world.engine(mesh)
    scored = engine.next_token_logprobs(world.prompts[:2], ASKED)
    np.testing.assert_allclose(scored, scored_by_hand(world, world.prompts[:2], ASKED), rtol=0, atol=1e-5)
    assert len(engine.params["layers"][0]["q"]["kernel"].addressable_shards) == 8
    found = engine.generate([world.prompts[i] for i in short], SAMPLED, world.uniforms[short])
    assert_same(found, sampled)


@pytest.mark.parametrize("tensor", [1, 4])
def test_decoding_may_split_the_devices_otherwise(world, short, sampled, tensor):
    """The engine takes the learner's weights from a mesh of another shape, and holds them once."""
    mesh = sharding.make_mesh(JaxConfig(mesh_data=2, mesh_fsdp=2, mesh_tensor=2))
    engine = world.engine(mesh, together=tensor)
    assert dict(engine.mesh.shape) == {"data": 8 // tensor, "fsdp": 1, "tensor": tensor}
    kernel = engine.params["layers"][0]["gate"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // tensor
    found = engine.generate([world.prompts[i] for i in short], SAMPLED, world.uniforms[short])
    assert_same(found, sampled)


def test_no_more_slots_than_a_step_has_questions(world):
    """What is drawn comes a step's questions at a time; greedy answers, and what is only scored, come all at once."""
    engine = world.engine(slots=64, prefill_batch=16)
    questions = engine.config.grpo.questions_per_step
    assert engine.slots(SAMPLED) == engine.prefill_width(SAMPLED) == questions == 2
    assert engine.slots(dataclasses.replace(SAMPLED, temperature=0.0)) == 64
    assert engine.prefill_width() == 16


def test_a_program_that_only_answers_draws_in_all_its_slots(world):
    options = GenerationOptions(max_prompt_tokens=32, max_new_tokens=LIMIT, slots=40, compute_dtype="float32")
    for questions, slots in ((400, 40), (7, 7)):
        config = model_engine.config_of(options, world.folder, questions=questions, samples=GROUP)
        engine = Engine(config, world.config, world.mesh, stop_tokens=world.stops)
        assert engine.slots(SAMPLED) == engine.slots(GREEDY) == slots


def test_as_many_slots_as_the_memory_holds(world, short, sampled, caplog):
    """The same answers from fewer slots; none, and the request is refused before anything is computed."""
    questions = len(short)
    asked = {"slots": questions, "prefill_batch": 2}
    by_number = [
        world.engine(slots=number, prefill_batch=batch, grpo={"questions_per_step": questions})
        for number, batch in ((1, 1), (3, 2))
    ]
    one, three = (
        max(memory.reserved(lower(SAMPLED).compile()) for lower in (each.lower_prefill, each.lower_decode))
        - memory.bytes_on_device(each.params)
        for each in by_number
    )
    assert one < three
    engine = world.engine(**asked, grpo={"questions_per_step": questions}, free_bytes=lambda: three)
    assert engine.slots(SAMPLED) == questions > 3
    with caplog.at_level("WARNING"):  # which is shown
        found = engine.generate([world.prompts[i] for i in short], SAMPLED, world.uniforms[short])
    assert_same(found, sampled)
    assert engine.slots(SAMPLED) == 3
    assert f"3 of {questions} slots fit" in caplog.text
    full = world.engine(**asked, grpo={"questions_per_step": questions}, free_bytes=lambda: one - 1)
    for _ in range(2):  # asked again, it looks again
        with pytest.raises(InputError, match=r"holds no slot with a prompt of 40 and 3 x 12 new tokens; what helps: "):
            full.generate([world.prompts[i] for i in short], SAMPLED, world.uniforms[short])


def test_room_is_made_for_the_prompts_at_hand(world, short, sampled):
    """A run's limit of 9,000 tokens costs nothing where prompts are short; its completions are the same."""
    workload = Workload(prompt_tokens=20, questions=len(short))
    config = run_config(rollout=ROLLOUT | {"max_prompt_tokens": 9_000, "slots": 64}, grpo={"questions_per_step": 3})
    engine = Engine(config, world.config, world.mesh, stop_tokens=world.stops, workload=workload)
    engine.load(world.params())
    model, slots = world.config, len(short)
    assert (engine.slots(GREEDY), engine.prefill_width(GREEDY), engine.slots(SAMPLED)) == (slots, 2, 3)
    caches = decoding.empty_slots(engine.program, engine._shape(GREEDY))
    each = 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim * 4  # bytes of a token
    held = sum(leaf.nbytes for name in ("prompt_k", "prompt_v", "own_k", "own_v") for leaf in getattr(caches, name))
    assert held == slots * (32 + LIMIT) * each
    assert_same(engine.generate([world.prompts[i] for i in short], SAMPLED, world.uniforms[short]), sampled)
    with pytest.raises(InputError, match="prompt 0 has 33 tokens"):
        engine.generate([np.ones(33, np.int32)], GREEDY, None)
    near = Engine(config, model, world.mesh, stop_tokens=(3,), workload=Workload(prompt_tokens=8_500, questions=1))
    assert near.longest_prompt == 9_000  # a bucket never passes the limit


def test_a_cpu_gives_what_the_machine_has_left(world, monkeypatch):
    """Free memory is asked of the machine, and a request beyond it takes fewer slots before anything is allocated."""
    wanted = {"slots": 400, "prefill_batch": 2, "grpo": {"questions_per_step": 400}}
    engine = world.engine(**wanted)
    left = 2**30
    monkeypatch.setattr("shared.runs.memory.free_bytes", lambda sharers: left // sharers)
    assert engine.free_bytes() == left
    assert memory.free_bytes(sharding.make_mesh(JaxConfig())) == left // 8 // 2**20 * 2**20
    assert engine.limit_slots(SAMPLED) and engine.slots(SAMPLED) == 400
    left = 8 * 2**20
    engine = world.engine(**wanted)
    assert engine._roughly_needed(SAMPLED) > left
    assert engine.limit_slots(SAMPLED) and 1 <= engine.slots(SAMPLED) < 400
    assert engine._needed(SAMPLED, engine.slots(SAMPLED)) <= left


@pytest.mark.parametrize(("slots", "group", "prompt", "batch"), [(1, 1, 1_024, 2), (4, 8, 64, 4), (8, 1, 300, 16)])
def test_the_rough_estimate_is_never_too_small(world, slots, group, prompt, batch):
    asked = {"max_prompt_tokens": prompt, "max_new_tokens": 24, "slots": slots, "prefill_batch": batch}
    config = run_config(rollout=asked, grpo={"questions_per_step": slots})
    engine = Engine(config, world.config, world.mesh, stop_tokens=(3,))
    sampling = Sampling(group_size=group, temperature=0.9, max_new_tokens=24)
    assert engine._needed(sampling, slots) < engine._roughly_needed(sampling)


def test_prompts_are_spread_over_the_parts_of_the_mesh(engine):
    """Two parts with two slots and two rows of a prefill each: a prompt is computed where its slot is, parts in turn."""
    waiting, idle = deque([10, 11, 12]), [deque([0, 1]), deque([2, 3])]
    assert engine._seats(waiting, idle, 2) == {0: (0, 10), 2: (2, 11), 1: (1, 12)}
    assert not waiting and [list(each) for each in idle] == [[], [3]]


def test_a_split_of_the_devices_that_is_none_is_refused(world):
    mesh = sharding.make_mesh(JaxConfig())
    with pytest.raises(InputError, match="jax.rollout_mesh_tensor = 3 does not divide the 8 devices; nearest"):
        world.engine(mesh, together=3)


def test_new_weights_replace_the_old_ones(world, engine, tmp_path):
    other = tiny_phi3(tmp_path, seed=1)
    before = engine.generate(world.prompts, GREEDY, None)
    params = load_params(tmp_path, world.config, sharding.param_shardings(world.config, world.mesh))
    engine.load(params)
    jax.tree.map(lambda leaf: leaf.delete(), params)  # as the learner's next update does: the engine has its own copy
    after = engine.generate(world.prompts, GREEDY, None)
    assert_greedy(world, other, after, world.prompts)
    for (ours,), (old,) in zip(after, before, strict=True):
        assert not np.array_equal(ours.tokens, old.tokens)
    engine.load(world.params())
    assert_same(engine.generate(world.prompts, GREEDY, None), before)


def test_one_token_scored_at_the_sampling_temperature(world):
    """The limit is reached by the prompt's own pass; a stop token there is not a truncation."""
    engine = world.engine(grpo={"score_temperature": "sampling"})
    prompts, uniforms = world.prompts[:2], world.uniforms[:2, :, :1].copy()
    laws = []
    for prompt in prompts:
        with torch.no_grad():
            logits = world.torch(torch.tensor(prompt[None])).logits[0, -1].double()
        laws.append((logits / SAMPLED.temperature).softmax(-1).numpy())
    stop = world.stops[0]
    uniforms[0, 1, 0] = laws[0][:stop].sum() + laws[0][stop] / 2
    found = engine.generate(prompts, dataclasses.replace(SAMPLED, max_new_tokens=1), uniforms)
    assert found[0][1].tokens == [stop]
    for row, law in enumerate(laws):
        for sample, completion in enumerate(found[row]):
            token = np.searchsorted(law.cumsum(), uniforms[row, sample, 0], side="right")
            assert completion.tokens.tolist() == [token]
            assert completion.truncated == (token not in world.stops)
            np.testing.assert_allclose(completion.logprobs, np.log(law[[token]]), rtol=0, atol=1e-5)


def test_filters_narrow_the_draw_and_leave_the_score(world, engine):
    logits = np.random.default_rng(0).normal(0, 2, (16, 320)).astype(np.float32)
    uniforms = np.linspace(0, 0.999, 16, dtype=np.float32)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for options in ({"top_k": 1}, {"top_p": 1e-4}, {"min_p": 0.999}):
        tokens, logprobs = engine.program.draw(logits, uniforms, dataclasses.replace(SAMPLED, **options))
        np.testing.assert_array_equal(tokens, logits.argmax(-1))
        np.testing.assert_allclose(logprobs, logs.max(-1), rtol=0, atol=1e-5)


def scored_by_hand(world: World, texts: list[np.ndarray], asked: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        logits = [world.torch(torch.tensor(text[None])).logits[0, -1].double() for text in texts]
    return torch.stack(logits).log_softmax(-1)[:, asked.tolist()].numpy()


ASKED = np.array([7, 300, 5, 44, 9], np.int32)


def test_next_tokens_are_scored(world, engine):
    """Chosen tokens after texts as long as a prompt and its completion, against Hugging Face; in any company."""
    longest = np.random.default_rng(5).integers(4, 320, 40 + LIMIT - 1).astype(np.int32)
    texts = [*world.prompts, longest]
    expected = scored_by_hand(world, texts, ASKED)
    found = engine.next_token_logprobs(texts, ASKED)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(engine.next_token_logprobs(texts[::-1], ASKED)[::-1], expected, rtol=0, atol=1e-5)
    assert engine.next_token_logprobs([], ASKED).shape == (0, len(ASKED))
    with pytest.raises(InputError, match="text 1 has 52 tokens; at most 51 can be scored"):
        engine.next_token_logprobs([longest, np.ones(52, np.int32)], ASKED)


def test_time_is_counted_by_phase(world, engine):
    engine.seconds()
    engine.generate(world.prompts[:1], GREEDY, None)
    found = engine.seconds()
    assert found.keys() == {"prefill", "decode"} and min(found.values()) > 0
    assert not engine.seconds()


def test_unusable_requests_are_refused(world, engine):
    def message(*arguments: Any, of: Engine = engine) -> str:
        with pytest.raises(InputError) as caught:
            of.generate(*arguments)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    long, empty = np.ones(41, np.int32), np.ones(0, np.int32)
    assert "prompt 1 has 41 tokens; rollout.max_prompt_tokens is 40" in message([long[:40], long], GREEDY, None)
    assert "prompt 0 has 0 tokens" in message([empty], GREEDY, None)
    for token in (320, -1):
        beyond = np.array([5, token], np.int32)
        assert f"prompt 1: token id {token} is beyond the model's embedding, which has 320 rows" in message(
            [long[:40], beyond], GREEDY, None
        )
        with pytest.raises(InputError, match=f"text 0: token id {token} is beyond"):
            engine.next_token_logprobs([beyond], ASKED)
        with pytest.raises(InputError, match=f"tokens to score: token id {token} is beyond"):
            engine.next_token_logprobs([long[:40]], np.array([7, token]))
    assert "random numbers" in message(world.prompts, SAMPLED, None)
    assert "shape" in message(world.prompts, SAMPLED, world.uniforms[:2])
    assert "shape" in message(world.prompts, SAMPLED, world.uniforms[:, :1])
    config = engine.config
    with pytest.raises(InputError, match="stop token"):
        Engine(config, world.config, world.mesh, stop_tokens=[])
    with pytest.raises(
        InputError, match="stop tokens: token id 320 is beyond the model's embedding, which has 320 rows"
    ):
        Engine(config, world.config, world.mesh, stop_tokens=[3, 320])
    bare = Engine(config, world.config, world.mesh, stop_tokens=[3])
    assert "no weights yet" in message(world.prompts, GREEDY, None, of=bare)
    with pytest.raises(InputError, match="no weights yet"):
        bare.next_token_logprobs(world.prompts, ASKED)


def test_equal_engines_share_their_programs(world):
    """What programs are compiled for is a value, so no program keeps an engine, with its weights, alive."""
    first, second = (Engine(run_config(), world.config, world.mesh, stop_tokens=(3,)) for _ in range(2))
    assert first.program == second.program and hash(first.program) == hash(second.program)
    other = Engine(run_config(), world.config, world.mesh, stop_tokens=(4,))
    assert other.program != first.program
