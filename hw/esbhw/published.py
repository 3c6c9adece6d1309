"""Densities that others have published, to be compared with."""

PUBLISHED = (  # name, bits, GOPS/kLUT, how the figure was obtained, source
    ("ESB accelerator", "ESB, mixed", 10.95, "as published, on a ZCU102 without DSPs",
     "Gong et al., Elastic Significant Bit Quantization and Acceleration for Deep Neural Networks, IEEE TPDS 33(11), "
     "2022"),
    *(("BISMO", f"W{bits}A{bits}", 15_400 / bits ** 2 / 70.56,
       f"at least: 15.4 binary TOPS as published, over {bits ** 2} bit products, over all 70,560 LUTs of its ZU3EG",
       "Umuroglu et al., Optimizing Bit-Serial Matrix Multiplication for Reconfigurable Computing, ACM TRETS 2019, "
       "arXiv 1901.00370") for bits in (4, 2)),
)
