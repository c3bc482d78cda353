"""Speed of making questions from a generated registry, against a row-by-row pandas implementation of the same rules.

python -m benchmarks.data --patients=10000 --features=500

Prints one JSON line: questions per second of both (on one core), and time and memory of statistics and mutual information.
"""

from __future__ import annotations

import json
import platform
import resource
import time

import numpy as np
import pandas as pd
from absl import app, flags

from shared.questions.record import MASK
from shared.randomness import generator
from shared.registry.build import RawColumn, RawRegistry, build
from shared.registry.features import value_text
from shared.registry.leakage import hidden_with, mutual_information
from shared.registry.statistics import value_statistics
from shared.registry.store import Registry
from shared.tasks import balanced
from shared.tasks.denoising import Denoising, questions

FLAGS = flags.FLAGS
flags.DEFINE_integer("patients", 10_000, "Number of patients in the registry.")
flags.DEFINE_integer("features", 500, "Number of features; half are numbers, half are categories.")
flags.DEFINE_integer("questions", 2_000, "Number of questions to make.")
flags.DEFINE_integer("plain_questions", 100, "Number of questions to make with the pandas implementation.")

TRAINING = 30_000  # questions of the paper's training set; their time includes the preparation of the task


def generated(patients: int, features: int) -> RawRegistry:
    """A registry in which each ten features depend on each other, and a tenth of the cells is missing."""
    columns = []
    for number in range(features):
        rng = generator("benchmark", number)
        group = generator("benchmark group", number // 10).standard_normal(patients)
        values = group + rng.standard_normal(patients) * (0.1 + number % 10)
        missing = rng.random(patients) < 0.1
        name, section = f"feature_{number}", f"[Section {number // 25}]"
        if number % 2:
            levels = np.digitize(values, np.quantile(values, np.linspace(0, 1, 3 + number % 5)[1:-1]))
            texts = [None if gone else f"level {level}" for gone, level in zip(missing, levels, strict=True)]
            columns.append(RawColumn(name, name, section, "", texts))
        else:
            columns.append(RawColumn(name, name, section, "", np.where(missing, np.nan, (100 + 20 * values).round(1))))
    return RawRegistry(cohort="benchmark", ids=[f"P{i}" for i in range(patients)], columns=columns)


def plain_questions(registry: Registry, count: int, seed: int) -> int:
    """Make `count` questions by the rules of `shared.tasks.denoising`, cell by cell from pandas rows; returns their number."""
    laws = balanced.option_laws(registry, "train", num_choices=5, difficulty=2.0)
    names = {feature.name: feature for feature in registry.features}
    made, draw = 0, 0
    while made < count:
        for patient, row in registry.train.iterrows():
            present = {name: row[name] for name in registry.train.columns if pd.notna(row[name])}
            victims = [n for n in present if n in laws and laws[n].can_ask(value_text(names[n], present[n]))]
            victim = victims[int(generator(seed, str(patient), draw).integers(len(victims)))]
            rng = generator(seed, str(patient), victim, draw)
            label = value_text(names[victim], present[victim])
            options = laws[victim].draw(label, rng)
            if not options or rng.random() >= laws[victim].accept(label, options):
                continue
            hidden = hidden_with(
                victim, 0.5, leakage=registry.leakage, features=registry.features, statistics=registry.statistics
            )
            text, section = "", None
            for name, value in present.items():
                if name in hidden:
                    continue
                if names[name].section != section:
                    section = names[name].section
                    text += f"\n{section}\n"
                text += f"{names[name].display_name}: {MASK if name == victim else value_text(names[name], value)}\n"
            made += 1
            if made == count:
                break
        draw += 1
    return made


def main(_: list[str]) -> None:
    """Measure, and print the JSON line."""
    started = time.perf_counter()
    registry = build(generated(FLAGS.patients, FLAGS.features), valid_patients=FLAGS.patients // 10, seed=1)
    built = time.perf_counter() - started
    start = time.process_time()
    statistics = value_statistics(registry.train, registry.features)
    statistics_seconds = time.process_time() - start
    start = time.process_time()
    mutual_information(registry.train, registry.features, statistics)
    information_seconds = time.process_time() - start
    start = time.process_time()
    Denoising(registry, "train", seed=1)
    ready_seconds = time.process_time() - start
    start = time.process_time()
    made = len(questions(registry, "train", FLAGS.questions, seed=1))
    ours = made / (time.process_time() - start - ready_seconds)
    start = time.process_time()
    plain = plain_questions(registry, FLAGS.plain_questions, 1) / (time.process_time() - start)
    print(
        json.dumps(
            {
                "patients": FLAGS.patients,
                "features": FLAGS.features,
                "build_wall_seconds": round(built, 1),
                "statistics_cpu_seconds": round(statistics_seconds, 1),
                "mutual_information_cpu_seconds": round(information_seconds, 1),
                "questions_ready_cpu_seconds": round(ready_seconds, 1),
                "questions_per_second": round(ours, 1),
                "plain_questions_per_second": round(plain, 2),
                "ratio": round(ours / plain, 1),
                "ratio_of_a_training_set": round(TRAINING / (ready_seconds + TRAINING / ours) / plain, 1),
                "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
                "machine": platform.processor() or platform.machine(),
            }
        )
    )


if __name__ == "__main__":
    app.run(main)
