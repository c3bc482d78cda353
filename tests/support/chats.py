"""Chat templates as models have them, cut down to what sets them apart, and a tokenizer that knows every byte."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TURNS = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
ANSWER = "{% if add_generation_prompt %}<|assistant|>{% endif %}"

PLAIN = TURNS + ANSWER
# Reasoning is begun in the generation prompt (QwQ, the later R1); by the model itself, and left out of earlier turns (the first
# R1); by the model, which is asked for it in every system turn (Phi-4-reasoning).
OPENS = TURNS + "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
FORGETS = (
    "{% for m in messages %}<|{{ m['role'] }}|>"
    "{% if m['role'] == 'assistant' and '</think>' in m['content'] %}{{ m['content'].split('</think>')[-1] }}"
    "{% else %}{{ m['content'] }}{% endif %}<|end|>{% endfor %}" + ANSWER
)
DEMANDS = "<|system|>Think first: <think> thought </think> answer.<|end|>" + TURNS + ANSWER
# A switch, and in the last turn of an assistant an empty reasoning in front of what it says (Qwen3).
SWITCHED = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n"
    "{% if m['role'] == 'assistant' %}{% set said = m['content'].split('</think>')[-1].lstrip('\n') %}"
    "{% if loop.last %}<think>\n\n</think>\n\n{% endif %}{{ said }}{% else %}{{ m['content'] }}{% endif %}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# The same with the thinking on in its generation prompt, unless it is switched off; and one of another name that is off.
SWITCHED_ON = (
    TURNS + "{% if add_generation_prompt %}<|assistant|><think>\n"
    "{% if enable_thinking is defined and not enable_thinking %}\n</think>\n\n{% endif %}{% endif %}"
)
SWITCHED_OFF = (
    TURNS
    + "{% if add_generation_prompt %}<|assistant|>{{ '<think>' if thinking | default(false) else '</think>' }}{% endif %}"
)
# Dates: today's (Llama 3.2), one that is written down (Llama 3.1), in a system turn of its own only (Mistral), the minute.
TODAY = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
    "{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}"
    "<|system|>Cutting Knowledge Date: December 2023\nToday Date: {{ date_string }}\n\n"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] | trim }}{% set messages = messages[1:] %}{% endif %}"
    "<|end|>" + TURNS + ANSWER
)
WRITTEN_DAY = TODAY.replace(
    "{% if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% else %}", ""
).replace("'26 Jul 2024' %}{% endif %}{% endif %}", "'26 Jul 2024' %}{% endif %}")
DEFAULT_DAY = (
    "{% if messages[0]['role'] != 'system' %}<|system|>Today is {{ strftime_now('%Y-%m-%d') }}.<|end|>{% endif %}"
    + PLAIN
)
# Today's day only where the model thinks, or only in an assistant's turn that is begun for it.
THINKING_DAY = "{% if enable_thinking is defined and enable_thinking %}{{ strftime_now('%d %B') }}{% endif %}" + PLAIN
ANSWERING_DAY = "{% if messages[-1]['role'] == 'assistant' %}{{ strftime_now('%A') }}{% endif %}" + PLAIN
MINUTE = "{{ strftime_now('%H:%M') }}" + PLAIN


def byte_tokenizer(template: str, *added: str, name: str = "") -> PreTrainedTokenizerFast:
    """One token for each byte, ids 0 to 255, and the `added` special tokens behind them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    found = PreTrainedTokenizerFast(tokenizer_object=made, chat_template=template, name_or_path=name)
    found.add_special_tokens({"additional_special_tokens": list(added)})
    return found
