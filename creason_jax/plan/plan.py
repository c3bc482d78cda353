"""Plan a run on a TPU slice that is not connected: compile the run's own programs with the TPU compiler, without weights.

Memory is what the compiler reserves. Times are a roofline: the FLOPs, bytes read and bytes sent of a program (`hlo.py`), divided
by the chip's peak rates; a real step takes longer. MFU (model FLOPs utilisation) is of the update only. It counts 6 FLOPs for
each weight and token of a matrix product, and attention where the mask is true; recomputation and padded rows do not count.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jax

from creason_jax.learner.learner import Learner
from creason_jax.mesh import memory, sharding
from creason_jax.mesh.chips import Chip, chip_of
from creason_jax.mesh.memory import bytes_on_device
from creason_jax.model import DecoderConfig
from creason_jax.plan import topology
from creason_jax.plan.hlo import Cost, Program
from creason_jax.rollout.engine import Engine
from shared.backend import Sampling
from shared.config import RunConfig, with_compute_dtype
from shared.errors import InputError, reason
from shared.grpo import GroupLayout
from shared.policy.families import MODEL_CONFIG
from shared.policy.initial import hugging_face_config
from shared.runs.forecast import Memory
from shared.runs.memory import GIB
from shared.storage import files

STEPS = ("update", "scoring", "prefill", "decode", "publish")
ROLLOUT = ("prefill", "decode")
LESS_KEPT = {"none": "layer", "dots": "layer", "layer": "offload"}  # `learner.remat` -> a value that needs less memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One program of a run, on one chip of the slice. Memory is in bytes, time in seconds."""

    name: str
    fits: bool
    arguments: int = 0
    outputs: int = 0  # without those that are written over donated arguments
    temporaries: int = 0
    code: int = 0
    beside: int = 0  # other arrays of the run that are in memory at that time, and are not arguments
    headroom: int = 0  # free bytes; negative: missing bytes
    flops: float = 0.0
    bytes: float = 0.0
    collectives: Mapping[str, tuple[int, float]] = dataclasses.field(default_factory=dict)
    kernels: Mapping[str, int] = dataclasses.field(default_factory=dict)  # calls of Pallas kernels
    seconds: float = 0.0  # of one call, by the roofline
    bound: str = ""  # what takes these seconds: compute, HBM, ICI; or memory, where it does not fit
    calls: int = 1  # in one training step
    compile_seconds: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The memory that a run needs on a slice, and how fast it would be there."""

    topology: str
    chips: int
    mesh: dict[str, int]
    micro_batches: int
    micro_batch_rows: int
    useful_rows: float  # fraction of the computed rows that hold a question
    slots: int  # groups that decode at once: as configured, or as many as fit
    steps: list[Step]
    memory: Memory  # of one chip; temporaries are what the compiler reserves
    fits: bool
    headroom: int
    seconds_per_step: float
    tokens_per_second: float
    mfu: float
    hours: float
    advice: list[str]

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values, for `files.write_json`."""
        return dataclasses.asdict(self)


def model_shape(config: RunConfig, file: str = "") -> DecoderConfig:
    """The model's shape, from the first of these that exists: `file`; for a config without `model.path`, the config itself; the
    folder `model.path`; the published shape with that folder's name (in `shapes/`).

    Raises InputError where none exists.
    """
    longest = config.longest_sequence
    if file:
        path = Path(file) / MODEL_CONFIG if Path(file).is_dir() else Path(file)
        return DecoderConfig.from_hugging_face(files.read_json_object(path), str(path), longest=longest)
    if not config.model.path:
        values = hugging_face_config(config.model, config.model.vocab_size, bos=0, eos=0, pad=0)
        return DecoderConfig.from_hugging_face(values, "model", longest=longest)
    if (Path(config.model.path) / MODEL_CONFIG).is_file():
        return DecoderConfig.read(Path(config.model.path), longest=longest)
    name = Path(config.model.path).name
    shapes = resources.files("creason_jax.plan").joinpath("shapes")
    published = shapes.joinpath(f"{name}.json")
    if not published.is_file():
        names = sorted(shape_file.name.removesuffix(".json") for shape_file in shapes.iterdir())
        raise InputError(
            f"model.path = {config.model.path!r} has no config.json, and no published shape is named {name!r} "
            f"(there is {', '.join(names)}); give --model_config=FILE, a Hugging Face config.json"
        )
    return DecoderConfig.from_hugging_face(json.loads(published.read_text("utf-8")), published.name, longest=longest)


