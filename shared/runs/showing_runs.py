"""What a run generated, for its owner's terminal: examples of its evaluations, and the completions of a step with rewards."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from shared.config import CONFIG_FILE, RunConfig
from shared.errors import InputError
from shared.grpo import GroupBatch
from shared.policy.tokenizer import load_tokenizer
from shared.questions.prompts import decode
from shared.questions.record import Question, read_questions
from shared.review.review import read_replies
from shared.runs import showing
from shared.runs.kept import COMPLETIONS_FILE
from shared.runs.replay import started_from
from shared.runs.showing import Selection
from shared.runs.workdir import REPLAY_FILE, question_files, read_config
from shared.storage import buckets, files
from shared.training.trajectories import METADATA_FILE, TrajectoryReader


@dataclasses.dataclass(frozen=True)
class _Example:
    """A question as it was asked, its right answer, and completions by their titles."""

    id: str
    question: str
    answer: str
    completions: dict[str, str]


def lines(workdir: Path, selection: Selection, *, step: int | None, width: int) -> Iterator[str]:
    """What is in a run's work directory, or in the folder of an evaluation that kept its texts.

    With `step` the completions of that step, else the examples of the evaluations and the newest step that was recorded.
    Raises InputError where there is nothing to show, and where a file is damaged.
    """
    if (workdir / COMPLETIONS_FILE).is_file() and step is None:
        replies = read_replies(workdir / COMPLETIONS_FILE).values()
        examples = [_Example(reply.id, reply.question, reply.answer, {"": reply.completion}) for reply in replies]
        yield from _examples(examples, {}, selection, width)
        return
    if not (workdir / CONFIG_FILE).is_file():
        raise InputError(
            f"--workdir={workdir}: holds no run; give the --workdir of `creason train`, or the --out of "
            "`creason evaluate --completions`"
        )
    config = read_config(workdir / CONFIG_FILE)
    recorded = (workdir / "trajectories" / METADATA_FILE).is_file()
    examples = _examples_of(workdir / "evaluation" / "examples.json")
    if step is None and not recorded and not examples:
        raise InputError(
            f"--workdir={workdir}: nothing to show yet: the run has evaluated nothing, and records no steps unless "
            "store_trajectories = True"
        )
    questions = _questions_of(config, workdir)
    if step is None and examples:
        yield from _examples(examples, questions, selection, width)
    if step is not None or recorded:
        yield from _step(config, workdir, questions, selection, step, width)


def _examples_of(path: Path) -> list[_Example]:
    """The examples of a run's evaluations, one for each question; none where there is no such file."""
    by_id: dict[str, _Example] = {}
    rows = files.read_json(path) if path.is_file() else []
    try:
        for row in rows:
            example = by_id.setdefault(row["id"], _Example(row["id"], row["question"], row["answer"], {}))
            example.completions[f"{row['when']} training: "] = row["completion"]
    except (KeyError, TypeError):
        raise InputError(f"{path}: not what a run writes there; give a run's work directory") from None
    return list(by_id.values())


def _examples(
    examples: Sequence[_Example], questions: Mapping[str, Question], selection: Selection, width: int
) -> Iterator[str]:
    by_id = {example.id: example for example in examples}
    chosen = _chosen(list(by_id), questions, selection)
    for number, question_id in enumerate(chosen, 1):
        example = by_id[question_id]
        yield from ("", showing.numbered("example", number, len(chosen), width), question_id, "")
        yield from showing.example_lines(example.question, example.answer, example.completions, width)


def _step(
    config: RunConfig,
    workdir: Path,
    questions: Mapping[str, Question],
    selection: Selection,
    step: int | None,
    width: int,
) -> Iterator[str]:
    """The groups of a recorded step; the newest one where `step` is None."""
    reader = TrajectoryReader(workdir / "trajectories")
    steps = reader.steps()
    if not steps:
        raise InputError(f"{reader.folder}: no step is recorded yet")
    step = steps[-1] if step is None else step
    batch, rewards, ids = reader.read(step)
    tokenizer = load_tokenizer(started_from(config, workdir))
    # Of one question; several where a row holds one completion.
    rows = max(1, config.grpo.group_size // batch.layout.group)
    groups = [range(start, start + rows) for start in range(0, len(ids), rows) if ids[start]]
    if not groups:
        yield f"step {step}: nothing was learned from it: the rewards of each group were equal, and such groups are left out"
        return
    names = _chosen([ids[group[0]] for group in groups], questions, selection)
    shown = [group for group in groups if ids[group[0]] in names][: selection.count]
    for number, group in enumerate(shown, 1):
        title = f"step {step} ({steps[0]} to {steps[-1]} are recorded), question"
        yield from ("", showing.numbered(title, number, len(shown), width))
        question = questions.get(ids[group[0]])
        if question is not None:
            yield from showing.question_lines(question, width)
        else:
            yield from (
                ids[group[0]],
                "its question file is not there: the prompt as it was given, no right answer",
                "",
            )
            yield from showing.wrapped(str(tokenizer.decode(_tokens(batch, group[0], 0))), width)
        for index, (row, part) in enumerate(((row, part) for row in group for part in range(batch.layout.group)), 1):
            yield from _completion(batch, rewards, tokenizer, row, part, index, width)


def _completion(
    batch: GroupBatch, rewards: Any, tokenizer: PreTrainedTokenizerFast, row: int, part: int, index: int, width: int
) -> Iterator[str]:
    tokens = _tokens(batch, row, part + 1)
    own = batch.segments[row] == part + 1
    advantage = batch.advantages[row][own & (batch.completion_mask[row] > 0)]
    weight = f"advantage {advantage[0]:+.2f}" if advantage.size else "not learned from"
    yield from ("", f"--- completion {index}: reward {rewards[row, part]:g}, {weight}, {len(tokens)} tokens")
    yield from showing.wrapped(decode(tokenizer, tokens), width)


def _tokens(batch: GroupBatch, row: int, segment: int) -> Any:
    """The tokens of a row's prompt (segment 0) or of one of its completions."""
    return batch.tokens[row][(batch.groups[row] >= 0) & (batch.segments[row] == segment)]


def _chosen(names: Sequence[str], questions: Mapping[str, Question], selection: Selection) -> list[str]:
    """Which of the questions called `names` to show. Raises InputError where none fits, or their features are not known."""
    known = [questions[name] for name in names if name in questions]
    if selection.feature or selection.section:
        if not known:
            raise InputError(
                "--feature, --section: the question files of this are not there, so its features are unknown"
            )
        return [question.id for question in selection.of(known)]
    return list(dict.fromkeys(names))[: selection.count]


def _questions_of(config: RunConfig, workdir: Path) -> dict[str, Question]:
    """The questions of a run, by their id, as far as their files are still there."""
    if (workdir / REPLAY_FILE).is_file():
        workdir = Path(files.read_json_object(workdir / REPLAY_FILE, "recording")["recording"])
    paths = [path for path in question_files(config, workdir) if buckets.is_file(path)]
    return {question.id: question for path in paths for question in read_questions(path)}
