"""Token log-probabilities against plain transformers, the fit, and a cache that is never stale, cut or damaged."""

import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from icrm_lib import generator, records
from icrm_lib.generator import SIBLINGS, Siblings, ask, cache, cached_logprobs, model_scorer, token_logprobs
from icrm_lib.generator.ask import MOST_SIBLINGS
from icrm_lib.generator.cache import CACHE_FILE, CACHE_TYPES
from icrm_lib.language_model.causal import load_causal_lm, padded, refuse_transformed_logits
from icrm_lib.profiles import GeneratorSettings


@pytest.fixture(scope="module")
def model(base_model):
    return load_causal_lm(base_model, device="cpu")


def plain_logprobs(model, ids, temperature=1.0):
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].double() / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_token_logprobs_equal_the_full_softmax(model, pairs, temperature):
    rows = [*pairs["chosen_ids"][:3], *pairs["rejected_ids"][:3]]
    batch = padded(rows, 0)
    got = token_logprobs(model, batch, temperature=temperature)
    assert got.shape == batch["input_ids"].shape and got.dtype == torch.float32
    for row, ids in enumerate(rows):
        want = plain_logprobs(model, ids, temperature)
        torch.testing.assert_close(got[row, 1 : len(ids)].double(), want, rtol=1e-4, atol=1e-5)
        assert got[row, 0] == 0 and (got[row, len(ids) :] == 0).all()


@pytest.mark.parametrize(
    ("family", "transform", "larger"),
    [
        ("Gemma2", {"final_logit_softcapping": 0.5, "head_dim": 8}, 50),
        ("Granite", {"logits_scaling": 8.0}, 20),
        ("Cohere", {"logit_scale": 0.0625}, 20),
    ],
)
def test_logits_are_capped_and_scaled_as_the_architecture_does(family, transform, larger):
    size = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    size |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**size, **transform)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(larger)
    ids = torch.randint(3, 60, (12,)).tolist()
    got = token_logprobs(model, padded([ids], 0))[0, 1:]
    torch.testing.assert_close(got.double(), plain_logprobs(model, ids), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="logit"):
        refuse_transformed_logits(model.config)


def naive_statistic(model, ids, statistic, temperature=1.0):
    """The statistic of the distribution before every token but the first, in float64."""
    with torch.no_grad():
        p = (model(torch.tensor([ids])).logits[0, :-1].double() / temperature).softmax(-1)
    if statistic == "negentropies":
        return (p * p.log()).sum(-1)
    first, second = p.sort(descending=True).values[:, :2].unbind(1)
    return (first - second).log()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("statistic", ["negentropies", "logmargins"])
def test_other_statistics_equal_those_of_the_full_softmax(model, pairs, statistic, temperature, monkeypatch):
    monkeypatch.setattr(ask, "ROWS_PER_CHUNK", 50)
    rows = list(zip(pairs["chosen_ids"][:4], pairs["prompt_length"], strict=False))
    options = {"statistic": statistic, "temperature": temperature}
    for (ids, start), got in zip(rows, model_scorer(model, 0, **options)(rows), strict=True):
        want = naive_statistic(model, ids, **options)[start - 1 :].numpy()
        assert got.dtype == np.float32 and got.shape == want.shape and (got < 0).all()
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)


def test_padding_has_no_statistic(model):
    batch = padded([[1, 5, 6, 7], [1, 5]], 0)
    for statistic in generator.STATISTICS:
        got = token_logprobs(model, batch, statistic=statistic)
        assert ((got != 0) == torch.tensor([[0, 1, 1, 1], [0, 1, 0, 0]]).bool()).all()


def test_two_equally_probable_tokens_have_a_margin_of_zero_and_a_finite_logarithm(base_model, pairs, tmp_path):
    """Infinite values would turn 0 * -inf into nan downstream."""
    model = load_causal_lm(base_model, device="cpu")
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    scorer = model_scorer(model, 0, statistic="logmargins")
    few = pairs.select(range(2))
    rows = cached_logprobs(few, lambda: scorer, tmp_path, {}, statistic="logmargins")
    values = np.array([v for row in rows["chosen_logmargins"] for v in row], dtype=np.float32)
    assert np.isfinite(values).all() and (np.exp(values) == 0).all()
    entropy = model_scorer(model, 0, statistic="negentropies")([(few["chosen_ids"][0], 1)])[0]
    np.testing.assert_allclose(entropy, -np.log(model.config.vocab_size), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"statistic": "entropy"}, "unknown statistic 'entropy'; choose one of logprobs, negentropies"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_what_cannot_be_asked_is_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        token_logprobs(model, padded([[1, 1]], 0), **options)


