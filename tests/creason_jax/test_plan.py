"""Plans: what the text of a compiled program says, and steps compiled for a TPU that is not here."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import tempfile
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from creason_jax.learner.learner import Learner
from creason_jax.mesh import memory, sharding
from creason_jax.mesh.chips import CHIPS, SHAPES
from creason_jax.model import DecoderConfig, abstract_params
from creason_jax.plan import plan as planning
from creason_jax.plan import search, topology
from creason_jax.plan.hlo import Collective, Program
from creason_jax.rollout.engine import Engine
from shared.backend import Sampling
from shared.config import JaxConfig
from shared.errors import InputError
from shared.grpo import GroupLayout
from shared.runs.memory import GIB
from tests.support.tiny import run_config

pytestmark = pytest.mark.slow

MODEL = DecoderConfig(
    vocab_size=512,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
)
needs_libtpu = pytest.mark.skipif(not topology.installed(), reason="libtpu, the TPU compiler, is not installed")


def test_flops_of_a_product_equal_xlas_own_count():
    args = (jax.ShapeDtypeStruct((32, 48), jnp.float32), jax.ShapeDtypeStruct((48, 16), jnp.float32))
    compiled = jax.jit(lambda a, b: a @ b).lower(*args).compile()
    assert Program(compiled.as_text()).cost().flops == compiled.cost_analysis()["flops"] == 2 * 32 * 48 * 16


def test_the_body_of_a_loop_counts_as_often_as_it_runs():
    def powers(a):
        return jax.lax.fori_loop(0, 7, lambda _, x: x @ a, a)

    text = jax.jit(powers).lower(jax.ShapeDtypeStruct((16, 16), jnp.float32)).compile().as_text()
    assert Program(text).cost().flops == 7 * 2 * 16**3


def test_collectives_are_counted_with_the_bytes_that_a_device_moves():
    mesh = sharding.make_mesh(JaxConfig(mesh_data=2, mesh_fsdp=4), jax.devices())
    split = jax.ShapeDtypeStruct((64, 8), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("fsdp")))
    whole = jax.jit(lambda x: x * 2, out_shardings=NamedSharding(mesh, PartitionSpec()))
    found = Program(whole.lower(split).compile().as_text()).cost().collectives
    assert {kind: (each.count, each.bytes) for kind, each in found.items()} == {"all-gather": (1, 64 * 8 * 4 * 3 / 4)}
    total = jax.jit(lambda x: x.sum(axis=0), out_shardings=NamedSharding(mesh, PartitionSpec()))
    found = Program(total.lower(split).compile().as_text()).cost().collectives
    assert {kind: (each.count, each.bytes) for kind, each in found.items()} == {"all-reduce": (1, 2 * 8 * 4 * 3 / 4)}


# A matrix product of 8 heads as the TPU compiler writes it: heads are a spatial dimension of one place, with padding.
TPU_TEXT = """HloModule m

