from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from bezoar_ray.data.schema import Seed
from bezoar_ray.llm.chat import CallFailed, Messages, Reply, Sampling


@dataclass
class ScriptedChat:
    """A chat for tests of control flow: answers by step, and keeps what was asked."""

    answer: Callable[[str, Messages], Reply | str | None]  # None fails the call
    asked: dict[str, Messages] = field(default_factory=dict)

    async def __call__(
        self,
        messages: Messages,
        *,
        step: str,
        sample: int = 0,
        sampling: Sampling | None = None,
    ) -> Reply:
        self.asked[step] = messages
        found = self.answer(step, messages)
        if found is None:
            raise CallFailed("refused")
        return found if isinstance(found, Reply) else Reply(found, "stop", 10, 5)


@pytest.fixture
def chat() -> type[ScriptedChat]:
    return ScriptedChat


@pytest.fixture
def seeds() -> list[Seed]:
    return [
        Seed(
            id=f"seed{n}",
            source="own",
            license="CC0",
            instruction=f"Tell me about {n}.",
        )
        for n in range(20)
    ]
