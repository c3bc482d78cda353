"""Tokens per second, MFU and memory of an update, by model size, rows in a micro-batch and `learner.remat`.

    python -m benchmarks.learner [--models=quickstart] [--rows=64] [--prompt=96] [--completion=12] [--group_size=4]
    python -m benchmarks.learner --models=1B --dtype=bfloat16 --rows=4 --micro_batches=1 --prompt=1024 --completion=128 \\
        --group_size=8 --remats=layer,dots                                                            (an 80 GB GPU)

MFU counts the same FLOPs as `launch.plan`: 6 for each weight and token of a matrix product, attention where the mask is true, and
no recomputation. It divides by the FLOPs per second of a large matrix product in the same dtype, measured in the same run on the
same devices.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import jax
from absl import flags

from benchmarks import measure
from creason_jax.plan.plan import forward_flops
from launch import app
from shared.errors import InputError
from shared.grpo import GroupLayout

FLAGS = flags.FLAGS
REMATS = ["none", "dots", "layer", "offload"]


def compare(name: str, folder: Path, product_rate: float) -> list[list[str]]:
    """The lines of the table for one model size. Ratios are to its first line."""
    layout = GroupLayout(prompt=FLAGS.prompt, group=FLAGS.group_size, completion=FLAGS.completion)
    path = measure.write_model(folder / name, measure.MODELS[name])
    batch = measure.filled_batch(FLAGS.rows, layout, measure.MODELS[name].vocab_size)
    options = {"compute_dtype": FLAGS.dtype, "moments_dtype": FLAGS.moments_dtype}
    learners = {
        f"{rows} rows, remat {remat}": measure.learner(path, layout, micro_batch_rows=rows, remat=remat, **options)
        for remat in FLAGS.remats
        for rows in map(int, FLAGS.micro_batches)
        if rows <= FLAGS.rows
    }
    lowered = {case: learner.lower_update(layout, FLAGS.rows) for case, learner in learners.items()}
    memory = {
        case: lowered_update.compile().memory_analysis().temp_size_in_bytes for case, lowered_update in lowered.items()
    }
    seconds = measure.alternate({case: functools.partial(learner.update, batch) for case, learner in learners.items()})
    first = next(iter(learners))
    flops = 3 * forward_flops(learners[first].model, layout) * FLAGS.rows
    size = f"{learners[first].model.num_params / 1e6:,.1f} M"
    return [
        [
            f"{name} ({size}), {case}",
            f"{FLAGS.rows * layout.length / seconds[case]:,.0f}",
            f"{flops / seconds[case] / product_rate:.0%}",
            f"{seconds[first] / seconds[case]:.2f}",
            f"{memory[case] / 2**20:.0f}",
            f"{memory[case] / memory[first]:.2f}",
        ]
        for case in learners
    ]


def main() -> None:
    """Print the table. Raises InputError for an unknown size or remat, and for a wrong number of rows."""
    for flag, names in (("models", list(measure.MODELS)), ("remats", REMATS)):
        for name in FLAGS[flag].value:
            if name not in names:
                raise InputError(f"--{flag}: {name!r} is none of {', '.join(names)}")
    if not all(rows.isdigit() and int(rows) for rows in FLAGS.micro_batches):
        raise InputError(f"--micro_batches={','.join(FLAGS.micro_batches)} must be numbers from 1")
    rate = measure.product_rate(FLAGS.dtype) * jax.device_count()
    with tempfile.TemporaryDirectory() as folder:
        lines = [line for name in FLAGS.models for line in compare(name, Path(folder), rate)]
    length = FLAGS.prompt + FLAGS.group_size * FLAGS.completion
    print(
        f"{FLAGS.rows} rows of {length} tokens, {FLAGS.dtype}; a matrix product: {rate / 1e12:.2f} TFLOP/s on "
        f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    )
    measure.print_table(["micro-batch", "tokens/s", "MFU", "ratio", "peak temporary MiB", "ratio"], lines)


if __name__ == "__main__":
    measure.define_flags(seconds=15)
    flags.DEFINE_list("models", ["quickstart"], f"Model sizes: {', '.join(measure.MODELS)}.")
    flags.DEFINE_integer("rows", 64, "Groups in a batch.", lower_bound=1)
    flags.DEFINE_integer("prompt", 96, "Tokens of each prompt.", lower_bound=1)
    flags.DEFINE_integer("completion", 12, "Tokens of each completion.", lower_bound=1)
    flags.DEFINE_integer("group_size", 4, "Completions of each prompt.", lower_bound=2)
    flags.DEFINE_list("micro_batches", ["4", "16", "64"], "Rows in a micro-batch.")
    flags.DEFINE_list("remats", ["none", "layer"], f"Values of `learner.remat`: {', '.join(REMATS)}.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "`learner.compute_dtype`.")
    flags.DEFINE_enum("moments_dtype", "float32", ["float32", "bfloat16"], "`jax.moments_dtype`.")
    app.run(main)
