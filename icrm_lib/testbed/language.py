"""A generated language of readable English in which everything a reward model estimates is known exactly.

A response is an opener (fixed by the topic of the prompt), a few clauses, a full stop and the closing token:

    An effective way to deal with people who disagree with you is to
      respect their view with Maria in Oslo, then use kind words with Ken in Lima.

Each clause is a three-word phrase of quality q = -1, 0 or +1, then idiosyncratic words (a name, a place) that
have no bearing on q. The gold score is the sum of q over the clauses; the event e ("top score") is gold score
>= threshold. Given the prompt, the probability of every token and the value P(e | prefix) of every prefix are
exact, so r(x, y_1:m) = sum_v P(v | x, y_1:m) r(x, y_1:m v) (ICRM, arXiv 2506.09096, eq. (3) with n = m + 1)
holds to rounding.

It stays exact however words are split into tokens: a response is a chain of *slots* (opener, phrase, name,
place, link). A slot offers *items*: token sequences, each with an outcome (the quality of a phrase; go on or
stop for a link). Inside a slot the belief is the set of items that begin with the tokens seen: a node of a
trie. Between slots it is a *context*: clauses so far, score so far, last quality. Values follow backwards
over contexts.
"""

import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from icrm_lib.testbed.words import (
    CONNECTORS,
    CONTEXTS,
    NAMES,
    OPENERS,
    PHRASE_QUALITY,
    PHRASES,
    PLACES,
    PROMPTS,
    QUALITIES,
    TOPICS,
    WORD_OR_MARK,
    build_tokenizer,
)

