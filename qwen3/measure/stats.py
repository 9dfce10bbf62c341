"""What the engine has computed: steps, tokens and seconds, prefill and decode apart."""

from dataclasses import dataclass, field

from ..model.blocks import Routing
from .expert_load import ExpertLoad


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

    A step counts as decode when every sequence in it has one token to compute and a cached context, else as prefill
    with all its tokens. The first token of an answer comes out of a prefill, so decode.tokens has one less per answer.
    first_token_seconds: the wait of the latest request for its first token. experts: their load, where asked for.
    """

    prefill: Phase = field(default_factory=Phase)
    decode: Phase = field(default_factory=Phase)
    first_token_seconds: float = 0.0
    experts: ExpertLoad | None = None

    def count(self, decode: bool, *, tokens: int, context_tokens: int, seconds: float, routing: list[Routing]) -> None:
        """Adds one step."""
        phase = self.decode if decode else self.prefill
        phase.steps += 1
        phase.tokens += tokens
        phase.seconds += seconds
        phase.context_tokens += context_tokens
        if self.experts is not None and routing:
            self.experts.count(routing, decode)
