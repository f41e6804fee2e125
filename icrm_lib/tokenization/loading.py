"""Load a tokenizer: the one that `tokenizer.json` describes, no code."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase, TokenizersBackend
from transformers.utils.hub import cached_file

from icrm_lib.runtime import error_lines

# What tokenizers of other rules cut otherwise: numbers, white space, line breaks, contractions, scripts, code.
_PROBES = [
    *("Which river passes town 3?\n\nOr is it 1234567, 3.14 or 2^10?", "  two  spaces,\ta tab \r\n\r\n and an end \n"),
    *(
        "I don't know; WE'LL see...",
        "naïve re\u0301sume\u0301 中文字 שלום 👍🏽",
        "def f(x_1):\n    return x_1**2  # why?\n",
    ),
]


def load_tokenizer(path: str | Path, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model, as its `tokenizer.json` describes it.

    `AutoTokenizer` builds some classes anew from vocabulary and merges and puts its own rules of splitting in place of
    the file's (every `qwen2` directory becomes a `Qwen2Tokenizer`); other ids are other scores. Where there is no
    `tokenizer.json`, it decides.

    Args:
        path: local directory or hub id.
        revision: of the hub id.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    path = str(path)
    found = cached_file(path, "tokenizer.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    tokenizer_class = TokenizersBackend if found else AutoTokenizer
    try:
        return tokenizer_class.from_pretrained(path, revision=revision, trust_remote_code=False)
    except (ValueError, OSError, KeyError, TypeError) as error:
        reason = error_lines(error)[0]
        raise ValueError(
            f"{Path(path).name} has no tokenizer that can be loaded ({reason:.200}); save the tokenizer beside the "
            "model (tokenizer.json, tokenizer_config.json)"
        ) from error


def check_saved_tokenizer(tokenizer: PreTrainedTokenizerBase, path: str | Path) -> None:
    """Compare the ids of a saved tokenizer with those of the one that was saved.

    Raises:
        ValueError: the saved tokenizer cuts a text otherwise.
    """
    if wrong := _cut_otherwise(tokenizer, load_tokenizer(path)):
        raise ValueError(
            f"the saved tokenizer cuts {wrong!r} into other tokens than the {type(tokenizer).__name__} that was saved; "
            "save a fast tokenizer, whose tokenizer.json says how it cuts"
        )


def misread_by_auto(tokenizer: PreTrainedTokenizerBase, path: str | Path) -> str | None:
    """Return the class that `AutoTokenizer` makes of a saved tokenizer where that cuts otherwise, or None."""
    auto = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    return type(auto).__name__ if _cut_otherwise(tokenizer, auto) else None


def _cut_otherwise(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> str | None:
    return next((text for text in _PROBES if _ids(one, text) != _ids(other, text)), None)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
