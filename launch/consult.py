"""Ask a model for a recommendation on each note of a table, for `creason review`.

creason consult --model=runs/quickstart/trained --notes=notes.csv --out=consult
creason consult --model=runs/quickstart/trained --notes=notes.csv --out=consult-torch --backend=torch --max_new_tokens=500
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from launch import app, backends, generation
from shared.backend import Backend, Sampling
from shared.config import RunConfig
from shared.errors import InputError
from shared.policy.tokenizer import check_in_embedding, embedding_rows, load_tokenizer, special_tokens
from shared.questions.prompts import decode, encode
from shared.runs.kept import COMPLETIONS_FILE, REQUEST_FILE, Kept, digest, model_digest
from shared.storage import files
from shared.tasks.consult import Note, read_notes

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Define this program's flags."""
    flags.DEFINE_string("model", None, "Hugging Face model directory, tokenizer included.", required=True)
    flags.DEFINE_string("notes", None, "Table of notes: id, note and, in some, header (docs/review.md).", required=True)
    flags.DEFINE_string("out", None, "Directory for completions.jsonl.", required=True)
    generation.define_flags(long_prompts="Notes with longer prompts are left out.", max_new_tokens=4_000)
    flags.DEFINE_bool("progress", app.on_terminal(), "Show a progress bar (default: on a terminal).")


def main() -> None:
    """Write the recommendations, greedy. Raises InputError for a bad flag, model or table."""
    folder, out = Path(FLAGS.model), Path(FLAGS.out)
    notes, left_out = read_notes(Path(FLAGS.notes))
    tokenizer = load_tokenizer(folder)
    config = generation.config_of(folder, questions=len(notes))
    style = generation.style_of(config, folder, tokenizer, out)
    texts = [encode(tokenizer, style.text(tokenizer, note.message, system="")) for note in notes]
    asked = [(note, text) for note, text in zip(notes, texts, strict=True) if len(text) <= FLAGS.max_prompt_tokens]
    if not asked:
        raise InputError(f"all notes are longer than {FLAGS.max_prompt_tokens} tokens; raise --max_prompt_tokens")
    check_in_embedding(tokenizer, [text for _, text in asked], embedding_rows(folder), "prompts")
    app.check_folder("out", out)
    prompts = [text for _, text in asked]
    stop = special_tokens(tokenizer, folder).stop
    config = generation.config_of(folder, questions=len(asked))
    backend = backends.make_backend(config)
    config = backend.resolved(config)
    kept = Kept(out, request(config, backend, asked, stop), backend)
    engine, _ = generation.engine_of(config, backend, prompts, stop=stop)
    generation.begin(config, backend, tokenizer, style, out)
    sampling = Sampling(group_size=1, temperature=0.0, max_new_tokens=FLAGS.max_new_tokens)
    shown = FLAGS.progress and backend.process == 0
    with tqdm(total=len(asked), initial=kept.done, desc="consultation", unit="note", disable=not shown) as bar:
        for start in range(kept.done, len(asked), config.rollout.slots):
            part = slice(start, start + config.rollout.slots)
            found = engine.generate(prompts[part], sampling, None)
            kept.add([
                {"id": note.id, "question": note.shown, "completion": decode(tokenizer, completion.tokens),
                 "answer": note.recommendation, "cut_off": completion.truncated}
                for (note, _), (completion,) in zip(asked[part], found, strict=True)
            ])  # fmt: skip
            bar.update(len(found))
    if backend.process > 0:
        return
    cut_off = sum(row.pop("cut_off") for row in kept.rows)
    files.write_json_lines(out / COMPLETIONS_FILE, kept.rows)
    kept.remove_parts()
    files.remove(out / REQUEST_FILE)
    print(f"notes    {len(kept.rows)} answered, {cut_off} of them cut off; left out: {left_out} without their header, "
          f"{len(notes) - len(asked)} too long\nanswers  {out / COMPLETIONS_FILE}")  # fmt: skip


def request(
    config: RunConfig, backend: Backend, asked: Sequence[tuple[Note, np.ndarray]], stop: Sequence[int]
) -> dict[str, Any]:
    """What the recommendations depend on: only a start that asks for the same goes on from them."""
    return {
        "model": model_digest(Path(FLAGS.model)),
        "notes": digest([note.id, note.shown, note.recommendation, text.tolist()] for note, text in asked),
        "stop_tokens": [int(token) for token in stop],
        "max_prompt_tokens": FLAGS.max_prompt_tokens,
        "max_new_tokens": FLAGS.max_new_tokens,
        "compute_dtype": config.learner.compute_dtype,
        "engine": backend.engine_kind(config),
    }


if __name__ == "__main__":
    define_flags()
    app.run(main)
