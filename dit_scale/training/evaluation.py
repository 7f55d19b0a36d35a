"""How good the EMA's images are: a small evaluation of fixed seeds, every so often while a run goes on."""

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from xxhash import xxh3_64

from dit_scale.autoencoder import Autoencoder
from dit_scale.config import Config
from dit_scale.data.loader import LatentDataset
from dit_scale.data.shards import WAY_OUT
from dit_scale.distributed.runtime import World
from dit_scale.distributed.sharing import gather_on_rank_zero, shares
from dit_scale.errors import InputError
from dit_scale.evaluation import (
    Evaluator,
    Features,
    ImageSet,
    Reference,
    check_count,
    default_cache,
    extract_reference,
    load_extractor,
    load_reference,
    protocol_of,
    result_of,
)
from dit_scale.files import write_json
from dit_scale.sampling import Sampler, SamplingSettings
from dit_scale.supervision.conveniences import Conveniences
from dit_scale.training.ema import ShardedEMA
from dit_scale.training.ema_images import with_average
from dit_scale.training.metrics import say

FOLDER = "evaluation"


class Evaluation:
    """Writes ``evaluation/step-00000100.json``: metrics of images drawn from the same noise at every step."""

    def __init__(
        self, config: Config, sampler: Sampler, dataset: LatentDataset, world: World, conveniences: Conveniences
    ):
        evaluation = config.evaluation
        self._sampler, self._world, self._conveniences = sampler, world, conveniences
        self._count, self._batch_size = evaluation.num_images, evaluation.batch_size
        check_count(self._count, f"evaluation.num_images={self._count}")
        self._settings = SamplingSettings.of(evaluation, config.seed)
        sampler.check(self._settings, "evaluation")
        self._folder = Path(config.run_dir) / FOLDER
        weights = None if evaluation.weights is None else Path(evaluation.weights)
        self._extractor = load_extractor(None, weights, sampler.device)
        self._evaluator: Evaluator | None = None
        if world.is_rank_zero:  # the others wait for it at their next meeting
            origin = None if evaluation.reference is None else Path(evaluation.reference)
            reference = self._reference(origin, dataset)
            self._evaluator = Evaluator(self._extractor, reference)

    def metric_names(self) -> list[str]:
        """Return what is measured, on rank zero; nothing elsewhere."""
        return [] if self._evaluator is None else self._evaluator.metric_names()

    def scores(self, ema: ShardedEMA, step: int) -> dict[str, float]:
        """Draw, judge, write the result and return the metrics; none on all ranks where one fails (collective)."""
        mine = with_average(self._sampler, ema, self._conveniences, FOLDER, step, self._own_part)
        if mine is None:
            return {}
        features = gather_on_rank_zero(mine[1], self._world)
        metrics: list[dict[str, float]] = [{}]
        if self._evaluator is not None:
            with self._conveniences.attempt(FOLDER, step):
                scores = self._evaluator.judge(list(features.values()))
                metrics = [scores.metrics]
                result = result_of(scores, protocol_of(self._evaluator, scores, self._samples(mine[0])))
                self._folder.mkdir(exist_ok=True)
                write_json(self._folder / f"step-{step:08d}.json", {"step": step} | result)
        dist.broadcast_object_list(metrics, src=0)
        return metrics[0]

    def _own_part(self, sampler: Sampler) -> tuple[dict[str, object], dict[int, Features]]:
        """Return how images were drawn, and the features of this rank's batches by their first image."""
        labels = spread_labels(self._count, len(sampler.class_names))
        features = {}
        for share in shares(range(self._count), self._batch_size, self._world):
            images = sampler.images([labels[index] for index in share.filled], share.filled, self._settings)
            features[share.own[0]] = self._extractor(torch.from_numpy(images)).first(len(share.own))
        return sampler.described() | sampler.settings_described(self._settings), features

    def _samples(self, drawn_by: dict[str, object]) -> dict[str, object]:
        return {
            "images": self._count,
            "batch_size": self._batch_size,
            "protocol": {
                **drawn_by,
                "classes": "all",
                "class_choice": "in turn" if self._count >= len(self._sampler.class_names) else "spread evenly",
            },
        }

    def _reference(self, origin: Path | None, dataset: LatentDataset) -> Reference:
        cache = default_cache()
        if origin is not None:
            return load_reference(origin, self._extractor, cache, self._batch_size)
        decoded = DecodedRecords(dataset, self._sampler, self._count)
        check_count(decoded.count, f"data '{decoded.path}'")
        records = extract_reference(decoded, self._extractor, cache, self._batch_size)
        if not all(folder.manifest.crops for folder in dataset.folders):
            say(f"evaluation  reference: decoded records ({_quality(self._sampler.autoencoder)})")
            return records
        for folder in dataset.folders:
            folder.prepare_crops()
        crops = extract_reference(KeptCrops(dataset, self._count), self._extractor, cache, self._batch_size)
        assert records.features is not None
        own = Evaluator(self._extractor, crops).judge([Features(records.features)]).metrics
        told = "  ".join(f"{name} {value:.5g}" for name, value in own.items())
        say(f"evaluation  reference: the images that were encoded; of their records, decoded:  {told}")
        return crops


