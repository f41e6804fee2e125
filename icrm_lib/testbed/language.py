"""A generated language of readable English in which everything a reward model estimates is known exactly.

A response is an opener (fixed by the topic of the prompt), a few clauses, a full stop and the closing token:

    An effective way to deal with people who disagree with you is to
      respect their view with Maria in Oslo, then use kind words with Ken in Lima.

Each clause is a three-word phrase of quality q = -1, 0 or +1, then idiosyncratic words (a name, a place) that
have no bearing on q. The gold score is the sum of q over the clauses; the event e ("top score") is gold score
>= threshold. Given the prompt, the probability of every token and the value P(e | prefix) of every prefix are
exact, so r(x, y_1:m) = sum_v P(v | x, y_1:m) r(x, y_1:m v) (ICRM, arXiv 2506.09096, eq. (3) with n = m + 1)
holds to rounding. How: see `grammar`.
"""

import dataclasses
import difflib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from icrm_lib.profiles import LanguageSettings
from icrm_lib.testbed.draws import Chances, draw_pairs, held_out_count, quality_probs, stream, verb_probs
from icrm_lib.testbed.grammar import Grammar, Walk, build_grammar, follow
from icrm_lib.testbed.words import (
    CONTEXTS,
    PHRASE_QUALITY,
    PHRASES,
    PROMPTS,
    TOPICS,
    WORD_OR_MARK,
    build_tokenizer,
)
from icrm_lib.tokenization import Conversation

MAX_IDLE_ROUNDS = 100  # of rejection sampling, before preference_pairs gives up


