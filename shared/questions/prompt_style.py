"""How prompts begin an answer, whether the model thinks, and which day its template takes for today: chosen once, kept.

The choice is made from what a model is: its chat template and the config, never the name of its folder. A run keeps it in
`prompts.json`, and puts the same file into each model directory that it writes, so that whoever uses that directory later
renders the same prompts to the byte.
"""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from shared.backend import Backend, Learner
from shared.config import ModelConfig, RunConfig, is_day
from shared.errors import InputError
from shared.policy.tokenizer import load_tokenizer
from shared.questions.boxes import THINK, THOUGHT
from shared.questions.prompts import PREFILL, SWITCHES, SYSTEM_PROMPT, PromptStyle, chat_text, render
from shared.questions.turns import ANSWERED
from shared.storage import buckets, files

PROMPTS_FILE = "prompts.json"
EVALUATION_FILE = "evaluation_prompts.json"  # beside answers: their folder may be a run's
AUTO = "auto"
# A dialogue whose texts no template has a reason to change.
ASKED, REASONED, AGAIN = "First question.", "Some reasoning.", "Second question."
MOMENTS = ("2001-01-01T00:00:00", "2002-03-05T13:45:59")  # two that no format writes alike
DAY_BITS = 22  # of the number of a day


def choose(
    model: ModelConfig, folder: Path, tokenizer: PreTrainedTokenizerFast, *, earlier: PromptStyle | None = None
) -> PromptStyle:
    """The style for the model in `folder`: what the config says, else what the folder's `prompts.json` does, else its kind.

    A date comes from `earlier` too, where an earlier start on the same work used one. Raises InputError where the template
    cannot do what is asked for.
    """
    held = read(folder)
    thinking = model.thinking if model.thinking != AUTO or held is None else held.thinking
    switch = has_switch(tokenizer)
    if not switch and thinking == ("off" if reasons(tokenizer) else "on"):
        raise InputError(
            f"model.thinking = {thinking!r}: the chat template of {folder} has no switch for it ({' or '.join(SWITCHES)}); "
            "leave it 'auto'"
        )
    prefill = model.prefill
    if prefill == AUTO:
        opens = (
            thinking == "on" or (thinking == AUTO and opens_reasoning(tokenizer)) or (not switch and reasons(tokenizer))
        )
        prefill = held.prefill if held is not None and thinking == held.thinking else "" if opens else PREFILL
    if prefill and thinking == "on":
        raise InputError(
            f"model.prefill = {prefill!r}: a model that thinks begins its answer itself; set model.prefill or "
            "model.thinking to 'auto'"
        )
    date = ""
    if shows_date(tokenizer, PromptStyle(prefill=prefill, thinking=thinking)):
        known = [style.date for style in (held, earlier) if style is not None and style.date]
        date = model.template_date or next(iter(known), today())
    return PromptStyle(prefill=prefill, thinking=thinking, date=date)


def of_run(config: RunConfig, backend: Backend, workdir: Path, policy: Path) -> PromptStyle:
    """The style of a run, chosen and written by process 0 where it begins, and read where it goes on. Every process calls it.

    Where checkpoints have a folder of their own, the file is there too: a run may go on from that folder alone, and
    processes that each have their own work directory read it there. Raises InputError where the two files differ.
    """
    places: list[Path | str] = [workdir, *([config.checkpoint.folder] if config.checkpoint.folder else [])]
    if backend.process == 0:
        kept = {place: style for place in places if (style := read(place)) is not None}
        if len(set(kept.values())) > 1:
            raise InputError(
                f"{PROMPTS_FILE} in {' and in '.join(map(str, kept))} say different things; remove the one that "
                "belongs to another run"
            )
        style = next(iter(kept.values()), None) or choose(config.model, policy, load_tokenizer(policy))
        for place in reversed(places):  # the work directory last: a bucket may refuse
            if place not in kept:
                write(place, style)
    backend.barrier()
    found = read(places[-1])
    if found is None:
        raise InputError(
            f"{places[-1]}: process {backend.process} does not see the {PROMPTS_FILE} that process 0 wrote there"
        )
    return found


