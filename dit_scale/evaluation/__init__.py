"""How good images are: the metrics of ADM's suite, and others under names of their own."""

from dit_scale.evaluation.evaluator import HIGHER_IS_BETTER, Evaluator, Scores
from dit_scale.evaluation.extractors import NAMES, Extractor, Features, load_extractor
from dit_scale.evaluation.images import RESULT, ImageSet, open_images, own_protocol, told
from dit_scale.evaluation.protocol import check_comparable, differences, protocol_of, result_of
from dit_scale.evaluation.reference import (
    Reference,
    check_count,
    default_cache,
    extract_reference,
    load_reference,
    reference_of,
)

__all__ = [
    "HIGHER_IS_BETTER",
    "NAMES",
    "RESULT",
    "Evaluator",
    "Extractor",
    "Features",
    "ImageSet",
    "Reference",
    "Scores",
    "check_comparable",
    "check_count",
    "default_cache",
    "differences",
    "extract_reference",
    "load_extractor",
    "load_reference",
    "open_images",
    "own_protocol",
    "protocol_of",
    "reference_of",
    "result_of",
    "told",
]
