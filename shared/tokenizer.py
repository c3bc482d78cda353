"""A byte-pair tokenizer trained on the training split, for policies that start from random weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from shared import files
from shared.errors import InputError

PAD, START, SEPARATOR, END = "<|pad|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>"
REASON_LENGTH = 200  # characters of a library's message that are shown
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
        reason = " ".join(str(error).split())[:REASON_LENGTH] or type(error).__name__
        raise InputError(f"{folder}: its tokenizer cannot be read ({reason}); copy the model's folder again") from error
    if not tokenizer.chat_template:
        raise InputError(f"{folder}: the tokenizer has no chat template; use the instruction-tuned model's directory")
    return tokenizer


def special_tokens(tokenizer: PreTrainedTokenizerFast, folder: Path) -> SpecialTokens:
    """Ids read from the tokenizer and, for the stop tokens, from `generation_config.json` where there is one."""
    if tokenizer.eos_token_id is None:
        raise InputError(f"{folder}: the tokenizer names no eos_token, so completions could not end")
    eos = int(tokenizer.eos_token_id)
    stop = {eos}
    generation = folder / "generation_config.json"
    if generation.is_file():
        more = files.read_json_object(generation).get("eos_token_id") or []
        stop |= set(more if isinstance(more, list) else [more])
    size = -(-len(tokenizer) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else eos
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos
    return SpecialTokens(bos=int(bos), eos=eos, pad=int(pad), stop=tuple(sorted(stop)), vocab_size=size)
