"""Chooses the style of prompts once for a run: how an answer begins, whether the model thinks, and the date in its template.

The choice depends on the chat template of the model and on the config, never on the name of a folder. A run stores it in
`prompts.json`, and writes the same file into each model directory that it exports. So prompts for that model are later rendered
exactly as in the run.
"""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from shared.errors import InputError
from shared.options.checks import is_day
from shared.policy.tokenizer import load_tokenizer
from shared.questions.boxes import THINK, THOUGHT
from shared.questions.prompts import PREFILL, SWITCHES, SYSTEM_PROMPT, PromptStyle, chat_text, render
from shared.questions.turns import ANSWERED
from shared.storage import buckets, files

if TYPE_CHECKING:
    from shared.backend import Backend, Learner
    from shared.config import RunConfig
    from shared.policy.section import ModelConfig

PROMPTS_FILE = "prompts.json"
EVALUATION_FILE = "evaluation_prompts.json"  # in a folder of answers; another name, since that folder may be a run's
AUTO = "auto"
# Texts of a trial dialogue, which templates do not change.
ASKED, REASONED, AGAIN = "First question.", "Some reasoning.", "Second question."
MOMENTS = ("2001-01-01T00:00:00", "2002-03-05T13:45:59")  # two moments that differ in every date and time format
DAY_BITS = 22  # the ordinal number of any day has at most so many bits


def choose(
    model: ModelConfig, folder: Path, tokenizer: PreTrainedTokenizerFast, *, earlier: PromptStyle | None = None
) -> PromptStyle:
    """Choose the style for the model in `folder`.

    A setting of the config comes first, then the `prompts.json` of the folder, then what the chat template suggests. The date may
    also come from `earlier`, the style of an earlier start of the same work. Raises InputError if the template cannot do what
    the config asks for.
    """
    stored = read(folder)
    thinking = model.thinking if model.thinking != AUTO or stored is None else stored.thinking
    switch = has_switch(tokenizer)
    if not switch and thinking == ("off" if reasons(tokenizer) else "on"):
        raise InputError(
            f"model.thinking = {thinking!r}: the chat template of {folder} has no switch for it ({' or '.join(SWITCHES)}); "
            "leave it 'auto'"
        )
    prefill = model.prefill
    if prefill == AUTO:
        model_begins = (
            thinking == "on" or (thinking == AUTO and opens_reasoning(tokenizer)) or (not switch and reasons(tokenizer))
        )
        prefill = (
            stored.prefill if stored is not None and thinking == stored.thinking else "" if model_begins else PREFILL
        )
    if prefill and thinking == "on":
        raise InputError(
            f"model.prefill = {prefill!r}: a model that thinks begins its answer itself; set model.prefill or "
            "model.thinking to 'auto'"
        )
    date = ""
    if shows_date(tokenizer, PromptStyle(prefill=prefill, thinking=thinking)):
        earlier_dates = [style.date for style in (stored, earlier) if style is not None and style.date]
        date = model.template_date or next(iter(earlier_dates), today())
    return PromptStyle(prefill=prefill, thinking=thinking, date=date)


def of_run(config: RunConfig, backend: Backend, workdir: Path, policy: Path) -> PromptStyle:
    """The style of a run. When a run begins, process 0 chooses and writes it; later it is read. Every process must call this.

    If checkpoints have a separate folder, the file is written there too. Then a run can be resumed from that folder alone, and
    processes with different work directories can read it there. Raises InputError if the two files differ, or if a process
    cannot see the file.
    """
    places: list[Path | str] = [workdir, *([config.checkpoint.folder] if config.checkpoint.folder else [])]
    if backend.process == 0:
        stored = {place: style for place in places if (style := read(place)) is not None}
        if len(set(stored.values())) > 1:
            raise InputError(
                f"{PROMPTS_FILE} in {' and in '.join(map(str, stored))} say different things; remove the one that "
                "belongs to another run"
            )
        style = next(iter(stored.values()), None) or choose(config.model, policy, load_tokenizer(policy))
        for place in reversed(places):  # the work directory comes last, since writing to a bucket may fail
            if place not in stored:
                write(place, style)
    backend.barrier()
    shared_style = read(places[-1])
    if shared_style is None:
        raise InputError(
            f"{places[-1]}: process {backend.process} does not see the {PROMPTS_FILE} that process 0 wrote there"
        )
    return shared_style


def recorded(config: RunConfig, workdir: Path) -> PromptStyle | None:
    """The style that a run has stored; None for a run of an earlier version, or one that renders no prompts."""
    return read(workdir) or (read(config.checkpoint.folder) if config.checkpoint.folder else None)