def counting(scorer):
    calls = []

    def make():
        calls.append(1)
        return scorer

    return make, calls


def test_cache_holds_the_response_tokens_and_is_computed_once(model, pairs, tmp_path):
    make, calls = counting(model_scorer(model, 0, tokens_per_batch=300))
    key = {"generator": "a"}
    first = cached_logprobs(pairs, make, tmp_path / "cache", key)
    again = cached_logprobs(pairs, make, tmp_path / "cache", key)
    assert len(calls) == 1
    for row in range(0, len(pairs), 7):
        start = pairs[row]["prompt_length"]
        for side in ("chosen", "rejected"):
            want = plain_logprobs(model, pairs[row][f"{side}_ids"]).numpy()[start - 1 :]
            np.testing.assert_allclose(first[row][f"{side}_logprobs"], want, rtol=1e-4, atol=1e-5)
            assert first[row][f"{side}_logprobs"] == again[row][f"{side}_logprobs"]
    # memory-mapped: the file itself backs the columns
    assert any("logprobs.arrow" in file["filename"] for file in first.cache_files)


def test_statistics_of_one_data_set_lie_side_by_side(model, pairs, tmp_path):
    key, rows, all_calls = {"generator": "a"}, pairs, []
    for again in (False, True):
        for statistic in ("logprobs", "negentropies"):
            make, calls = counting(model_scorer(model, 0, statistic=statistic))
            rows = cached_logprobs(rows, make, tmp_path, key, statistic=statistic)
            assert len(calls) == (not again)
            all_calls += calls
    assert len(list(tmp_path.glob("logprobs-*"))) == len(all_calls) == 2
    assert {f"{side}_{name}" for side in ("chosen", "rejected") for name in ("logprobs", "negentropies")} <= set(
        rows.column_names
    )
    ids, start = rows[3]["rejected_ids"], rows[3]["prompt_length"]
    want = plain_logprobs(model, ids), naive_statistic(model, ids, "negentropies")
    for name, values in zip(("logprobs", "negentropies"), want, strict=True):
        np.testing.assert_allclose(rows[3][f"rejected_{name}"], values[start - 1 :], rtol=1e-4, atol=1e-5)


