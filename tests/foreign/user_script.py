"""A script as users write it: it runs where only the package is installed, and mypy reads it."""

from __future__ import annotations

import math

from nbstreamq import Estimate, Job, TaskFuture, TaskQueue, track


def fit(rate: float, n_steps: int = 3) -> dict[str, float]:
    """Return what a fit would."""
    return {"rate": rate, "score": sum(math.cos(rate * step) for step in track(range(n_steps)))}


def main() -> None:
    """Use what most people use."""
    with TaskQueue("user-script", workers=2) as q:
        job: Job[dict[str, float]] = q.map(fit, [0.1, 0.2, 0.3])
        best = max(job.result(), key=lambda row: row["score"])
        estimate: Estimate = job.estimate(n_items=1000)

        careful = q.options(retries=2, time_limit=60.0)
        future: TaskFuture[dict[str, float]] = careful.submit(fit, 0.4, n_steps=5)
        later = future.result(timeout=60)

        @q.task
        def root(x: float) -> float:
            return math.sqrt(x)

        roots: list[float] = [call.result() for call in (root(4.0), root(9.0))]
        with q.pool() as pool:
            distances: list[float] = pool.map(abs, [-1.0, 2.0])
        print(best["rate"], later["rate"], roots, distances, estimate.seconds(8) > 0)


if __name__ == "__main__":
    main()
