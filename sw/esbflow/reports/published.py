"""Published accuracies that the data at hand allow to compare with, and which of our records stand beside them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One number of a paper. `ours` names the file in docs/results (without .json) that is to be compared, if there is one.

    bits : weights / activations, as the paper counts them. top1, real : percent; None where the source gives none. A source
    that is "not checked" could not be opened: the number is as the field quotes it.
    """

    method: str
    network: str
    data: str
    bits: str
    top1: float
    real: float | None
    source: str
    ours: str


_UL2Q = "Gong et al., IJCNN 2019, table IV"
_LQ = "Zhang et al., ECCV 2018, table 4 (not checked)"
_APOT = "Li et al., ICLR 2020, released checkpoints"
_A2Q_OWN = "Zhu et al., ICLR 2023 (not checked)"
_A2Q = "as A2Q quotes it (not checked)"
_RQ = "Louizos et al., ICLR 2019 (not checked)"
_ALQ = "Qu et al., CVPR 2020, released code's README"
_BREVITAS = "Brevitas' README"
_SQ = "Dong et al., BMVC 2017 (not checked)"

PUBLISHED = (
    *(Published("muL2Q", "LeNet-5", "MNIST", f"{bits}/32", top1, 99.10, _UL2Q, f"lenet5-ul2q{bits}")
      for bits, top1 in ((1, 99.06), (2, 99.12), (4, 99.12), (8, 99.16))),
    Published("ALQ", "LeNet-5", "MNIST", "0.40/32", 99.1, None, _ALQ, "alq-lenet5-mnist"),
    *(Published("RQ", "LeNet-5", "MNIST", f"{bits}/{bits}", top1, None, _RQ, f"lenet5-srq{bits}")
      for bits, top1 in ((8, 99.45), (4, 99.42), (2, 99.24))),
    *(Published("Brevitas", network, "MNIST", bits, top1, None, _BREVITAS, ours)
      for network, bits, top1, ours in (("LFC", "1/1", 98.88, "lfc-w1a1"), ("LFC", "1/2", 98.99, "lfc-w1a2"),
                                        ("TFC", "2/2", 96.60, "tfc-w2a2"))),
    *(Published("APoT", "ResNet-20", "CIFAR-10", f"{bits}/{bits}", top1, 92.96, _APOT, f"resnet20-apot{bits}")
      for bits, top1 in ((2, 90.96), (3, 92.51), (4, 92.47))),
    *(Published("LQ-Nets", "ResNet-20", "CIFAR-10", f"{w}/{a}", top1, 92.1, _LQ, f"resnet20-lqnets{w}-{min(a, 8)}")
      for w, a, top1 in ((1, 32, 90.1), (2, 32, 91.8), (3, 32, 92.0), (1, 2, 88.4), (2, 2, 90.2), (3, 3, 91.6))),
    *(Published("LQ-Nets", "VGG-small", "CIFAR-10", f"{w}/{a}", top1, 93.8, _LQ, f"vgg-small-lqnets{w}-{min(a, 8)}")
      for w, a, top1 in ((1, 32, 93.5), (2, 32, 93.8), (3, 32, 93.8), (1, 2, 93.4), (2, 2, 93.5), (3, 3, 93.8))),
    *(Published("muL2Q", "VGG7-64", "CIFAR-10", f"{bits}/32", top1, 89.24, _UL2Q, f"vgg7-ul2q{bits}")
      for bits, top1 in ((1, 89.02), (2, 89.50), (4, 89.80), (8, 89.70))),
    *(Published("muL2Q", "CifarNet", "CIFAR-10", f"{bits}/32", top1, 81.82, _UL2Q, f"cifarnet-ul2q{bits}")
      for bits, top1 in ((1, 79.28), (2, 80.26), (4, 81.32), (8, 81.66))),
    Published("ALQ", "VGG-small, 3 FC", "CIFAR-10", "0.66/32", 92.0, None, _ALQ, "vgg-small-alq"),
    *(Published(method, "VGG-9", "CIFAR-10", bits, top1, 91.00, _SQ, "")
      for method, bits, top1 in (("BWN", "1/32", 89.33), ("SQ-BWN", "1/32", 90.60), ("TWN", "2/32", 90.13),
                                 ("SQ-TWN", "2/32", 91.63))),
    *(Published(method, "ResNet-56", "CIFAR-10", bits, top1, 93.31, _SQ, f"resnet56-{name}")
      for method, bits, top1, name in (("BWN", "1/32", 83.58, "binary"), ("SQ-BWN", "1/32", 92.85, "sq-binary"),
                                       ("TWN", "2/32", 92.36, "twn"), ("SQ-TWN", "2/32", 93.80, "sq-twn"))),
    *(Published("Brevitas", "CNV", "CIFAR-10", bits, top1, None, _BREVITAS, ours)
      for bits, top1, ours in (("1/1", 84.22, "cnv-w1a1"), ("1/2", 87.80, "cnv-w1a2"), ("2/2", 89.03, "cnv-w2a2"))),
    *(Published("Degree-Quant", "GCN", data, "4/4", top1, real, _A2Q, f"sgquant-gcn-{data.lower()}-w4a4")
      for data, top1, real in (("Cora", 78.3, 81.5), ("Citeseer", 66.9, 70.3))),
    *(Published("A2Q", "GCN", data, bits, top1, real, _A2Q_OWN, f"sgquant-gcn-{data.lower()}-search")
      for data, bits, top1, real in (("Cora", "1.70", 80.9, 81.5), ("Citeseer", "1.87", 70.6, 70.3))),
)
