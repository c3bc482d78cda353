from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from creason_jax.learner import own_rows
from creason_jax.mesh import sharding
from creason_jax.model import DecoderConfig
from creason_jax.model.logprobs import token_logprobs
from creason_jax.plan.hlo import Program
from shared.config import JaxConfig
from shared.errors import InputError
from shared.grpo import GroupLayout
from tests.support.small import LAYOUT, MODEL, distance, flat, gradients, make_learner, random_batch
from tests.support.tiny import tiny_phi3

pytestmark = pytest.mark.slow

MESHES = [(8, 1, 1), (1, 8, 1), (1, 4, 2), (2, 2, 2), (1, 1, 4)]
ROWS = 5  # no multiple of 8 devices: empty rows fill the last device


def one_update(model, mesh, remat="none", **jax_options):
    fields = {"micro_batch_rows": 8, "logprob_chunk": 4, "remat": remat}
    learner = make_learner(model, mesh=mesh, learner=fields, jax_options=jax_options)
    batch = random_batch(ROWS)
    logprobs = learner.logprobs(batch, "policy")
    metrics = learner.update(batch)
    return learner, logprobs, metrics


@pytest.fixture(scope="module")
def expected(model):
    learner, logprobs, metrics = one_update(model, (1, 1, 1))
    return gradients(learner), flat(learner.state.params), logprobs, metrics


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_every_mesh_makes_the_same_update(model, expected, mesh):
    """(1, 1, 4) has more devices along tensor than the model has KV heads, which are replicated."""
    learner, logprobs, metrics = one_update(model, mesh)
    assert len(learner.state.params["embed"]["kernel"].sharding.device_set) == np.prod(mesh)
    np.testing.assert_allclose(logprobs, expected[2], rtol=0, atol=1e-5)
    for name, value in expected[3].items():
        assert metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name
    assert distance(gradients(learner), expected[0]) < 1e-5
    assert distance(flat(learner.state.params), expected[1]) < 1e-5


def test_hidden_states_split_along_time_change_nothing(model, expected):
    learner, logprobs, _ = one_update(model, (1, 4, 2), sequence_parallel=True, remat="layer")
    assert sharding.stream_axis(learner.mesh, LAYOUT.length, True) == "tensor"
    assert sharding.stream_axis(learner.mesh, LAYOUT.length + 1, True) is None
    assert sharding.stream_axis(learner.mesh, LAYOUT.length, False) is None
    np.testing.assert_allclose(logprobs, expected[2], rtol=0, atol=1e-5)
    assert distance(gradients(learner), expected[0]) < 1e-5


def test_a_row_is_whole_between_entering_and_leaving_in_gradients_too():
    """Weights stay where they are, though sending them round would be less than the hidden states."""
    mesh = sharding.make_mesh(JaxConfig(mesh_fsdp=1, mesh_tensor=8))
    time, width, inner = 4_096, 64, 128

    def laid(*spec):
        return NamedSharding(mesh, PartitionSpec(*spec))

    x = jax.ShapeDtypeStruct((1, time, width), jnp.float32, sharding=laid(None, "tensor"))
    up = jax.ShapeDtypeStruct((width, inner), jnp.float32, sharding=laid(None, "tensor"))
    down = jax.ShapeDtypeStruct((inner, width), jnp.float32, sharding=laid("tensor", None))
    spread = own_rows.spread(mesh, {"layers": {}}, "tensor")

    def gathered(enter, leave):
        def loss(x, up, down):
            return jnp.square(x + leave(jnp.tanh(enter(x) @ up) @ down)).sum()

        split = jax.tree.map(lambda leaf: leaf.sharding, (x, up, down))
        gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)), out_shardings=split)
        program = Program(gradients.lower(x, up, down).compile().as_text())
        made = [each for name in program.computations for each in program.computations[name].values()]
        return {array.shape for each in made if each.opcode.startswith("all-gather") for array in each.arrays}

    assert gathered(spread.enter, spread.leave) == {(1, time, width)}
    assert gathered(lambda x: x, lambda x: x) != {(1, time, width)}  # what the compiler would do