def test_windows_do_not_change_the_values(model, pairs, tmp_path, monkeypatch):
    scorer = model_scorer(model, 0)
    whole = cached_logprobs(pairs, lambda: scorer, tmp_path / "a", {})
    monkeypatch.setattr(cache, "WINDOW", 5)
    windowed = cached_logprobs(pairs, lambda: scorer, tmp_path / "b", {})
    for a, b in zip(whole["chosen_logprobs"], windowed["chosen_logprobs"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fault", ["truncated", "damaged", "missing", "no manifest", "other key", "other data"])
def test_a_cache_that_is_not_right_is_made_again(model, pairs, tmp_path, fault):
    make, calls = counting(model_scorer(model, 0))
    folder, key, data = tmp_path / "cache", {"generator": "a"}, pairs
    want = cached_logprobs(data, make, folder, key)["chosen_logprobs"][:]
    (file,) = folder.glob(f"*/{CACHE_FILE}")
    content = file.read_bytes()
    if fault == "truncated":
        file.write_bytes(content[:-100])
    elif fault == "damaged":
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif fault == "missing":
        file.unlink()
    elif fault == "no manifest":
        (file.parent / records.MANIFEST).unlink()
    elif fault == "other key":
        key = {"generator": "b"}
    elif fault == "other data":
        data = pairs.select(range(len(pairs) - 1))
    got = cached_logprobs(data, make, folder, key)["chosen_logprobs"][:]
    assert len(calls) == 2
    for a, b in zip(got, want, strict=False):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def dying(model, calls, after):
    """A maker of scorers that note what they are asked, and die when they have been asked so many times."""

    def score(rows):
        if len(calls) >= after:
            raise RuntimeError("out of memory")
        calls.append(rows)
        return model_scorer(model, 0)(rows)

    return lambda: score


def test_a_pass_that_dies_leaves_no_cache_and_goes_on_where_it_was(model, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "WINDOW", 10)
    calls = []
    with pytest.raises(RuntimeError):
        cached_logprobs(pairs, dying(model, calls, 2), tmp_path / "cache", {})
    assert not list(tmp_path.rglob(CACHE_FILE))
    (damaged, kept) = sorted(tmp_path.rglob("*.arrow"))
    damaged.write_bytes(damaged.read_bytes()[:-9])
    got = cached_logprobs(pairs, dying(model, calls, 99), tmp_path / "cache", {})
    assert [len(rows) for rows in calls] == [20, 20] + [20, 20, 20, 16]  # the damaged window again, the whole one not
    whole = cached_logprobs(pairs, dying(model, calls, 99), tmp_path / "other", {})
    assert got["chosen_logprobs"][:] == whole["chosen_logprobs"][:]
    assert got["rejected_logprobs"][:] == whole["rejected_logprobs"][:]
    assert not list(tmp_path.rglob("*.parts"))


def test_parts_that_changed_places_are_asked_again(model, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "WINDOW", 10)
    asked = []
    scorer = dying(model, asked, 3)
    with pytest.raises(RuntimeError):
        cached_logprobs(pairs, scorer, tmp_path / "cache", {})
    first, second, _ = sorted(path.parent for path in tmp_path.rglob("*.arrow"))
    aside = first.rename(first.with_name("aside"))
    second.rename(first)
    aside.rename(second)
    asked.clear()
    monkeypatch.setattr(cache, "_check_values", lambda values, rows: None)
    with pytest.raises(RuntimeError):
        cached_logprobs(pairs, scorer, tmp_path / "cache", {})
    assert len(asked) == 3 and asked[0][0][0] == pairs[0]["chosen_ids"]  # the first two again, and one more


@pytest.mark.parametrize("values", [[np.nan, -1.0], [-np.inf, -1.0], [-1.0]])
def test_values_that_are_none_are_not_kept(pairs, tmp_path, values):
    def scorer():
        return lambda rows: [np.resize(values, len(ids) - start + (len(values) == 1)) for ids, start in rows]

    with pytest.raises(FloatingPointError, match="values, .* of them finite, for a response of"):
        cached_logprobs(pairs, scorer, tmp_path, {})
    assert not list(tmp_path.rglob(CACHE_FILE))


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 0.8), (0.7, 0.8), (0.7, 0.3), (1.0, 1.0)])
def test_nucleus_probabilities_are_those_that_transformers_samples_from(model, pairs, temperature, top_p):
    ids = torch.tensor([pairs[0]["chosen_ids"]])
    got = token_logprobs(model, padded(ids.tolist(), 0), temperature=temperature, top_p=top_p)[0, 1:].exp()
    with torch.no_grad():
        probabilities = (model(ids).logits[0, :-1] / temperature).softmax(-1)
    for position, token in enumerate(ids[0, 1:].tolist()):
        order = probabilities[position].sort(descending=True)
        before = order.values.cumsum(0) - order.values  # mass of the more probable ones
        nucleus = set(order.indices[before < top_p].tolist())
        inside = probabilities[position][list(nucleus)].sum()
        want = probabilities[position, token] / inside if token in nucleus else 0.0
        assert float(got[position]) == pytest.approx(float(want), rel=1e-4, abs=1e-7)
    if top_p < 1:
        assert (got == 0).any() and (got > 0).any()


def test_half_precision_halves_the_file_and_keeps_the_probabilities(model, pairs, tmp_path):
    sizes, values = {}, {}
    for cache_type in CACHE_TYPES:
        make = partial(model_scorer, model, 0)
        got = cached_logprobs(pairs, make, tmp_path / cache_type, {}, cache_type=cache_type)
        values[cache_type] = np.concatenate([np.asarray(row) for row in got["chosen_logprobs"]])
        (file,) = (tmp_path / cache_type).rglob(CACHE_FILE)
        sizes[cache_type] = file.stat().st_size
    assert sizes["float16"] < 0.6 * sizes["float32"]
    np.testing.assert_allclose(values["float16"], values["float32"], rtol=5e-4)
    with pytest.raises(ValueError, match="unknown cache_type 'int8'"):
        cached_logprobs(pairs, None, tmp_path, {}, cache_type="int8")


