"""Pieces of a text as token ids, each as if it stood in the middle of the text."""

from transformers import PreTrainedTokenizerBase

_PLAIN = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
# SentencePiece-like tokenizers put a space before a text. A piece from the middle of a conversation must not get one:
# it is encoded behind an anchor, whose ids are then removed. There are several, as the text may merge with one of them.
_ANCHORS = ("\n", "a", "!")


class Pieces:
    """How one tokenizer turns pieces of a text into ids, as if each stood in the middle of it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.anchors = list(zip(_ANCHORS, self.ids(list(_ANCHORS)), strict=True))
        (alone,) = self.ids(["a"])
        self.adds_space = self._behind("a", *self.anchors[0]) != alone

    def prompts(self, heads: list[str]) -> dict[str, list[int]]:
        """Return the ids of each prompt."""
        # The prompt is tokenised with a letter behind it, as some tokenizers treat white space at the end of
        # a text differently from the same white space before a word. If a token takes up that letter, the
        # prompt stands alone.
        if not heads:
            return {}
        coded = self.tokenizer([head + "a" for head in heads], **_PLAIN, return_offsets_mapping=True)
        prompts = {}
        for head, ids, offsets in zip(heads, coded["input_ids"], coded["offset_mapping"], strict=True):
            size = len(ids)
            while size and offsets[size - 1][0] >= len(head):
                size -= 1
            whole = size == 0 or offsets[size - 1][1] <= len(head)
            prompts[head] = ids[:size] if whole else self.ids([head])[0]
        return prompts

    def piece(self, text: str, inside: bool, offsets: bool = False) -> list:
        """Ids (or offsets) of a piece of a text; `inside` says that something stands before it."""
        for anchor, skip in self.anchors if inside and self.adds_space else ():
            ids = self._behind(text, anchor, skip)
            if ids is not None:
                spans = self.offsets(anchor + text)[len(skip) :] if offsets else ()
                return [(start - 1, end - 1) for start, end in spans] if offsets else ids
        return self.offsets(text) if offsets else self.ids([text])[0]

    def _behind(self, text: str, anchor: str, skip: list[int]) -> list[int] | None:
        (ids,) = self.ids([anchor + text])
        return ids[len(skip) :] if ids[: len(skip)] == skip else None

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each whole text."""
        if not texts:
            return []
        return self.tokenizer(texts, **_PLAIN)["input_ids"]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Return (start, end) of each token of a whole text."""
        return self.tokenizer(text, **_PLAIN, return_offsets_mapping=True)["offset_mapping"]
