"""Every setting, with its default and a sentence about it."""

from dataclasses import dataclass, field
from typing import Any, Literal

from omegaconf import MISSING

# ---------------------------------------------------------------- encoding


@dataclass(frozen=True)
class SourceConfig:
    path: str = MISSING
    """Folder of class folders or of webdataset tars, a tar (ImageNet's own train.tar too), or a .jsonl or .csv list."""
    format: Literal["auto", "folders", "flat", "tars", "class_tars", "list"] = "auto"
    """How the images are stored; auto looks at what lies in the path."""
    labels: str | None = None
    """Labels of a flat folder or tar (a validation set): a line an image, LABEL in the names' order, or NAME LABEL."""
    class_names: str | None = None
    """Class order: a text file, a name a line, or another shard folder; null sorts the names (for ImageNet, wnids)."""
    exif_rotation: bool = False
    """Turn images as their EXIF orientation says; the published recipe does not."""


@dataclass(frozen=True)
class AutoencoderConfig:
    name: str = "stabilityai/sd-vae-ft-ema"
    """`pca` (a codec fitted on the images), a hub name or a local folder of a diffusers autoencoder."""
    revision: str | None = None
    """Revision of the hub's model; null takes the newest."""
    scale: tuple[float, ...] | None = None
    """Latent scale, one number or one a channel; null takes the model's own (PCA: 1 / rms)."""
    shift: tuple[float, ...] | None = None
    """Latent shift, one number or one a channel; null takes the model's own."""
    measure_scale: bool = False
    """Take scale and shift, per channel, from the latents' measured mean and standard deviation instead."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the encoder."""
    compile: bool = False
    """Compile the encoder with torch.compile, which pays for long encodings on GPUs."""
    pca_patch_size: int = 8
    """Side of the square image patch that the PCA codec turns into one latent pixel."""
    pca_channels: int = 4
    """Principal components kept a patch: the PCA latent's channels."""
    pca_fit_images: int = 2048
    """Images, chosen evenly over the source's order, from which the PCA codec is fitted."""


@dataclass(frozen=True)
class EncodeConfig:
    source: SourceConfig = field(default_factory=SourceConfig)
    """The images."""
    output: str = MISSING
    """Shard folder to write."""
    image_size: int = 256
    """Side of the cropped image in pixels."""
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    """The frozen autoencoder."""
    mirrors: Literal["both", "none"] = "both"
    """Store moments of the image and of its mirror image, or of the image alone."""
    shard_records: int = 4096
    """Records a shard."""
    batch_size: int = 32
    """Images in one pass of the encoder, mirrors counted apart; fixed, so that it does not change the bytes."""
    workers: int = 1
    """Encoder processes on this machine when there is no launcher; on a CPU each computes with one thread."""
    decode_workers: int = 2
    """Processes per encoder that decode and crop images; 0 decodes in the encoder's own."""
    max_rejected: int = 0
    """Images that cannot be decoded and may be left out; one more stops the encoding."""


# ---------------------------------------------------------------- training


@dataclass(frozen=True)
class ModelConfig:
    name: str = "DiT-XL/2"
    """A preset, DiT-{S,B,L,XL}/{2,4,8} or DiT-{1.5B,3B,7B}/2, or `custom` with the four fields below."""
    patch_size: int | None = None
    """Side of a patch in latent pixels; null takes the preset's."""
    hidden_size: int | None = None
    """Width of a token; null takes the preset's."""
    depth: int | None = None
    """Transformer blocks; null takes the preset's."""
    num_heads: int | None = None
    """Attention heads; null takes the preset's."""
    mlp_ratio: float = 4.0
    """Width of the MLP over the width of a token."""
    label_dropout: float = 0.1
    """Probability with which a label is replaced by the null label in training."""
    learn_sigma: bool = True
    """Predict the variance, too: twice the output channels."""
    attention: Literal["auto", "xformers", "sdpa", "cudnn", "flash", "cudnn-padded", "flash-padded", "matmul"] = "auto"
    """Attention kernel: the fastest that is found (RUN/attention.json), or one by name; padded ones fill up heads."""


@dataclass(frozen=True)
class DiffusionConfig:
    name: Literal["gaussian", "flow"] = "gaussian"
    """Objective: Gaussian diffusion (DDPM) or flow matching (rectified flow, SiT)."""
    num_timesteps: int = 1000
    """Steps of the discrete schedule (gaussian)."""
    schedule: Literal["linear", "cosine"] = "linear"
    """Noise schedule (gaussian)."""
    prediction: Literal["epsilon", "v", "x0"] = "epsilon"
    """What the network predicts (gaussian; a flow predicts velocity)."""
    time_distribution: Literal["uniform", "logit_normal"] = "uniform"
    """How training times are drawn (flow)."""
    logit_mean: float = 0.0
    """Mean of the logit of t (flow, logit_normal)."""
    logit_std: float = 1.0
    """Standard deviation of the logit of t (flow, logit_normal)."""


