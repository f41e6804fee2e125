"""Solutions of problems, drawn from the model that generates in the paper's mathematical setting."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.language_model.sampling import SamplingSettings, sample
from icrm_lib.preferences.paper import Draw
from icrm_lib.profiles import SampleSettings
from icrm_lib.tokenization import Conversation


def sampler(
    model: str | Path, tokenizer: PreTrainedTokenizerBase, samples: SampleSettings, path: str | Path, *, seed: int
) -> Draw:
    """Return what draws `samples.n` solutions a problem from a model; a killed run goes on where it was.

    Args:
        model: directory or hub id of the causal language model, the generator in the paper.
        tokenizer: its tokenizer, prepared.
        samples: number, temperature, nucleus, length and engine.
        path: JSON-lines file for what was drawn, see `sampling.sample`.
        seed: with the problem, decides its solutions.
    """
    settings = SamplingSettings(samples.n, samples.temperature, samples.top_p, samples.max_new_tokens, seed)

    def draw(prompts: list[Conversation]) -> list[list[str]]:
        loaded = str(model) if samples.engine == "vllm" else load_causal_lm(model)
        frame = sample(loaded, tokenizer, prompts, settings, path, engine=samples.engine)
        return frame.groupby("prompt", sort=True)["response"].agg(list).tolist()

    return draw
