"""What studies say while they train."""

from collections.abc import Callable


def steps(say: Callable | None, title: str, every: int = 50) -> Callable:
    """A training loop's `report` that says the loss every so many steps and at the last; silent without `say`."""
    def report(done, total, loss):
        if say and (done % every == 0 or done == total):
            say(f"{title}: step {done}/{total}, loss {loss:.3f}")
    return report