ENTRY %main (a: bf16[1,1024,1,1024], b: bf16[1,8,128,1024]) -> bf16[1,1024,8,128] {
  %a = bf16[1,1024,1,1024]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[1,8,128,1024]{3,2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  %c = bf16[1,1024,8,128]{3,2,1,0} convolution(%a, %b), window={size=1x8 pad=0_0x7_7}, dim_labels=0b1f_01oi->0b1f
}
"""


def test_a_collective_that_runs_beside_several_fusions_counts_once():
    """As the TPU compiler writes it: each fusion holds the same gather, and all but the first are given what it fills."""
    gather = (
        "all-gather(%source{n}), channel_id=7, replica_groups={{{{0,1,2,3}}}}, dimensions={{0}}, "
        'backend_config={{"async_collective_fusion_config":{{"flag_end":"8","flag_start":"2"}}}}'
    )
    program = Program(
        "\n".join(
            [
                "%first (source0: bf16[8,4]) -> bf16[32,4] {",
                "  %source0 = bf16[8,4]{1,0} parameter(0)",
                "  ROOT %gather0 = bf16[32,4]{1,0} " + gather.format(n=0),
                "}",
                "",
                "%second (source1: bf16[8,4], filled: bf16[32,4]) -> bf16[32,4] {",
                "  %source1 = bf16[8,4]{1,0} parameter(0)",
                "  %filled = bf16[32,4]{1,0} parameter(1)",
                "  ROOT %gather1 = bf16[32,4]{1,0} " + gather.format(n=1),
                "}",
                "",
                "ENTRY %main (x: bf16[8,4]) -> bf16[32,4] {",
                "  %x = bf16[8,4]{1,0} parameter(0)",
                "  %begun = bf16[32,4]{1,0} fusion(%x), kind=kCustom, calls=%first",
                "  ROOT %ended = bf16[32,4]{1,0} fusion(%x, %begun), kind=kCustom, calls=%second",
                "}",
            ]
        )
    )
    assert program.cost().collectives == {"all-gather": Collective(1, 32 * 4 * 2 * 3 / 4)}


@pytest.mark.parametrize(("step", "trips"), [(1, 7), (2, 4), (3, 3)])
def test_a_loop_that_counts_by_more_than_one_runs_less_often(step, trips):
    """As the TPU compiler unrolls those that send parts of a product round."""
    program = Program(
        "\n".join(
            [
                "%body (before: (u32[], f32[8,8])) -> (u32[], f32[8,8]) {",
                f"  %step = u32[] constant({step})",
                "  %before = (u32[], f32[8,8]{1,0}) parameter(0)",
                "  %count = u32[] get-tuple-element(%before), index=0",
                "  %copied = u32[] copy(%count)",
                "  %next = u32[] add(%copied, %step)",
                "  %x = f32[8,8]{1,0} get-tuple-element(%before), index=1",
                "  %y = f32[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
                "  ROOT %after = (u32[], f32[8,8]{1,0}) tuple(%next, %y)",
                "}",
                "",
                "%more (state: (u32[], f32[8,8])) -> pred[] {",
                "  %limit = u32[] constant(7)",
                "  %state = (u32[], f32[8,8]{1,0}) parameter(0)",
                "  %reached = u32[] get-tuple-element(%state), index=0",
                "  ROOT %going = pred[] compare(%reached, %limit), direction=LT",
                "}",
                "",
                "ENTRY %main (start: (u32[], f32[8,8])) -> (u32[], f32[8,8]) {",
                "  %start = (u32[], f32[8,8]{1,0}) parameter(0)",
                "  ROOT %loop = (u32[], f32[8,8]{1,0}) while(%start), condition=%more, body=%body",
                "}",
            ]
        )
    )
    assert program.cost().flops == trips * 2 * 8**3


def test_a_slice_reads_what_it_takes():
    """Also one that runs beside other work, as the TPU compiler fetches a part of a matrix into the chip's own memory."""
    program = Program(
        "\n".join(
            [
                "%fetched (whole: s8[4096]) -> s8[1024] {",
                "  %whole = s8[4096]{0} parameter(0)",
                "  ROOT %part = s8[1024]{0:S(1)} slice(%whole), slice={[0:1024]}",
                "}",
                "",
                "ENTRY %main (x: s8[4096]) -> s8[512] {",
                "  %x = s8[4096]{0} parameter(0)",
                "  %start = ((s8[4096]{0}), s8[1024]{0:S(1)}) async-start(%x), calls=%fetched",
                "  %done = s8[1024]{0:S(1)} async-done(%start)",
                "  ROOT %own = s8[512]{0} slice(%x), slice={[0:512]}",
                "}",
            ]
        )
    )
    assert program.cost().bytes == 1_024 + 2 * 512


def test_padding_of_a_convolution_is_no_work():
    cost = Program(TPU_TEXT).cost()
    assert cost.flops == 2 * 1024 * 1024 * 8 * 128
    assert cost.bytes == 2 * (1024 * 1024 + 1024 * 8 * 128)  # b lies in the chip's own memory


@pytest.mark.parametrize(
    "layout", [GroupLayout(prompt=9, group=3, completion=4), GroupLayout(prompt=5, group=0, completion=0)]
)
def test_visible_pairs_equal_the_mask(layout):
    position = np.arange(layout.length)
    segment = np.maximum(0, (position - layout.prompt) // max(1, layout.completion) + 1)
    sees = (position[:, None] >= position) & ((segment[:, None] == segment) | (segment == 0))
    assert planning.visible_pairs(layout) == sees.sum()


def test_useful_flops_are_those_of_the_compiled_forward_pass():
    """Against what the compiler counts for separate pieces: with one layer, every product of the model."""
    layout = GroupLayout(prompt=16, group=2, completion=8)
    weights = abstract_params(dataclasses.replace(MODEL, num_hidden_layers=1))["layers"]
    kernels = sum(leaf.size for leaf in jax.tree.leaves(weights) if leaf.ndim > 2)
    head = 2 * 16 * MODEL.hidden_size * MODEL.vocab_size
    pairs = 4 * planning.visible_pairs(layout) * MODEL.num_attention_heads * MODEL.head_dim
    expected = 3 * (2 * layout.length * kernels + pairs) + head
    assert planning.forward_flops(MODEL, layout) == pytest.approx(expected, rel=1e-12)


def abstract_and_real(mesh_axes):
    config = run_config(learner={"micro_batch_rows": 4}, jax=mesh_axes | {"sequence_parallel": True})
    return config, sharding.make_mesh(config.jax)


def test_a_learner_without_weights_compiles_what_a_learner_runs():
    config, mesh = abstract_and_real({"mesh_data": 2, "mesh_fsdp": 2, "mesh_tensor": 2})
    learner = Learner(config, MODEL, mesh, optimizer=config.optimizer, steps=4, reference=True)
    layout = GroupLayout(prompt=16, group=2, completion=8)
    compiled = learner.lower_update(layout, 4).compile()
    per_device = memory.bytes_on_device(learner.state._replace(reference=None))
    assert compiled.memory_analysis().argument_size_in_bytes == pytest.approx(per_device, rel=0.05)
    assert learner.lower_scoring(layout, 4).compile().as_text()


# No accidental communication.


def decode_text(mesh_axes):
    config, mesh = abstract_and_real(mesh_axes)
    engine = Engine(config, MODEL, mesh, stop_tokens=(1,))
    return engine.lower_decode(Sampling(group_size=2, temperature=0.9, max_new_tokens=12)).compile().as_text()


def only_whether_to_go_on(collectives):
    """One truth value of each device in each turn."""
    return all(each.bytes <= 8 * each.count for each in collectives)


def test_decoding_over_data_alone_moves_nothing_but_whether_to_go_on():
    text = decode_text({"mesh_data": 2, "mesh_fsdp": 4})
    program = Program(text)
    assert only_whether_to_go_on(program.cost().collectives.values())
    everywhere = [each for lines in program.computations.values() for each in lines.values()]
    kinds = [each for each in everywhere if each.opcode.startswith(("all-", "reduce-scatter", "collective"))]
    assert all(each.opcode == "all-reduce" and each.arrays[0].bytes <= 4 for each in kinds)


def test_decoding_writes_its_caches_in_place():
    program = Program(decode_text({"mesh_data": 2, "mesh_fsdp": 4}))
    heads, size = MODEL.num_key_value_heads, MODEL.head_dim
    own = heads * 2 * 12 * size  # of a slot: two samples of 12 tokens
    copies = [each for _, each in program.inside_loops() if each.opcode == "copy"]
    assert all(int(np.prod(array.shape)) < own for each in copies for array in each.arrays)


def test_prompts_are_computed_where_their_slots_are():
    config, mesh = abstract_and_real({"mesh_data": 2, "mesh_fsdp": 4})
    engine = Engine(config, MODEL, mesh, stop_tokens=(1,))
    sampling = Sampling(group_size=2, temperature=0.9, max_new_tokens=12)
    assert not Program(engine.lower_prefill(sampling).compile().as_text()).cost().collectives


def test_decoding_over_tensor_gathers_no_weights_and_no_cache():
    program = Program(decode_text({"mesh_data": 2, "mesh_fsdp": 2, "mesh_tensor": 2}))
    smallest_weight = MODEL.hidden_size * MODEL.num_key_value_heads * MODEL.head_dim // 2
    gathers = [each for _, each in program.inside_loops() if each.opcode.startswith("all-gather")]
    assert all(int(np.prod(array.shape)) < smallest_weight for each in gathers for array in each.arrays)


def test_a_layers_parameters_are_gathered_once_in_each_pass():
    config, mesh = abstract_and_real({"mesh_fsdp": 8})
    learner = Learner(config, MODEL, mesh, optimizer=config.optimizer, steps=4, reference=True)
    layout = GroupLayout(prompt=24, group=2, completion=20)  # no dimension of the model's
    cost = Program(learner.lower_update(layout, 8).compile().as_text()).cost()
    kernels = 7  # q, k, v, o, gate, up, down
    gathers = cost.collectives["all-gather"].count
    outside = 6  # the head, the embedding's tokens
    passes = 2  # forward, and backward with the layer computed again
    assert kernels * passes * MODEL.num_hidden_layers <= gathers
    assert gathers <= kernels * passes * MODEL.num_hidden_layers + outside
    # Their gradients are summed where they are kept, and so is that of the head.
    assert cost.collectives["reduce-scatter"].count == kernels * MODEL.num_hidden_layers + 1


# Questions that are refused, shapes that are found.


def test_published_shape_of_phi_4():
    config = run_config(model={"path": "models/phi-4"})
    model = planning.model_shape(config)
    assert model.num_params == 14_659_507_200
    assert (model.num_key_value_heads, model.head_dim, model.vocab_size) == (10, 128, 100_352)


def test_a_shape_from_a_file(tmp_path):
    values = {"model_type": "phi3", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "vocab_size": 320,
              "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = run_config(model={"path": "models/none"})
    assert planning.model_shape(config, str(tmp_path)).hidden_size == 64
    assert planning.model_shape(config, str(tmp_path / "config.json")).hidden_size == 64
    assert planning.model_shape(run_config()).num_hidden_layers == run_config().model.num_hidden_layers
    with pytest.raises(InputError, match=r"no published shape is named 'none' \(there is phi-4\); give --model_config"):
        planning.model_shape(config)


@needs_libtpu
@pytest.mark.parametrize(
    ("axes", "name", "message"),
    [
        (
            {"mesh_tensor": 8, "mesh_fsdp": 1},
            "v5e:2x4",
            "jax.mesh_tensor = 8 does not divide num_attention_heads = 4",
        ),
        ({"mesh_data": 3, "mesh_fsdp": -1}, "v5e:2x2", "nearest jax.mesh_data: 2"),
        ({}, "v3:2x2", "no figures for 'v3'; there are v4, v5e, v5p, v6e"),
    ],
)
def test_what_a_slice_would_refuse_is_refused_before_compiling(axes, name, message):
    with pytest.raises(InputError, match=message):
        planning.check(run_config(jax=axes), MODEL, name)


def test_the_search_goes_from_the_least_memory_and_splits_what_divides():
    config = run_config(model={"path": "models/phi-4"}, learner={"micro_batch_rows": 5},
                        grpo={"group_size": 7, "questions_per_step": 5},
                        rollout={"max_prompt_tokens": 9_000, "max_new_tokens": 2_000})  # fmt: skip
    model = planning.model_shape(config)
    found = list(search.candidates(config, model, "v5e:8x16", 128, CHIPS["v5e"]))
    assert {c.jax.mesh_tensor for c in found} == {1, 2, 4, 8}  # 40 heads, 16 does not divide
    assert all(c.jax.mesh_data * c.jax.mesh_fsdp * c.jax.mesh_tensor == 128 for c in found)
    assert any(c.bytes < CHIPS["v5e"].hbm for c in found)
    small = list(search.candidates(config, model, "v5e:4x4", 16, CHIPS["v5e"]))
    assert min(c.bytes for c in small) > 1.1 * CHIPS["v5e"].hbm
    assert set(SHAPES) == set(CHIPS)


def test_arithmetic_knows_the_options_for_memory():
    config = run_config(learner={"compute_dtype": "bfloat16"})
    layout = GroupLayout(prompt=512, group=4, completion=256)

    def needed(remat="layer", **options):
        return search._bytes(config, MODEL, layout, dataclasses.replace(config.jax, **options), remat, 4)

    kept = [needed(remat=remat) for remat in ("offload", "layer", "dots", "none")]
    assert kept == sorted(set(kept))
    assert needed() - needed(moments_dtype="bfloat16") == 2 * 2 * MODEL.num_params
    assert needed() - needed(reference_memory="host") == 4 * MODEL.num_params
    tried = list(search.candidates(config, MODEL, "v5e:1x1", 1, CHIPS["v5e"]))
    seconds = {each.remat: each.seconds for each in tried}
    assert seconds["none"] < seconds["dots"] < seconds["layer"]


def test_a_search_passes_over_what_the_compiler_fails_on(monkeypatch):
    tried, told = [], []

    def plan(config, model, name, *, steps=(), say):
        tried.append((config.learner, config.jax))
        if len(tried) == 1:
            raise InputError(f"{name}: the TPU compiler ends with an error of its own")
        return types.SimpleNamespace(fits=True, tried=tried[-1])

    monkeypatch.setattr(planning, "plan", plan)
    found = search.search(run_config(), MODEL, "v5e:2x4", say=told.append)
    assert found.tried == tried[1] == tried[2] != tried[0]
    assert "v5e:2x4: the TPU compiler ends with an error of its own" in told


# Compiled for a TPU.


@needs_libtpu
def test_an_error_of_the_compilers_own_is_one_line(monkeypatch):
    def fail(lowered, options):
        raise jax.errors.JaxRuntimeError("INTERNAL: Value <7\n> overlaps")

    monkeypatch.setattr(memory, "compiled", fail)
    config = run_config(learner={"compute_dtype": "bfloat16"}, jax={"mesh_fsdp": -1})
    with pytest.raises(
        InputError, match=r"^update: the TPU compiler .* \(INTERNAL: Value <7 > overlaps\); another mesh, "
    ):
        planning.plan(config, MODEL, "v5e:2x2", steps=("update",))


@needs_libtpu
def test_a_reference_on_the_host_takes_no_memory_of_a_chip_but_while_it_scores():
    name = "v5e:2x2"
    plans = {}
    for where in ("device", "host"):
        config = run_config(learner={"compute_dtype": "bfloat16"}, jax={"mesh_fsdp": -1, "reference_memory": where})
        with jax.default_matmul_precision("default"):
            plans[where] = planning.plan(config, MODEL, name, steps=("scoring",)).steps[0]
    reference = 4 * MODEL.num_params / 4
    device, host = plans["device"], plans["host"]
    assert device.beside == host.beside  # the reference and the moments; the policy and the moments
    assert device.arguments - host.arguments > reference
    assert host.temporaries - device.temporaries > 0.5 * reference, (host.temporaries, device.temporaries)


@needs_libtpu
def test_a_step_too_large_says_by_how_much():
    """Refused by the compiler within seconds: the state alone is larger than the chips' memory."""
    config = run_config(
        model={"path": "models/phi-4"},
        grpo={"beta": 0.0, "group_size": 2, "questions_per_step": 4},
        learner={"compute_dtype": "bfloat16"},
        jax={"mesh_fsdp": -1},
    )
    model = planning.model_shape(config)
    found = planning.plan(config, model, "v5e:2x2", steps=("publish",))
    assert not found.fits
    lacks = -found.headroom / GIB
    published = 2 * model.num_params / GIB  # whole on every chip
    assert lacks > published + 4 * model.num_params / 4 / GIB - 15.75
    wanted = f"publish lacks {lacks:.1f} GiB a chip; what helps: a larger slice; jax.mesh_tensor = 2"
    assert any(line.startswith(wanted) for line in found.advice)


@needs_libtpu
def test_decoding_compiled_for_a_tpu_gathers_nothing():
    config = run_config(
        learner={"compute_dtype": "bfloat16"},
        jax={"mesh_fsdp": -1},
        rollout={"slots": 8},
        grpo={"questions_per_step": 8},
    )
    with jax.default_matmul_precision("default"):
        found = planning.plan(config, MODEL, "v5e:2x2", steps=("decode",))
    (step,) = found.steps
    assert found.fits and step.headroom > 15 * GIB
    assert only_whether_to_go_on(itertools.starmap(Collective, step.collectives.values()))
    weights = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(MODEL)))
    per_token = 2.0 * (weights - MODEL.vocab_size * MODEL.hidden_size)
    samples = 8 / 4 * config.grpo.group_size * config.rollout.decode_steps
    assert 0.9 * per_token * samples < step.flops < 1.5 * per_token * samples


def compiled_text(lowered: Any) -> str:
    """The compiler's own text: this version of jaxlib cannot parse all that libtpu writes."""
    with tempfile.TemporaryDirectory() as folder:
        lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        return "".join(path.read_text("utf-8") for path in sorted(Path(folder).glob("*after_optimizations.txt")))


@needs_libtpu
def test_a_plan_takes_as_many_slots_as_fit(monkeypatch):
    config = run_config(
        learner={"compute_dtype": "bfloat16"},
        jax={"mesh_fsdp": -1},
        rollout={"slots": 12},
        grpo={"questions_per_step": 12},
    )

    def decoding(spare: int) -> planning.Plan:
        chip = dataclasses.replace(CHIPS["v5e"], hbm=CHIPS["v5e"].hbm - spare)
        monkeypatch.setitem(CHIPS, "v5e", chip)
        with jax.default_matmul_precision("default"):
            return planning.plan(config, MODEL, "v5e:2x2", steps=("decode",))

    whole = decoding(0)
    assert whole.slots == 12
    found = decoding(whole.headroom + 1)  # a byte too few
    assert found.fits and found.slots == 8
    assert found.steps[0].calls == 2 * whole.steps[0].calls  # in two waves


@needs_libtpu
def test_an_update_compiled_for_a_tpu_moves_each_layers_weights_three_times():
    """Gathered forwards and, as the layer is computed again, backwards; gradients summed."""
    config = run_config(
        learner={"compute_dtype": "bfloat16", "micro_batch_rows": 4, "logprob_chunk": 64},
        jax={"mesh_fsdp": -1},
        rollout={"max_prompt_tokens": 1_024, "max_new_tokens": 128},
        grpo={"questions_per_step": 4},
    )
    with jax.default_matmul_precision("default"):
        found = planning.plan(config, MODEL, "v5e:2x2", steps=("update",))
    (step,) = found.steps
    layers = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(MODEL)["layers"]))
    share = 2 * 3 / 4  # of bfloat16, that each of four devices lacks
    moved = sum(bytes for kind, (_, bytes) in step.collectives.items() if kind != "all-to-all")
    head = MODEL.hidden_size * MODEL.vocab_size
    tokens = 4 * (1_024 + 2 * 128)  # embedded where the table is, then sent to whose row they are
    outside = 9 * share * head  # the head, the table and its gradient; less than another pass over the layers
    assert 3 * share * layers < moved < 3 * share * layers + outside
    assert step.collectives["all-to-all"] == (2, 2 * share / 4 * tokens * MODEL.hidden_size)
    for kernel in ("splash_mha_fwd", "splash_mha_dq", "splash_mha_dkv"):
        assert any(name.startswith(kernel) for name in step.kernels), kernel


