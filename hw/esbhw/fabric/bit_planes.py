"""A dot product without multipliers: digits gated by one bit of their weights at a time, added up, the planes then joined.

Weights are sign and magnitude, or two's complement, whose top plane's sum is inverted in the last row. Nothing is negative;
`engine_facts.array_offset` says what the result has too much.
"""

from esbhw.fabric.adder_rows import Term, add_row, add_tree, gated, inverted, plain
from esbhw.fabric.idioms import register


def plane_sum(m, platform, digits: list, weights: list, j: int) -> Term:
    """The sum of the digits whose weight has bit j: a registered leaf row for each two, then a tree.

    1 + `engine_facts.tree_levels(leaves)` cycles later.
    """
    leaves = []
    for k in range(0, len(digits), 2):
        pair = [gated(digit, weight[j]) for digit, weight in zip(digits[k:k + 2], weights[k:k + 2], strict=True)]
        total, largest = add_row(m, platform, pair, f"plane{j}_leaf_{k // 2}")
        leaves.append(plain(register(m, total, f"plane{j}_leaf_{k // 2}_q"), largest))
    return add_tree(m, platform, leaves, f"plane{j}")


def join_planes(m, platform, planes: list, largest: int, magnitude: bool) -> Term:
    """The planes' sums of at most `largest` each, weighed by their bits; the top one inverted unless
    weights are `magnitude`s.

    `engine_facts.tree_levels(planes)` cycles later.
    """
    terms = [term.shifted(j) for j, term in enumerate(planes)]
    if magnitude or len(terms) == 1:
        return add_tree(m, platform, terms, "join")
    low, top = terms[:-1], planes[-1].value
    if len(low) > 2:
        low, top = [add_tree(m, platform, low, "join")], register(m, top, "join_top_q")
    bits = largest.bit_length()
    total, largest = add_row(m, platform, [*low, inverted(top, bits).shifted(len(planes) - 1)], "join_last")
    return plain(register(m, total, "join_last_q"), largest)
