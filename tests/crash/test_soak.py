"""The soak itself: it ends soon after its time, and finds all in order."""

import subprocess
import sys

import pytest

from tests.crash.conftest import ROOT


@pytest.mark.timeout(120)
def test_it_ends_and_counts_what_came_of_it():
    command = (sys.executable, "-m", "tests.soak", "0.05", "7")
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=80, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert " faults: " in done.stdout
    assert "'named jobs': " in done.stdout
