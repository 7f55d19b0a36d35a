"""How much memory training takes on one rank, part by part: arithmetic alone, nothing is allocated.

ZeRO's states are those of "ZeRO: memory optimizations toward training trillion parameter models" (arXiv 1910.02054,
section 3) as DeepSpeed 0.19 lays them out; activations are the tensors that autograd keeps of a network, measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dit_scale.config import TrainSection
from dit_scale.models.dit import DiT
from dit_scale.optim import Group, KeptNumbers, cut_flat, groups_of, members_of, numbers_kept
from dit_scale.parameters import num_parameters, num_trained, trained
from dit_scale.planning.frozen import NO_ENCODERS, Frozen
from dit_scale.planning.measuring import kept_of, with_all_tokens

FP32_BYTES = 4
STAGE_3_REUSE_DISTANCE = 1_000_000_000  # DeepSpeed's stage3_max_live_parameters and stage3_max_reuse_distance
STAGE_3_PERSISTENT = 100_000  # its stage3_param_persistence_threshold: smaller parameters stay whole
_STAGE_0_BUCKET = 500_000_000  # elements that its engine flattens for one all-reduce at stage 0
_LOSS_FEATURES = 2  # fp32 tensors of the features' shape that the alignment loss keeps: projected, and the target
_LOSS_LATENTS = 15  # fp32 tensors of a latent's shape that the Gaussian objective keeps; a flow keeps fewer


@dataclass(frozen=True)
class TrainingSetup:
    """What memory depends on beside the model."""

    micro_batch_size: int
    """Images in one forward pass."""
    world_size: int = 1
    zero_stage: int = 1
    bytes_per_number: int = 2
    """Of parameters, gradients and activations: 2 for bf16, 4 for fp32."""
    gradient_accumulation_steps: int = 1
    checkpoint_every_blocks: int = 0
    """0 recomputes nothing in backward, 1 every block, k every k-th."""
    activation_budget: float = 1.0
    """Part of its activations that a block keeps beside its input."""
    offload_optimizer: bool = False
    bucket_elements: int = 200_000_000
    reduce_to_owners: bool = False
    """Stages 1, 2: gradients go to the rank that updates them, not to all."""
    node_size: int = 0
    """Stage 3: ranks of a node that keep all parameters between them once more (ZeRO++ hpZ); 0 is none."""
    groups: Sequence[Group] = field(default_factory=lambda: groups_of(TrainSection()))
    """The optimizer's: what it keeps of which parameters."""
    has_kernels: bool = True
    """Whether our kernels, or PyTorch's of attention, compute; else autograd keeps T x T numbers a head."""
    on_gpu: bool = True
    """A GPU's buckets are allocated whole, and doubled so that reducing overlaps; a CPU's only as far as used. A GPU's
    kernels keep what goes into them, where PyTorch on a CPU keeps what is between, too."""
    all_tokens: bool = False
    """Whether no token goes around routed blocks, as after routing.until_step."""
    frozen: Frozen = NO_ENCODERS
    """The encoders that run beside the network."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one rank's device, by part, and on the host beside it."""

    parameters: int
    """What the model computes with; at stage 3 this rank's part, and small ones whole."""
    gathered_parameters: int
    """Stage 3: other ranks' parts while forward and backward use them."""
    gradients: int
    """What is held from backward to the update."""
    buckets: int
    """Buffers in which gradients are reduced."""
    master: int
    """fp32 weights that the optimizer updates (stage 0 in fp32: the parameters themselves)."""
    optimizer_state: int
    """What the optimizer keeps from update to update, such as Adam's two moments."""
    ema: int
    encoders: int
    """The weights of frozen encoders."""
    activations: int
    """What autograd keeps for backward, with the checkpointing that is set."""
    backward_workspace: int
    """The widest moment of backward: a recomputed block, gradients of a block's activations."""
    encoder_workspace: int
    """The widest moment of an encoder's pass, between forward and backward."""
    update_workspace: int
    """fp32 gradients of this rank's part while the optimizer runs, and copies by which an update is put back."""
    host_setup: int
    """In host memory while a run starts: the new model and its initial weights."""
    host_optimizer: int
    """In host memory throughout, where the optimizer is offloaded."""

    @property
    def states(self) -> int:
        """Bytes that stay from step to step."""
        return self.parameters + self.master + self.optimizer_state + self.ema + self.encoders

    @property
    def peak(self) -> int:
        """The most at any moment of a step: in an encoder, in backward, or in the update."""
        workspace = max(self.backward_workspace, self.encoder_workspace)
        backward = self.gathered_parameters + self.buckets + self.activations + workspace
        return self.states + self.gradients + max(backward, self.update_workspace)

    @property
    def host_peak(self) -> int:
        """The most host memory of one rank: at the start, or while training."""
        return max(self.host_setup, self.host_optimizer)


