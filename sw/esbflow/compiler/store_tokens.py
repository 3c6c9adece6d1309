"""Store tokens: how loads wait until what they read has been stored.

A drain posts a token once its rows are in memory, and a load takes as many as lie between the last one taken and that of the
last drain whose rows it reads. Tokens are counted over the whole program, so that one number orders all of them.
"""

from esbflow.compiler.layout import Source
from esbflow.compiler.lower import Layer
from esbflow.compiler.planned_layer import PlannedLayer
from esbflow.compiler.stripes import rows_of_slices, steps
from esbflow.compiler.tile import Span
from esbflow.engine_config import EngineConfig

POSTS_PER_LAYER = 256
"""Store tokens that a layer posts at most: the loader waits for up to 1023 at once."""


class StoreTokens:
    """The tokens that the drains emitted so far post, and those that the loads emitted so far have taken."""

    def __init__(self, config: EngineConfig):
        self._config = config
        self._stores: dict[str, _Stores] = {}  # of each tensor
        self._posted = self._taken = 0

    def needed(self, layer: Layer, names: tuple, source: Source, planes, image: int, rows: tuple, apart: int) -> int | None:
        """Tokens posted, from the program's begin on, once `planes` of a source have been stored; None while a drain that
        they need is not yet emitted, or posts no token.

        names : of the tensors in `source`. rows : (first, end) that slice 0 reads of an image, of all images where those are
        stacked. apart : rows from one slice's to the next one's.
        """
        needed = 0
        for part, group in map(source.find, planes):
            layout = source.parts[part]
            if layout.region == "input":
                continue
            stores = self._stores.get(names[part])
            if stores is None:
                return None
            spans = [(image, *rows)]
            if layer.stacked:
                height, (row0, row1) = layout.height, rows
                spans = [(number, max(row0 - number * height, 0), min(row1 - number * height, height))
                         for number in range(row0 // height, (row1 - 1) // height + 1)]
            for at, low, high in spans:
                own = rows_of_slices(self._config, low, high, apart, layout.height)
                tokens = stores.token(self._config, at, own, group // self._config.planes_per_tile)
                if tokens is None:
                    return None
                needed = max(needed, tokens)
        return needed

    def take(self, needed: int) -> int:
        """How many tokens a load must wait for that needs so many to have been posted."""
        wait = max(0, needed - self._taken)
        self._taken += wait
        return wait

    def drained(self, plan: PlannedLayer, image: int, row: Span, group: int) -> bool:
        """Whether the drain that is emitted now, of one column of a tile's rows and an output group, posts a token.

        image : the first one of the tile.
        """
        stores = self._stores.setdefault(plan.layer.target, _Stores(plan))
        stores.done += 1
        posts = stores.done % stores.every == 0 or stores.done == stores.total
        # A drain without a token of its own is covered by the next token.
        for number in range(image, min(image + plan.tiling.images, plan.target.images)):
            entry = stores.rows.setdefault((number, plan.tiling.rows.index(row), group), [0, None])
            entry[0] += 1
            entry[1] = None
        if posts:
            self._posted += 1
            for waiting in stores.rows.values():
                if waiting[1] is None:
                    waiting[1] = self._posted
        return posts


class _Stores:
    """Which drains have written which rows of which output groups of a tensor, and the token that says so."""

    def __init__(self, plan: PlannedLayer):
        self.plan = plan
        self.expected = len(plan.tiling.cols)
        self.rows: dict = {}  # (image, row span index, output group) -> [drains so far, token index]
        images = 1 if plan.layer.stacked else -(-plan.target.images // plan.tiling.images)
        self.total = self.expected * len(plan.weights.groups) * len(plan.tiling.rows) * images
        self.every = -(-self.total // POSTS_PER_LAYER)
        self.done = 0

    def token(self, config: EngineConfig, image: int, rows: int, group: int) -> int | None:
        """The token after which all `rows`, a bit each, of an output group are in memory; None as `StoreTokens.needed`."""
        layer, height = self.plan.layer, self.plan.target.height
        if layer.stacked:
            # One tall map: image i is row i.
            image, rows, height = 0, rows << image * height, height * self.plan.target.images
        latest, made = 0, steps(layer).made
        for k, span in enumerate(self.plan.tiling.rows):
            if rows & rows_of_slices(config, span.out0, span.out1, made, height):
                entry = self.rows.get((image, k, group))
                if entry is None or entry[0] < self.expected or entry[1] is None:
                    return None
                latest = max(latest, entry[1])
        return latest
