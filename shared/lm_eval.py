"""A question set as a task folder of lm-evaluation-harness, so that any model it runs can answer the same questions.

    lm_eval --model hf --model_args pretrained=... --include_path FOLDER --tasks NAME --apply_chat_template

The folder holds the questions, patient by patient: keep it where the registry is kept.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from shared import files
from shared.errors import InputError
from shared.prompts import SYSTEM_PROMPT, user_message
from shared.questions import LETTERS, Question

QUESTIONS = "questions.jsonl"
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {path}
test_split: test
output_type: multiple_choice
description: {description}
doc_to_text: "{{{{message}}}}\\nThe answer is"
doc_to_choice: letters
doc_to_target: right
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""


def check_target(questions: Sequence[Question], folder: Path, name: str) -> None:
    """Raise InputError for a name that is no plain word, where there are no questions, or where the folder, which would be
    replaced, holds something else than such a task."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise InputError(f"task name {name!r}: letters, digits and underscores only, a letter first")
    if not questions:
        raise InputError("there are no questions to export; the question file is empty")
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if there and not (QUESTIONS in there and all(each == QUESTIONS or each.endswith(".yaml") for each in there)):
        raise InputError(f"{folder}: holds other files than a task, and would be replaced; give a new folder")


def export(questions: Sequence[Question], folder: Path, name: str) -> Path:
    """Write `NAME.yaml` and the questions into `folder`, which is replaced; returns the path of the task file.

    Raises InputError as `check_target`.
    """
    check_target(questions, folder, name)
    with files.replacing(folder) as temporary:
        temporary.mkdir(mode=files.OWNER_ONLY_FOLDER)
        with (temporary / QUESTIONS).open("w", encoding="utf-8") as stream:
            for question in questions:
                stream.write(json.dumps(_document(question), ensure_ascii=False) + "\n")
        path = json.dumps(str((folder / QUESTIONS).resolve()))
        description = json.dumps(SYSTEM_PROMPT.partition("\n")[0] + "\n\n")
        text = TASK.format(name=name, path=path, description=description)
        (temporary / f"{name}.yaml").write_text(text, encoding="utf-8")
        for written in temporary.iterdir():
            os.chmod(written, files.OWNER_ONLY_FILE)
    return folder / f"{name}.yaml"


def _document(question: Question) -> dict[str, object]:
    return {
        "id": question.id,
        "message": user_message(question),
        "letters": list(LETTERS[: len(question.choices)]),
        "right": LETTERS.index(question.answer),
    }