def estimate_memory(model: DiT, setup: TrainingSetup) -> MemoryEstimate:
    """Return the bytes that training ``model`` takes on one rank; the model may lie on the meta device."""
    sizes = [parameter.numel() for parameter in trained(model).values()]
    frozen = num_parameters(model) - num_trained(model)
    total, number, stage = sum(sizes), setup.bytes_per_number, setup.zero_stage
    is_sharded = stage > 0
    part = -(-total // setup.world_size) if is_sharded else total
    states_on_device = 0 if setup.offload_optimizer else 1
    master = FP32_BYTES * part if is_sharded else 0
    kept = optimizer_numbers(model, setup)
    state = FP32_BYTES * kept.state
    workspace_of_update = FP32_BYTES * (kept.copies + (part if is_sharded else 0))
    ema = FP32_BYTES * -(-total // setup.world_size)  # sharded at every stage
    by_group = [[p.numel() for p in own.values()] for own in members_of(setup.groups, trained(model))]
    gradients = number * _gradient_elements([own for own in by_group if own], setup)
    parameters, gathered = _parameter_elements(sizes, setup)
    activations, workspace = _activations(model, setup)
    return MemoryEstimate(
        parameters=number * (parameters + frozen),
        gathered_parameters=number * gathered,
        gradients=gradients,
        buckets=number * _bucket_elements(total, setup),
        master=states_on_device * master,
        optimizer_state=states_on_device * state,
        ema=states_on_device * ema,
        encoders=number * setup.frozen.parameters,
        activations=activations,
        backward_workspace=workspace,
        encoder_workspace=number * setup.micro_batch_size * setup.frozen.workspace,
        update_workspace=states_on_device * workspace_of_update,
        host_setup=2 * FP32_BYTES * (total + frozen),
        host_optimizer=0 if states_on_device else master + state + ema + workspace_of_update,
    )


def optimizer_numbers(model: DiT, setup: TrainingSetup) -> KeptNumbers:
    """Return what the optimizer keeps on one rank."""
    return numbers_kept(setup.groups, trained(model), setup.world_size if setup.zero_stage else None)


def checkpoint_bytes(model: DiT, groups: Sequence[Group], num_extra_emas: int = 0) -> int:
    """Return the bytes of one checkpoint over all ranks: master weights, the optimizer's state, EMAs, in fp32."""
    return FP32_BYTES * ((2 + num_extra_emas) * num_trained(model) + numbers_kept(groups, trained(model)).state)


def activation_bytes_per_image(model: DiT, setup: TrainingSetup) -> int:
    """Return the bytes that autograd keeps of one image on a GPU, where nothing is recomputed."""
    alone = replace(setup, micro_batch_size=1, checkpoint_every_blocks=0, activation_budget=1.0, on_gpu=True)
    return _activations(model, alone)[0]


# ---------------------------------------------------------------- parts


def _parameter_elements(sizes: Sequence[int], setup: TrainingSetup) -> tuple[int, int]:
    """Return the elements of parameters that stay on a rank, and those that stage 3 gathers on top at most."""
    total = sum(sizes)
    if setup.zero_stage < 3:
        return total, 0
    persistent = sum(size for size in sizes if size <= STAGE_3_PERSISTENT)
    # DeepSpeed keeps what is used again within so many parameters: a model below that is gathered whole.
    gathered = max(0, min(total, STAGE_3_REUSE_DISTANCE) - persistent)
    second = sum(-(-size // setup.node_size) for size in sizes) if setup.node_size else 0
    return sum(-(-size // setup.world_size) for size in sizes) + persistent + second, gathered


def _gradient_elements(groups: Sequence[Sequence[int]], setup: TrainingSetup) -> int:
    """Return the gradient elements that a rank holds between backward and update, of groups of parameters' sizes."""
    sizes = [size for group in groups for size in group]
    accumulates = setup.gradient_accumulation_steps > 1
    if setup.zero_stage == 0 or (setup.zero_stage == 1 and accumulates):
        return sum(sizes)
    if setup.zero_stage == 3:
        return sum(-(-size // setup.world_size) for size in sizes)
    whole = [0] * setup.world_size  # of all parameters that reach into a rank's part
    for group in groups:
        for rank, pieces in enumerate(cut_flat(group, setup.world_size)):
            whole[rank] += sum(group[piece.parameter] for piece in pieces)
    return max(whole)


def _bucket_elements(total: int, setup: TrainingSetup) -> int:
    if setup.zero_stage == 0:
        return min(total, _STAGE_0_BUCKET) if setup.world_size > 1 else 0
    if setup.zero_stage < 3 and setup.world_size == 1 and not setup.offload_optimizer:
        return 0  # nothing is reduced
    if not setup.on_gpu:
        return min(total, setup.bucket_elements)
    return setup.bucket_elements * (2 if setup.zero_stage < 3 else 1)


def _activations(model: DiT, setup: TrainingSetup) -> tuple[int, int]:
    """Return the bytes that autograd keeps, and the workspace of backward, for one micro batch."""
    every, number, images = setup.checkpoint_every_blocks, setup.bytes_per_number, setup.micro_batch_size
    config = with_all_tokens(model.config) if setup.all_tokens else model.config
    kept = kept_of(config, number, setup.on_gpu, setup.has_kernels)
    latent = config.in_channels * config.latent_size**2
    widths = [stack.hidden_size for stack in config.stacks for _ in range(stack.depth)]
    tokens = [
        number * (config.num_kept if block in config.routed_blocks else config.num_tokens) * width
        for block, width in enumerate(widths, start=1)
    ]
    blocks = [
        entering if every and index % every == 0 else entering + setup.activation_budget * (whole - entering)
        for index, (entering, whole) in enumerate(zip(tokens, kept.blocks, strict=True))
    ]
    projectors = config.projectors
    features = sum(projectors.widths) * config.num_tokens if projectors is not None else 0
    outside = kept.rest + FP32_BYTES * (_LOSS_LATENTS * latent + _LOSS_FEATURES * features)
    # Gradients of the two widest activations, before and after the MLP's GELU, and of the tokens live at once.
    gradients = kept.widest + number * config.num_tokens * max(widths)
    is_recomputed = every > 0 or setup.activation_budget < 1
    return round(images * (sum(blocks) + outside)), images * (gradients + (max(kept.blocks) if is_recomputed else 0))