def recorded(config: RunConfig, workdir: Path) -> PromptStyle | None:
    """The style that a run has kept; None of one that is older than this file, or renders no prompts."""
    return read(workdir) or (read(config.checkpoint.folder) if config.checkpoint.folder else None)


def export(learner: Learner, folder: Path, style: PromptStyle | None, *, first: bool) -> None:
    """Write the policy and its style as a model directory, whole or not at all. Every process calls it; the `first` writes."""
    if not first:
        learner.export(folder)
        return
    with files.replacing(folder) as temporary:
        learner.export(temporary)
        (temporary / PROMPTS_FILE).unlink(missing_ok=True)  # of the model that was trained
        if style is not None:
            write(temporary, style)


def read(place: Path | str, name: str = PROMPTS_FILE) -> PromptStyle | None:
    """What such a file of a folder says; None where there is none. Raises InputError for one that is not ours."""
    path = buckets.join(place, name)
    if not buckets.is_file(path):
        return None
    values = buckets.read_json(path)
    known = {field.name for field in dataclasses.fields(PromptStyle)}
    if isinstance(values, dict) and values.keys() <= known and all(isinstance(value, str) for value in values.values()):
        style = PromptStyle(**values)
        if style.thinking in (AUTO, "on", "off") and (not style.date or is_day(style.date)):
            return style
    raise InputError(f"{path}: does not say how prompts are rendered ({', '.join(sorted(known))}); remove it")


def write(place: Path | str, style: PromptStyle, name: str = PROMPTS_FILE) -> None:
    """Write such a file into a folder."""
    buckets.write_json(buckets.join(place, name), dataclasses.asdict(style))


def today() -> str:
    """The day that it is here."""
    return datetime.date.today().isoformat()


def has_switch(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the template lets its model think or not, as it is told."""
    off, on = (_asked(tokenizer, thinking=state) for state in ("off", "on"))
    return off != on


def opens_reasoning(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the template's own generation prompt begins a reasoning."""
    return _asked(tokenizer).rstrip().endswith(THINK)


def reasons(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the template is a reasoning model's: it begins a reasoning, asks for one, or leaves out that of earlier turns."""
    if THINK in _asked(tokenizer):
        return True
    turns = [
        {"role": "user", "content": ASKED},
        {"role": "assistant", "content": f"{THINK}\n{REASONED}\n{THOUGHT}\n\n{ANSWERED}"},
        {"role": "user", "content": AGAIN},
    ]
    try:
        text = render(tokenizer, turns, answer=True)
    except TemplateError:  # of a single turn only
        return False
    return ANSWERED in text and REASONED not in text


def shows_date(tokenizer: PreTrainedTokenizerFast, style: PromptStyle) -> bool:
    """Whether the template writes the day on which it is rendered into prompts of this style."""
    try:
        return any(
            len({dataclasses.replace(style, date=day).text(tokenizer, ASKED, system=system) for day in MOMENTS}) > 1
            for system in (SYSTEM_PROMPT, "")
        )
    except InputError:  # it cannot render them: the first prompt says so
        return False


def describe(style: PromptStyle, model: ModelConfig, tokenizer: PreTrainedTokenizerFast) -> str:
    """A style in one line, for whoever starts a run or an evaluation."""
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
    """Raise InputError where the processes of an evaluation chose different days; each one calls it."""
    if not style.date or backend.processes == 1:
        return
    day = datetime.date.fromisoformat(style.date).toordinal()
    apart = [backend.agreed(bool(day >> bit & 1)) != bool(day >> bit & 1) for bit in range(DAY_BITS)]
    if backend.agreed(any(apart)):
        raise InputError(
            "the processes began on different days, and the chat template shows the date; give --template_date"
        )


def _asked(tokenizer: PreTrainedTokenizerFast, *, thinking: Literal["auto", "on", "off"] = "auto") -> str:
    return chat_text(tokenizer, ASKED, system="", prefill="", thinking=thinking, date=MOMENTS[0])
