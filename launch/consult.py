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
from shared.runs import model_engine
from shared.runs.kept import COMPLETIONS_FILE, REQUEST_FILE, Kept, digest, model_digest
from shared.storage import files
from shared.tasks.consult import Note, read_notes

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Define this program's flags."""
    flags.DEFINE_string("model", None, "Hugging Face model directory, with its tokenizer.", required=True)
    flags.DEFINE_string(
        "notes", None, "Table of notes with the columns id, note and, for some, header (docs/review.md).", required=True
    )
    flags.DEFINE_string("out", None, "Directory for completions.jsonl.", required=True)
    generation.define_flags(long_prompts="Notes with longer prompts are left out.", max_new_tokens=4_000)
    flags.DEFINE_bool("progress", app.on_terminal(), "Show a progress bar (default: on a terminal).")


def main() -> None:
    """Write the recommendations, with greedy sampling. Raises InputError for a bad flag, model or table."""
    folder, out = Path(FLAGS.model), Path(FLAGS.out)
    notes, left_out = read_notes(Path(FLAGS.notes))
    tokenizer = load_tokenizer(folder)
    options, listener = generation.options(), generation.listener()
    config = model_engine.config_of(options, folder, questions=len(notes))
    style = model_engine.style_of(config, tokenizer, out)
    texts = [encode(tokenizer, style.text(tokenizer, note.message, system="")) for note in notes]
    answerable = [(note, text) for note, text in zip(notes, texts, strict=True) if len(text) <= FLAGS.max_prompt_tokens]
    if not answerable:
        raise InputError(f"all notes are longer than {FLAGS.max_prompt_tokens} tokens; raise --max_prompt_tokens")
    check_in_embedding(tokenizer, [text for _, text in answerable], embedding_rows(folder), "prompts")
    files.check_folder("out", out)
    prompts = [text for _, text in answerable]
    stop = special_tokens(tokenizer, folder).stop
    config = model_engine.config_of(options, folder, questions=len(answerable))
    backend = backends.make_backend(config)
    config = backend.resolved(config)
    finished_rows = Kept(out, request(config, backend, answerable, stop), backend)
    engine, _ = model_engine.engine_of(config, backend, prompts, stop=stop)
    model_engine.begin(config, backend, tokenizer, style, out, listener)
    sampling = Sampling(group_size=1, temperature=0.0, max_new_tokens=FLAGS.max_new_tokens)
    shown = listener.progress and backend.process == 0
    with tqdm(
        total=len(answerable), initial=finished_rows.done, desc="consultation", unit="note", disable=not shown
    ) as bar:
        for start in range(finished_rows.done, len(answerable), config.rollout.slots):
            part = slice(start, start + config.rollout.slots)
            results = engine.generate(prompts[part], sampling, None)
            finished_rows.add([
                {"id": note.id, "question": note.shown, "completion": decode(tokenizer, completion.tokens),
                 "answer": note.recommendation, "cut_off": completion.truncated}
                for (note, _), (completion,) in zip(answerable[part], results, strict=True)
            ])  # fmt: skip
            bar.update(len(results))
    if backend.process > 0:
        return
    cut_off = sum(row.pop("cut_off") for row in finished_rows.rows)
    files.write_json_lines(out / COMPLETIONS_FILE, finished_rows.rows)
    finished_rows.remove_parts()
    files.remove(out / REQUEST_FILE)
    print(f"notes    {len(finished_rows.rows)} answered, {cut_off} of them cut off; left out: {left_out} without their header, "
          f"{len(notes) - len(answerable)} too long\nanswers  {out / COMPLETIONS_FILE}")  # fmt: skip


def request(
    config: RunConfig, backend: Backend, answerable: Sequence[tuple[Note, np.ndarray]], stop: Sequence[int]
) -> dict[str, Any]:
    """Everything that the recommendations depend on. A restart continues earlier work only if this is equal."""
    return {
        "model": model_digest(Path(FLAGS.model)),
        "notes": digest([note.id, note.shown, note.recommendation, text.tolist()] for note, text in answerable),
        "stop_tokens": [int(token) for token in stop],
        "max_prompt_tokens": FLAGS.max_prompt_tokens,
        "max_new_tokens": FLAGS.max_new_tokens,
        "compute_dtype": config.learner.compute_dtype,
        "engine": backend.engine_kind(config),
    }


if __name__ == "__main__":
    define_flags()
    app.run(main)
