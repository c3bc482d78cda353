"""What was prepared, on one screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shared.preparation.prepare import LEAKS, SPLITS
from shared.preparation.provenance import PROVENANCE
from shared.questions import shortcuts
from shared.questions.record import Question, read_questions
from shared.registry import store
from shared.registry.store import TIMELINE, Registry
from shared.storage import files
from shared.tasks import denoising

MANY_TIMES = 10  # a value that is asked for more often than this is worth a line


def summary(out: Path) -> str:
    """What `prepare` wrote, on one screen; figures only, nothing about any patient."""
    registry = store.load(out / "registry")
    kinds = [feature.kind for feature in registry.features if feature.visible]
    lines = [
        f"cohort           {registry.cohort}",
        f"patients         {len(registry.train):,} train, {len(registry.valid):,} valid",
        *_column_lines(registry, kinds, out),
        *(f"note             {note}" for note in registry.provenance.get("notes", [])),
        *_causal_lines(registry),
        *_reading_lines(registry),
    ]
    audits = files.read_json(out / "questions" / PROVENANCE)["shortcuts"]
    for split in SPLITS:
        path = out / "questions" / f"{split}.parquet"
        figures = [*_figures(read_questions(path), split), *shortcuts.lines(audits[split])]
        lines += ["", f"{split}: {path}", *(f"  {line}" for line in figures)]
    return "\n".join(lines)


def _column_lines(registry: Registry, kinds: Sequence[str], out: Path) -> list[str]:
    """What a record is made of: the registry's columns, or its timeline."""
    if registry.timeline is not None:
        return [f"timeline         {len(registry.timeline):,} rows: {out / 'registry' / TIMELINE}"]
    return [
        f"features         {len(kinds)}: " + ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds))),
        f"can be asked for {len(registry.statistics)}",
        f"hidden with what {out / 'registry' / LEAKS}",
    ]


def _reading_lines(registry: Registry) -> list[str]:
    """The stages of a long reading, with the rows that each left and its seconds."""
    stages = registry.provenance.get("reading", {}).get("stages", {})
    rows = [f"{name:<16} {stage['rows']:>12,} {stage['seconds']:>9.2f}" for name, stage in stages.items()]
    return ["", f"{'stage':<16} {'rows':>12} {'seconds':>9}", *rows] if rows else []


def _causal_lines(registry: Registry) -> list[str]:
    """With `causal`: what drops out of a record, by the section of the masked value."""
    if not registry.provenance.get("prepared", {}).get("options", {}).get("causal"):
        return []
    ranks = denoising.section_ranks(registry.features)
    shown = [feature for feature in registry.features if feature.visible]
    headers = {ranks[feature.name]: denoising.shown_section(feature.section) for feature in shown}
    return [
        f"causal           asked in {headers[rank] or 'no section'}: "
        f"{sum(other > rank for other in ranks.values())} of {len(shown)} features stand later and are not shown"
        for rank in sorted(headers)
    ]


def _figures(questions: list[Question], split: str) -> list[str]:
    if not questions:
        return ["no questions"]
    count = len(questions)
    options = [len(q.choices) for q in questions]
    sizes = ", ".join(f"{options.count(size):,} with {size}" for size in sorted(set(options)))
    lines = [
        f"questions      {count:,} about {len({q.feature for q in questions})} features",
        f"options        {sizes}",
        f"context        {sum(len(q.context) for q in questions) / count:,.0f} characters on average",
        f"right by       chance {sum(q.chance for q in questions) / count:.3f}, "
        f"always the most frequent value {sum(q.majority == q.answer for q in questions) / count:.3f}",
    ]
    values = len({(q.patient, q.feature) for q in questions})
    if count > MANY_TIMES * values:
        lines.append(
            f"asked often    each of {values:,} values {count / values:.0f} times on average; "
            f"--{split}_questions={MANY_TIMES * values} asks each about {MANY_TIMES} times"
        )
    known = [q.bayes_accuracy for q in questions if q.bayes_accuracy is not None]
    if known:
        lines.append(f"best possible  {sum(known) / len(known):.3f}")
    return lines