class _Records(ImageSet):
    """Records of the data, spread evenly over it, as images."""

    def __init__(self, dataset: LatentDataset, count: int):
        super().__init__(Path(dataset.folders[0].storage.location))
        self._dataset = dataset
        self.count = min(count, len(dataset))
        self._records = np.linspace(0, len(dataset) - 1, self.count).round().astype(np.int64)
        self.size = next(self.batches(1)).shape[2:0:-1]

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        for first in range(0, self.count, batch_size):
            yield self._images(self._records[first : first + batch_size])

    @abstractmethod
    def _images(self, records: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]: ...


class KeptCrops(_Records):
    """The very images that were encoded, where they are kept: what an autoencoder loses counts."""

    kind = "kept crops"

    def _images(self, records: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        crops, damaged = self._dataset.read_crops(records, np.zeros(len(records), bool))
        for how in damaged.values():
            raise InputError(f"{how}; {WAY_OUT}")
        return crops.permute(0, 2, 3, 1).contiguous().numpy()

    def digest(self) -> str:
        crops = b"".join(folder.crops_digest() for folder in self._dataset.folders)
        return xxh3_64(crops + f" {self.count}".encode()).hexdigest()


class DecodedRecords(_Records):
    """Records as the autoencoder decodes them: the best that a model of its latents can reach."""

    kind = "decoded latents"

    def __init__(self, dataset: LatentDataset, sampler: Sampler, count: int):
        self._sampler = sampler
        super().__init__(dataset, count)

    def _images(self, records: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        moments, _ = self._dataset.read(records, np.zeros(len(records), bool))
        mean = moments.to(self._sampler.device, torch.float32).chunk(2, dim=1)[0]
        return self._sampler.decode(self._sampler.latents.normalise(mean))

    def digest(self) -> str:
        what = f"{self._dataset.fingerprint()} {self._sampler.autoencoder.identity} {self.count}"
        return xxh3_64(what.encode()).hexdigest()


def _quality(autoencoder: Autoencoder) -> str:
    """Return in words what a reference of decoded records hides."""
    known = "" if autoencoder.psnr is None else f", which had {autoencoder.psnr:.1f} dB where it was fitted"
    return f"this hides what the autoencoder loses{known}; encode keep_crops=true keeps the images to compare with"


def spread_labels(count: int, num_classes: int) -> list[int]:
    """Return a label for each image: all classes equally often, or, of more classes than images, every n-th."""
    if count >= num_classes:
        return [index % num_classes for index in range(count)]
    return [index * num_classes // count for index in range(count)]


def check_is_measured(config: Config, names: list[str]) -> None:
    """Raise InputError where checkpoints are to be kept by a metric that is not among what the run measures."""
    best_by = config.checkpoint.best_by
    if config.checkpoint.keep_best and best_by not in names:
        way_out = (
            f"choose one of {', '.join(names)}" if names else "give validation.every_steps, evaluation.every_steps"
        )
        raise InputError(f"checkpoint.best_by={best_by} is not measured in this run; {way_out}")
