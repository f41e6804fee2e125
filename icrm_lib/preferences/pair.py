"""One preference pair as every form of a row becomes it."""

from collections.abc import Iterator
from dataclasses import dataclass

from icrm_lib.tokenization import Message


@dataclass(frozen=True)
class Pair:
    prompt: list[Message]
    chosen: str
    rejected: str
    margin: float | None
    source: str | None

    def texts(self) -> Iterator[tuple[str, str]]:
        """Yield (key, text) of everything that will be tokenised."""
        yield from (("prompt", m["content"]) for m in self.prompt)
        yield "chosen", self.chosen
        yield "rejected", self.rejected