def check(config: RunConfig, model: DecoderConfig, name: str) -> None:
    """Raise InputError where the run cannot start on the slice `name`.

    That is: the product of the mesh axes is not the number of devices, an axis does not divide a dimension of the model, or
    sequences are longer than the model's positions.
    """
    chip_of(name)
    mesh = sharding.make_mesh(config.jax, list(topology.devices(name)))
    sharding.check_divisible(model, mesh)
    sharding.check_divisible(model, sharding.engine_mesh(mesh, config.jax.rollout_mesh_tensor), "rollout_mesh")
    longest = config.rollout.max_prompt_tokens + config.rollout.max_new_tokens
    if longest > model.max_position_embeddings:
        raise InputError(
            f"rollout.max_prompt_tokens + max_new_tokens = {longest} is beyond the model's {model.max_position_embeddings} "
            "positions (max_position_embeddings)"
        )


def plan(
    config: RunConfig,
    model: DecoderConfig,
    name: str,
    *,
    steps: tuple[str, ...] = STEPS,
    say: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Compile the programs of a run for the slice `name` and describe them.

    `say` is called with a line as each program begins to compile. Raises InputError as `check` does, and where the TPU compiler
    fails.
    """
    config = with_compute_dtype(config, "bfloat16")  # the meaning of `auto` on every TPU
    check(config, model, name)
    chip = chip_of(name)
    mesh = sharding.make_mesh(config.jax, list(topology.devices(name)))
    if config.learner.compute_dtype == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")  # as the backend does
    learner = Learner(
        config, model, mesh, optimizer=config.optimizer, steps=config.steps, reference=config.grpo.beta > 0
    )
    state, params = bytes_on_device(learner.state), bytes_on_device(learner.state.params)
    engine = Engine(
        config,
        model,
        mesh,
        stop_tokens=(0,),
        free_bytes=lambda: round(chip.hbm - state - published),
    )
    published = bytes_on_device(engine.abstract_params())
    layout = GroupLayout(
        prompt=config.rollout.max_prompt_tokens, group=config.grpo.group_size, completion=config.rollout.max_new_tokens
    )
    sampling = Sampling(
        group_size=config.grpo.group_size,
        temperature=config.rollout.temperature,
        max_new_tokens=config.rollout.max_new_tokens,
        top_k=config.rollout.top_k,
        top_p=config.rollout.top_p,
        min_p=config.rollout.min_p,
    )
    questions = config.grpo.questions_per_step
    rows = questions if config.learner.group_layout else questions * config.grpo.group_size
    row = layout if config.learner.group_layout else dataclasses.replace(layout, group=1)
    lowered: dict[str, Callable[[], Any]] = {
        "update": lambda: learner.lower_update(row, rows),
        "scoring": lambda: learner.lower_scoring(row, rows),
        "prefill": lambda: engine.lower_prefill(sampling),
        "decode": lambda: engine.lower_decode(sampling),
        "publish": lambda: engine.lower_publish(learner.state.params),
    }
    scored = 0 if config.jax.reference_memory == "host" and config.grpo.beta > 0 else params
    # What each leaves untouched in memory: the engine's weights, the learner's state.
    beside = {
        "update": bytes_on_device(learner.state.reference) + published,
        "scoring": state - scored + published,
        "prefill": state,
        "decode": state,
        "publish": state - params,
    }
    scorings = (config.grpo.beta > 0) + (config.grpo.inner_steps > 1)
    learner_kernels = _kernel_flops(model, mesh, row, learner.micro_batches(rows)[1])
    engine_kernels = _kernel_flops(model, engine.mesh, GroupLayout(layout.prompt, 0, 0), engine.prefill_width(sampling))

    def compiled(step: str) -> Step:
        say(f"{name}: compiling {step} ({model.num_hidden_layers} layers)")
        waves = -(-questions // engine.slots(sampling))
        calls = {
            "update": config.grpo.inner_steps,
            "scoring": scorings,
            "prefill": -(-questions // engine.prefill_width(sampling)),
            "decode": waves * -(-config.rollout.max_new_tokens // config.rollout.decode_steps),
            "publish": 1,
        }
        kernels = engine_kernels if step == "prefill" else learner_kernels
        return _compiled(step, lowered[step], chip, kernels, beside[step], calls[step])

    described: list[Step] = []
    for step in steps:
        if step == "scoring" and not scorings:
            continue
        described.append(compiled(step))
        if step in ROLLOUT and not described[-1].fits and engine.limit_slots(sampling):
            say(f"{name}: {engine.slots(sampling)} slots fit, the run will use no more")
            described = [compiled(step.name) if step.name in ROLLOUT else step for step in described]
    held = _memory(learner, engine, sampling, chip, described)
    return _summary(config, model, name, mesh, learner, layout, described, held, rows, engine.slots(sampling))


def _memory(learner: Learner, engine: Engine, sampling: Sampling, chip: Chip, steps: list[Step]) -> Memory:
    """The memory of one chip by purpose.

    In the compiler's figures, gradients are among the temporaries of the update, and caches among the arguments of decoding."""
    params = bytes_on_device(learner.state.params)
    temporaries = {step.name: step.temporaries for step in steps}
    return Memory(
        weights=params + bytes_on_device(engine.abstract_params()),
        gradients=params,
        optimizer_state=bytes_on_device(learner.state.moments),
        reference=bytes_on_device(learner.state.reference),
        kv_cache=bytes_on_device(engine.abstract_slots(sampling)),
        update_temporaries=max(0, max(temporaries.get(name, 0) for name in ("update", "scoring")) - params),
        rollout_temporaries=max(temporaries.get(name, 0) for name in ROLLOUT),
        free=chip.hbm,
        place="each chip",
    )


def _compiled(
    name: str, lower: Callable[[], Any], chip: Chip, kernels: Mapping[str, float], beside: int, calls: int
) -> Step:
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        # The HLO text is read from the compiler's dump: this version of jaxlib cannot parse everything that libtpu writes.
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            compiled = memory.compiled(lower(), options)
        except memory.TooLarge as refusal:
            took = time.perf_counter() - begin
            return Step(name=name, fits=False, temporaries=round(refusal.needed), beside=beside,
                        headroom=round(refusal.limit - refusal.needed - beside), calls=calls, bound="memory",
                        compile_seconds=took)  # fmt: skip
        except jax.errors.JaxRuntimeError as error:
            raise InputError(
                f"{name}: the TPU compiler ends with an error of its own ({reason(error)}); another mesh, "
                "learner.remat or longest length may compile"
            ) from error
        cost = Cost()
        for text in sorted(Path(folder).glob("*after_optimizations.txt")):
            cost = cost.plus(Program(text.read_text(encoding="utf-8")).cost(kernels))
    sizes = compiled.memory_analysis()
    headroom = round(chip.hbm - memory.reserved(compiled) - beside)
    times = {
        "compute": cost.flops / chip.flops,
        "HBM": cost.bytes / chip.hbm_bandwidth,
        "ICI": cost.collective_bytes / chip.ici_bandwidth,
    }
    bound = max(times, key=lambda key: times[key])
    return Step(
        name=name,
        fits=headroom >= 0,
        arguments=sizes.argument_size_in_bytes,
        outputs=memory.own_outputs(sizes),
        temporaries=sizes.temp_size_in_bytes,
        code=sizes.generated_code_size_in_bytes,
        beside=beside,
        headroom=headroom,
        flops=cost.flops,
        bytes=cost.bytes,
        collectives={kind: (total.count, total.bytes) for kind, total in cost.collectives.items()},
        kernels=dict(cost.kernels),
        seconds=times[bound],
        bound=bound,
        calls=calls,
        compile_seconds=time.perf_counter() - begin,
    )


def _summary(
    config: RunConfig,
    model: DecoderConfig,
    name: str,
    mesh: jax.sharding.Mesh,
    learner: Learner,
    layout: GroupLayout,
    steps: list[Step],
    held: Memory,
    rows: int,
    slots: int,
) -> Plan:
    count, width = learner.micro_batches(rows)
    seconds = sum(step.seconds * step.calls for step in steps)
    questions = config.grpo.questions_per_step
    updates = [step for step in steps if step.name == "update" and step.seconds]
    flops = 3 * forward_flops(model, layout) * questions
    mfu = flops / (updates[0].seconds * mesh.size * chip_of(name).flops) if updates else 0.0
    return Plan(
        topology=name,
        chips=mesh.size,
        mesh=dict(mesh.shape),
        micro_batches=count,
        micro_batch_rows=width,
        useful_rows=rows / (count * width),
        slots=slots,
        steps=steps,
        memory=held,
        fits=all(step.fits for step in steps),
        headroom=min(step.headroom for step in steps),
        seconds_per_step=seconds,
        tokens_per_second=questions * layout.length / seconds if seconds else 0.0,
        mfu=mfu,
        hours=config.steps / config.grpo.inner_steps * seconds / 3_600,
        advice=_advice(config, model, mesh, steps, rows / (count * width)),
    )


def _advice(
    config: RunConfig, model: DecoderConfig, mesh: jax.sharding.Mesh, steps: list[Step], useful: float
) -> list[str]:
    """Changes that would help a run that does not fit, or that leaves most of its slice idle."""
    advice = []
    tightest = min(steps, key=lambda step: step.headroom)
    if tightest.headroom < 0:
        helps = ["a larger slice"]
        tensor_sizes = sharding.tensor_ways(model, mesh.size)
        ways = [way for way in tensor_sizes if way > mesh.shape["tensor"]]
        if ways:
            helps.append(f"jax.mesh_tensor = {ways[0]}")
        if tightest.name == "update" and mesh.shape["tensor"] > 1 and not config.jax.sequence_parallel:
            helps.append("jax.sequence_parallel = True")
        decoders = sharding.engine_mesh(mesh, config.jax.rollout_mesh_tensor).shape["tensor"]
        shares = [way for way in tensor_sizes if way > decoders]
        if shares:
            helps.append(f"jax.rollout_mesh_tensor = {shares[-1]} (a chip holds that part of the engine's weights)")
        if tightest.name == "update" and config.learner.remat != "offload":
            helps.append(f"learner.remat = {LESS_KEPT[config.learner.remat]!r}")
        if tightest.name != "scoring" and config.grpo.beta > 0 and config.jax.reference_memory == "device":
            helps.append("jax.reference_memory = 'host'")
        if config.jax.moments_dtype == "float32":
            helps.append("jax.moments_dtype = 'bfloat16'")
        if tightest.name in ROLLOUT:
            helps.append("a smaller rollout.prefill_batch")
        if tightest.name in ("update", "scoring"):
            helps.append("a smaller learner.logprob_chunk, fewer learner.micro_batch_rows")
        advice.append(
            f"{tightest.name} lacks {-tightest.headroom / GIB:.1f} GiB a chip; what helps: {'; '.join(helps)}"
        )
    if useful < 0.5:
        advice.append(
            f"{100 * (1 - useful):.0f} % of the update's rows are empty: more grpo.questions_per_step, or more of the "
            "devices along jax.mesh_tensor"
        )
    return advice


def forward_flops(model: DecoderConfig, layout: GroupLayout) -> float:
    """Useful FLOPs of one group's forward pass: products with weights, attention where the mask is true, and the head at the
    completion tokens."""
    layer = model.head_dim * 2 * (model.num_attention_heads + model.num_key_value_heads) * model.hidden_size
    layer += 3 * model.hidden_size * model.intermediate_size
    scored = layout.group * layout.completion
    products = (
        2.0 * layout.length * layer * model.num_hidden_layers + 2.0 * scored * model.hidden_size * model.vocab_size
    )
    return products + attention_flops(model, layout)


def attention_flops(model: DecoderConfig, layout: GroupLayout) -> float:
    """Useful FLOPs of one group's attention in the forward pass: queries times keys, and weights times values."""
    return 4.0 * visible_pairs(layout) * model.num_attention_heads * model.head_dim * model.num_hidden_layers


def visible_pairs(layout: GroupLayout) -> float:
    """The number of (query, visible key) pairs in one row."""
    prompt, completion = layout.prompt, layout.completion
    return prompt * (prompt + 1) / 2 + layout.group * completion * (prompt + (completion + 1) / 2)


def _kernel_flops(model: DecoderConfig, mesh: jax.sharding.Mesh, layout: GroupLayout, rows: int) -> dict[str, float]:
    """FLOPs of one call of each splash attention kernel on one device.

    The unit is one product of queries with keys. The forward kernel computes two of that size, the kernel for the queries'
    gradient three, the kernel for the keys' and values' gradients four."""
    heads = model.num_attention_heads / mesh.shape["tensor"]
    product = 2.0 * visible_pairs(layout) * model.head_dim * heads * rows / sharding.batch_ways(mesh)
    return {"splash_mha_fwd": 2 * product, "splash_mha_dq": 3 * product, "splash_mha_dkv": 4 * product}
