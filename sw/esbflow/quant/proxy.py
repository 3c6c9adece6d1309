"""torch.fx's stand-in for a tensor, which here tells `x += y` from `x = x + y`: the former overwrites x."""

import operator

from torch import fx


class Proxy(fx.Proxy):
    """Records the operators that overwrite their first operand under their own names, as `in_place.py` looks for them."""

    def _overwritten(self, function, other) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    def __iadd__(self, other):
        return self._overwritten(operator.iadd, other)

    def __isub__(self, other):
        return self._overwritten(operator.isub, other)

    def __imul__(self, other):
        return self._overwritten(operator.imul, other)

    def __itruediv__(self, other):
        return self._overwritten(operator.itruediv, other)
