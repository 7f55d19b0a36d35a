"""What a condition is, from the record to guidance."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from dit_scale.classes import ClassNames
from dit_scale.errors import InputError


@dataclass(frozen=True)
class RecordArray:
    """An array that each record of a shard holds beside its moments, always of one type and shape."""

    name: str
    """Part of the member's name in tars (``KEY.NAME.npy``), and the column's in MDS."""
    dtype: str
    """As NumPy and PyTorch call it: float16, int64, …; stored little-endian."""
    shape: tuple[int, ...]
    """With one dimension or more."""

    @property
    def num_bytes(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Condition(ABC):
    """A kind of condition; of N images it is one tensor [N, ...], here called values.

    The data layer reads and batches what ``stored`` names; the loss replaces some values by nulls (``dropped``); the
    network adds what ``embedding`` makes of the values to the time's vector; guidance compares with ``nulls``.
    """

    stored: ClassVar[RecordArray | None] = None
    """The array of a record that is the value; None takes the class label, int64 and without dimensions."""

    num_classes: int
    """Classes of the data, which has labels whatever the condition."""
    has_null: bool = True
    """Whether the network learns to do without, as guidance needs it."""

    @property
    @abstractmethod
    def null(self) -> float:
        """The number that stands for no condition, in every place of a value."""

    @abstractmethod
    def embedding(self, hidden_size: int) -> nn.Module:
        """Return the network's ``y_embedder``, which maps values [N, ...] to [N, hidden_size]."""

    def empty(self, count: int, device: str) -> Tensor:
        """Return values of the right shape and type whose numbers mean nothing, for what looks at shapes alone."""
        if self.stored is None:
            return torch.empty(count, dtype=torch.int64, device=device)
        return torch.empty(count, *self.stored.shape, dtype=getattr(torch, self.stored.dtype), device=device)

    def choices(self, class_names: ClassNames) -> ClassNames:
        """Return the names of what samplers may be asked for, in the order of the numbers that ``values`` takes.

        Raises InputError where nothing has a name.
        """
        if self.stored is not None:
            raise InputError(
                f"the model's condition is array '{self.stored.name}' of records, which no class stands for; draw with "
                f"dit_scale.sampling.sample_latents, and train with preview.every_steps=0 and evaluation.every_steps=0"
            )
        return class_names

    def values(self, numbers: Tensor) -> Tensor:
        """Return the values [N, ...] of choices, by their numbers [N]."""
        return numbers

    def initialize(self, embedding: nn.Module) -> None:  # noqa: B027 (most have nothing to do)
        """Set an embedding's initial weights; its linear layers have those of the network's others already."""

    def dropped(self, values: Tensor, is_dropped: Tensor) -> Tensor:
        """Return values [N, ...] with the null where ``is_dropped`` [N]."""
        return torch.where(is_dropped.view(-1, *[1] * (values.dim() - 1)), self.null, values)

    def nulls(self, values: Tensor) -> Tensor | None:
        """Return the null for each of some values [N, ...], or None where there is no null."""
        return torch.full_like(values, self.null) if self.has_null else None
