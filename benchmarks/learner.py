"""Tokens a second and memory of an update, by rows in a micro-batch and by what is kept for the backward pass.

python -m benchmarks.learner [--seconds=15] [--rows=64] [--prompt=96] [--completion=12] [--group_size=4]
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from absl import flags

from benchmarks import measure
from launch import app
from shared.grpo import GroupLayout
from shared.initial import random_weights

FLAGS = flags.FLAGS
MICRO_BATCHES = (4, 16, 64)
REMATS = ("none", "layer")


def main() -> None:
    """Print the table; ratios are to its first line."""
    layout = GroupLayout(prompt=FLAGS.prompt, group=FLAGS.group_size, completion=FLAGS.completion)
    model = measure.QUICKSTART
    batch = measure.filled_batch(FLAGS.rows, layout, model.vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        path = measure.write_model(Path(folder) / "model", model)
        learners = {
            f"{rows} rows, remat {remat}": measure.learner(path, layout, micro_batch_rows=rows, remat=remat)
            for remat in REMATS
            for rows in MICRO_BATCHES
            if rows <= FLAGS.rows
        }
    lowered = {name: each.lower_update(layout, FLAGS.rows) for name, each in learners.items()}
    memory = {name: each.compile().memory_analysis().temp_size_in_bytes for name, each in lowered.items()}
    seconds = measure.alternate({name: functools.partial(each.update, batch) for name, each in learners.items()})
    first = next(iter(learners))
    lines = [
        [
            name,
            f"{FLAGS.rows * layout.length / seconds[name]:,.0f}",
            f"{seconds[first] / seconds[name]:.2f}",
            f"{memory[name] / 2**20:.0f}",
            f"{memory[name] / memory[first]:.2f}",
        ]
        for name in learners
    ]
    size = sum(tensor.size for tensor in random_weights(model, model.vocab_size, 0).values())
    print(f"{FLAGS.rows} rows of {layout.length} tokens, {size:,} parameters")
    measure.print_table(["micro-batch", "tokens/s", "ratio", "peak temporary MiB", "ratio"], lines)


if __name__ == "__main__":
    measure.define_flags(seconds=15)
    flags.DEFINE_integer("rows", 64, "Groups in a batch.", lower_bound=1)
    flags.DEFINE_integer("prompt", 96, "Tokens of each prompt.", lower_bound=1)
    flags.DEFINE_integer("completion", 12, "Tokens of each completion.", lower_bound=1)
    flags.DEFINE_integer("group_size", 4, "Completions of each prompt.", lower_bound=2)
    app.run(main)
