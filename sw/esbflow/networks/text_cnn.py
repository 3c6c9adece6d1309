"""A convolutional network for sentences.

Source: Kim, "Convolutional Neural Networks for Sentence Classification", EMNLP 2014, figure 1, with the embedding trained
from random values (CNN-rand). Two things are written as the engine runs them, and compute the same: max over time is a
chain of max pools, because its windows reach 15, and the linear layer of the concatenated filters is a sum of one 1x1
convolution for each width, because it has no concatenation.
"""

import torch
from torch import nn
from torch.nn import functional as F

from esbflow.errors import BadValue

POOL_LIMIT = 15


def pools_over(length: int) -> nn.Sequential:
    """Max pools that together take the maximum of `length` rows.

    >>> [pool.kernel_size for pool in pools_over(198)]
    [(15, 1), (14, 1)]
    """
    pools = []
    while length > 1:
        kernel = min(POOL_LIMIT, length)
        pools.append(nn.MaxPool2d((kernel, 1), ceil_mode=True))
        length = -(-length // kernel)
    return nn.Sequential(*pools)


class SentenceCNN(nn.Module):
    """The part that the engine runs: embedded sentences (n, dim, length, 1) -> (n, classes, 1, 1).

    Raises
    ------
    ValueError
        if a sentence is shorter than the widest filter.
    """

    def __init__(self, classes: int, length: int, dim: int = 64, filters: int = 100, widths: tuple = (3, 4, 5),
                 dropout: float = 0.5):
        super().__init__()
        if length < max(widths):
            raise BadValue(f"sentences of {length} tokens are shorter than a filter of {max(widths)}")
        self.shape = (dim, length, 1)
        self.convs = nn.ModuleList(nn.Conv2d(dim, filters, (width, 1)) for width in widths)
        self.pools = nn.ModuleList(pools_over(length - width + 1) for width in widths)
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleList(nn.Conv2d(filters, classes, 1, bias=i == 0) for i in range(len(widths)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = None
        for conv, pool, head in zip(self.convs, self.pools, self.heads):
            part = head(self.dropout(pool(F.relu(conv(x)))))
            scores = part if scores is None else scores + part
        return scores


class TextCNN(nn.Module):
    """Vocabulary numbers (n, length) -> (n, classes): an embedding, which the host looks up, and `sentence`, which the
    engine runs. Number 0 is embedded as zeros and does not train."""

    def __init__(self, vocabulary: int, classes: int, length: int, dim: int = 64, **options):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim, padding_idx=0)
        self.sentence = SentenceCNN(classes, length, dim, **options)
        with torch.no_grad():
            # As Kim: uniform in +-0.25. Normal values would be far larger than what the filters start with.
            self.embedding.weight.uniform_(-0.25, 0.25)
            self.embedding.weight[0] = 0

    def embedded(self, numbers: torch.Tensor) -> torch.Tensor:
        """(n, dim, length, 1): the image of a sentence."""
        return self.embedding(numbers).transpose(1, 2).unsqueeze(3)

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return self.sentence(self.embedded(numbers)).flatten(1)
