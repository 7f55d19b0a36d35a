"""Every setting of a training run, with its default, its range and a sentence about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from omegaconf import MISSING

from dit_scale.config.alignment import AlignmentConfig
from dit_scale.config.fields import SEEDS, Spell, number, setting, shown, unless, when, when_true
from dit_scale.config.model import DiffusionConfig, ModelConfig
from dit_scale.config.routing import RoutingConfig
from dit_scale.config.sampling import EvaluationConfig, PreviewConfig
from dit_scale.errors import InputError

_LONGEST_SECONDS = 1e9
"""Thirty years; clocks and queues of the system take not much more."""
_ZERO = when("zero_stage", 1, 2, 3)
_ELSEWHERE = when_true("path", lambda path: _is_elsewhere(path), "in object storage, such as s3://bucket/folder")


def _is_elsewhere(path: Any) -> bool:
    """Return whether shards, or some of several folders of them, lie in object storage."""
    return any("://" in str(place) for place in (path if isinstance(path, Mapping) else [path]))


@dataclass(frozen=True)
class DataConfig:
    path: Any = number(MISSING, above=0)
    """Shard folder, here or in object storage (s3://…); or several, each with its share: {folder: weight, …}."""
    class_names: dict[str, dict[str, str]] = field(default_factory=dict)
    """Classes of several folders to rename, {folder: {its name or label: name here}}; equal names are one."""
    held_out_fraction: float = number(0.0, at_least=0, below=1)
    """Part of the records, chosen by the hash of their keys, kept from training for the validation loss."""
    mirror: bool = True
    """Take the mirror image (horizontal flip) of half of the records, drawn again each time."""
    verify: bool = True
    """Check each record's digest whenever it is read."""
    on_damage: Literal["stop", "set_aside"] = "stop"
    """A damaged record stops the run, or is left out of its step and reported in set-aside-rankN.jsonl."""
    check_scale: bool = True
    """Refuse latents whose root mean square after scaling is below 1/4 or above 4: a wrong scale."""
    check_fingerprint: bool = True
    """Refuse to go on with other records than the run began with."""
    shuffle_block_records: int = number(0, at_least=0)
    """Shuffle blocks of so many neighbouring records, for cold or networked storage; 0 shuffles all records."""
    shuffle_window_blocks: int = number(64, at_least=1, only_if=unless("shuffle_block_records", 0))
    """Blocks whose records are shuffled among each other, where blocks are shuffled."""
    prefetch_batches: int = number(4, at_least=1)
    """Batches read ahead."""
    request_batches: int = number(64, at_least=0, only_if=_ELSEWHERE)
    """How many batches ahead shards are fetched from object storage."""
    cache: str | None = setting(None, only_if=_ELSEWHERE)
    """Folder on each node for shards from object storage; null takes one below the temporary folder."""
    cache_bytes: int | None = number(None, at_least=1, only_if=_ELSEWHERE)
    """Most bytes in it, the least recently read going first; null keeps all."""
    patience_seconds: float = number(600.0, above=0, at_most=_LONGEST_SECONDS)
    """How long storage may stall before the run ends with an error."""
    record_keys: bool = False
    """Write the keys of the records that each rank consumed to keys-rankN.jsonl."""

    def check_together(self, spell: Spell) -> None:
        """Raise InputError where ``path`` is neither a folder nor folders with weights."""
        if isinstance(self.path, str):
            return
        if not isinstance(self.path, Mapping) or not self.path:
            raise InputError(
                f"{spell('path')}={shown(self.path)} is neither a folder nor {{folder: weight, …}}; write one of these"
            )
        for place, weight in self.path.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float):
                raise InputError(f"{spell('path')} gives '{place}' the weight {shown(weight)}; give a number above 0")


