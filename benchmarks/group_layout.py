"""The speed of an update that computes a group's prompt once, against an update with a row for each completion.

python -m benchmarks.group_layout [--seconds=10] [--questions=4]
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from absl import flags

from benchmarks import measure
from launch import app
from shared import grpo
from shared.config import ModelConfig
from shared.grpo import GroupLayout

FLAGS = flags.FLAGS
# The second shape has the paper's lengths of prompt and completion and its group size. Its small model spends the same share of
# its time in attention as the paper's model.
SHAPES: tuple[tuple[str, GroupLayout, ModelConfig, int], ...] = (
    ("quickstart", GroupLayout(prompt=240, group=8, completion=24), measure.QUICKSTART, 4),
    (
        "long prompt",
        GroupLayout(prompt=1_152, group=7, completion=256),
        dataclasses.replace(
            measure.QUICKSTART,
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=1_024,
        ),
        1,
    ),
)


def work_ratio(layout: GroupLayout) -> float:
    """The tokens in one row of a whole group, divided by the tokens in separate rows for its completions."""
    return layout.length / (layout.group * (layout.prompt + layout.completion))


def compare(name: str, layout: GroupLayout, model: ModelConfig, questions: int, folder: Path) -> list[str]:
    """One line of the table. Both learners have the same completions in each micro-batch."""
    path = measure.write_model(folder / name.replace(" ", "_"), model)
    batch = measure.filled_batch(questions, layout, model.vocab_size)
    separate = grpo.separate_rows(batch)
    by_group = measure.learner(path, layout, micro_batch_rows=questions)
    by_row = measure.learner(path, layout, micro_batch_rows=questions * layout.group)
    difference = abs(by_group.update(batch)["grad_norm"] / by_row.update(separate)["grad_norm"] - 1)
    seconds = measure.alternate({"group": lambda: by_group.update(batch), "row": lambda: by_row.update(separate)})
    return [
        f"{name} (P {layout.prompt}, C {layout.completion}, G {layout.group})",
        f"{1e3 * seconds['row']:.0f}",
        f"{1e3 * seconds['group']:.0f}",
        f"{seconds['group'] / seconds['row']:.3f}",
        f"{work_ratio(layout):.3f}",
        f"{difference:.1e}",
    ]


def main() -> None:
    """Print the table."""
    heading = ["", "separate rows, ms", "group rows, ms", "ratio", "ratio of tokens", "difference of gradient norm"]
    with tempfile.TemporaryDirectory() as folder:
        lines = [
            compare(name, layout, model, FLAGS.questions * questions // 4 or 1, Path(folder))
            for name, layout, model, questions in SHAPES
        ]
    measure.print_table(heading, lines)


if __name__ == "__main__":
    measure.define_flags(seconds=10)
    flags.DEFINE_integer(
        "questions", 4, "Groups in a batch of the first shape; the second shape has a quarter of them.", lower_bound=1
    )
    app.run(main)
