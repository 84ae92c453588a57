"""Questions as both sides answered them, made up: the edge is right where it is confident, as often as a test says."""

import random

from calibration.routing import SideAnswers
from common.routing import features


def side_answers(count: int, told: float, seed: int = 0, cloud: float = 0.9) -> list[SideAnswers]:
    """`told`: how often the edge's confidence tells whether its answer is right; 0.5: it says nothing."""
    chance = random.Random(seed)
    made = []
    for number in range(count):
        right = chance.random() < 0.5
        confident = right if chance.random() < told else not right
        confidences = [chance.uniform(0.9, 0.99) if confident else chance.uniform(0.3, 0.6) for _ in range(6)]
        made.append(
            SideAnswers(
                prompt=features.of_prompt(f"What is {number}?", 8),
                confidences=confidences,
                finished=True,
                tokens=(6, chance.randint(4, 12)),
                worth=(float(right), float(right or chance.random() < cloud)),
            )
        )
    return made