ALTERNATIVE_PROBABILITY = 0.15  # of the second form of a phrase's second word; likewise its third
TOPIC_SHARPNESS = 1.2  # standard deviation, over topics, of a verb's log weight
MAX_IDLE_ROUNDS = 100  # of rejection sampling, before preference_pairs gives up
N_OUTCOMES = 3  # of a slot, at most
OPENER, PHRASE, NAME, PLACE, LINK, DONE = range(6)  # the slots
CONTINUE, STOP = 0, 1  # the outcomes of a link
NO_CLAUSE_YET = 3  # as the quality before the first clause; qualities are rows 0, 1, 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Language:
    """A language whose next-token probabilities, gold reward and prefix values are exact.

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
        subword: True cuts longer words into pieces; see `testbed_words.build_tokenizer`.
        held_out_verbs: 0..0.9. Fraction of each class's 40 verbs that this language never uses; never a verb
            that stands in several classes.
        only_held_out_verbs: True gives the complement: a language of the held-out verbs alone.

    Raises:
        ValueError: a knob outside its range.
    """

    seed: int = 0
    idiosyncratic_words: int = 2
    n_idiosyncratic: int = 300
    persistence: float = 0.75
    clauses: tuple[int, int] = (3, 7)
    threshold: int = 3
    preference_noise: float = 1.0
    length_confounding: float = 0.0
    subword: bool = False
    held_out_verbs: float = 0.0
    only_held_out_verbs: bool = False

    def __post_init__(self):
        if isinstance(self.clauses, list):  # as read from YAML or JSON
            object.__setattr__(self, "clauses", tuple(self.clauses))
        _check_knobs(self)

    def config(self) -> dict:
        """The knobs as plain JSON values, for records and cache keys; `Language(**config)` is equal."""
        knobs = {knob.name: type(knob.default)(getattr(self, knob.name)) for knob in dataclasses.fields(self)}
        return {**knobs, "clauses": [int(count) for count in self.clauses]}

    # Prompts

    @property
    def prompts(self) -> list[str]:
        """All 192 prompts (8 topics x 24 contexts), in an order fixed by `seed`."""
        every = list(PROMPTS)
        return [every[i] for i in self._rng("prompts").permutation(len(every))]

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

    # Gold reward and samples

    def gold_score(self, conversation: Sequence[dict]) -> float:
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
        return self._sample(np.full(n, self.topic(prompt)), rng)[0]

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
        topics = np.array([self.topic(prompt) for prompt in prompts])
        rows: list[dict] = []
        idle_rounds = 0
        while len(rows) < n:
            drawn = rng.integers(len(prompts), size=max(64, n - len(rows)))
            kept = list(self._draw_pairs([prompts[i] for i in drawn], topics[drawn], rng))
            rows += kept
            idle_rounds = 0 if kept else idle_rounds + 1
            if idle_rounds == MAX_IDLE_ROUNDS:
                raise ValueError(
                    f"length_confounding {self.length_confounding} with clauses {self.clauses}: must leave "
                    f"pairs to keep, and {idle_rounds} rounds had none; widen clauses or confound less."
                )
        return rows[:n]

    def _draw_pairs(self, prompts: list[str], topics: np.ndarray, rng: np.random.Generator) -> Iterator[dict]:
        """Draw one pair for each prompt and yield those that are kept."""
        (first, first_gold), (second, second_gold) = self._sample(topics, rng), self._sample(topics, rng)
        difference = first_gold - second_gold
        if self.preference_noise > 0:
            first_wins = (1 + np.tanh(difference / self.preference_noise / 2)) / 2  # = sigmoid, overflow-free
        else:
            first_wins = (1 + np.sign(difference)) / 2
        swap = rng.random(len(topics)) >= first_wins
        luck = rng.random(len(topics))
        for i, prompt in enumerate(prompts):
            sides = [(first[i], float(first_gold[i])), (second[i], float(second_gold[i]))]
            (chosen, chosen_score), (rejected, rejected_score) = sides[::-1] if swap[i] else sides
            longer = np.sign(len(WORD_OR_MARK.findall(chosen)) - len(WORD_OR_MARK.findall(rejected)))
            loss = max(0.0, -self.length_confounding * longer) if longer else abs(self.length_confounding)
            if chosen != rejected and luck[i] >= loss:
                row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
                yield {**row, "chosen_score": chosen_score, "rejected_score": rejected_score}

    def _sample(self, topics: np.ndarray, rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
        """Draw a response for each of topics (n,): texts and gold scores (n,).

        It reads no trie, so that it and the exact probabilities can be checked against each other.
        """
        n, most = len(topics), self.clauses[1]
        lengths = rng.integers(self.clauses[0], most + 1, size=n)
        transitions, verbs = np.cumsum(self._quality_probs, axis=1), np.cumsum(self._verb_probs, axis=2)
        # Divided by the last entry, so that rounding cannot leave a sliver to a verb of weight zero.
        transitions, verbs = transitions / transitions[:, -1:], verbs / verbs[..., -1:]
        last = np.full(n, NO_CLAUSE_YET)
        rows = np.empty((n, most), dtype=int)  # of PHRASES: quality + 1
        for k in range(most):
            rows[:, k] = last = (rng.random((n, 1)) >= transitions[last]).sum(axis=1)
        entries = (rng.random((n, most, 1)) >= verbs[topics[:, None], rows]).sum(axis=2)
        second, third = rng.random((2, n, most)) < ALTERNATIVE_PROBABILITY
        phrases = np.array([[entry.texts() for entry in row] for row in PHRASES], dtype=object)
        links, link_probs = zip(*CONNECTORS, strict=True)
        before = np.array(links, dtype=object)[rng.choice(len(links), p=link_probs, size=(n, most))]
        before[:, 0] = " "
        clauses = before + phrases[rows, entries, 2 * second + third]
        # Drawn whether used or not, so that the knob changes nothing else.
        names, places = rng.integers(self.n_idiosyncratic // 2, size=(2, n, most))
        if self.idiosyncratic_words >= 1:
            clauses = clauses + " with " + np.array(NAMES, dtype=object)[names]
        if self.idiosyncratic_words == 2:
            clauses = clauses + " in " + np.array(PLACES, dtype=object)[places]
        drawn = zip(topics, clauses, lengths, strict=True)
        texts = [OPENERS[topic] + "".join(row[:length]) + "." for topic, row, length in drawn]
        gold = np.where(np.arange(most) < lengths[:, None], rows - 1, 0).sum(axis=1)
        return texts, gold.astype(np.float64)

    # Exact probabilities and values

    @cached_property
    def tokenizer(self):
        """The language's `transformers.PreTrainedTokenizerFast`; see `testbed_words.build_tokenizer`."""
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
        return self._walk(token_ids).probs

    def prefix_values(self, token_ids: Sequence[int]) -> np.ndarray:
        """Exact P(top score | prefix) after each token; arguments and errors as in `token_probs`.

        Returns:
            (T,) float64, in [0, 1]; at prompt positions the value of the empty response.
        """
        walk = self._walk(token_ids)
        weights = self._weights(walk)
        values = (weights * self._grammar.values[walk.contexts]).sum(axis=1) / weights.sum(axis=1)
        return np.concatenate([np.full(walk.start, values[0]), values[1:]])

    def prefix_value(self, token_ids: Sequence[int]) -> np.float64:
        """Exact P(top score | prefix); 0 or 1 after the closing token. Arguments: see `token_probs`."""
        return self.prefix_values(token_ids)[-1]

    def next_token_probs(self, token_ids: Sequence[int]) -> np.ndarray:
        """Exact distribution of the next token, (V,) float64 with sum 1.

        Arguments and errors as in `token_probs`; also ValueError if the response has ended.
        """
        walk, grammar = self._walk(token_ids), self._grammar
        node, context = walk.nodes[-1], walk.contexts[-1]
        prior, masses = grammar.priors[context], grammar.masses[walk.topic]
        probs = np.zeros(len(self.tokenizer))
        going_on, outcome = grammar.children[node], grammar.outcomes[node]
        if going_on:  # the item has further tokens
            probs[list(going_on)] = masses[list(going_on.values())] @ prior
        if outcome >= 0:  # the item may be complete; then the next slot begins
            following = grammar.following[context][outcome]
            starts = grammar.children[grammar.roots[grammar.slots[following]]]
            if not starts:
                raise ValueError(f"token_ids of length {len(token_ids)}: must not end with <eos>; leave it out.")
            start_probs = masses[list(starts.values())] @ grammar.priors[following]
            probs[list(starts)] = prior[outcome] * grammar.ended[walk.topic, node] * start_probs
        return probs / (masses[node] @ prior)

    def quality_tokens(self, token_ids: Sequence[int]) -> np.ndarray:
        """Mark the tokens at which a clause's words leave one quality: its verb, or later where it is shared.

        With sub-word tokens it may be a piece of a word. Arguments, errors as in `token_probs`. (T,) bool.
        """
        return self._revealed(token_ids)[0]

    def clause_scores(self, token_ids: Sequence[int]) -> np.ndarray:
        """Gold score so far after each token, a clause counting from its quality token on.

        Arguments and errors as in `token_probs`. Returns (T,) float64; 0 at prompt positions.
        """
        revealed, qualities = self._revealed(token_ids)
        return np.cumsum(np.where(revealed, qualities, 0), dtype=np.float64)

    def _revealed(self, token_ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Which tokens reveal a clause's quality, (T,) bool, and, valid there, the quality, (T,)."""
        walk, grammar = self._walk(token_ids), self._grammar
        possible = grammar.masses[walk.topic, walk.nodes] > 0
        n_possible = possible.sum(axis=1)
        opens_slot = walk.contexts[1:] != walk.contexts[:-1]
        n_before = np.where(opens_slot, len(QUALITIES), n_possible[:-1])
        in_phrase = np.array(grammar.slots)[walk.contexts[1:]] == PHRASE
        revealed = in_phrase & (n_possible[1:] == 1) & (n_before > 1)
        qualities = possible[1:].argmax(axis=1) - 1
        prompt = np.zeros(walk.start, dtype=int)
        return np.concatenate([prompt > 0, revealed]), np.concatenate([prompt, qualities])

    def _walk(self, token_ids: Sequence[int]) -> "Walk":
        """Follow a response through the grammar, with the probability of every token on the way."""
        ids = _as_ids(token_ids)
        start = ids.index(self._assistant_id) + 1 if self._assistant_id in ids else len(ids)
        topic = self._topic_of_ids.get(tuple(ids[:start]))
        if topic is None:
            raise ValueError(
                f"token_ids {self.tokenizer.decode(ids[:start])!r}: must begin with a prompt of this "
                "language; render it with the tokenizer's chat template and add_generation_prompt=True."
            )
        grammar = self._grammar
        nodes, contexts = [grammar.opener_roots[topic]], [grammar.first_context]
        for token in ids[start:]:
            node, context = nodes[-1], contexts[-1]
            child, outcome = grammar.children[node].get(token), grammar.outcomes[node]
            if child is None and outcome >= 0:  # the item is complete: on to the next slot
                context = grammar.following[context][outcome]
                child = grammar.children[grammar.roots[grammar.slots[context]]].get(token)
            if child is None:
                break
            nodes.append(child)
            contexts.append(context)
        walk = Walk(topic, start, np.array(nodes), np.array(contexts))
        probs = self._response_probs(walk)
        impossible = np.flatnonzero(~(probs > 0))
        position = start + int(impossible[0] if len(impossible) else len(probs))
        if position < len(ids):
            raise ValueError(
                f"token {self.tokenizer.convert_ids_to_tokens(ids[position])!r} at position {position}: must "
                f"be possible, but has probability zero after {self.tokenizer.decode(ids[start:position])!r}"
                "; cut the response before it, or pass one of this language."
            )
        return walk._replace(probs=np.concatenate([np.ones(start), probs]))

    def _response_probs(self, walk: "Walk") -> np.ndarray:
        """Probability of each response token; 0 or nan at the first impossible one, anything after it."""
        grammar, node, context = self._grammar, walk.nodes[:-1], walk.contexts[:-1]
        totals = self._weights(walk).sum(axis=1)
        # A token that opens a slot also says that the item before it was complete. A slot's root weighs 1.
        complete = grammar.priors[context, np.maximum(grammar.outcome_array[node], 0)] * grammar.ended[walk.topic, node]
        opens_slot = walk.contexts[1:] != context
        with np.errstate(divide="ignore", invalid="ignore"):
            return totals[1:] / totals[:-1] * np.where(opens_slot, complete, 1.0)

    def _weights(self, walk: "Walk") -> np.ndarray:
        """P(outcome, the slot's tokens so far | context) after each response token, (T - start + 1, 3)."""
        return self._grammar.masses[walk.topic, walk.nodes] * self._grammar.priors[walk.contexts]

    # Tables, built once

    def _rng(self, purpose: str) -> np.random.Generator:
        """A stream of its own for each purpose, so that knobs do not disturb each other."""
        return np.random.default_rng([self.seed, ("prompts", "verbs", "held out").index(purpose)])

    @cached_property
    def _quality_probs(self) -> np.ndarray:
        """(4, 3): P(quality of a clause | that of the last), rows -1, 0, +1 and NO_CLAUSE_YET."""
        other = (1 - self.persistence) / 2
        return np.vstack([np.where(np.eye(3) > 0, self.persistence, other), np.full(3, 1 / 3)])

    @cached_property
    def _verb_probs(self) -> np.ndarray:
        """(topics, 3, 40): P(entry of PHRASES | topic, quality)."""
        weights = np.exp(TOPIC_SHARPNESS * self._rng("verbs").normal(size=(len(TOPICS), 3, len(PHRASES[0]))))
        rng = self._rng("held out")
        every_verb = [entry.verb for row in PHRASES for entry in row]
        for row, entries in enumerate(PHRASES):
            # A shared verb could be unseen in one class and seen in another.
            eligible = [i for i, entry in enumerate(entries) if every_verb.count(entry.verb) == 1]
            n_held_out = round(self.held_out_verbs * len(entries))
            held_out = np.isin(np.arange(len(entries)), rng.permutation(eligible)[:n_held_out])
            weights[:, row, held_out != self.only_held_out_verbs] = 0
        return weights / weights.sum(axis=2, keepdims=True)

    @cached_property
    def _assistant_id(self) -> int:
        return self.tokenizer.convert_tokens_to_ids("<assistant>")

    @cached_property
    def _topic_of_ids(self) -> dict[tuple[int, ...], int]:
        """Topic by the token ids of the rendered prompt."""
        chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
        rendered = self.tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=False)
        return {tuple(ids): topic for ids, topic in zip(rendered, PROMPTS.values(), strict=True)}

    @cached_property
    def _grammar(self) -> "Grammar":
        grammar = Grammar()
        self._add_items(grammar)
        grammar.first_context = self._add_context(grammar, {}, (OPENER, 0, 0, NO_CLAUSE_YET))
        grammar.finish()
        return grammar

    def _add_items(self, grammar: "Grammar") -> None:
        """Put every slot's items into the trie, each with P(item | outcome), for all topics at once."""

        def add(root: int, text: str, outcome: int, prob) -> None:
            grammar.add_item(root, self.tokenizer.encode(text, add_special_tokens=False), outcome, prob)

        for opener in OPENERS:
            grammar.opener_roots.append(grammar.add_node())
            add(grammar.opener_roots[-1], opener, 0, 1.0)
        forms = np.array([1 - ALTERNATIVE_PROBABILITY, ALTERNATIVE_PROBABILITY])
        for row, entries in enumerate(PHRASES):
            for i, entry in enumerate(entries):
                for text, prob in zip(entry.texts(), np.outer(forms, forms).flat, strict=True):
                    add(grammar.roots[PHRASE], text, row, self._verb_probs[:, row, i] * prob)
        each = self.n_idiosyncratic // 2
        for name, place in zip(NAMES[:each], PLACES[:each], strict=True):
            add(grammar.roots[NAME], f"with {name}", 0, 1 / each)
            add(grammar.roots[PLACE], f"in {place}", 0, 1 / each)
        for connector, prob in CONNECTORS:
            add(grammar.roots[LINK], connector, CONTINUE, prob)
        add(grammar.roots[LINK], "." + self.tokenizer.eos_token, STOP, 1.0)

    def _add_context(self, grammar: "Grammar", known: dict, context: tuple[int, int, int, int]) -> int:
        """Number the context (slot, clauses so far, score so far, row of the last quality) and all after it.

        The value of an outcome is that of the context it leads to: a backward recursion, P(e | context) = sum
        over outcomes of P(outcome | context) P(e | next context).
        """
        if context not in known:
            prior, steps = self._steps(*context)
            following = [self._add_context(grammar, known, step) for step in steps]
            is_top = float(context[2] >= self.threshold)
            values = [grammar.context_value(step) for step in following] or [is_top]
            known[context] = grammar.add_context(context[0], prior, values, following)
        return known[context]

    def _steps(self, slot: int, clauses: int, score: int, last: int) -> tuple[Sequence[float], list[tuple]]:
        """The chain of slots: probability of each outcome in a context, and the context each leads to."""
        if slot == OPENER:
            return [1.0], [(PHRASE, 0, 0, last)]
        if slot == PHRASE:
            after = NAME if self.idiosyncratic_words >= 1 else LINK
            return self._quality_probs[last], [(after, clauses + 1, score + q, q + 1) for q in QUALITIES]
        if slot == NAME:
            return [1.0], [(PLACE if self.idiosyncratic_words == 2 else LINK, clauses, score, last)]
        if slot == PLACE:
            return [1.0], [(LINK, clauses, score, last)]
        if slot == LINK:
            fewest, most = self.clauses
            # Uniform number of clauses: of those numbers still open, the present one is as likely as any.
            stop = 1 / (most - clauses + 1) if clauses >= fewest else 0.0
            end = (DONE, clauses, score, last)
            return [1 - stop, stop], [(PHRASE, clauses, score, last) if clauses < most else end, end]
        return [1.0], []


class Walk(NamedTuple):
    """A response's way through the grammar; nodes and contexts begin with those of the empty response."""

    topic: int
    start: int  # index of the first response token
    nodes: np.ndarray  # (T - start + 1,)
    contexts: np.ndarray  # (T - start + 1,)
    probs: np.ndarray | None = None  # (T,)


class Grammar:
    """Trie nodes of all slots, and the contexts between slots, as flat tables.

    Attributes (N nodes, C contexts; outcomes padded to 3):
        children: N dictionaries {token: node}.
        outcomes, outcome_array: N integers: outcome of the item that is complete at the node, -1 for none.
        masses: (topics, N, 3): probability, given the outcome, of the items that pass through the node.
        ended: (topics, N): probability, given its outcome, of the item that is complete at the node.
        roots, opener_roots: root node of each slot; of each topic's opener.
        slots: C slots.
        priors: (C, 3): probability of each outcome in a context.
        values: (C, 3): P(top score | context, outcome).
        following: C lists of the next context by outcome.
    """

    def __init__(self):
        self.children: list[dict[int, int]] = []
        self.outcomes: list[int] = []
        self.masses: list | np.ndarray = []
        self.ended: list | np.ndarray = []
        self.slots: list[int] = []
        self.priors: list | np.ndarray = []
        self.values: list | np.ndarray = []
        self.following: list[list[int]] = []
        self.first_context = 0
        self.opener_roots: list[int] = []
        self.roots = [self.add_node() for _ in range(DONE + 1)]

    def add_node(self) -> int:
        """Add a node without items; returns its number."""
        self.children.append({})
        self.outcomes.append(-1)
        self.masses.append(np.zeros((len(TOPICS), N_OUTCOMES)))
        self.ended.append(np.zeros(len(TOPICS)))
        return len(self.children) - 1

    def add_item(self, root: int, tokens: list[int], outcome: int, prob: float | np.ndarray) -> None:
        """Add a token sequence below root; prob, a number or (topics,), is P(item | outcome)."""
        node = root
        self.masses[node][:, outcome] += prob
        for token in tokens:
            if token not in self.children[node]:
                self.children[node][token] = self.add_node()
            node = self.children[node][token]
            self.masses[node][:, outcome] += prob
        if self.outcomes[node] >= 0:
            raise ValueError(f"tokens {tokens}: must be one item of a slot, not two; change a word list.")
        self.outcomes[node] = outcome
        self.ended[node] += prob

    def add_context(self, slot: int, prior: Sequence[float], values: list[float], following: list[int]) -> int:
        """Add a context; returns its number."""
        padding = [0.0] * (N_OUTCOMES - len(prior))
        self.slots.append(slot)
        self.priors.append([*prior, *padding])
        self.values.append([*values, *padding])
        self.following.append(following)
        return len(self.slots) - 1

    def context_value(self, context: int) -> float:
        """P(top score | context)."""
        return float(np.dot(self.priors[context], self.values[context]))

    def finish(self) -> None:
        """Turn lists into arrays, and check that a token never both goes on with an item and opens a slot."""
        self.masses, self.ended = np.stack(self.masses, axis=1), np.stack(self.ended, axis=1)
        self.priors, self.values = np.array(self.priors), np.array(self.values)
        self.outcome_array = np.array(self.outcomes)
        starts = {token for root in self.roots for token in self.children[root]}
        for children, outcome in zip(self.children, self.outcomes, strict=True):
            if outcome >= 0 and not starts.isdisjoint(children):
                both = sorted(starts.intersection(children))
                raise ValueError(f"tokens {both}: must not both extend an item and open a slot; change a word list.")


def _as_ids(token_ids: Sequence[int]) -> list[int]:
    ids = np.asarray(token_ids)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        kind = f"shape {ids.shape} and type {ids.dtype}"
        raise ValueError(f"token_ids of {kind}: must be one-dimensional integers; pass one sequence at a time.")
    return ids.tolist()


def _check_knobs(k: Language) -> None:
    """Raise ValueError for the first knob outside its range."""

    def number(value, low: float, high: float, kinds=(int, float, np.integer, np.floating)) -> bool:
        return isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high

    def integer(value, low: float = -np.inf, high: float = np.inf) -> bool:
        return number(value, low, high, kinds=(int, np.integer))

    is_range = isinstance(k.clauses, tuple) and len(k.clauses) == 2 and all(integer(c, 1, 40) for c in k.clauses)
    only = k.only_held_out_verbs
    rules = {
        "seed": (integer(k.seed, 0), "an integer >= 0; use 0, 1, ..."),
        "idiosyncratic_words": (
            integer(k.idiosyncratic_words, 0, 2),
            "0, 1 or 2; use 2 for a name and a place",
        ),
        "n_idiosyncratic": (
            integer(k.n_idiosyncratic, 2, 300) and k.n_idiosyncratic % 2 == 0,
            "an even integer in 2..300, half of them names and half places; use 300",
        ),
        "persistence": (number(k.persistence, 0, 1), "in 0..1; use 1/3 for independent clauses"),
        "clauses": (
            is_range and k.clauses[0] <= k.clauses[1],
            "integers (fewest, most) with 1 <= fewest <= most <= 40; use (3, 7)",
        ),
        "threshold": (integer(k.threshold), "an integer; use 3"),
        "preference_noise": (
            number(k.preference_noise, 0, 1e300),
            "finite and >= 0; use 0 for noiseless labels",
        ),
        "length_confounding": (number(k.length_confounding, -1, 1), "in -1..1; use 0 for none"),
        "subword": (isinstance(k.subword, bool), "True or False; use False for one token a word"),
        "held_out_verbs": (number(k.held_out_verbs, 0, 0.9), "in 0..0.9; use 0 for all verbs"),
        "only_held_out_verbs": (
            isinstance(only, bool) and (not only or round(k.held_out_verbs * len(PHRASES[0])) > 0),
            "True or False, True only where verbs are held out; set held_out_verbs, for instance to 0.25",
        ),
    }
    for name, (valid, rule) in rules.items():
        if not valid:
            raise ValueError(f"{name} {getattr(k, name)!r}: must be {rule}.")
