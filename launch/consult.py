"""Consultation: a model's recommendation for each note of a table, as texts for launch.review.

python -m launch.consult --model=runs/trained --notes=notes.csv --out=consult
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags
from tqdm import tqdm

from launch import app, generation
from shared import files
from shared.backend import Sampling
from shared.errors import InputError
from shared.prompts import chat_text, decode, encode, opens_reasoning, prefill_for
from shared.tasks.consult import read_notes
from shared.tokenizer import load_tokenizer, special_tokens

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Define this program's flags."""
    flags.DEFINE_string("model", None, "Hugging Face model directory, tokenizer included.", required=True)
    flags.DEFINE_string("notes", None, "Table of notes: id, note and, in some, header (docs/review.md).", required=True)
    flags.DEFINE_string("out", None, "Directory for completions.jsonl.", required=True)
    generation.define_flags(long_prompts="Notes with longer prompts are left out.", max_new_tokens=4_000)
    flags.DEFINE_bool("progress", sys.stderr.isatty(), "Show a progress bar (default: on a terminal).")


def main() -> None:
    """Write the recommendations, greedy. Raises InputError for a bad flag, model or table."""
    folder, out = Path(FLAGS.model), Path(FLAGS.out)
    notes, left_out = read_notes(Path(FLAGS.notes))
    tokenizer = load_tokenizer(folder)
    prefill = "" if opens_reasoning(tokenizer) else prefill_for(str(tokenizer.name_or_path))
    texts = [encode(tokenizer, chat_text(tokenizer, note.message, system="", prefill=prefill)) for note in notes]
    asked = [(note, text) for note, text in zip(notes, texts, strict=True) if len(text) <= FLAGS.max_prompt_tokens]
    if not asked:
        raise InputError(f"all notes are longer than {FLAGS.max_prompt_tokens} tokens; raise --max_prompt_tokens")
    app.make_folder("out", out)
    config = generation.config_of(folder)
    prompts = [text for _, text in asked]
    backend, engine = generation.engine_of(config, folder, prompts, stop=special_tokens(tokenizer, folder).stop)
    sampling = Sampling(group_size=1, temperature=0.0, max_new_tokens=FLAGS.max_new_tokens)
    rows = []
    cut_off = 0
    with tqdm(total=len(asked), desc="consultation", unit="note", disable=not FLAGS.progress) as bar:
        for start in range(0, len(asked), FLAGS.slots):
            part = asked[start : start + FLAGS.slots]
            for (note, _), (found,) in zip(
                part, engine.generate([text for _, text in part], sampling, None), strict=True
            ):
                texts_of = {"id": note.id, "question": note.shown, "completion": decode(tokenizer, found.tokens)}
                rows.append(texts_of | {"answer": note.recommendation})
                cut_off += found.truncated
            bar.update(len(part))
    if backend.process > 0:
        return
    files.write_json_lines(out / "completions.jsonl", rows)
    print(f"notes    {len(rows)} answered, {cut_off} of them cut off; left out: {left_out} without their header, "
          f"{len(notes) - len(asked)} too long\nanswers  {out / 'completions.jsonl'}")  # fmt: skip


if __name__ == "__main__":
    define_flags()
    app.run(main)