@needs_libtpu
def test_an_update_compiled_for_a_tpu_gathers_nobody_elses_rows():
    """For the gradient of a split weight the compiler, left to itself, gathers what all rows put in and got out; on this mesh
    it ended with an internal error."""
    axes = {"mesh_fsdp": 2, "mesh_tensor": 4, "sequence_parallel": True}
    model = dataclasses.replace(
        MODEL, hidden_size=512, intermediate_size=1_024, num_attention_heads=20, num_key_value_heads=10, head_dim=32
    )
    config = run_config(
        learner={"compute_dtype": "bfloat16", "micro_batch_rows": 8, "logprob_chunk": 64},
        jax=axes,
        rollout={"max_prompt_tokens": 4_096, "max_new_tokens": 512},
        grpo={"questions_per_step": 8},
    )
    mesh = sharding.make_mesh(config.jax, list(topology.devices("v5e:2x4")))
    learner = Learner(config, model, mesh, optimizer=config.optimizer, steps=4, reference=True)
    layout = GroupLayout(prompt=4_096, group=2, completion=512)
    with jax.default_matmul_precision("default"):
        text = compiled_text(learner.lower_update(layout, 8))
    rows = 8 // learner.mesh.shape["fsdp"]
    own = rows * layout.length * max(model.hidden_size, model.num_attention_heads * model.head_dim)
    gathers = [each for _, each in Program(text).inside_loops() if each.opcode.startswith("all-gather")]
    assert len(gathers) > 10
    made = [array.shape for each in gathers for array in each.arrays]
    assert max(map(math.prod, made)) <= own
    # Nor does it gather what the tensor axis splits of the MLP's weights.
    whole = {model.hidden_size, model.intermediate_size}
    assert not [shape for shape in made if whole <= set(shape)]