@dataclasses.dataclass(frozen=True, kw_only=True)
class Language(LanguageSettings):
    """A language whose next-token probabilities, gold reward and prefix values are exact.

    It is its own settings: those that a profile can set, and three more.

    `dataclasses.replace(language, ...)` gives a related language; only `subword` changes the vocabulary.

    Args:
        seed: >= 0. Fixes each topic's taste in verbs, the order and splits of prompts, the held-out verbs.
        idiosyncratic_words: 0, 1 ("with NAME") or 2 ("with NAME in PLACE") a clause.
        n_idiosyncratic: even, 2..300. Half are names and half are places, all equally probable.
        persistence: 0..1. Probability that a clause has the last one's quality; the other two share the rest.
        clauses: (fewest, most), 1 <= fewest <= most <= 40; the number of clauses is uniform in this range.
        threshold: integer. The event "top score" is gold score >= threshold.
        preference_noise: >= 0. Temperature of the Bradley-Terry label; 0 is noiseless, ties broken evenly.
        length_confounding: -1..1, for `preference_pairs`: +1 keeps only pairs whose chosen response is the
            longer, -1 only pairs whose chosen response is the shorter; between, other pairs are thinned out.
        subword: True cuts longer words into pieces; see `words.build_tokenizer`.
        held_out_verbs: 0..0.9. Fraction of the `verbs_per_class` that this language never uses; never a verb
            that stands in several classes, and always fewer than all.
        verbs_per_class: 1..40. Verbs of each quality, the first ones of the lists in `words`; what the classes share
            there ("use", "make", "tell", "send") they share here as far as it is among them.
        coupling: kappa, in -1..1 without the ends. A topic's weights of the good verbs are raised to the power
            1 + kappa, of the bad ones to 1 - kappa: above 0, good clauses have likelier verbs than bad ones.
        alternative_probability: 0..1. Probability of the second form of a phrase's second word; likewise its third.
        linking_words: False leaves out "with" and "in", which are certain where they stand: "NAME PLACE".
        only_held_out_verbs: True gives the complement: a language of the held-out verbs alone.

    Raises:
        ValueError: a knob outside its range.
    """

    n_idiosyncratic: int = 300
    clauses: tuple[int, int] = (3, 7)
    only_held_out_verbs: bool = False

    def __post_init__(self):
        if isinstance(self.clauses, list):  # as read from YAML or JSON
            object.__setattr__(self, "clauses", tuple(self.clauses))
        for name, (valid, rule) in _knob_rules(self).items():
            if not valid:
                raise ValueError(f"{name} {getattr(self, name)!r}: must be {rule}.")

    def config(self) -> dict:
        """The knobs as plain JSON values, for records and cache keys; `Language(**config)` is equal."""
        knobs = {knob.name: type(knob.default)(getattr(self, knob.name)) for knob in dataclasses.fields(self)}
        return {**knobs, "clauses": [int(count) for count in self.clauses]}

    @property
    def prompts(self) -> list[str]:
        """All 192 prompts (8 topics x 24 contexts), in an order fixed by `seed`."""
        every = list(PROMPTS)
        return [every[i] for i in stream(self.seed, "prompts").permutation(len(every))]

    def topic(self, prompt: str) -> int:
        """Topic of a prompt, 0..7. Raises ValueError if the prompt is not one of `prompts`."""
        if prompt not in PROMPTS:
            near = difflib.get_close_matches(str(prompt), PROMPTS, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else "take one from `language.prompts`."
            raise ValueError(f"prompt {prompt!r}: must be one of the language's prompts; {remedy}")
        return PROMPTS[prompt]

    def split_prompts(self, fractions: Sequence[float] = (0.7, 0.15, 0.15)) -> tuple[list[str], ...]:
        """Split the prompts into disjoint lists, each with the same number of prompts of every topic.

        Args:
            fractions: one a list, each >= 0, with sum 1. The running total of 24 prompts a topic is rounded.
        """
        if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9:
            raise ValueError(f"fractions {fractions!r}: must be >= 0 with sum 1; use for instance (0.8, 0.2).")
        edges = [0, *(round(float(total) * len(CONTEXTS)) for total in np.cumsum(fractions))]
        splits: tuple[list[str], ...] = tuple([] for _ in fractions)
        prompts = self.prompts
        for topic in range(len(TOPICS)):
            own = [prompt for prompt in prompts if PROMPTS[prompt] == topic]
            for split, start, stop in zip(splits, edges[:-1], edges[1:], strict=True):
                split.extend(own[start:stop])
        return splits

    def gold_score(self, conversation: Conversation) -> float:
        """Sum of the qualities of the phrases found in the last assistant message, grammatical or not.

        Args:
            conversation: messages {"role", "content"}, as in `transformers` chat templates.

        Raises:
            ValueError: no assistant message.
        """
        replies = [message["content"] for message in conversation if message["role"] == "assistant"]
        if not replies:
            roles = [message["role"] for message in conversation]
            raise ValueError(f"conversation with roles {roles}: must hold a reply; append the assistant's.")
        found = WORD_OR_MARK.findall(replies[-1])
        score, i = 0, 0
        while i < len(found):
            quality = PHRASE_QUALITY.get(tuple(found[i : i + 3]))
            score += quality or 0
            i += 1 if quality is None else 3  # a word counts in one phrase only
        return float(score)

    def sample_responses(self, prompt: str, n: int, rng: np.random.Generator) -> list[str]:
        """Draw n independent responses to a prompt. Raises ValueError for an unknown prompt."""
        return self._chances.draw(np.full(n, self.topic(prompt)), rng)[0]

    def preference_pairs(
        self, n: int, rng: np.random.Generator, *, prompts: Sequence[str] | None = None
    ) -> list[dict[str, str | float]]:
        """Draw n pairs of different responses, with noisy Bradley-Terry labels on the gold score.

        P(a is chosen over b) = sigmoid((gold(a) - gold(b)) / preference_noise). With length_confounding c, a
        drawn pair is kept with probability 1 - max(0, -c s), s = sign(words of chosen - words of rejected),
        and with probability 1 - |c| where the lengths are equal.

        Args:
            n: number of pairs.
            rng: source of randomness.
            prompts: drawn from evenly; default all prompts.

        Returns:
            Rows {"prompt", "chosen", "rejected", "chosen_score", "rejected_score"}; scores are gold.

        Raises:
            ValueError: no prompt, an unknown prompt, or a language in which (almost) no pair can be kept.
        """
        prompts = self.prompts if prompts is None else list(prompts)
        if not prompts:
            raise ValueError("prompts []: must hold at least one prompt; leave it out to use all of them.")
        for prompt in prompts:
            self.topic(prompt)  # refuses an unknown one
        labels = {"noise": self.preference_noise, "confounding": self.length_confounding}
        rows: list[dict] = []
        idle_rounds = 0
        while len(rows) < n:
            drawn = rng.integers(len(prompts), size=max(64, n - len(rows)))
            kept = list(draw_pairs(self._chances, [prompts[i] for i in drawn], rng, **labels))
            rows += kept
            idle_rounds = 0 if kept else idle_rounds + 1
            if idle_rounds == MAX_IDLE_ROUNDS:
                raise ValueError(
                    f"length_confounding {self.length_confounding} with clauses {self.clauses}: must leave "
                    f"pairs to keep, and {idle_rounds} rounds had none; widen clauses or confound less."
                )
        return rows[:n]

    @cached_property
    def tokenizer(self):
        """The language's `transformers.PreTrainedTokenizerFast`; see `words.build_tokenizer`."""
        return build_tokenizer(self.subword)

    def token_probs(self, token_ids: Sequence[int]) -> np.ndarray:
        """Exact probability of each token given those before it.

        Args:
            token_ids: (T,) integers: the prompt rendered with `add_generation_prompt=True`, then the tokens
                of a response, whole (with the closing token) or in part.

        Returns:
            (T,) float64, in (0, 1]; 1 at prompt positions.

        Raises:
            ValueError: not one-dimensional integers, an unknown prompt, or a prefix of probability zero.
        """
        start, walk = self.walk(token_ids)
        return np.concatenate([np.ones(start), walk.probs()])

    def prefix_values(self, token_ids: Sequence[int]) -> np.ndarray:
        """Exact P(top score | prefix) after each token; arguments and errors as in `token_probs`.

        Returns:
            (T,) float64, in [0, 1]; at prompt positions the value of the empty response.
        """
        start, walk = self.walk(token_ids)
        values = walk.values()
        return np.concatenate([np.full(start, values[0]), values[1:]])

    def expected_scores(self, token_ids: Sequence[int]) -> np.ndarray:
        """Exact E[gold score | prefix] after each token; arguments and errors as in `token_probs`.

        Returns:
            (T,) float64; at prompt positions that of the empty response, after the closing token the gold score.
        """
        start, walk = self.walk(token_ids)
        scores = walk.scores()
        return np.concatenate([np.full(start, scores[0]), scores[1:]])

    def prefix_value(self, token_ids: Sequence[int]) -> np.float64:
        """Exact P(top score | prefix); 0 or 1 after the closing token. Arguments: see `token_probs`."""
        return self.prefix_values(token_ids)[-1]

    def next_token_probs(self, token_ids: Sequence[int]) -> np.ndarray:
        """Exact distribution of the next token, (V,) float64 with sum 1.

        Arguments and errors as in `token_probs`; also ValueError if the response has ended.
        """
        probs = self.walk(token_ids)[1].next_probs(len(self.tokenizer))
        if probs is None:
            raise ValueError(f"token_ids of length {len(token_ids)}: must not end with <eos>; leave it out.")
        return probs

    def quality_tokens(self, token_ids: Sequence[int]) -> np.ndarray:
        """Mark the tokens at which a clause's words leave one quality: its verb, or later where it is shared.

        With sub-word tokens it may be a piece of a word. Arguments, errors as in `token_probs`. (T,) bool.
        """
        start, walk = self.walk(token_ids)
        return np.concatenate([np.zeros(start, dtype=bool), walk.revealed()[0]])

    def walk(self, token_ids: Sequence[int]) -> tuple[int, Walk]:
        """Return the index of the first response token, and the response's way through the grammar.

        Arguments and errors as in `token_probs`.
        """
        ids, assistant = _as_ids(token_ids), self.tokenizer.convert_tokens_to_ids("<assistant>")
        start = ids.index(assistant) + 1 if assistant in ids else len(ids)
        topic = self._topic_of_ids.get(tuple(ids[:start]))
        if topic is None:
            raise ValueError(
                f"token_ids {self.tokenizer.decode(ids[:start])!r}: must begin with a prompt of this "
                "language; render it with the tokenizer's chat template and add_generation_prompt=True."
            )
        walk = follow(self._grammar, topic, ids[start:])
        probs = walk.probs()
        impossible = np.flatnonzero(~(probs > 0))
        position = start + int(impossible[0] if len(impossible) else len(probs))
        if position < len(ids):
            raise ValueError(
                f"token {self.tokenizer.convert_ids_to_tokens(ids[position])!r} at position {position}: must "
                f"be possible, but has probability zero after {self.tokenizer.decode(ids[start:position])!r}"
                "; cut the response before it, or pass one of this language."
            )
        return start, walk

    @cached_property
    def _chances(self) -> Chances:
        held_out = (self.held_out_verbs, self.only_held_out_verbs)
        return Chances(
            qualities=quality_probs(self.persistence),
            verbs=verb_probs(self.seed, self.verbs_per_class, self.coupling, *held_out),
            clauses=self.clauses,
            idiosyncratic_words=self.idiosyncratic_words,
            names=self.n_idiosyncratic // 2,
            alternative_probability=self.alternative_probability,
            links=("with ", "in ") if self.linking_words else ("", ""),
        )

    @cached_property
    def _grammar(self) -> Grammar:
        return build_grammar(self._chances, self.threshold, self.tokenizer.encode, self.tokenizer.eos_token)

    @cached_property
    def _topic_of_ids(self) -> dict[tuple[int, ...], int]:
        """Topic by the token ids of the rendered prompt."""
        chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
        rendered = self.tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=False)
        return {tuple(ids): topic for ids, topic in zip(rendered, PROMPTS.values(), strict=True)}


