"""Each task has exactly one result: what the tests of faults count in the end."""

import os
import tempfile
from collections import Counter


class Runs:
    """Counts in files how often each input was run, by whichever process."""

    def __init__(self, folder):
        self.folder = str(folder)
        folder.mkdir()

    def note(self, x):
        tempfile.mkstemp(prefix=f"{x}-", dir=self.folder)

    @property
    def counts(self):
        return Counter(int(name.split("-")[0]) for name in os.listdir(self.folder))  # noqa: PTH208


def n_ends(job):
    """Return item -> how often the server said that it is over."""
    return Counter(
        report.n + item
        for report in job._table.reports(0)
        if report.kind == "finished"
        for part in report.span
        for item in part
    )


def check_once(job, expected):
    """Check that each item of `job` came back once, as the server sent it, and as `expected`."""
    assert n_ends(job) == Counter(range(len(expected))), "an item is missing, or came twice"
    assert job.errors == {}
    assert job.result(0) == expected


def check_nothing_left(store):
    """Check that the lanes of a queue are empty."""
    for lane in store.lanes(store.known_lanes()):
        assert (lane["waiting"], lane["running"], lane["delayed"]) == (0, 0, 0), lane