def export(learner: Learner, folder: Path, style: PromptStyle | None, *, first: bool) -> None:
    """Write the policy and its style as a model directory, completely or not at all.

    Every process must call this; only the one with `first` writes.
    """
    if not first:
        learner.export(folder)
        return
    with files.replacing(folder) as temporary:
        learner.export(temporary)
        (temporary / PROMPTS_FILE).unlink(missing_ok=True)  # a copy of the file of the model before training
        if style is not None:
            write(temporary, style)


def read(place: Path | str, name: str = PROMPTS_FILE) -> PromptStyle | None:
    """Read the style in the file `name` of a folder; None if the file does not exist. Raises InputError if it is invalid."""
    path = buckets.join(place, name)
    if not buckets.is_file(path):
        return None
    values = buckets.read_json(path)
    field_names = {field.name for field in dataclasses.fields(PromptStyle)}
    if (
        isinstance(values, dict)
        and values.keys() <= field_names
        and all(isinstance(value, str) for value in values.values())
    ):
        style = PromptStyle(**values)
        if style.thinking in (AUTO, "on", "off") and (not style.date or is_day(style.date)):
            return style
    raise InputError(f"{path}: does not say how prompts are rendered ({', '.join(sorted(field_names))}); remove it")


def write(place: Path | str, style: PromptStyle, name: str = PROMPTS_FILE) -> None:
    """Write a style to the file `name` in a folder. Raises InputError if it cannot be written."""
    buckets.write_json(buckets.join(place, name), dataclasses.asdict(style))


def today() -> str:
    """Today's date on this machine, as YYYY-MM-DD."""
    return datetime.date.today().isoformat()


def has_switch(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the template has a switch that turns the model's thinking on and off."""
    off, on = (_asked(tokenizer, thinking=state) for state in ("off", "on"))
    return off != on


def opens_reasoning(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the template's generation prompt ends with the beginning of a reasoning."""
    return _asked(tokenizer).rstrip().endswith(THINK)


def reasons(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the template belongs to a reasoning model.

    It does if it begins or mentions a reasoning, or leaves out the reasoning of earlier turns.
    """
    if THINK in _asked(tokenizer):
        return True
    turns = [
        {"role": "user", "content": ASKED},
        {"role": "assistant", "content": f"{THINK}\n{REASONED}\n{THOUGHT}\n\n{ANSWERED}"},
        {"role": "user", "content": AGAIN},
    ]
    try:
        text = render(tokenizer, turns, answer=True)
    except TemplateError:  # the template allows a single turn only
        return False
    return ANSWERED in text and REASONED not in text


def shows_date(tokenizer: PreTrainedTokenizerFast, style: PromptStyle) -> bool:
    """Whether the template writes today's date into prompts of this style."""
    try:
        return any(
            len({dataclasses.replace(style, date=day).text(tokenizer, ASKED, system=system) for day in MOMENTS}) > 1
            for system in (SYSTEM_PROMPT, "")
        )
    except InputError:  # it cannot render the trial prompt; the first real prompt will raise the error
        return False


def style_line(style: PromptStyle, model: ModelConfig, tokenizer: PreTrainedTokenizerFast) -> str:
    """One line about a style, which is printed when a run or an evaluation starts."""
    begins = f"answers begin with {style.prefill!r}" if style.prefill else "answers begin as the model likes"
    parts = [begins, _thinking(style, tokenizer)]
    if style.date:
        parts.append(f"the template's today is {style.date}")
    elif model.template_date:
        parts.append("the template shows no date, so model.template_date changes nothing")
    return f"prompts  {'; '.join(filter(None, parts))}"


def _thinking(style: PromptStyle, tokenizer: PreTrainedTokenizerFast) -> str:
    opening = style.text(tokenizer, ASKED, system="").rpartition(ASKED)[2].removesuffix(style.prefill)
    if THOUGHT in opening:
        return f"thinking is off: the template writes a {THINK} that is closed at once"
    if THINK in opening:
        return f"thinking is on: the template begins it with {THINK}"
    if not has_switch(tokenizer) and not reasons(tokenizer):
        return ""
    if style.prefill:
        return f"thinking is off: the answer's beginning stands where the model would write {THINK}"
    return "thinking is on: the model begins it"


def check_same_day(style: PromptStyle, backend: Backend) -> None:
    """Raise InputError if the processes of an evaluation have different dates in their style. Every process must call this."""
    if not style.date or backend.processes == 1:
        return
    day = datetime.date.fromisoformat(style.date).toordinal()
    bit_differs = [backend.any_process(bool(day >> bit & 1)) != bool(day >> bit & 1) for bit in range(DAY_BITS)]
    if backend.any_process(any(bit_differs)):
        raise InputError(
            "the processes began on different days, and the chat template shows the date; give --template_date"
        )


def _asked(tokenizer: PreTrainedTokenizerFast, *, thinking: Literal["auto", "on", "off"] = "auto") -> str:
    return chat_text(tokenizer, ASKED, system="", prefill="", thinking=thinking, date=MOMENTS[0])