def test_vllm_is_asked_for_the_tokens_of_the_prompt(model, pairs, base_model, monkeypatch):
    """With a stand-in that has vLLM's interface, as documented; the real one needs a GPU."""
    ours = model_scorer(model, 0)
    rows = [(pairs[i]["chosen_ids"], pairs[i]["prompt_length"]) for i in range(3)]

    class LLM:
        def __init__(self, model, load_format):
            assert (model, load_format) == (str(base_model), "safetensors")

        def generate(self, prompts, params, use_tqdm):
            assert (params.max_tokens, params.prompt_logprobs) == (1, 0) and not use_tqdm
            outputs = []
            for prompt in prompts:
                ids = prompt["prompt_token_ids"]
                (values,) = ours([(ids, 1)])
                entries = [None] + [
                    {token: SimpleNamespace(logprob=float(v)), token + 1: SimpleNamespace(logprob=0.0)}
                    for token, v in zip(ids[1:], values, strict=True)
                ]
                outputs.append(SimpleNamespace(prompt_logprobs=entries))
            return outputs

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=LLM, SamplingParams=SimpleNamespace))
    for got, want in zip(generator.vllm_scorer(base_model)(rows), ours(rows), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_fit_lowers_the_length_normalised_loss_of_both_sides(base_model, pairs, tmp_path):
    settings = GeneratorSettings(epochs=8, learning_rate=2e-2, batch_size=4)
    fitted = generator.fit_generator(base_model, pairs, settings, tmp_path, seed=0)
    before = AutoModelForCausalLM.from_pretrained(base_model)
    for side in ("chosen_ids", "rejected_ids"):
        losses = []
        for model in (before, fitted):
            scorer = model_scorer(model, 0)
            rows = list(zip(pairs[side], pairs["prompt_length"], strict=True))
            losses.append(-np.mean([values.mean() for values in scorer(rows)]))
        assert losses[1] < losses[0] - 0.1
    assert not any(value.requires_grad for value in fitted.parameters())
    assert (tmp_path / "log.jsonl").read_text().count("loss") > 1


@pytest.mark.parametrize("options", [{}, {"temperature": 0.5}, {"top_p": 0.6}])
def test_siblings_are_the_most_probable_tokens_of_the_full_softmax(model, pairs, options, monkeypatch):
    monkeypatch.setattr(ask, "ROWS_PER_CHUNK", 50)
    rows = list(zip(pairs["chosen_ids"][:4], pairs["prompt_length"], strict=False))
    for (ids, start), found in zip(rows, model_scorer(model, 0, statistic=SIBLINGS, **options)(rows), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, start - 1 : -1] / options.get("temperature", 1.0)
        p = logits.double().softmax(-1).numpy()
        assert found.ids.shape == found.logprobs.shape == (len(ids) - start, MOST_SIBLINGS)
        assert found.ids.dtype == np.int32 and found.logprobs.dtype == np.float32
        for values, best, logprobs in zip(p, found.ids, found.logprobs, strict=True):
            order = np.argsort(-values)
            if "top_p" in options:  # the smallest set that holds so much
                kept = 1 + int((np.cumsum(values[order]) < options["top_p"]).sum())
                values = np.where(np.isin(np.arange(len(values)), order[:kept]), values / values[order[:kept]].sum(), 0)
                order = order[:kept]
            order = order[:MOST_SIBLINGS]
            assert best[: len(order)].tolist() == order.tolist()
            np.testing.assert_allclose(np.exp(logprobs[: len(order)]), values[order], rtol=1e-4)
            assert (np.exp(logprobs[len(order) :].astype(np.float64)) == 0).all() and np.isfinite(logprobs).all()


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
def test_siblings_are_cached_beside_each_other_and_apart_from_probabilities(pairs, tmp_path, cache_type):
    made = []

    def scorer():
        made.append(1)
        return lambda rows: [
            Siblings(
                np.arange(3 * (len(ids) - start), dtype=np.int32).reshape(-1, 3),
                np.full((len(ids) - start, 3), np.finfo(np.float32).min if start % 2 else -0.5, np.float32),
            )
            for ids, start in rows
        ]

    few = pairs.select(range(5))
    options = {"statistic": SIBLINGS, "cache_type": cache_type}
    for _ in range(2):
        rows = cached_logprobs(few, scorer, tmp_path, {"generator": "a"}, **options)
        for row in rows:
            for side in ("chosen", "rejected"):
                count = len(row[f"{side}_ids"]) - row["prompt_length"]
                assert row[f"{side}_sibling_ids"] == np.arange(3 * count).reshape(-1, 3).tolist()
                values = np.array(row[f"{side}_sibling_logprobs"])
                assert values.shape == (count, 3) and np.isfinite(values).all()
                assert (np.exp(values) == (0 if row["prompt_length"] % 2 else np.exp(-0.5))).all()
    assert len(made) == 1
    cached_logprobs(few, lambda: lambda rows: [np.zeros(len(i) - s) for i, s in rows], tmp_path, {"generator": "a"})
    assert len(list(tmp_path.glob("logprobs-*"))) == 2