def _as_ids(token_ids: Sequence[int]) -> list[int]:
    ids = np.asarray(token_ids)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        kind = f"shape {ids.shape} and type {ids.dtype}"
        raise ValueError(f"token_ids of {kind}: must be one-dimensional integers; pass one sequence at a time.")
    return ids.tolist()


def _knob_rules(knobs: Language) -> dict[str, tuple[bool, str]]:
    """For each knob whether it is in its range, and the range in words."""
    clauses, names = knobs.clauses, knobs.n_idiosyncratic
    is_range = isinstance(clauses, tuple) and len(clauses) == 2 and all(_integer(c, 1, 40) for c in clauses)
    is_flag, is_number = isinstance(knobs.only_held_out_verbs, bool), _number(knobs.held_out_verbs, 0, 0.9)
    most = len(PHRASES[0])
    verbs = knobs.verbs_per_class if _integer(knobs.verbs_per_class, 1, most) else most
    held_out = held_out_count(knobs.held_out_verbs, verbs) if is_number else 0
    return {
        "seed": (_integer(knobs.seed, 0), "an integer >= 0; use 0, 1, ..."),
        "idiosyncratic_words": (_integer(knobs.idiosyncratic_words, 0, 2), "0, 1 or 2; use 2 for a name and a place"),
        "n_idiosyncratic": (
            _integer(names, 2, 300) and names % 2 == 0,
            "an even integer in 2..300, half of them names and half places; use 300",
        ),
        "persistence": (_number(knobs.persistence, 0, 1), "in 0..1; use 1/3 for independent clauses"),
        "clauses": (
            is_range and clauses[0] <= clauses[1],
            "integers (fewest, most) with 1 <= fewest <= most <= 40; use (3, 7)",
        ),
        "threshold": (_integer(knobs.threshold), "an integer; use 3"),
        "preference_noise": (_number(knobs.preference_noise, 0, 1e300), "finite and >= 0; use 0 for noiseless labels"),
        "length_confounding": (_number(knobs.length_confounding, -1, 1), "in -1..1; use 0 for none"),
        "subword": (isinstance(knobs.subword, bool), "True or False; use False for one token a word"),
        "verbs_per_class": (_integer(knobs.verbs_per_class, 1, most), f"an integer in 1..{most}; use {most} for all"),
        "coupling": (
            _number(knobs.coupling, -1, 1) and abs(knobs.coupling) < 1,
            "above -1 and below 1; use 0 for verbs as likely in good clauses as in bad ones",
        ),
        "alternative_probability": (
            _number(knobs.alternative_probability, 0, 1),
            "in 0..1; use 0.15, or 0.5 for forms that are equally probable",
        ),
        "linking_words": (isinstance(knobs.linking_words, bool), 'True or False; use True for "with" and "in"'),
        "held_out_verbs": (
            is_number and held_out < verbs,
            f"in 0..0.9 and leave some of the {verbs} verbs of a class; use 0 for all verbs",
        ),
        "only_held_out_verbs": (
            is_flag and (not knobs.only_held_out_verbs or held_out > 0),
            "True or False, True only where verbs are held out; set held_out_verbs, for instance to 0.25",
        ),
    }


def _integer(value: Any, low: float = -np.inf, high: float = np.inf) -> bool:
    return isinstance(value, int | np.integer) and _number(value, low, high)


def _number(value: Any, low: float, high: float) -> bool:
    kinds = int | float | np.integer | np.floating
    return isinstance(value, kinds) and not isinstance(value, bool) and bool(low <= value <= high)