@dataclass(frozen=True)
class TrainSection:
    steps: int = number(7_000_000, at_least=1)
    """Optimizer updates until the run is done."""
    global_batch_size: int = number(256, at_least=1)
    """Images a step over all ranks; fixed for a run."""
    micro_batch_size_per_gpu: int = number(32, at_least=1)
    """Most images a rank puts through the model at once; gradient accumulation follows."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """What updates the weights: AdamW, or Muon for blocks' matrices and AdamW for the rest (ZeRO 0, 1, 2)."""
    learning_rate: float = number(1e-4, at_least=0)
    """The learning rate after warm-up."""
    muon_learning_rate: float | None = number(None, at_least=0, only_if=when("optimizer", "muon"))
    """Muon's, which follows the same schedule in proportion; null takes learning_rate for both."""
    warmup_steps: int = number(0, at_least=0)
    """Steps over which the rate rises linearly from 0."""
    rate_schedule: Literal["constant", "cosine"] = "constant"
    """The rate after warm-up: constant, or a cosine down to final_learning_rate at the last step."""
    final_learning_rate: float = number(0.0, at_least=0, only_if=when("rate_schedule", "cosine"))
    """The cosine's end."""
    beta1: float = number(0.9, at_least=0, below=1)
    """AdamW's decay of the first moment."""
    beta2: float = number(0.999, at_least=0, below=1)
    """AdamW's decay of the second moment."""
    weight_decay: float = number(0.0, at_least=0)
    """Weight decay, decoupled from the gradient."""
    max_grad_norm: float | None = number(None, above=0)
    """Gradients longer than this are scaled down to it; null never clips."""
    ema_decay: float = number(0.9999, at_least=0, below=1)
    """Decay of the exponential moving average of the weights, which previews and samples show."""
    extra_ema_decays: tuple[float, ...] = number((), at_least=0, below=1)
    """Decays of further averages, kept in checkpoints and sampled with --weights ema-DECAY."""
    power_ema_widths: tuple[float, ...] = number((), above=0, at_most=0.28)
    """Relative widths of power-function averages (arXiv 2312.02696), such as 0.05, 0.1: --weights post-hoc-WIDTH."""
    on_bad_step: Literal["skip", "roll_back", "stop"] = "skip"
    """Not finite, or a spike: leave the update out; go to the last checkpoint and on without that batch; or end."""
    spike_factor: float = number(0.0, above=1, or_zero=True)
    """A gradient norm above so many times the median of the last 100 is a spike; 0 disables this."""
    max_bad_steps: int = number(10, at_least=0, only_if=unless("on_bad_step", "stop"))
    """Bad steps among the last 1,000; one more ends the run."""

    def check_together(self, spell: Spell) -> None:
        """Raise InputError where settings do not fit each other."""
        for name in ("extra_ema_decays", "power_ema_widths"):
            kinds = [f"{value:g}" for value in getattr(self, name)]  # as averages are called
            if twice := next((kind for kind in kinds if kinds.count(kind) > 1), None):
                raise InputError(f"{spell(name)} holds {twice} twice; give each once, at most six digits long")
        if self.muon_learning_rate is not None and not self.learning_rate:
            raise InputError(
                f"{spell('muon_learning_rate')}={self.muon_learning_rate:g} follows the schedule of "
                f"{spell('learning_rate')}, which is 0 all along; give {spell('learning_rate')} above 0"
            )
        if self.final_learning_rate > self.learning_rate:
            raise InputError(
                f"{spell('final_learning_rate')}={self.final_learning_rate:g} is above "
                f"{spell('learning_rate')}={self.learning_rate:g}, from which the cosine goes down; give less"
            )


_LEAST_BUCKET, _LARGEST_BUCKET, _LEAST_PART = 8_000_000, 200_000_000, 4_000_000  # elements


