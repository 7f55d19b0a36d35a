"""What a result depends on besides the model, so that only like is compared with like."""

from typing import Any

from dit_scale.errors import InputError, few
from dit_scale.evaluation.evaluator import Evaluator, Scores
from dit_scale.versions import installed

OF_THE_MODEL = (
    "samples.xxh3",
    "samples.protocol.step",
    "samples.protocol.weights",
    "samples.protocol.checkpoint",
    "samples.protocol.checkpoint_digest",
    "samples.protocol.seed",
    "samples.files",
    "reference.files",
)
"""What may differ between results that are compared: the model judged, its first noise, what lies beside images."""
_PACKAGES = ("dit_scale", "torch", "numpy", "pillow")


def protocol_of(evaluator: Evaluator, scores: Scores, samples: dict[str, Any]) -> dict[str, Any]:
    """Return all that a result depends on, as JSON values; ``samples`` tells the images judged."""
    return {
        "extractor": evaluator.extractor.identity(),
        "reference": evaluator.reference.identity,
        "samples": samples,
        "definitions": scores.definitions,
        "versions": installed(_PACKAGES),
    }


def result_of(scores: Scores, protocol: dict[str, Any]) -> dict[str, Any]:
    """Return a result as it is written."""
    return {"metrics": scores.metrics, "spread": scores.spread, "notes": scores.notes, "protocol": protocol}


def differences(protocol_a: dict[str, Any], protocol_b: dict[str, Any]) -> list[str]:
    """Return the fields in which two protocols differ, as ``name.sub: value / value``, apart from the model's own."""
    a, b = _flat(protocol_a), _flat(protocol_b)
    fields = [*a, *(name for name in b if name not in a)]
    return [
        f"{name}: {_shown(a.get(name, 'absent'))} / {_shown(b.get(name, 'absent'))}"
        for name in fields
        if a.get(name, "absent") != b.get(name, "absent") and not _is_of_the_model(name)
    ]


def check_comparable(protocol_a: dict[str, Any], protocol_b: dict[str, Any], origin: str) -> None:
    """Raise InputError naming the fields in which an earlier result's protocol differs."""
    if found := differences(protocol_a, protocol_b):
        raise InputError(
            f"this result and '{origin}' were measured differently ({'; '.join(found)}); evaluate both alike, on "
            f"samples drawn alike, or leave out --against"
        )


def _shown(value: object) -> str:
    return few(map(str, value)) if isinstance(value, list) else str(value)


def _is_of_the_model(name: str) -> bool:
    return any(name == field or name.startswith(f"{field}.") for field in OF_THE_MODEL)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
