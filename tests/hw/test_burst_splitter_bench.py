from esbhw.engine.transfer import BurstSplitter
from sim.benches import build


def test_burst_splitter_keeps_the_rules_of_axi():
    for max_burst in (16, 64, 128, 256):  # what four ports share is four times as long as a burst of one
        folder = build.build("burst_splitter", BurstSplitter(max_burst, tag_bits=4))
        build.run("burst_splitter_bench", folder, max_burst=max_burst)
