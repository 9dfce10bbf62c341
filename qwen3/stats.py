"""What the engine has computed: steps, tokens and seconds, prefill and decode apart."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .experts import ExpertLoad
from .step import Step

if TYPE_CHECKING:
    from .scheduler import Work


@dataclass
class Phase:
    """Steps, their tokens and seconds; context_tokens: how many tokens' K and V they had to read."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    context_tokens: int = 0


@dataclass
class Stats:
    """What the model has computed since it was loaded.

    A step in which every sequence already has its first token counts as decode, with the tokens that it drew; any other
    as prefill, with all its tokens. The first token of an answer comes out of the prefill, so decode.tokens has one
    less per answer. first_token_seconds is the wait of the latest request for its first token. experts: their load,
    where it was asked for.
    """

    prefill: Phase = field(default_factory=Phase)
    decode: Phase = field(default_factory=Phase)
    first_token_seconds: float = 0.0
    experts: ExpertLoad | None = None

    def routing(self) -> list | None:
        """Where a step is to leave the experts that it chose."""
        return None if self.experts is None else []

    def count(self, step: Step, work: "Work", drawn: int, seconds: float) -> None:
        """Adds one step that drew `drawn` tokens; call it before they are handed to their sequences."""
        decode = all(sequence.token_times for sequence, _ in work)
        phase = self.decode if decode else self.prefill
        phase.steps += 1
        phase.tokens += drawn if decode else sum(count for _, count in work)
        phase.seconds += seconds
        phase.context_tokens += sum(sequence.computed for sequence, _ in work)
        if self.experts is not None:
            self.experts.count(step.routing, decode)