def test_table_splits_every_parameter(model):
    mesh = sharding.make_mesh(JaxConfig(mesh_data=2, mesh_fsdp=2, mesh_tensor=2))
    specs = sharding.param_shardings(DecoderConfig.read(model), mesh)
    assert specs["embed"]["kernel"].spec == PartitionSpec("tensor", "fsdp")
    assert specs["head"]["kernel"].spec == PartitionSpec("fsdp", "tensor")
    assert specs["layers"]["q"]["kernel"].spec == PartitionSpec(None, "fsdp", "tensor", None)
    assert specs["layers"]["k"]["kernel"].spec == PartitionSpec(None, "fsdp", "tensor", None)
    assert specs["layers"]["o"]["kernel"].spec == PartitionSpec(None, "tensor", None, "fsdp")
    assert specs["layers"]["down"]["kernel"].spec == PartitionSpec(None, "tensor", "fsdp")
    engine = sharding.param_shardings(DecoderConfig.read(model), mesh, sharding.ENGINE_RULES)
    assert engine["layers"]["q"]["kernel"].spec == PartitionSpec(None, None, "tensor", None)


def test_key_value_heads_fewer_than_tensor_are_replicated(model):
    mesh = sharding.make_mesh(JaxConfig(mesh_tensor=4), jax.devices()[:4])
    config = DecoderConfig.read(model)
    sharding.check_divisible(config, mesh)
    specs = sharding.param_shardings(config, mesh)["layers"]
    assert specs["k"]["kernel"].spec[2] is None and specs["v"]["kernel"].spec[2] is None
    assert specs["q"]["kernel"].spec[2] == "tensor"


@pytest.mark.parametrize(
    ("axes", "remedy"),
    [
        ({"mesh_data": 3}, "nearest jax.mesh_data: 2"),
        ({"mesh_data": 2, "mesh_tensor": 3}, "nearest jax.mesh_tensor: 2"),
        ({"mesh_tensor": 16}, "nearest jax.mesh_tensor: 8"),
        ({"mesh_data": 2, "mesh_fsdp": 3, "mesh_tensor": 2}, "set jax.mesh_fsdp = 2"),
        ({"mesh_fsdp": 4}, "set jax.mesh_fsdp = 8"),
    ],
)
def test_axes_that_do_not_make_the_devices_are_refused(axes, remedy):
    with pytest.raises(InputError, match=re.escape("the 8 devices that are here; " + remedy)) as refusal:
        sharding.make_mesh(JaxConfig(**axes))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"mesh_tensor": 8}, "jax.mesh_tensor = 8 does not divide num_attention_heads = 4; nearest that does: 4"),
        ({"mesh_fsdp": 5}, "jax.mesh_fsdp = 5 does not divide hidden_size = 64; nearest that does: 4"),
    ],
)
def test_dimensions_that_an_axis_does_not_divide_are_refused(model, axes, message):
    wanted = JaxConfig(**axes)
    mesh = sharding.make_mesh(wanted, jax.devices()[: wanted.mesh_tensor * max(1, wanted.mesh_fsdp)])
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        sharding.check_divisible(DecoderConfig.read(model), mesh)


# What the compiled program does, read from its text.

HIDDEN, WIDE_VOCABULARY = 64, 8_192
LONG = GroupLayout(prompt=16, group=2, completion=128)
FSDP, TENSOR = 4, 2
OWN_ROWS = 2  # of each device, in a micro-batch
OWN_VOCABULARY = WIDE_VOCABULARY // TENSOR
COLLECTIVE = re.compile(r"= (.*?) (?:all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")


