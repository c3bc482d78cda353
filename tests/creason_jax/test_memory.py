"""The learner's options for memory: what is kept for the backward pass, how moments are stored, where the reference is. And how
much of something a memory holds."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from creason_jax.learner import moments
from creason_jax.learner.learner import Learner
from creason_jax.mesh import memory, sharding
from creason_jax.model import DecoderConfig
from creason_jax.plan import topology
from shared.grpo import GroupLayout
from tests.support.small import distance, flat, make_learner, on_host, random_batch
from tests.support.tiny import run_config

pytestmark = pytest.mark.slow

MODEL = DecoderConfig(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
)
LAYOUT = GroupLayout(prompt=64, group=2, completion=32)
PLAIN = {"micro_batch_rows": 4, "remat": "none"}
BFLOAT16 = 0.005  # of how far two updates move a weight: the bound for bfloat16 moments (measured: 0.002)
needs_libtpu = pytest.mark.skipif(not topology.installed(), reason="libtpu, the TPU compiler, is not installed")


def two_updates(learner: Learner) -> list[Any]:
    """Their metrics, with the reference mixed between them, and what it scores in the end."""
    first = learner.update(random_batch(8, seed=0))
    learner.sync_reference()
    return [first, learner.update(random_batch(8, seed=1)), learner.logprobs(random_batch(8), "reference")]


def kinds(tree: Any) -> set[str | None]:
    return {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree)}


def without_weights(devices: Any, jax_options: dict[str, Any] | None = None, **options: Any) -> Learner:
    config = run_config(learner={"micro_batch_rows": 4} | options, jax={"mesh_fsdp": -1} | (jax_options or {}))
    mesh = sharding.make_mesh(config.jax, list(devices))
    return Learner(config, MODEL, mesh, optimizer=config.optimizer, steps=4, reference=True)


@pytest.fixture(scope="module")
def plain(model):
    """Without any of the options: the state at first, what two updates said, and the state then."""
    learner = make_learner(model, learner=PLAIN)
    start = flat(learner.state.params)
    return start, two_updates(learner), on_host(learner.state)


@pytest.mark.parametrize(
    ("mesh", "learner_options", "jax_options"),
    [
        ((1, 1, 1), {"remat": "dots"}, {}),
        ((1, 1, 1), {"remat": "offload"}, {}),
        ((1, 4, 2), {}, {"reference_memory": "host"}),
    ],
    ids=str,
)
def test_updates_are_those_without_the_option(model, plain, tmp_path, mesh, learner_options, jax_options):
    learner = make_learner(model, mesh=mesh, learner=PLAIN | learner_options, jax_options=jax_options)
    *found, scored = two_updates(learner)
    *expected, expected_scored = plain[1]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6, abs=1e-7)
        assert ours["kl"] == pytest.approx(theirs["kl"], rel=1e-6)
    assert distance(flat(learner.state.params), flat(plain[2].params)) < 1e-6
    assert distance(flat(learner.state.reference), flat(plain[2].reference)) < 1e-6
    np.testing.assert_allclose(scored, expected_scored, rtol=0, atol=5e-6)
    assert learner.compiled_updates() == 1


# What is kept for the backward pass.


def test_an_update_needs_the_less_memory_the_less_is_kept():
    def temporary(remat: str) -> int:
        lowered = without_weights(jax.devices()[:1], remat=remat).lower_update(LAYOUT, 4)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    layer, dots, none = map(temporary, ("layer", "dots", "none"))
    assert 1.3 * layer < dots < none / 1.3, (layer, dots, none)


@needs_libtpu
def test_offloaded_layer_inputs_lie_on_the_host_of_a_tpu():
    """Where the compiler of a CPU keeps them, there is no other memory."""
    learner = without_weights(topology.devices("v5e:2x2"), remat="offload", compute_dtype="bfloat16")
    with jax.default_matmul_precision("default"):
        memory = learner.lower_update(LAYOUT, 4).compile().memory_analysis()
    assert memory.host_temp_size_in_bytes == 2 * LAYOUT.length * MODEL.hidden_size * MODEL.num_hidden_layers


# Moments in bfloat16.


def test_rounding_is_to_a_neighbour_and_right_on_average():
    values = np.float32([1.0, 1.001, -1.001, 3e-12, -0.37, 0.0])
    draws = jax.random.bits(jax.random.key(1), (20_000, values.size)) & 0xFFFF
    found = np.asarray(moments.rounded(jnp.broadcast_to(values, draws.shape), draws).astype(jnp.float32))
    step = np.abs(values) * 2**-7
    assert (np.abs(found - values) < step + (values == 0)).all()
    assert (found[:, [0, 5]] == values[[0, 5]]).all()  # what is a bfloat16 stays
    np.testing.assert_allclose(found.mean(axis=0), values, rtol=1e-4)


def test_a_second_moment_falls_when_gradients_do():
    """Rounded to the nearest it would stay where it is: 0.1 % is less than half the way to the next bfloat16."""
    one = {"w": jnp.ones(4_096)}

    def fall(state: optax.ScaleByAdamState, _: None) -> tuple[optax.ScaleByAdamState, None]:
        wide = moments.cast(state, "float32")
        nu = jax.tree.map(lambda leaf: 0.999 * leaf, wide.nu)
        return moments.store(wide._replace(count=wide.count + 1, nu=nu), "bfloat16"), None

    start = moments.cast(optax.ScaleByAdamState(count=jnp.int32(0), mu=one, nu=one), "bfloat16")
    state, _ = jax.lax.scan(fall, start, length=1_000)
    assert state.nu["w"].dtype == jnp.bfloat16
    assert float(state.nu["w"].astype(jnp.float32).mean()) == pytest.approx(0.999**1_000, rel=0.01)
    assert 0.999 * jnp.bfloat16(1) == jnp.bfloat16(1)


@pytest.fixture(scope="module")
def halved(model, tmp_path_factory):
    """A learner with bfloat16 moments after two updates, and the folder of its checkpoint."""
    learner = make_learner(model, learner=PLAIN, jax_options={"moments_dtype": "bfloat16"})
    found = two_updates(learner)
    folder = tmp_path_factory.mktemp("halved") / "checkpoints"
    learner.save(folder, 2, {"position": 16})
    learner.finish_saves()
    return learner, found, folder


def test_bfloat16_moments_move_weights_as_float32_ones_do(plain, halved):
    learner, found, _ = halved
    start, expected, state = plain
    adam = learner.state.moments
    assert {leaf.dtype for leaf in jax.tree.leaves((adam.mu, adam.nu))} == {jnp.dtype(jnp.bfloat16)}
    assert memory.bytes_on_device((adam.mu, adam.nu)) == memory.bytes_on_device(learner.state.params)
    assert found[0]["loss"] == expected[0]["loss"]
    assert found[1]["loss"] == pytest.approx(expected[1]["loss"], rel=1e-4)
    moved = {path: leaf - start[path] for path, leaf in flat(learner.state.params).items()}
    wanted = {path: leaf - start[path] for path, leaf in flat(state.params).items()}
    assert 0 < distance(moved, wanted) < BFLOAT16


def test_bfloat16_moments_come_back_and_go_on_bit_for_bit(model, halved):
    learner, _, folder = halved
    saved = flat(learner.state)
    expected = learner.update(random_batch(8, seed=2)), flat(learner.state)
    assert learner.restore(folder) == (2, {"position": 16})
    assert same_bits(flat(learner.state), saved)
    assert learner.update(random_batch(8, seed=2)) == expected[0]
    assert same_bits(flat(learner.state), expected[1])


@pytest.mark.parametrize(("written", "read"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_moments_of_the_other_type_are_converted(model, halved, tmp_path, written, read):
    folder = halved[2]
    if written == "float32":
        folder = tmp_path / "checkpoints"
        writer = make_learner(model, learner=PLAIN)
        adam = jax.tree.map(lambda leaf: leaf + jnp.pi, writer.state.moments._replace(count=jnp.float32(0)))
        writer.state = writer.state._replace(moments=adam._replace(count=writer.state.moments.count))
        writer.save(folder, 2, {"position": 16})
        writer.finish_saves()
    same = make_learner(model, learner=PLAIN, jax_options={"moments_dtype": written})
    same.restore(folder)
    learner = make_learner(model, learner=PLAIN, jax_options={"moments_dtype": read})
    assert learner.restore(folder) == (2, {"position": 16})
    ours, theirs = (jax.tree.leaves((each.state.moments.mu, each.state.moments.nu)) for each in (learner, same))
    for leaf, stored in zip(ours, theirs, strict=True):
        assert leaf.dtype == read and np.asarray(stored, np.float32).any()
        np.testing.assert_array_equal(leaf, stored.astype(read))


def same_bits(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return all(found[path].tobytes() == leaf.tobytes() for path, leaf in expected.items())


# The reference in the host's memory.


def test_a_reference_on_the_host_stays_there(model, tmp_path):
    learner = make_learner(model, mesh=(1, 4, 2), learner=PLAIN, jax_options={"reference_memory": "host"})
    assert kinds(learner.state.reference) == {"pinned_host"}
    assert kinds((learner.state.params, learner.state.moments)) == {"device"}
    at_first = flat(learner.state.reference)
    learner.state = learner.state._replace(params=jax.tree.map(lambda leaf: 2 * leaf, learner.state.params))
    learner.save(tmp_path, 1, {})
    learner.sync_reference()  # while the save may still be going on
    mixed = flat(learner.state.reference)
    assert kinds(learner.state.reference) == {"pinned_host"}
    for path, leaf in mixed.items():
        np.testing.assert_allclose(leaf, 1.9 * at_first[path], rtol=1e-6)
    learner.finish_saves()
    assert learner.restore(tmp_path) == (1, {})
    assert kinds(learner.state.reference) == {"pinned_host"}
    assert same_bits(flat(learner.state.reference), at_first)
    scored = learner.logprobs(random_batch(8), "reference")
    assert kinds(learner.state.reference) == {"pinned_host"}
    elsewhere = make_learner(model, learner=PLAIN)
    elsewhere.restore(tmp_path)
    assert kinds(elsewhere.state.reference) == {"device"}
    assert same_bits(flat(elsewhere.state.reference), at_first)
    np.testing.assert_allclose(scored, elsewhere.logprobs(random_batch(8), "reference"), rtol=0, atol=5e-6)


@needs_libtpu
def test_a_reference_on_the_host_of_a_tpu_is_an_argument_there():
    learner = without_weights(topology.devices("v5e:2x2"), {"reference_memory": "host"}, compute_dtype="bfloat16")
    device = without_weights(topology.devices("v5e:2x2"), compute_dtype="bfloat16")
    reference = memory.bytes_on_device(device.state.reference)
    assert memory.bytes_on_device(device.state) - memory.bytes_on_device(learner.state) == reference
    with jax.default_matmul_precision("default"):
        scoring = learner.lower_scoring(LAYOUT, 4).compile().memory_analysis()
    assert scoring.host_argument_size_in_bytes >= reference  # and what its layout there pads
    assert scoring.argument_size_in_bytes < reference / 4
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=learner.whole)
    traced = learner._mix.trace(learner.state.reference, learner.state.params, scalar)
    mixing = traced.lower(lowering_platforms=("tpu",)).compile().memory_analysis()
    assert mixing.host_output_size_in_bytes >= reference
    assert mixing.host_alias_size_in_bytes == mixing.host_output_size_in_bytes


@given(st.integers(1, 300), st.integers(0, 10_000), st.integers(1, 500), st.integers(0, 200_000))
def test_the_number_that_fits_is_the_greatest_and_found_by_few_questions(most, fixed, each, free):
    asked = []

    def needed(number: int) -> int:
        asked.append(number)
        return fixed + each * number

    found = memory.fitting(most, free, needed)
    greatest = min(most, max(0, free - fixed) // each)
    assert greatest - 1 <= found <= greatest
    assert len(asked) <= 4 and all(1 <= number <= most for number in asked)


@pytest.mark.parametrize(
    ("line", "needed", "limit"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm. Exceeded", 17.5, 15.75),
        ("Total size of temporaries (512.0M) exceeds available HBM (256.0M)", 0.5, 0.25),
    ],
)
def test_a_refusal_for_memory_says_how_much(line, needed, limit):
    class Refused:
        def compile(self, compiler_options):
            raise jax.errors.JaxRuntimeError(line)

    with pytest.raises(memory.TooLarge) as caught:
        memory.compiled(Refused())
    assert (caught.value.needed, caught.value.limit) == (needed * memory.GIB, limit * memory.GIB)


def test_devices_that_do_not_say_what_is_free_are_not_asked():
    class Device:
        platform = "other"

        def memory_stats(self):
            return None

    class Mesh:
        devices, local_devices = np.array([Device()]), [Device()]

    assert memory.free_bytes(Mesh()) is None
