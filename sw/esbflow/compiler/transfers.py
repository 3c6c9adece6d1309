"""Rows of planes in memory -> the transfers that bring them: as few as offsets at equal distances allow."""

from esbflow.compiler.stripes import pages
from esbflow.registers import MAPS, REGIONS

REGION = {name: number for number, name in enumerate((*REGIONS, MAPS))}


def row_transfers(config, tensor, planes, image, span, window, whole, address=0, step=1, apart=0, images=1):
    """The transfers that bring rows of some planes, one after the other, into consecutive beats from `address` on.

    Rows are counted, and brought, in steps of `step` rows of the tensor. Where a source's columns are brought in steps, too,
    each word is a run and each row a transfer.

    span : (first, end, rows above the map that row 0 is);  apart : from one slice's rows to the next's
    images : from `image` on; of several the rows are all that the map has
    """
    row0, row1, above = span
    first_col, window_size = window
    rows = images * (row1 - row0)  # an image's first row follows the last one of the image before
    row_beats = window_size // config.words_per_beat * config.beats_per_word
    row0 = row0 * step - above
    if whole and step == 1 and tensor.contiguous:
        own_pages = pages(apart * row_beats)
        for region, offset, count, stride in _equally_spaced([tensor.beat(plane, image, row0, 0) for plane in planes]):
            yield dict(region=REGION[region], offset=offset, beats=rows * row_beats, segments=count, stride=stride,
                       address=address, apart=own_pages)
            address += count * rows * row_beats
    elif tensor.column_step > 1:
        for plane in planes:
            own_pages = pages(apart * step * tensor.row_stride(plane))
            for row in range(row0, row0 + rows * step, step):
                region, offset = tensor.beat(plane, image, row, first_col)
                yield dict(region=REGION[region], offset=offset, beats=config.beats_per_word, segments=window_size,
                           stride=tensor.column_step * config.beats_per_word, address=address, apart=own_pages)
                address += row_beats
    else:
        for plane in planes:
            region, offset = tensor.beat(plane, image, row0, first_col)
            stride = step * tensor.row_stride(plane)
            yield dict(region=REGION[region], offset=offset, beats=row_beats, segments=rows, stride=stride, address=address,
                       apart=pages(apart * stride))
            address += rows * row_beats


def _equally_spaced(places):
    """(region, first offset, count, step) runs of a list of (region, offset); offsets of a run increase."""
    start = 0
    while start < len(places):
        region, first = places[start]
        end, step = start + 1, 1
        if end < len(places) and places[end][0] == region and places[end][1] > first:
            step = places[end][1] - first
            while end < len(places) and places[end] == (region, first + (end - start) * step):
                end += 1
        yield region, first, end - start, step
        start = end
