"""How good images are: the metrics of ADM's suite, and others under names of their own."""

from dit_scale.evaluation.evaluator import Evaluator, Scores
from dit_scale.evaluation.extractors import NAMES, Extractor, load_extractor
from dit_scale.evaluation.images import ImageSet, open_images, own_protocol
from dit_scale.evaluation.protocol import check_comparable, differences, protocol_of, result_of
from dit_scale.evaluation.reference import Reference, check_count, load_reference, reference_of

__all__ = [
    "NAMES",
    "Evaluator",
    "Extractor",
    "ImageSet",
    "Reference",
    "Scores",
    "check_comparable",
    "check_count",
    "differences",
    "load_extractor",
    "load_reference",
    "open_images",
    "own_protocol",
    "protocol_of",
    "reference_of",
    "result_of",
]
