"""A byte-pair tokenizer trained on the training split, for policies that start from random weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from shared.errors import InputError, reason
from shared.policy.families import MODEL_CONFIG
from shared.storage import files

PAD, START, SEPARATOR, END = "<|pad|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>"
TEXT_CONFIG = "text_config"  # the section of a language model inside a larger one
# Where a run keeps its models, below its work directory.
WORKDIR_MODELS = (("trained", "after training"), ("policy", "before training"), ("initial", "before training"))
VOCAB_MULTIPLE = 64  # so that the vocabulary splits evenly over devices

# Where a text may be cut. Merges may join whole phrases, so that a name, a header and a category are a token each, the same
# one in the record, in an option and in an answer; an option's letter is the token before its value. Numbers are digits.
NUMBER = r"[-+]?[\d.:, -]*\d"
PIECES = (
    r"\n[A-E]\. ",  # an option's letter
    rf"(?:(?<=: )|(?<=\n[A-E]\. ))(?!{NUMBER}(?:\n|\. |$))[^\n]+?(?=\n|\. \\|$)",  # a category
    r"\. \\boxed\{",
    r"\n+",
    r"\[[^\]\n]*\]",  # a section's header, the mask
    r"(?<=')[^'\n]+(?=' in )",  # a feature's name in a question
    r"(?<= )[^\n\[:]+(?=: )|(?<=\n)[^\n\[:]+(?=: )|^[^\n\[: ][^\n\[:]*(?=: )",  # a feature's name in a record or an answer
    r": ",
    r"\d",
    r"\\boxed\{",
    r"[^\n\d\[\]{}\\.:']+",  # a sentence
    r".",
)

# Phi-4's own chat format.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}<|im_sep|>{{ message['content'] }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """Token ids that the model configuration and the engine need; `stop` ends a completion."""

    bos: int
    eos: int
    pad: int
    stop: tuple[int, ...]
    vocab_size: int  # of the model's tables: the tokenizer's, rounded up


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path) -> None:
    """Train byte-pair merges on `texts` and write a Hugging Face tokenizer directory. Any text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("|".join(PIECES)), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, START, SEPARATOR, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        additional_special_tokens=[SEPARATOR],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    with files.replacing(folder) as temporary:
        fast.save_pretrained(temporary)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a Hugging Face directory; no code of the directory is ever run.

    Raises InputError where it is missing, broken, or has no chat template.
    """
    path = folder / "tokenizer.json"
    check_model_folder(folder)
    if not path.is_file():
        raise InputError(f"{folder}: no tokenizer.json; a model directory needs its fast tokenizer beside the weights")
    content = files.read_json(path)
    if not isinstance(content, dict) or not {"model", "added_tokens"} <= content.keys():
        raise InputError(f"{path}: not a fast tokenizer; save it with transformers' `save_pretrained`")
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:
        # A bare Exception is how the library reports a file that it does not understand.
        if type(error) is not Exception and not isinstance(error, (AttributeError, KeyError, TypeError, ValueError)):
            raise
        raise InputError(
            f"{folder}: its tokenizer cannot be read ({reason(error)}); copy the model's folder again"
        ) from error
    if isinstance(tokenizer.chat_template, dict) and "default" not in tokenizer.chat_template:
        raise InputError(f"{folder}: of the tokenizer's chat templates none is called default; name one so")
    if not tokenizer.chat_template:
        raise InputError(f"{folder}: the tokenizer has no chat template; use the instruction-tuned model's directory")
    return tokenizer


def check_model_folder(folder: Path) -> None:
    """Raise InputError where a model's folder is not there, or is a run's work directory, which holds models."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        raise InputError(
            f"{folder}: {what}; give the folder of a Hugging Face model, on this machine, with its tokenizer"
        )
    models = [
        f"{folder / name} ({when})" for name, when in WORKDIR_MODELS if (folder / name / "tokenizer.json").is_file()
    ]
    if models and not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder}: is a run's work directory, not a model; give {' or '.join(models)}")