def computations(text: str) -> dict[str, list[str]]:
    """The lines of each computation of a compiled program."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        heading = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if heading:
            name = heading.group(1)
            found[name] = []
        elif name:
            found[name].append(line)
    return found


def chunk_loops(text: str) -> list[str]:
    """The innermost loop bodies in which logits are computed, each with all that it calls."""
    parts = computations(text)

    def whole(name: str) -> str:
        own = "\n".join(parts[name])
        return "\n".join([own, *(whole(called) for called in CALLED.findall(own))])

    bodies = {name for lines in parts.values() for line in lines for name in re.findall(r"body=%?([\w.\-]+)", line)}
    found = [whole(name) for name in sorted(bodies)]
    logits = re.compile(rf"f32\[\d+,{OWN_VOCABULARY}\]\S* (?:dot|custom-call)\(")
    return [text for text in found if " while(" not in text and logits.search(text)]


def largest_collective(text: str) -> int:
    """Elements of the largest array that a collective in this text produces."""
    shapes = [shape for made in COLLECTIVE.findall(text) for shape in re.findall(r"\[([\d,]*)\]", made)]
    return max((int(np.prod([int(size) for size in shape.split(",") if size])) for shape in shapes), default=0)


def compiled_update(folder, chunk):
    learner = make_learner(
        folder,
        mesh=(1, FSDP, TENSOR),
        learner={"micro_batch_rows": OWN_ROWS * FSDP, "logprob_chunk": chunk, "remat": "layer"},
        rollout={"max_prompt_tokens": LONG.prompt, "max_new_tokens": LONG.completion},
    )
    return learner.lower_update(LONG, 2 * OWN_ROWS * FSDP).compile()


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide")
    tiny_phi3(folder, **MODEL, vocab_size=WIDE_VOCABULARY, num_hidden_layers=1)
    return folder


@pytest.fixture(scope="module")
def chunked(wide_model):
    return compiled_update(wide_model, chunk=16)


def test_head_is_gathered_and_its_gradient_summed_outside_the_loop_over_chunks(chunked):
    loops = chunk_loops(chunked.as_text())
    assert len(loops) == 2  # forward and backward
    assert max(map(largest_collective, loops)) < HIDDEN * OWN_VOCABULARY // 64
    assert largest_collective(chunked.as_text()) >= HIDDEN * OWN_VOCABULARY  # once, elsewhere


def test_a_head_gathered_in_the_loop_would_be_seen():
    """The control of the test above: the same log-probabilities with a split head and nothing said about it."""
    mesh = sharding.make_mesh(JaxConfig(mesh_fsdp=FSDP, mesh_tensor=TENSOR))
    rows = NamedSharding(mesh, PartitionSpec(sharding.BATCH))
    head = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    args = (
        jax.ShapeDtypeStruct((8, 64, HIDDEN), jnp.float32, sharding=rows),
        jax.ShapeDtypeStruct((HIDDEN, WIDE_VOCABULARY), jnp.float32, sharding=head),
        jax.ShapeDtypeStruct((8, 64), jnp.int32, sharding=rows),
    )
    gradient = jax.jit(jax.grad(lambda *args: token_logprobs(*args, chunk=64)[0].sum(), argnums=1), out_shardings=head)
    loops = chunk_loops(gradient.lower(*args).compile().as_text())
    assert max(map(largest_collective, loops)) >= HIDDEN * OWN_VOCABULARY // FSDP


def test_every_device_computes_its_own_rows_only(chunked):
    """Without a word on the hidden states the compiler splits them along `embed`, and all rows are on all devices."""
    text = chunked.as_text()
    products = {int(rows) for rows in re.findall(r"f32\[(\d+),\d+\]\S* (?:dot|custom-call)\(", text)}
    assert OWN_ROWS * LONG.length in products
    assert OWN_ROWS * FSDP * LONG.length not in products


def test_no_array_of_all_tokens_times_the_vocabulary(chunked, wide_model):
    tokens = OWN_ROWS * LONG.group * LONG.completion
    logits = 4 * tokens * OWN_VOCABULARY
    unchunked = compiled_update(wide_model, chunk=1_000_000)
    little, much = (each.memory_analysis().temp_size_in_bytes for each in (chunked, unchunked))
    assert much > logits
    assert little < logits
    assert little < much / 2, (little, much)