@dataclass(frozen=True)
class DataConfig:
    path: Any = MISSING
    """Shard folder, here or in object storage (s3://…); or several, each with its share: {folder: weight, …}."""
    class_names: dict[str, dict[str, str]] = field(default_factory=dict)
    """Classes of several folders to rename, {folder: {its name: name here}}; equal names are one class."""
    held_out_fraction: float = 0.0
    """Part of the records, chosen by the hash of their keys, kept from training for the validation loss."""
    mirror: bool = True
    """Take the mirror image's moments for half of the records, drawn anew each time."""
    verify: bool = True
    """Check each record's digest whenever it is read."""
    on_damage: Literal["stop", "set_aside"] = "stop"
    """A damaged record stops the run, or is left out of its step and reported in set-aside-rankN.jsonl."""
    check_scale: bool = True
    """Refuse latents whose root mean square after scaling is below 1/4 or above 4: a wrong scale."""
    check_fingerprint: bool = True
    """Refuse to go on with other records than the run began with."""
    shuffle_block_records: int = 0
    """Shuffle blocks of so many neighbouring records, for cold or networked storage; 0 shuffles all records."""
    shuffle_window_blocks: int = 64
    """Blocks whose records are shuffled among each other, where blocks are shuffled."""
    prefetch_batches: int = 4
    """Batches read ahead."""
    request_batches: int = 64
    """How many batches ahead shards are fetched from object storage."""
    cache: str | None = None
    """Folder on each node for shards from object storage; null takes one below the temporary folder."""
    cache_bytes: int | None = None
    """Most bytes in it, the least recently read going first; null keeps all."""
    patience_seconds: float = 600.0
    """How long storage may stall before the run ends with an error."""
    record_keys: bool = False
    """Write the keys of the records that each rank consumed to keys-rankN.jsonl."""


@dataclass(frozen=True)
class TrainSection:
    steps: int = 7_000_000
    """Optimizer updates until the run is done."""
    global_batch_size: int = 256
    """Images a step over all ranks; fixed for a run."""
    micro_batch_size_per_gpu: int = 32
    """Most images a rank puts through the model at once; gradient accumulation follows."""
    learning_rate: float = 1e-4
    """AdamW's learning rate after warm-up."""
    warmup_steps: int = 0
    """Steps over which the rate rises linearly from 0."""
    rate_schedule: Literal["constant", "cosine"] = "constant"
    """The rate after warm-up: constant, or a cosine down to final_learning_rate at the last step."""
    final_learning_rate: float = 0.0
    """The cosine's end."""
    beta1: float = 0.9
    """AdamW's decay of the first moment."""
    beta2: float = 0.999
    """AdamW's decay of the second moment."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    max_grad_norm: float | None = None
    """Gradients longer than this are scaled down to it; null never clips."""
    ema_decay: float = 0.9999
    """Decay of the exponential moving average of the weights, which previews and samples show."""
    extra_ema_decays: tuple[float, ...] = ()
    """Decays of further averages, kept in checkpoints and sampled with --weights ema-DECAY."""
    power_ema_widths: tuple[float, ...] = ()
    """Relative widths of power-function averages (arXiv 2312.02696), such as 0.05, 0.1: --weights post-hoc-WIDTH."""
    on_bad_step: Literal["skip", "roll_back", "stop"] = "skip"
    """Not finite, or a spike: leave the update out; go to the last checkpoint and on without that batch; or end."""
    spike_factor: float = 0.0
    """A gradient norm above so many times the median of the last 100 is a spike; 0 takes none for one."""
    max_bad_steps: int = 10
    """Bad steps among the last 1,000; one more ends the run."""


_LEAST_BUCKET, _LARGEST_BUCKET, _LEAST_PART = 8_000_000, 200_000_000, 4_000_000  # elements


@dataclass(frozen=True)
class EngineConfig:
    zero_stage: Literal[0, 1, 2, 3] = 1
    """What DeepSpeed shards over ranks: 0 nothing, 1 optimizer state, 2 and gradients, 3 and parameters."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Arithmetic of model and gradients; master weights, Adam moments and EMA are always fp32."""
    checkpoint_every_blocks: int = 0
    """Activation checkpointing: 0 none, 1 every block, k every k-th block."""
    offload_optimizer: bool = False
    """Keep optimizer state and its update in host memory (ZeRO 1, 2, 3)."""
    compile: bool = False
    """Compile each block with torch.compile."""
    activation_budget: float = 1.0
    """Part of their activations that compiled blocks keep; below 1 backward recomputes what is cheapest to."""
    fp8: bool = False
    """Linear layers of blocks in 8 bits by torchao, for GPUs that have them (Hopper and later); elsewhere emulated."""
    bucket_elements: int | None = None
    """Elements that DeepSpeed reduces or gathers in one call; null takes a tenth of the model, within limits."""
    reduce_to_owners: bool | None = None
    """ZeRO 1, 2: send gradients to the rank that updates them alone, which halves traffic; null: if parts are large."""
    overlap_reduction: bool | None = None
    """Reduce gradients beside backward on GPUs; null: at ZeRO 3, at 1 and 2 if a sum is measured to outlast a wait."""
    hierarchical_partitioning: bool = False
    """ZeRO 3 over nodes: each node keeps all parameters, so that backward gathers inside it (ZeRO++ hpZ)."""
    threads_per_rank: int | None = None
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
    every_steps: int = 10_000
    """Steps between checkpoints; one is always written at the end."""
    keep: int = 3
    """Newest checkpoints that stay."""
    keep_every_steps: int = 0
    """Checkpoints of every so many steps stay for ever; 0 is none."""
    keep_best: int = 0
    """Checkpoints with the best best_by that stay, too."""
    best_by: str = "validation_loss"
    """What keep_best compares: validation_loss, or a metric of evaluations such as fid; measured at a checkpoint."""
    in_background: bool = True
    """Write while training goes on, from a copy in host memory (4 bytes a number: 16 a parameter over all ranks)."""
    time_limit_margin_seconds: float = 60.0
    """Stop, saved, so long (and twice what a save takes) before the job's time limit, if no signal came earlier."""
    retry_seconds: float = 60.0
    """After a save that failed (a full disk), how long until the next try."""


