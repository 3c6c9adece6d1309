from sim.benches import engine_speed


def test_the_yardstick_measures_an_engine_at_work():
    found = engine_speed.measure("tiny4x4", cycles=400)
    assert found["engine"] == "tiny4x4" and found["cycles"] == 400 and found["busy"]
    assert found["array_at_work"] > 0.2 and found["cycles_per_second"] > 10