def special_tokens(tokenizer: PreTrainedTokenizerFast, folder: Path) -> SpecialTokens:
    """Ids read from the tokenizer. A completion stops at whatever it, `config.json` or `generation_config.json` calls an end.

    Raises InputError where none of them does, for an end that is no token id, and for an id that the model's embedding
    does not have.
    """
    named = end_tokens(folder)
    if tokenizer.eos_token_id is not None:
        named.setdefault(int(tokenizer.eos_token_id), "the tokenizer's eos_token")
    if not named:
        raise InputError(f"{folder}: the tokenizer names no eos_token, so completions could not end")
    eos = int(next(iter(named)) if tokenizer.eos_token_id is None else tokenizer.eos_token_id)
    rows = embedding_rows(folder)
    for token, source in named.items():
        check_in_embedding(tokenizer, [np.array([token])], rows, f"{source} of {folder}")
    size = -(-len(tokenizer) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else eos
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos
    return SpecialTokens(bos=int(bos), eos=eos, pad=int(pad), stop=tuple(sorted(named)), vocab_size=size)


def end_tokens(folder: Path) -> dict[int, str]:
    """Every end of a text that a model directory's JSON files name, with the field that names it.

    Raises InputError for a file or a field that holds something else.
    """
    found: dict[int, str] = {}
    for name in ("generation_config.json", MODEL_CONFIG):
        if not (folder / name).is_file():
            continue
        values = files.read_json_object(folder / name)
        for section, fields in (("", values), (f"{TEXT_CONFIG}.", values.get(TEXT_CONFIG))):
            if not isinstance(fields, dict):
                continue
            given = fields.get("eos_token_id")
            ids = given if isinstance(given, list) else [] if given is None else [given]
            if any(type(token) is not int or token < 0 for token in ids):
                raise InputError(
                    f"{folder / name}: {section}eos_token_id is {given!r}; a token id, a list of them or null is needed"
                )
            found |= {token: f"{section}eos_token_id in {name}" for token in ids if token not in found}
    return found


def embedding_rows(folder: Path) -> int | None:
    """How many token ids the model's embedding has, by its `config.json`; None where that does not say.

    Raises InputError for a pad token beyond them, which PyTorch's embedding refuses and nothing here needs.
    """
    if not (folder / MODEL_CONFIG).is_file():
        return None
    values = files.read_json_object(folder / MODEL_CONFIG)
    nested = values.get(TEXT_CONFIG)
    given = {name: value for name, value in values.items() if value is not None}
    fields = (nested if isinstance(nested, dict) else {}) | given
    rows, pad = fields.get("vocab_size"), fields.get("pad_token_id")
    if type(rows) is not int:
        return None
    if type(pad) is int and pad >= rows:
        raise InputError(
            f"{folder / MODEL_CONFIG}: pad_token_id is {pad}, and the model's embedding has {rows} rows; set it to null, "
            "padding is masked here"
        )
    return rows


def check_in_embedding(
    tokenizer: PreTrainedTokenizerFast, texts: Iterable[np.ndarray], rows: int | None, what: str
) -> None:
    """Raise InputError, naming the first of them, where token ids of `texts` are not among the embedding's `rows`.

    An added token is named by its text too; another one may be a patient's words in a tokenizer that learned from them.
    """
    for tokens in texts:
        beyond = tokens[(tokens < 0) | (tokens >= rows)] if rows is not None else tokens[:0]
        if not len(beyond):
            continue
        token = int(beyond[0])
        added = tokenizer.added_tokens_decoder.get(token)
        named = f"token id {token}" if added is None else f"token {str(added)!r} (id {token})"
        raise InputError(
            f"{what}: {named} is beyond the model's embedding, which has {rows} rows; give the tokenizer that belongs to "
            "these weights, or a model whose embedding was enlarged for it"
        )