@dataclass(frozen=True)
class PreviewConfig:
    every_steps: int = 10_000
    """Steps between preview grids; 0 draws none."""
    classes: tuple[int, ...] = ()
    """Classes in the grid; empty takes up to eight, spread evenly."""
    samples_per_class: int = 4
    """Images a class."""
    cfg_scale: float = 4.0
    """Guidance; 1 is none."""
    solver: str | None = None
    """Solver; null takes the objective's default."""
    num_sampling_steps: int = 50
    """Steps of the solver."""


@dataclass(frozen=True)
class ValidationConfig:
    every_steps: int = 0
    """Steps between validation losses over the held-out records (data.held_out_fraction); 0 takes none."""
    num_images: int = 10_000
    """Most held-out images in one."""


@dataclass(frozen=True)
class EvaluationConfig:
    every_steps: int = 0
    """Steps between evaluations of the EMA's images, written to evaluation/ in the run folder; 0 makes none."""
    num_images: int = 1_000
    """Images drawn for one, of all classes and always from the same noise."""
    reference: str | None = None
    """Real images: a folder, an .npz or ADM's statistics; null decodes as many records of the data."""
    weights: str | None = None
    """File of Inception's weights, for FID and its kin; null takes a small classifier's features, under its name."""
    cfg_scale: float = 1.0
    """Guidance; 1 is none."""
    solver: str | None = None
    """Solver; null takes the objective's default."""
    num_sampling_steps: int = 50
    """Steps of the solver."""
    batch_size: int = 32
    """Images at once on a rank; part of the protocol, as it changes last bits."""


@dataclass(frozen=True)
class LogConfig:
    every_steps: int = 100
    """Steps between console lines; metrics.jsonl has a line for every step."""


@dataclass(frozen=True)
class WatchdogConfig:
    step_seconds: float = 600.0
    """A rank that stays so long in a step's data or computation, or gives no sign of life, ends the run; 0 is never."""
    long_seconds: float = 3600.0
    """The same for setting up (with the first step, which compiles), saving, measuring and previews; 0 is never."""


@dataclass(frozen=True)
class WandbConfig:
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """Auto is what WANDB_MODE says, else online where an API key is found, else offline."""
    project: str = "dit_scale"
    """Project on wandb; WANDB_PROJECT wins over the default."""
    name: str | None = None
    """Name of the run; null takes WANDB_NAME, else the run folder's."""


@dataclass(frozen=True)
class Config:
    """A training run."""

    run_dir: str = MISSING
    """Run folder; where it holds a checkpoint, training goes on from the last good one."""
    seed: int = 0
    """Seed of the initial weights and of every draw."""
    init_from: str | None = None
    """Weights for a new run: a run, a checkpoint folder, a published .pt or a .safetensors file."""
    model: ModelConfig = field(default_factory=ModelConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
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


FIXED_FOR_A_RUN = (
    "seed",
    "model.name",
    "model.patch_size",
    "model.hidden_size",
    "model.depth",
    "model.num_heads",
    "model.mlp_ratio",
    "model.label_dropout",
    "model.learn_sigma",
    "diffusion",
    "data.mirror",
    "data.held_out_fraction",
    "data.shuffle_block_records",
    "data.shuffle_window_blocks",
    "train.global_batch_size",
    "engine.precision",
)
"""The rule for resuming: these stay as the run began (and so do its latents); all else may change."""
