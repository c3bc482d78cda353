"""Plan a run on a TPU slice without having one: whether it fits, and how fast it could be.

    creason plan --config=configs/phi4_sepsis.py --topology=v5p:4x4x4 --json=plan.json
    creason plan --config=configs/phi4_sepsis.py --topology=v6e --search

It needs libtpu, but no TPU. The exit code is 0 if the run fits, 1 if it does not fit, and 2 for a wrong flag or config.
docs/tpu_plan.md explains the table.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from absl import flags

from launch import app, config_file
from shared.config import RunConfig, check_backend, validate
from shared.errors import InputError
from shared.runs import forecast
from shared.runs.memory import GIB
from shared.storage import files

FLAGS = flags.FLAGS
HEADER = ("step", "calls", "fits", "arguments", "outputs", "temporaries", "code", "beside", "headroom", "TFLOP", "HBM GB",
          "ICI GB", "ms", "bound")  # fmt: skip


def define_flags() -> None:
    """Define this program's flags."""
    config_file.define("config")
    flags.DEFINE_string(
        "topology", None, "The slice, such as v5p:4x4x4; with --search a generation such as v6e is enough."
    )
    flags.DEFINE_string(
        "model_config", "", "Hugging Face config.json with the model's shape, if model.path is not on this machine."
    )
    flags.DEFINE_string("json", "", "Also write the plan to this file.")
    flags.DEFINE_bool("search", False, "Search for the mesh, and for the smallest slice, on which the run fits.")
    flags.DEFINE_list(
        "steps", [], "Compile only these programs, from update, scoring, prefill, decode, publish; default: all."
    )


def main() -> None:
    """Compile the programs, print the plan, write it. Raises InputError for a bad flag, config, shape or slice."""
    for name in ("config", "topology"):
        if getattr(FLAGS, name) is None:
            raise InputError(f"--{name} is needed, e.g. --config=configs/phi4_sepsis.py --topology=v5p:4x4x4")
    os.environ["JAX_PLATFORMS"] = "cpu"  # a plan uses no device, so it must not occupy this machine's accelerator
    from creason_jax.plan import plan as planning
    from creason_jax.plan import search

    replaced = app.check_result("json", Path(FLAGS.json), files.holds("fits")) if FLAGS.json else ""
    config = _config()
    unknown = [name for name in FLAGS.steps if name not in planning.STEPS]
    if unknown:
        raise InputError(f"--steps={','.join(unknown)}: there are {', '.join(planning.STEPS)}")
    model = planning.model_shape(config, FLAGS.model_config)
    best_plan: planning.Plan | None
    if FLAGS.search:
        best_plan = search.search(config, model, FLAGS.topology, say=_say)
    else:
        steps = tuple(name for name in planning.STEPS if not FLAGS.steps or name in FLAGS.steps)
        best_plan = planning.plan(config, model, FLAGS.topology, steps=steps, say=_say)
    if FLAGS.json:
        with files.replacing(Path(FLAGS.json)) as temporary:
            files.write_json(temporary, {"fits": False} if best_plan is None else best_plan.to_json())
        print(f"plan     {FLAGS.json}{replaced}", file=sys.stderr)
    print("nothing that was tried fits" if best_plan is None else table(best_plan, config))
    if best_plan is None or not best_plan.fits:
        sys.exit(app.EXIT_STOPPED)


def table(plan: object, config: RunConfig) -> str:
    """The plan as a text for the terminal. `plan` is a `creason_jax.plan.plan.Plan`."""
    from creason_jax.plan.plan import Plan

    assert isinstance(plan, Plan)
    rows: list[tuple[str, ...]] = [HEADER]
    for step in plan.steps:
        sizes = (step.arguments, step.outputs, step.temporaries, step.code, step.beside, step.headroom)
        sent = sum(moved for _, moved in step.collectives.values())
        rows.append((step.name, str(step.calls), "yes" if step.fits else "no", *(f"{size / GIB:.2f}" for size in sizes),
                     f"{step.flops / 1e12:.2f}", f"{step.bytes / 1e9:.1f}", f"{sent / 1e9:.2f}",
                     f"{1e3 * step.seconds:.1f}", step.bound))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows]
    kinds = [
        f"{step.name}: "
        + ", ".join(f"{kind} x {count} {moved / 1e9:.2f} GB" for kind, (count, moved) in step.collectives.items())
        for step in plan.steps
        if step.collectives
    ]
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    rows_line = (
        f"rows: {plan.micro_batches} micro-batch(es) of {plan.micro_batch_rows}, "
        f"{100 * plan.useful_rows:.0f} % of them hold a question; {plan.slots} group(s) decode at once"
    )
    time_line = (
        f"at the roofline: {plan.seconds_per_step:.1f} s a step, {plan.tokens_per_second:,.0f} tokens/s, update at "
        f"{100 * plan.mfu:.0f} % MFU, {config.steps:,} steps in {plan.hours:,.0f} h "
        f"({plan.hours * plan.chips:,.0f} chip hours)"
    )
    verdict = (
        f"fits: yes, {plan.headroom / GIB:.1f} GiB a chip to spare"
        if plan.fits
        else f"fits: no, {-plan.headroom / GIB:.1f} GiB a chip too much"
    )
    heading = f"{plan.topology}: {plan.chips} chips, {mesh}; memory in GiB a chip"
    # A program that did not compile has no time.
    times = [time_line] if plan.fits else []
    memory_line = forecast.memory_line(plan.memory)
    return "\n".join([heading, *lines, *kinds, rows_line, memory_line, *times, *plan.advice, verdict])


def _config() -> RunConfig:
    overrides = config_file.overrides("config")
    check_backend(overrides, "jax")
    values = FLAGS.config
    # The registry changes nothing in a plan, so its folder may be missing in the config.
    if values.data.get("cohort", "synthetic") != "synthetic" and not values.data.get("source"):
        values.data.source = "none"
    return validate(values, overrides)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    define_flags()
    app.run(main)
