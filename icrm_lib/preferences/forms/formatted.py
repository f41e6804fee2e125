"""Texts that are more than their text: transcripts, texts through a chat template, lists written as text."""

import ast
import json
import re

from icrm_lib.rows import BadRow
from icrm_lib.tokenization import Message

# hh-rlhf, Nectar: "\n\nHuman: ...\n\nAssistant: ..."; others say User, and begin with a System turn.
_TURN = re.compile(r"(?:^|\n\n)(System|Human|User|Assistant):[ ]?")
_TRANSCRIPT = re.compile(r"\s*(Human:|(User|System):.*\n\n(User|Assistant):)", re.DOTALL)
_ROLE = {"System": "system", "Human": "user", "User": "user", "Assistant": "assistant"}
# What chat templates write before a first turn, ...
_TOKENS = (
    r"\s*(<s>|<bos>|<\|begin_of_text\|>|<\|endoftext\|>)?\s*(<\|im_start\|>|<start_of_turn>|<\|start_header_id\|>"
    r"|\[INST\].*\[/INST\]|<<SYS>>|<\|(user|assistant|system)\|>|<\|(User|Assistant)\|>|<｜(User|Assistant)｜>"
)
_BEGINS_REPLY = re.compile(_TOKENS + ")", re.DOTALL)
_BEGINS = re.compile(
    _TOKENS + r"|#{2,3} ?(Instruction|Human|User):\s|Below is an instruction that describes a task"
    r"|(USER|User): .*(ASSISTANT|Assistant):)",
    re.DOTALL,
)
# ... and before the reply.
_ENDS = re.compile(
    r"(<\|im_start\|>assistant|<start_of_turn>model|<\|start_header_id\|>assistant<\|end_header_id\|>|\[/INST\]"
    r"|<\|assistant\|>|<\|Assistant\|>|<｜Assistant｜>|#{2,3} ?(Response|Assistant):|(ASSISTANT|\n\n?Assistant):)\s*$"
)
END_MARKS = (
    "<|endoftext|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
    "<|end|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
)


def transcript(text: str, key: str, *, reply: bool) -> list[Message] | None:
    """Return the messages of a transcript ("Human: ... Assistant: ..."), None where a text is none.

    Args:
        text: the whole text.
        key: of the row, for messages.
        reply: whether it ends with a reply; else with the user's turn, and perhaps an empty "Assistant:" behind it.

    Raises:
        BadRow: the last turn is another one.
    """
    turns = _turns(text)
    if turns is None:
        return None
    if not reply and turns[-1] == {"role": "assistant", "content": ""}:
        turns.pop()
    wanted = "assistant" if reply else "user"
    if turns[-1]["role"] != wanted:
        raise BadRow(
            f"transcript in {key!r} does not end with the {wanted}'s turn",
            f"its last turn is {turns[-1]['role']!r}; mend the row or drop it",
        )
    return turns


def is_transcript(text: str) -> bool:
    """Say whether a text is a transcript."""
    return _turns(text) is not None


def _turns(text: str) -> list[Message] | None:
    if not _TRANSCRIPT.match(text):
        return None
    pieces = _TURN.split(text.strip())[1:]
    turns = [{"role": _ROLE[who], "content": said.strip()} for who, said in zip(pieces[::2], pieces[1::2], strict=True)]
    if pieces[0] == "Human":
        return turns
    # The other names stand in many a text that is none: only turns in good order are.
    talk = [turn["role"] for turn in turns if turn["role"] != "system"]
    in_order = talk == (["user", "assistant"] * len(talk))[: len(talk)]
    return turns if in_order and all(turn["role"] != "system" for turn in turns[1:]) else None


def refuse_formatted(text: str, key: str) -> None:
    """Raise `BadRow` for a text that has been through a chat template."""
    is_prompt = key not in ("chosen", "rejected")
    if (_BEGINS if is_prompt else _BEGINS_REPLY).match(text) or (is_prompt and _ENDS.search(text[-80:])):
        raise BadRow(
            f"{key!r} has been through a chat template",
            f"it reads {text.strip()[:30]!r}; the tokenizer writes its own, so give plain text or a list of messages",
        )


def refuse_list(text: str, key: str) -> None:
    """Raise `BadRow` for a list that is written as text."""
    if _is_list(text):
        raise BadRow(
            f"{key!r} is a list written as text",
            f"found {text.strip()[:30]!r}; parse it (json.loads or ast.literal_eval) and give text or messages",
        )


def _is_list(text: str) -> bool:
    """Say whether a text is one text or messages in a list, in the words of JSON or Python."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")) or len(text) > 1_000_000:
        return False
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            continue
        messages = all(isinstance(item, dict) and {"role", "content"} <= item.keys() for item in value)
        return bool(value) and (messages or (len(value) == 1 and isinstance(value[0], str)))
    return False


def without_end_marks(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Take off the marks with which both replies end, as generation left them there.

    Returns:
        both replies, and the marks ("" where not both have one).
    """
    cut, marks = [], []
    for text in (chosen, rejected):
        end = text.rstrip()
        mark = next((mark for mark in END_MARKS if end.endswith(mark) and end != mark), None)
        if mark is None or (mark == "</s>" and "<s>" in text):  # struck out in HTML
            return chosen, rejected, ""
        cut.append(end.removesuffix(mark).rstrip())
        marks.append(mark)
    return cut[0], cut[1], " or ".join(dict.fromkeys(marks))


def without_prompt(prompt: str, chosen: str, rejected: str) -> tuple[str, str, bool]:
    """Take the prompt off two replies that both begin with all of it, and say whether they did."""
    front = prompt.strip()
    begins = all(
        reply.lstrip().startswith(front) and len(reply.strip()) > len(front) and reply.lstrip()[len(front)].isspace()
        for reply in (chosen, rejected)
    )
    if not front or not begins:
        return chosen, rejected, False
    return chosen.lstrip()[len(front) :].lstrip(), rejected.lstrip()[len(front) :].lstrip(), True
