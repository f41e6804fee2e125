"""Load a tokenizer: the one that `tokenizer.json` describes, no code."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase, TokenizersBackend
from transformers.utils.hub import cached_file


def load_tokenizer(path: str | Path, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model, as its `tokenizer.json` describes it.

    `AutoTokenizer` builds some classes anew from vocabulary and merges and puts its own rules of splitting in place of
    the file's (every `qwen2` directory becomes a `Qwen2Tokenizer`); other ids are other scores. Where there is no
    `tokenizer.json`, it decides.

    Args:
        path: local directory or hub id.
        revision: of the hub id.
    """
    path = str(path)
    found = cached_file(path, "tokenizer.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    tokenizer_class = TokenizersBackend if found else AutoTokenizer
    return tokenizer_class.from_pretrained(path, revision=revision, trust_remote_code=False)
