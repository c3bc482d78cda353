"""The tokenizer of a policy: trains one for policies with random weights, loads it, and checks its special tokens."""

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
TEXT_CONFIG = "text_config"  # the part of config.json for the language model inside a larger model
# The folders of models in the work directory of a run.
WORKDIR_MODELS = (("trained", "after training"), ("policy", "before training"), ("initial", "before training"))
VOCAB_MULTIPLE = 64  # the vocabulary size is rounded up to a multiple, so that it can be divided over devices

# Regular expressions for the pieces into which a text is split before merges; merges never join two pieces. A piece may be a
# whole phrase, so a feature's name, a section header or a category becomes one token, the same in records, options and
# answers. The letter of an option is a piece before its value. Numbers are split into digits.
NUMBER = r"[-+]?[\d.:, -]*\d"
PIECES = (
    r"\n[A-E]\. ",  # an option's letter
    rf"(?:(?<=: )|(?<=\n[A-E]\. ))(?!{NUMBER}(?:\n|\. |$))[^\n]+?(?=\n|\. \\|$)",  # the value of a category
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
    """Token ids that the model configuration and the engine need. A completion ends at any token of `stop`."""

    bos: int
    eos: int
    pad: int
    stop: tuple[int, ...]
    vocab_size: int  # rows of the model's embedding: the tokenizer's size, rounded up to VOCAB_MULTIPLE


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path) -> None:
    """Train a byte-pair tokenizer with `vocab_size` tokens on `texts`, and write it to `folder` as Hugging Face does.

    The tokenizer can encode any text, because every byte is a token.
    """
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
    """Load the tokenizer of a Hugging Face directory. No code in the directory is run.

    Raises InputError if the tokenizer is missing or damaged, or has no chat template.
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
        # The library raises a plain Exception for a file that it cannot read.
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
    """Raise InputError if the folder of a model does not exist, or is the work directory of a run, which contains models."""
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "no such folder"
        raise InputError(
            f"{folder}: {problem}; give the folder of a Hugging Face model, on this machine, with its tokenizer"
        )
    models = [
        f"{folder / name} ({when})" for name, when in WORKDIR_MODELS if (folder / name / "tokenizer.json").is_file()
    ]
    if models and not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder}: is a run's work directory, not a model; give {' or '.join(models)}")


def special_tokens(tokenizer: PreTrainedTokenizerFast, folder: Path) -> SpecialTokens:
    """The special tokens of a model. `stop` has all end tokens of the tokenizer, `config.json` and `generation_config.json`.

    Raises InputError if there is no end token, if one is not a token id, or if the model's embedding does not have it.
    """
    source_of_end = end_tokens(folder)
    if tokenizer.eos_token_id is not None:
        source_of_end.setdefault(int(tokenizer.eos_token_id), "the tokenizer's eos_token")
    if not source_of_end:
        raise InputError(f"{folder}: the tokenizer names no eos_token, so completions could not end")
    eos = int(next(iter(source_of_end)) if tokenizer.eos_token_id is None else tokenizer.eos_token_id)
    rows = embedding_rows(folder)
    for token, source in source_of_end.items():
        check_in_embedding(tokenizer, [np.array([token])], rows, f"{source} of {folder}")
    size = -(-len(tokenizer) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else eos
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos
    return SpecialTokens(bos=int(bos), eos=eos, pad=int(pad), stop=tuple(sorted(source_of_end)), vocab_size=size)


def end_tokens(folder: Path) -> dict[int, str]:
    """The end tokens that the JSON files of a model directory name: for each token id, the field that names it.

    Raises InputError if a file or a field holds something else.
    """
    field_of_token: dict[int, str] = {}
    for name in ("generation_config.json", MODEL_CONFIG):
        if not (folder / name).is_file():
            continue
        values = files.read_json_object(folder / name)
        for section, fields in (("", values), (f"{TEXT_CONFIG}.", values.get(TEXT_CONFIG))):
            if not isinstance(fields, dict):
                continue
            end = fields.get("eos_token_id")
            ids = end if isinstance(end, list) else [] if end is None else [end]
            if any(type(token) is not int or token < 0 for token in ids):
                raise InputError(
                    f"{folder / name}: {section}eos_token_id is {end!r}; a token id, a list of them or null is needed"
                )
            field_of_token |= {
                token: f"{section}eos_token_id in {name}" for token in ids if token not in field_of_token
            }
    return field_of_token


def embedding_rows(folder: Path) -> int | None:
    """The number of rows of the model's embedding, from its `config.json`; None if that does not state it.

    Raises InputError if pad_token_id is not below this number: PyTorch's embedding refuses it, and it is not needed here.
    """
    if not (folder / MODEL_CONFIG).is_file():
        return None
    values = files.read_json_object(folder / MODEL_CONFIG)
    nested = values.get(TEXT_CONFIG)
    stated = {name: value for name, value in values.items() if value is not None}
    fields = (nested if isinstance(nested, dict) else {}) | stated
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
    """Raise InputError for the first token id in `texts` (each `[tokens]`) that is not below `rows` of the embedding.

    If `rows` is None, nothing is checked. `what` says what the texts are. The message shows the text of an added token, but
    never of another one: a tokenizer that was trained on records may have a patient's words as a token.
    """
    for tokens in texts:
        beyond = tokens[(tokens < 0) | (tokens >= rows)] if rows is not None else tokens[:0]
        if not len(beyond):
            continue
        token = int(beyond[0])
        added = tokenizer.added_tokens_decoder.get(token)
        shown_token = f"token id {token}" if added is None else f"token {str(added)!r} (id {token})"
        raise InputError(
            f"{what}: {shown_token} is beyond the model's embedding, which has {rows} rows; give the tokenizer that belongs to "
            "these weights, or a model whose embedding was enlarged for it"
        )
