"""A trained reward model: load it, score conversations, read a reward at every token, save it for other tools."""

import copy
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from icrm_lib import runtime
from icrm_lib.reward_model import pooling, scoring
from icrm_lib.reward_model.adoption import adopt_padding
from icrm_lib.reward_model.closing import Readout, check_readout, closing_scores
from icrm_lib.reward_model.head import reward_head
from icrm_lib.reward_model.loading import load_reward_model
from icrm_lib.reward_model.saving import save_model, save_tokenizer
from icrm_lib.reward_model.tokens import RewardStream, TokenReward, at_offsets, merge_words, tokenize_so_far
from icrm_lib.tokenization import (
    Conversation,
    ResponseTooLong,
    Tokenized,
    adopt_tokenizer,
    checked_conversation,
    checked_conversations,
    load_tokenizer,
    prepare_tokenizer,
    reads,
    tokenize_conversation,
    tokenize_conversations,
)
from icrm_lib.tokenization.template import PROBE

logger = logging.getLogger(__name__)


class RewardModel:
    """A one-label sequence classification model and its tokenizer.

    The score of a conversation is the reward where the model was trained to give it: of a model of this kit at the
    closing token (`icrm_reads: closing` in its configuration, or a tokenizer of `tokenization.prepare_tokenizer`), of
    any other one where `transformers` reads it on the ids of `apply_chat_template`, at the last token that is not
    padding. With many chat templates that is a line break behind the closing token; where padding and closing token
    are one, it is the token before it. `tokenization.reads(model.tokenizer)` says which: "closing" or "last". A model
    that was trained with `pooling="mean"` (`icrm_pooling: mean` in its configuration) scores a response by the mean of
    its token rewards up to there, and a prefix by the mean so far, which then is the reward of each token, too.

    Args:
        model: from `AutoModelForSequenceClassification` with one label, PEFT-wrapped or not.
        tokenizer: with a chat template; `tokenization.adopt_tokenizer` takes it as it is unless it is prepared.

    Raises:
        ValueError: the model has another number of labels, no reward at every position, or fewer embeddings than the
            tokenizer has tokens.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase):
        if model.config.num_labels != 1:
            raise ValueError(f"a reward model has num_labels=1, this one has {model.config.num_labels}")
        reward_head(model)
        self.model, self._has_warned = model.eval(), False
        rows = model.get_input_embeddings().num_embeddings
        if len(tokenizer) > rows:
            raise ValueError(
                f"the tokenizer has {len(tokenizer)} tokens, the model embeddings for {rows}; give the tokenizer that "
                "it was trained with, or call model.resize_token_embeddings(len(tokenizer)) and train on"
            )
        if reads(tokenizer) == "closing" or getattr(model.config, "icrm_reads", None) == "closing":
            self.tokenizer = prepare_tokenizer(tokenizer)
            model.config.icrm_reads = "closing"
            model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        else:
            self.tokenizer = adopt_tokenizer(tokenizer)
            adopt_padding(model.config, self.tokenizer, rows)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str | None = None,
        dtype: torch.dtype | None = None,
        base_model: str | Path | None = None,
        revision: str | None = None,
    ) -> "RewardModel":
        """Load a saved reward model, this kit's or another tool's; safetensors only, no remote code.

        Read are one-label classifiers of transformers and TRL, adapters, and the heads that `foreign.heads` lists. A
        load that would leave a weight to chance, or one of the checkpoint's aside, is refused.

        Args:
            path: local directory or hub id.
            device: "cpu", "cuda", ...; the GPU when one is visible if None.
            dtype: weights' type; the checkpoint's own if None.
            base_model: directory or hub id of the base model, where `path` holds an adapter or a head alone; what the
                adapter's configuration names when None.
            revision: of the hub id.

        Raises:
            FileNotFoundError: no such directory, or no base model.
            ValueError: no reward model; weights that are missing, superfluous, of another shape or pickled.
        """
        model, tokenizer_folder = load_reward_model(
            path, base_model=base_model, revision=revision, dtype=dtype or "auto"
        )
        return cls(model.to(device or runtime.device()), load_tokenizer(tokenizer_folder))

    def score(
        self,
        conversations: Sequence[Conversation],
        *,
        batch_size: int | None = None,
        max_length: int | None = None,
    ) -> np.ndarray:
        """Score whole conversations: the reward where the model gives it to them, see `RewardModel`.

        Conversations of like length are scored together, and what several of them have in common (everything before
        the last turn) is encoded once. Order, company and batch size change no score by more than rounding (1e-5 in
        float32).

        Args:
            conversations: each a list of {"role", "content"} that ends with an assistant turn. What else a message
                holds (`tool_calls`, `reasoning_content`) counts as far as the chat template writes it.
            batch_size: most conversations in one forward pass; when None, as many as
                `scoring.TOKENS_PER_BATCH` tokens allow.
            max_length: tokens; a longer conversation loses the beginning of its prompt. When None, the length that
                the model was trained with, where its configuration has one (`icrm_max_length`); a warning counts what
                was cut, and what stays whole because its response alone is longer, once. (In training both responses of
                a pair lose the same part; to score pairs exactly so, give `score_tokens` their token ids.)

        Returns:
            float32 array of raw rewards. Shape: (N,).

        Raises:
            tokenization.ResponseTooLong: a response alone is longer than the `max_length` given.
            language_model.positions.SequenceTooLong: a conversation is longer than the model's positions and no
                `max_length` cuts it.
            ValueError: no conversations that end with a reply, or another argument out of range; says which.
        """
        rows = self._tokenized(conversations, max_length)
        prompts = [row.prompt_length for row in rows]
        return self.score_tokens([row.input_ids for row in rows], batch_size=batch_size, prompt_lengths=prompts)

    def score_tokens(
        self,
        rows: Sequence[list[int]],
        *,
        batch_size: int | None = None,
        prompt_lengths: Sequence[int] | None = None,
    ) -> np.ndarray:
        """Score token ids, e.g. the columns of `preferences.tokenize_pairs`: the reward at the last one but padding.

        Args:
            rows: token ids of whole conversations.
            batch_size: see `score`.
            prompt_lengths: how many leading tokens of each row are its prompt, which other rows may share. Needed where
                the model averages over the response.

        Returns:
            float32 array of raw rewards. Shape: (N,).
        """
        scoring.check_ids(self.model, rows)
        places = [self._place(row) for row in rows]
        if prompt_lengths is not None and len(prompt_lengths) != len(rows):
            raise ValueError(f"{len(rows)} rows but {len(prompt_lengths)} prompt_lengths; give one for each row")
        if prompt_lengths is None and pooling.is_mean(self.model):
            raise ValueError("this model scores by the mean over the response; give prompt_lengths, where each starts")
        shared = [0] * len(rows) if prompt_lengths is None else list(map(min, prompt_lengths, places))
        return self._scores_at(rows, places, shared, batch_size=batch_size)

    def _scores_at(
        self, rows: Sequence[list[int]], places: list[int], prompts: list[int], *, batch_size: int | None = None
    ) -> np.ndarray:
        """The score of each row up to a place; `prompts` counts the tokens before its response, at most the place."""
        starts = prompts if pooling.is_mean(self.model) else places
        rewards = self.token_scores(rows, starts, batch_size=batch_size, shared=prompts)
        found = zip(rewards, places, starts, strict=True)
        return np.array([values[place - start] for values, place, start in found], dtype=np.float32)

    @property
    def _trained_length(self) -> int | None:
        return self.model.config.to_dict().get("icrm_max_length")

    def _tokenized(
        self, conversations: Sequence[Conversation], max_length: int | None, *, offsets: bool = False
    ) -> list[Tokenized]:
        """Tokenise conversations, cut as in training unless another length is given."""
        conversations = checked_conversations(conversations, self.tokenizer.get_chat_template())
        rows = tokenize_conversations(self.tokenizer, conversations, max_length=max_length, offsets=offsets)
        if max_length is not None:
            return rows

        def again(number: int, length: int) -> Tokenized:
            return tokenize_conversation(self.tokenizer, conversations[number], max_length=length, offsets=offsets)

        return self._cut_as_trained(rows, again)

    def _cut_as_trained(self, rows: list[Tokenized], again: Callable[[int, int], Tokenized]) -> list[Tokenized]:
        """Cut what is longer than the rows of training, and say so once.

        A response that is longer alone cannot be cut so; training had none of its kind, and it is scored whole.

        Args:
            rows: uncut.
            again: makes the row of a number anew, cut to a length.
        """
        length = self._trained_length
        longer = [number for number, row in enumerate(rows) if length is not None and len(row.input_ids) > length]
        rows, whole = list(rows), 0
        for number in longer:
            try:
                rows[number] = again(number, length)
            except ResponseTooLong:
                whole += 1
        if longer and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%d of %d conversations lost the beginning of their prompt to fit into the %d tokens that the model "
                "was trained with%s; give max_length= to decide it (this is said once)",
                len(longer) - whole,
                len(rows),
                length,
                f", and {whole} whose response alone is longer are scored whole" if whole else "",
            )
        return rows

    def _place(self, ids: Sequence[int]) -> int:
        """Where the reward of a whole conversation stands."""
        return scoring.last_token(ids, self.model.config.get_text_config().pad_token_id)

    def token_scores(
        self,
        rows: Sequence[list[int]],
        starts: Sequence[int],
        *,
        batch_size: int | None = None,
        shared: Sequence[int] | None = None,
        readout: Readout = "place",
    ) -> list[np.ndarray]:
        """Read the rewards at the tokens of each row from a position on.

        Args:
            rows, starts, batch_size: see `scoring.token_scores`; where the model averages over the response, each start
                is the response's.
            shared: see there; for the readout "place" alone.
            readout: "place", the reward where each token stands, or "closing", what it would be if the response ended
                with that token (`closing.closing_scores`); at the closing token itself both are the score. A model
                that averages has learned to score prefixes in place, so both are the mean so far.

        Returns:
            per row float32 rewards. Shape of each: (len(row) - start,).
        """
        if batch_size is not None and not (isinstance(batch_size, int) and batch_size >= 1):
            raise ValueError(f"batch_size is {batch_size!r}; give 1 or more, or None for as many as fit")
        scoring.check_ids(self.model, rows)
        if len(starts) != len(rows) or not all(0 <= start < len(row) for start, row in zip(starts, rows, strict=True)):
            raise ValueError("starts must be one position inside each row; give the first token asked for, from 0")
        options = {"pad_token_id": self.model.config.get_text_config().pad_token_id, "batch_size": batch_size}
        if check_readout(readout) == "closing" and self._closing and not pooling.is_mean(self.model):
            return closing_scores(self.model, rows, starts, self._closing, **options)
        rewards = scoring.token_scores(self.model, rows, starts, shared=shared, **options)
        return list(map(pooling.running_means, rewards)) if pooling.is_mean(self.model) else rewards

    @functools.cached_property
    def _closing(self) -> list[int]:
        """What the template writes behind a response, up to the token at which the whole is read; maybe nothing."""
        row = tokenize_conversation(self.tokenizer, PROBE, offsets=True)
        response = row.prompt_length + sum(end > start for start, end in row.offsets)
        return row.input_ids[response : self._place(row.input_ids) + 1]

    def score_prefixes(
        self, prompt: Conversation, texts: Sequence[str], finished: Sequence[bool], *, readout: Readout = "place"
    ) -> np.ndarray:
        """Score responses that are still being written: the reward after the last token that each has so far.

        Where the model was trained with shorter conversations, the prompt loses its beginning as in `score`, each time
        what it would lose if the response ended there.

        Args:
            prompt: the conversation before the responses; encoded once where nothing is cut.
            texts: the responses so far; "" has the reward at the end of the prompt.
            finished: whether each is complete; if so its score is that of the whole conversation, as in `score`.
            readout: of those that are not; "closing" reads them as if they ended here, see `token_scores`.

        Returns:
            float32 array of raw rewards. Shape: (N,).
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError("texts must be a list of texts, the responses so far; put a single one in a list")
        if len(finished) != len(texts):
            raise ValueError(f"{len(texts)} texts but {len(finished)} entries of finished; give one for each text")
        template = self.tokenizer.get_chat_template()
        prompt = checked_conversation(prompt, template, "the prompt", reply=False)
        rows = [
            tokenize_so_far(self.tokenizer, prompt, text, finished=whole)
            for text, whole in zip(texts, finished, strict=True)
        ]

        def again(number: int, length: int) -> Tokenized:
            text, whole = texts[number], finished[number]
            return tokenize_so_far(self.tokenizer, prompt, text, finished=whole, max_length=length)

        rows = self._cut_as_trained(rows, again)
        ids, finished = [row.input_ids for row in rows], list(finished)
        if check_readout(readout) == "closing" and not pooling.is_mean(self.model):
            ids = [row if whole else row + self._closing for row, whole in zip(ids, finished, strict=True)]
        places = [self._place(row) if whole else len(row) - 1 for row, whole in zip(ids, finished, strict=True)]
        shared = [min(row.prompt_length, place) for row, place in zip(rows, places, strict=True)]
        return self._scores_at(ids, places, shared)

    def token_rewards(
        self,
        conversation: Conversation,
        *,
        max_length: int | None = None,
        words: bool = False,
        readout: Readout = "place",
    ) -> list[TokenReward]:
        """Return the reward at every token of the last assistant turn; the last one is the score.

        Args:
            conversation: list of {"role", "content"} that ends with an assistant turn.
            max_length: see `score`.
            words: merge the tokens of each word, see `merge_words`.
            readout: "place", the reward where each token stands, or "closing", what it would be if the response ended
                with that token; a model that was trained on whole responses alone says more by the latter.

        Returns:
            one `TokenReward` a token (or word), to the one at which the whole conversation is read (see `RewardModel`);
            what the template writes behind the response has no text. Offsets count characters of the response string.
            Several tokens that make up one character (bytes of an emoji) have the offsets of that character each.
        """
        return self.token_rewards_of([conversation], max_length=max_length, words=words, readout=readout)[0]

    def token_rewards_of(
        self,
        conversations: Sequence[Conversation],
        *,
        batch_size: int | None = None,
        max_length: int | None = None,
        words: bool = False,
        readout: Readout = "place",
    ) -> list[list[TokenReward]]:
        """Return `token_rewards` of many conversations, scored together; arguments as there and in `score`."""
        conversations = checked_conversations(conversations, self.tokenizer.get_chat_template())
        rows = self._tokenized(conversations, max_length, offsets=True)
        starts = [row.prompt_length for row in rows]
        # Nothing behind the token at which a conversation is read has a reward.
        reads = [max(self._place(row.input_ids) + 1, row.prompt_length + 1) for row in rows]
        ids = [row.input_ids[:read] for row, read in zip(rows, reads, strict=True)]
        rewards = self.token_scores(ids, starts, batch_size=batch_size, readout=readout)
        results = []
        for conversation, row, values in zip(conversations, rows, rewards, strict=True):
            response = conversation[-1]["content"]
            read = max(self._place(row.input_ids) + 1 - row.prompt_length, 0)
            tokens = at_offsets(response, row.offsets[:read], values[:read].tolist())
            results.append(merge_words(tokens, response) if words else tokens)
        return results

    def stream(self, prompt: Conversation) -> RewardStream:
        """Follow a response while it is being written; see `RewardStream`.

        Args:
            prompt: the conversation so far, without the response.
        """
        return RewardStream(self.model, self.tokenizer, prompt)

    def save_pretrained(self, path: str | Path, *, adapter_only: bool = False) -> None:
        """Save a plain one-label directory (safetensors, tokenizer, chat template) that other tools load as it is.

        Args:
            path: target directory.
            adapter_only: keep LoRA and head alone (small; loading needs the base model). PEFT models only. What is
                loaded of it does not know to which length `score` should cut: give it `max_length`.

        Raises:
            ValueError: `adapter_only` without an adapter or for a model that averages; a tokenizer that gives other ids
                when it is loaded again.
        """
        model = self.model
        if adapter_only and not isinstance(model, PeftModel):
            raise ValueError("adapter_only=True needs a PEFT model; this one has no adapter, save it whole")
        if adapter_only and pooling.is_mean(model):
            raise ValueError(
                "adapter_only=True saves no configuration, and this model's says that it scores by the mean of its "
                "token rewards; save it whole"
            )
        if isinstance(model, PeftModel) and not adapter_only:
            # A copy is merged: the caller may go on training this one, and merging is not exactly reversible.
            model = copy.deepcopy(model).merge_and_unload()
        if adapter_only:
            model.save_pretrained(str(path))
            save_tokenizer(self.tokenizer, Path(path))
        else:
            save_model(model, self.tokenizer, Path(path))
