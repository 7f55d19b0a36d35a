"""The class label, as published (arXiv 2212.09748): a table with a row a class, and one for the null label."""

from torch import Tensor, nn

from dit_scale.conditioning.interface import Condition


class LabelEmbedding(nn.Module):
    """Look a label up in a table, whose last row is the null label where there is one."""

    def __init__(self, num_labels: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_labels, hidden_size)

    def forward(self, label: Tensor) -> Tensor:
        """Map ``label`` [N] to [N, D]."""
        return self.embedding_table(label)  # [N, D]


class Labels(Condition):
    """Values are labels, int64 [N]."""

    @property
    def null(self) -> int:
        """The label after the last class."""
        return self.num_classes

    def embedding(self, hidden_size: int) -> LabelEmbedding:
        """Return the table."""
        return LabelEmbedding(self.num_classes + self.has_null, hidden_size)

    def initialize(self, embedding: nn.Module) -> None:
        """Draw the table's rows as published."""
        embedding.get_parameter("embedding_table.weight").normal_(std=0.02)
