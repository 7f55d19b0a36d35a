"""No condition: the network learns all classes as one."""

from torch import Tensor, nn

from dit_scale.classes import ClassNames
from dit_scale.conditioning.interface import Condition


class NoEmbedding(nn.Module):
    """Add nothing to the time's vector."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size

    def forward(self, label: Tensor) -> Tensor:
        """Map ``label`` [N], whatever it is, to zeros [N, D]."""
        return label.new_zeros(len(label), self.hidden_size)  # [N, D]


class Unconditional(Condition):
    """Values are labels, int64 [N], which nobody looks at; there is nothing to leave out, and so no guidance."""

    def __init__(self, num_classes: int, has_null: bool = False) -> None:
        super().__init__(num_classes, has_null=False)

    @property
    def null(self) -> int:
        """Any label."""
        return 0

    def choices(self, class_names: ClassNames) -> ClassNames:
        """Return one name for all."""
        return ClassNames(("all classes",))

    def embedding(self, hidden_size: int) -> NoEmbedding:
        """Return a module without parameters."""
        return NoEmbedding(hidden_size)