@dataclass(frozen=True)
class EngineConfig:
    zero_stage: Literal[0, 1, 2, 3] = 1
    """What DeepSpeed shards over ranks: 0 nothing, 1 optimizer state, 2 and gradients, 3 and parameters."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Arithmetic of model and gradients; master weights, Adam moments and EMA are always fp32."""
    checkpoint_every_blocks: int = number(0, at_least=0)
    """Activation checkpointing: 0 none, 1 every block, k every k-th block."""
    offload_optimizer: bool = setting(False, only_if=_ZERO)
    """Keep optimizer state and its update in host memory (ZeRO 1, 2, 3)."""
    compile: bool = False
    """Compile each block with torch.compile."""
    activation_budget: float = number(1.0, at_least=0, at_most=1, only_if=when("compile", True))
    """Part of their activations that compiled blocks keep; below 1 backward recomputes what is cheapest to."""
    kernels: Literal["auto", "off"] = "auto"
    """Our own kernels and others' where they run, or none: PyTorch's operators alone, for debugging."""
    fp8: bool = False
    """Linear layers of blocks in 8 bits by torchao, for GPUs that have them (Hopper and later); elsewhere emulated."""
    bucket_elements: int | None = number(None, at_least=1, only_if=_ZERO)
    """Elements that DeepSpeed reduces or gathers in one call; null takes a tenth of the model, within limits."""
    reduce_to_owners: bool | None = setting(None, only_if=when("zero_stage", 1, 2))
    """ZeRO 1, 2: send gradients to the rank that updates them alone, which halves traffic; null: if parts are large."""
    overlap_reduction: bool | None = setting(None, only_if=_ZERO)
    """Reduce gradients beside backward on GPUs; null: at ZeRO 3, and at 1 and 2 over several nodes."""
    hierarchical_partitioning: bool = setting(False, only_if=when("zero_stage", 3))
    """ZeRO 3 over nodes: each node keeps all parameters, so that backward gathers inside it (ZeRO++ hpZ)."""
    threads_per_rank: int | None = number(None, at_least=1)
    """CPU threads a rank; null divides this machine's cores by its ranks."""

    def bucket_for(self, num_parameters: int, world_size: int) -> int:
        """Return the elements of a bucket.

        Ten to a model, so that all but the last are reduced behind backward; not so small that what a call costs on
        many ranks, which grows with their logarithm, outweighs what it sends; nor larger than memory spares.
        """
        if self.bucket_elements is not None:
            return self.bucket_elements
        least = _LEAST_BUCKET * max(1, world_size - 1).bit_length()
        return min(num_parameters, max(num_parameters // 10, least), _LARGEST_BUCKET)

    def reduces_to_owners(self, num_parameters: int, world_size: int) -> bool:
        """Return whether each rank's part is reduced to it alone, a call a part, or buckets to all ranks."""
        if self.reduce_to_owners is not None:
            return self.reduce_to_owners
        return num_parameters // world_size >= _LEAST_PART


@dataclass(frozen=True)
class CheckpointConfig:
    every_steps: int = number(10_000, at_least=1)
    """Steps between checkpoints; one is always written at the end."""
    keep: int = number(3, at_least=1)
    """Newest checkpoints that stay."""
    keep_every_steps: int = number(0, at_least=0)
    """Checkpoints of every so many steps stay for ever; 0 is none."""
    keep_best: int = number(0, at_least=0)
    """Checkpoints with the best best_by that stay, too."""
    best_by: str = setting("validation_loss", only_if=unless("keep_best", 0))
    """What keep_best compares: validation_loss, or a metric of evaluations such as fid; measured at a checkpoint."""
    in_background: bool = True
    """Write while training goes on, from a copy in host memory (4 bytes a number: 16 a parameter over all ranks)."""
    time_limit_margin_seconds: float = number(60.0, at_least=0, at_most=_LONGEST_SECONDS)
    """Stop, saved, so long (and twice what a save takes) before the job's time limit, if no signal came earlier."""
    retry_seconds: float = number(60.0, at_least=0, at_most=_LONGEST_SECONDS)
    """After a save that failed (a full disk), how long until the next try."""


@dataclass(frozen=True)
class ValidationConfig:
    every_steps: int = number(0, at_least=0)
    """Steps between validation losses over the held-out records (data.held_out_fraction); 0 takes none."""
    num_images: int = number(10_000, at_least=1, only_if=unless("every_steps", 0))
    """Most held-out images in one."""


@dataclass(frozen=True)
class LogConfig:
    every_steps: int = number(100, at_least=1)
    """Steps between console lines; metrics.jsonl has a line for every step."""


@dataclass(frozen=True)
class WatchdogConfig:
    step_seconds: float = number(600.0, at_least=0, at_most=_LONGEST_SECONDS)
    """A rank that stays so long in a step's data or computation, or gives no sign of life, ends the run; 0 is never."""
    long_seconds: float = number(3600.0, at_least=0, at_most=_LONGEST_SECONDS)
    """The same for setting up (with the first step, which compiles), saving, measuring and previews; 0 is never."""


@dataclass(frozen=True)
class WandbConfig:
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """Auto is what WANDB_MODE says, else online where an API key is found, else offline."""
    project: str = setting("dit_scale", only_if=unless("mode", "disabled"))
    """Project on wandb; WANDB_PROJECT wins over the default."""
    name: str | None = setting(None, only_if=unless("mode", "disabled"))
    """Name of the run; null takes WANDB_NAME, else the run folder's."""


@dataclass(frozen=True)
class Config:
    """A training run."""

    run_dir: str = MISSING
    """Run folder; where it holds a checkpoint, training goes on from the last good one."""
    seed: int = number(0, **SEEDS)
    """Seed of the initial weights and of every draw."""
    init_from: str | None = None
    """Weights for a new run: a run, a checkpoint folder, a published .pt or a .safetensors file."""
    model: ModelConfig = field(default_factory=ModelConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainSection = field(default_factory=TrainSection)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    preview: PreviewConfig = field(default_factory=PreviewConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    log: LogConfig = field(default_factory=LogConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)

    def check_together(self, spell: Spell) -> None:
        """Raise InputError where sections do not fit each other."""
        if self.validation.every_steps and not self.data.held_out_fraction:
            raise InputError(
                f"validation.every_steps={self.validation.every_steps} needs held-out records, but none are; give "
                f"data.held_out_fraction, such as 0.01, or validation.every_steps=0"
            )
        if not self.model.early_block and self.diffusion.early_weight != DiffusionConfig.early_weight:
            raise InputError(
                f"diffusion.early_weight={self.diffusion.early_weight:g} has no effect with model.early_block=0; leave "
                f"it out, or give model.early_block above 0"
            )
        for name in ("preview", "evaluation"):
            section: PreviewConfig | EvaluationConfig = getattr(self, name)
            is_by_null = section.every_steps and section.cfg_scale != 1 and section.guide_by is None
            if is_by_null and (without := self._without_null()):
                raise InputError(f"{name}.cfg_scale={section.cfg_scale} guides, but {without}; give {name}.cfg_scale=1")
            most = self.diffusion.num_timesteps
            if section.every_steps and section.num_sampling_steps > most and self.diffusion.name == "gaussian":
                raise InputError(
                    f"{name}.num_sampling_steps={section.num_sampling_steps} is above diffusion.num_timesteps={most}; "
                    f"give {most} or less"
                )

    def _without_null(self) -> str:
        """Return why there is no null with which guidance compares, or nothing where there is one."""
        if self.model.condition == "none":
            return "model.condition=none leaves nothing to guide by"
        return "" if self.model.label_dropout else "model.label_dropout=0 leaves no null label to guide with"


FIXED_FOR_A_RUN = (
    "seed",
    *(f"model.{entry.name}" for entry in fields(ModelConfig) if entry.name != "attention"),
    "diffusion",
    "routing.from_block",
    "routing.to_block",
    "routing.fill",
    *(f"alignment.{entry.name}" for entry in fields(AlignmentConfig) if entry.name != "weight"),
    "data.mirror",
    "data.held_out_fraction",
    "data.shuffle_block_records",
    "data.shuffle_window_blocks",
    "train.global_batch_size",
    "train.optimizer",
    "engine.precision",
)
"""The rule for resuming: these stay as the run began (and so do its latents); all else may change."""
