"""A question set as a task folder of lm-evaluation-harness, so that any model it runs can answer the same questions.

    lm_eval --model hf --model_args pretrained=... --include_path FOLDER --tasks NAME --apply_chat_template

The model writes its answer, and the boxes are read by both rules of `shared/questions/boxes.py`, whose text is in the
folder's `utils.py`. The folder holds the questions, patient by patient: keep it where the registry is kept.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from shared.errors import InputError
from shared.policy.tokenizer import load_tokenizer, special_tokens
from shared.questions import boxes
from shared.questions.prompts import SYSTEM_PROMPT
from shared.questions.record import Question
from shared.storage import files
from shared.tasks.prompts import user_message

QUESTIONS, UTILS = "questions.jsonl", "utils.py"
METRICS = ("accuracy_strict", "accuracy_lenient", "answered_strict", "answered_lenient")
# `until` is never left out: the harness would end a completion at its first empty line. It adds the tokenizer's end by itself.
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {path}
test_split: test
output_type: generate_until
description: {description}
doc_to_text: "{{{{message}}}}"
doc_to_target: "{{{{right}}}}"
{prefix}process_results: !function utils.process_results
generation_kwargs:
  until: {until}
  do_sample: false
  temperature: 0.0
  max_gen_toks: {max_new_tokens}
metric_list:
{metrics}
metadata:
  version: 2.0
"""
METRIC = """\
  - metric: {name}
    aggregation: mean
    higher_is_better: true"""
# Follows the text of shared/questions/boxes.py. The harness gives what the model wrote as the only entry of `results`.
PROCESS = '''

def process_results(doc, results):
    """Both readings of a completion: whether the letter is the right one, and whether there is one."""
    text = results[0] if isinstance(results[0], str) else results[0][0]
    found = {}
    for rule in RULES:
        letter = answer_letter(text, rule, options=doc["options"])
        name = rule.partition("_")[0]
        found["accuracy_" + name] = float(letter == doc["right"])
        found["answered_" + name] = float(letter != "")
    return found
'''


def check_target(questions: Sequence[Question], folder: Path, name: str) -> None:
    """Raise InputError for a name that is no plain word, where there are no questions, and for a folder with other files.

    The folder would be replaced, so it may hold an earlier task and nothing else.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise InputError(f"task name {name!r}: letters, digits and underscores only, a letter first")
    if not questions:
        raise InputError("there are no questions to export; the question file is empty")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    ours = {QUESTIONS, UTILS, "__pycache__"}  # the last is left by the harness
    if names and not (QUESTIONS in names and all(file in ours or file.endswith(".yaml") for file in names)):
        raise InputError(f"{folder}: holds other files than a task, and would be replaced; give a new folder")


def model_ends(model: Path) -> list[str]:
    """The tokens that end a completion of the model in a Hugging Face directory, as texts for `export`."""
    tokenizer = load_tokenizer(model)
    stop = special_tokens(tokenizer, model).stop
    return [str(token) for token in tokenizer.convert_ids_to_tokens(list(stop))]


def export(
    questions: Sequence[Question],
    folder: Path,
    name: str,
    *,
    until: Sequence[str] = (),
    max_new_tokens: int = 2_000,
    prefill: str = "",
) -> Path:
    """Write `NAME.yaml`, `utils.py` and the questions into `folder`, which is replaced; returns the path of the task file.

    `until`: texts that end a completion, in addition to the end token of the harness' own tokenizer. `max_new_tokens`: the
    longest completion. `prefill`: what the assistant's turn begins with. Raises InputError as `check_target` does.
    """
    check_target(questions, folder, name)
    with files.replacing(folder) as temporary:
        temporary.mkdir(mode=files.OWNER_ONLY_FOLDER)
        with (temporary / QUESTIONS).open("w", encoding="utf-8") as stream:
            for question in questions:
                stream.write(json.dumps(_document(question), ensure_ascii=False) + "\n")
        path = json.dumps(str((folder / QUESTIONS).resolve()))
        text = TASK.format(
            name=name,
            path=path,
            description=json.dumps(SYSTEM_PROMPT + "\n"),
            prefix=f"gen_prefix: {json.dumps(prefill)}\n" if prefill else "",
            until=json.dumps(list(until)),
            max_new_tokens=max_new_tokens,
            metrics="\n".join(METRIC.format(name=metric) for metric in METRICS),
        )
        (temporary / f"{name}.yaml").write_text(text, encoding="utf-8")
        (temporary / UTILS).write_text(Path(boxes.__file__).read_text(encoding="utf-8") + PROCESS, encoding="utf-8")
        for written in temporary.iterdir():
            os.chmod(written, files.OWNER_ONLY_FILE)
    return folder / f"{name}.yaml"


def _document(question: Question) -> dict[str, object]:
    return {
        "id": question.id,
        "message": user_message(question),
        "options": len(question.choices),
        "right": question.answer,
    }
