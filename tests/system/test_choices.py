"""Several answers to one prompt, by real workers over shared blocks."""

from typing import Any

from asking import complete
from reference_model import ReferenceModel
from running import RunningMesh
from waiting import wait_until

BOS = 1
LONG_PROMPT = [BOS, *range(300, 350)]  # three full blocks and a bit of a fourth
SEEDED: dict[str, Any] = {
    "prompt": LONG_PROMPT, "max_tokens": 30, "temperature": 1.0, "seed": 7
}  # fmt: skip


async def outputs(mesh: RunningMesh, **asked: Any) -> list[list[int]]:
    answer = await complete(mesh.url, **asked)
    return [choice["token_ids"] for choice in answer["choices"]]


async def test_a_seeded_call_is_repeatable_as_a_whole(mesh: RunningMesh) -> None:
    """
    Its choices differ from each other, not from call to call, and the first is n = 1's.
    """
    alone = await outputs(mesh, **SEEDED)
    first = await outputs(mesh, **SEEDED, n=8)
    second = await outputs(mesh, **SEEDED, n=8)

    assert first == second
    assert first[:1] == alone
    assert len({tuple(output) for output in first}) == 8
    await wait_until(mesh.is_idle)


async def test_choices_on_shared_blocks_are_exact(
    mesh: RunningMesh, reference: ReferenceModel
) -> None:
    """
    Who continues a copy of the prompt's last block writes into nobody else's.
    """
    prompt = [BOS, *range(400, 420)]

    found = await outputs(mesh, prompt=prompt, max_tokens=40, n=8)

    assert found == [reference.greedy(prompt, 40)] * 8


async def test_best_of_is_what_the_model_finds_likeliest(
    mesh: RunningMesh, reference: ReferenceModel
) -> None:
    """
    The answers come in the order of their mean log probability as transformers has it.
    """
    candidates = await outputs(mesh, **SEEDED, n=6)

    best = await outputs(mesh, **SEEDED, n=3, best_of=6)

    candidates.sort(key=lambda output: -reference.mean_logprob(LONG_PROMPT, output))
    assert best == candidates[:3]
