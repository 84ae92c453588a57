"""A router that looks at nothing but the edge's confidences, with a score that a test can foresee."""

from common.enums import ConfidenceStrategy
from common.routing.router import Router, Training

TRAINING = Training(edge_model="edge", cloud_model="cloud", strategy=ConfidenceStrategy.MAX_PROB, questions=0)


def doubtful(tokens: int = 3) -> Router:
    """Its score is 1 minus the geometric mean, in odds, of the confidences: 0.9 for tokens of confidence 0.1."""
    return Router(tokens=tokens, threshold=0.5, bias=0.0, weights={"mean_odds": -1.0}, training=TRAINING)


def blind(score_is_high: bool) -> Router:
    """It decides before the first token: for the cloud, or for the edge."""
    return Router(tokens=0, threshold=0.5, bias=2.0 if score_is_high else -2.0, weights={}, training=TRAINING)
