"""The learning rate over a run."""

import math

from dit_scale.config import TrainSection


def learning_rate_at(step: int, train: TrainSection) -> float:
    """Return the rate of update number ``step`` (counted from 0): warm-up, then constant or cosine."""
    if step < train.warmup_steps:
        return train.learning_rate * (step + 1) / train.warmup_steps
    if train.rate_schedule == "constant":
        return train.learning_rate
    progress = (step - train.warmup_steps) / max(1, train.steps - train.warmup_steps)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return train.final_learning_rate + (train.learning_rate - train.final_learning_rate) * cosine
