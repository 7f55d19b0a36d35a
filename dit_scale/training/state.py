"""All that training changes: master weights, the optimizer's state and the EMAs; saved and restored as one."""

import logging
from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from dit_scale.checkpoint import Checkpoint, State, content_digests
from dit_scale.checkpoint.averages import EMA, ema_kind
from dit_scale.checkpoint.post_hoc import decay_at, gamma_of, power_kind
from dit_scale.config import TrainSection
from dit_scale.distributed.fragments import Fragment
from dit_scale.errors import InputError
from dit_scale.training.ema import Moves, ShardedEMA
from dit_scale.zero.optimizer_state import MASTER, OptimizerState
from dit_scale.zero.update_guard import Verdict

log = logging.getLogger(__name__)


class TrainingState:
    """The fp32 state of a run on this rank, in fragments of named parameters."""

    def __init__(self, optimizer: OptimizerState, train: TrainSection):
        self.optimizer = optimizer
        self._decays = _decays_of(train)
        self._begin_emas()

    @property
    def ema(self) -> ShardedEMA:
        """The average that previews and samples show."""
        return self.emas[EMA]

    @property
    def num_updates(self) -> int:
        """The updates that the run has taken; asking waits for the device."""
        return self._moves.num_updates

    def update_emas(self, verdict: Verdict) -> None:
        """Move every average by one update, unless it was discarded; the host does not wait to know."""
        moves = self._moves.next(verdict.is_discarded_there)
        for ema, by in zip(self.emas.values(), moves, strict=True):
            ema.move(by)

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Begin with fp32 weights, which the engine may have rounded to bf16; the EMAs begin with them, too."""
        master = self.optimizer.master
        for fragment in self.optimizer.held:
            whole = weights[fragment.name].flatten()
            fragment.of(master).copy_(whole.narrow(0, fragment.offset, fragment.numel))
        self.optimizer.publish()
        self._begin_emas()

    def part(self) -> State:
        """Return this rank's part, as it is now, for a checkpoint."""
        optimizer = self.optimizer
        kinds = {kind: [view for _, view in optimizer.of_kind(kind, optimizer.owned)] for kind in optimizer.names}
        kinds |= {kind: ema.tensors for kind, ema in self.emas.items()}
        # What is never trained is in every kind of weights alike; one rank writes it.
        drawn = optimizer.drawn if dist.get_rank() == 0 else {}
        owned = [*optimizer.owned, *(Fragment(name, 0, value.numel(), 0, 0) for name, value in drawn.items())]
        flats = [value.flatten() for value in drawn.values()]
        kinds |= {kind: [*kinds[kind], *flats] for kind in (MASTER, *self.emas)}
        return State(self._shapes, owned, kinds, optimizer.adam_step, optimizer.names | {MASTER: set(self._shapes)})

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> None:
        """Load a checkpoint of any number of ranks and any ZeRO stage, and check what was loaded (collective)."""
        optimizer = self.optimizer
        if checkpoint.shapes != self._shapes:
            raise RuntimeError(f"checkpoint '{checkpoint.folder}' holds other parameters than the model has")
        self._check_optimizer(checkpoint)
        for kind in optimizer.names:
            for fragment, view in optimizer.of_kind(kind, optimizer.held):
                view.copy_(checkpoint.read(kind, fragment.name, fragment.offset, fragment.numel))
        for kind, ema in self.emas.items():
            if kind not in checkpoint.kinds:
                log.warning("checkpoint %s has no %s: it begins with the %s there", checkpoint.folder.name, kind, EMA)
            saved_as = kind if kind in checkpoint.kinds else EMA
            for fragment, tensor in zip(optimizer.owned, ema.tensors, strict=True):
                tensor.copy_(checkpoint.read(saved_as, fragment.name, fragment.offset, fragment.numel))
        for name, value in optimizer.drawn.items():
            value.copy_(checkpoint.read(MASTER, name, 0, value.numel()).view_as(value))
        optimizer.adam_step = checkpoint.adam_step
        self._begin_moves(checkpoint.adam_step)
        optimizer.publish()
        self._verify(checkpoint)

    @property
    def _shapes(self) -> dict[str, torch.Size]:
        """Of all that a checkpoint holds, whole."""
        return self.optimizer.shapes | {name: value.shape for name, value in self.optimizer.drawn.items()}

    def _check_optimizer(self, checkpoint: Checkpoint) -> None:
        """Refuse, with an InputError, what another optimizer has saved."""
        saved = {kind: set(checkpoint.content_digests[kind]) for kind in checkpoint.optimizer_kinds}
        own = {kind: names for kind, names in self.optimizer.names.items() if kind != MASTER}
        if saved != own:
            differ = sorted(kind for kind in saved | own if saved.get(kind) != own.get(kind))
            raise InputError(
                f"checkpoint '{checkpoint.folder}' is another optimizer's ({', '.join(differ)} differ); give the "
                f"train.optimizer that its run began with, or start another run_dir with init_from={checkpoint.folder}"
            )

    def _begin_emas(self) -> None:
        self.emas = {kind: ShardedEMA(self.optimizer) for kind in self._decays}
        self._begin_moves(0)

    def _begin_moves(self, num_updates: int) -> None:
        self._moves = Moves(list(self._decays.values()), num_updates, self.optimizer.master[0].device)

    def _verify(self, checkpoint: Checkpoint) -> None:
        loaded = content_digests(self.part())
        for kind, digests in checkpoint.content_digests.items():
            for name, digest in digests.items():
                if kind in loaded and loaded[kind][name] != digest:
                    raise RuntimeError(f"{kind} of {name} is not what checkpoint '{checkpoint.folder}' saved")


def _decays_of(train: TrainSection) -> dict[str, Callable[[int], float]]:
    """Return, by kind, the decay of each average at an update counted from 1."""
    decays: dict[str, Callable[[int], float]] = {}
    constant = {EMA: train.ema_decay} | {ema_kind(decay): decay for decay in train.extra_ema_decays}
    for kind, decay in constant.items():
        decays[kind] = partial(_constant, decay=decay)
    for width in train.power_ema_widths:
        decays[power_kind(width)] = partial(decay_at, gamma=gamma_of(width))
    return decays


def _constant(update: int, decay: float) -> float:
    return decay
