"""docs/configuration.md, made from the config's dataclasses: `python -m shared.report.config_page` writes it."""

from __future__ import annotations

import re
from pathlib import Path

from shared.config import ONE_BACKEND, PRESETS, RunConfig
from shared.grpo.losses import CLIP_RULES, LOSSES, NORMALISERS
from shared.options.fields import Field, Section, sections
from shared.storage import files

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
INTRODUCTION = """# Configuration

Every field of a run's config, made by `python -m shared.report.config_page` from the dataclasses that `shared/config.py` puts
together; edit those. A config file is Python with `get_config()`, which returns these fields in
their sections; what it leaves out has the default.
Each can be set on the command line of a program with `--config`, as `--config.grpo.beta=0.0`, or
`--noconfig.learner.group_layout` for one that is on or off; `creason help train` shows the same list. Source: where the
default is from, in `docs/spec`; a dash: this project's choice.
"""
LOSSES_SAID = """The rows of `shared/grpo/losses.py`; the formulas of the terms: `shared/grpo/objective.py`. A field that only
other losses read is refused, but for `grpo.epsilon_low` and `grpo.epsilon_high`, which presets set."""
CLIPPED_SAID = "The tokens counted as clipped, with r the ratio to the old policy and A the advantage:"


def page() -> str:
    """The page, in Markdown."""
    parts = [INTRODUCTION, *map(_section, sections(RunConfig)), _losses(), _presets()]
    return "\n".join(parts)


def _section(section: Section) -> str:
    title = f"`{section.name}`" if section.name else "The run itself"
    rows = ["| field | type | default | meaning | source |", "| --- | --- | --- | --- | --- |"]
    rows += [_row(section, field) for field in section.fields]
    return "\n".join([f"## {title}", "", _cited(section.help), "", *rows, ""])


def _row(section: Section, field: Field) -> str:
    default = "needed" if field.needed else f"`{field.default!r}`"
    only = f" Only the {section.name} backend reads it." if section.name in ONE_BACKEND else ""
    cells = (f"`{field.name}`", f"`{field.kind}`", default, f"{field.help}{only}", _link(field.source) or "-")
    # A bar would end the cell, in a code span too.
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _losses() -> str:
    rows = ["| `grpo.loss` | policy term | divided by | counted as clipped | reads |", "| --- " * 5 + "|"]
    for name, loss in LOSSES.items():
        level = [f"`grpo.ratio_level` = `{loss.ratio_level!r}`"] if loss.ratio_level else []
        reads = ", ".join(level + [f"`grpo.{field}`" for field in loss.reads]) or "-"
        cells = (f"`{name}`", f"`{loss.term}`", NORMALISERS[loss.normaliser], loss.clip, reads)
        rows.append(f"| {' | '.join(cells)} |")
    rules = "\n".join(f"- {name}: {tokens}" for name, tokens in CLIP_RULES.items())
    return "\n".join(["## Losses", "", LOSSES_SAID, "", *rows, "", CLIPPED_SAID, "", rules, ""])


def _presets() -> str:
    names = list(PRESETS)
    fields = [name for name in dict.fromkeys(key for preset in PRESETS.values() for key in preset) if name != "preset"]
    defaults = {field.name: field.default for section in sections(RunConfig) for field in section.fields}
    rows = [f"| field | {' | '.join(names)} |", "| --- " * (1 + len(names)) + "|"]
    for field in fields:
        values = [f"`{PRESETS[name].get(field, defaults[f'grpo.{field}'])!r}`" for name in names]
        rows.append(f"| `grpo.{field}` | {' | '.join(values)} |")
    introduction = (
        "What `grpo_preset(NAME)` gives a config file's `grpo` section to start from; everything else is as above."
    )
    return "\n".join(["## Presets", "", introduction, "", *rows, ""])


def _cited(text: str) -> str:
    return re.sub(r"\(spec: ([^()]*)\)", lambda citation: f"({_link(citation[1])})", text)


def _link(source: str) -> str:
    """A citation such as "grpo, section 1" as a link to its page."""
    document, _, _ = source.partition(",")
    return f"[{source}](spec/{document}.md)" if source else ""


def main() -> None:
    """Write the page."""
    with files.replacing(PAGE) as temporary:
        temporary.write_text(page(), encoding="utf-8")
    PAGE.chmod(0o644)  # `replacing` is for patients' data; this is a page for everybody
    print(PAGE)


if __name__ == "__main__":
    main()
