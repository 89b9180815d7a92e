"""Units: who lives, who is missing, when another one is started, and when no more are."""

import pytest

from nbstreamq.client import units as module
from nbstreamq.client.units import Units
from nbstreamq.errors import NbstreamqError
from nbstreamq.launch.launcher import Launcher, UnitReport

PENDING = UnitReport(state="pending", why="Resources")
RUNNING = UnitReport(state="running")
FAILED = UnitReport(state="ended", why="no such partition", log="line 1\nline 2")
OVER = UnitReport(state="ended", is_planned=True)


class Place(Launcher):
    """A launcher whose scheduler says what a test tells it to."""

    look_every = 0.0

    def __init__(self, unit_size=1):
        super().__init__("place", None)
        self.unit_size = unit_size
        self.sizes, self.stopped = [], []
        self.reports = {}
        self.usual = PENDING
        self.refusal = ""
        self.left = {}

    def start(self, sizes):
        if self.refusal:
            raise NbstreamqError(self.refusal)
        self.sizes += sizes
        return [f"u{k}" for k in range(len(self.sizes) - len(sizes), len(self.sizes))]

    def left_behind(self):
        return self.left

    def survey(self, units):
        return {unit: self.reports.get(unit, self.usual) for unit in units}

    def stop(self, units, *, drain):
        if self.refusal:
            raise NbstreamqError(self.refusal)
        self.stopped += units
        self.reports |= dict.fromkeys(units, OVER)

    def script(self, n_workers):
        return ""

    def close(self, *, is_fork):
        pass


class Server:
    """Tells which workers are registered."""

    def __init__(self):
        self.units = []

    def ask_within(self, _patience, _question, _silence):
        return {f"w{k}": {"unit": unit} for k, unit in enumerate(self.units)}


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def make(server, monkeypatch):
    """``make(place)``: its units, which look at it often, and what they have warned of."""
    monkeypatch.setattr(module, "LOOK", 0.01)
    made = []

    def make(place):
        warnings = []
        units = Units(place, 4.0, server.ask_within, warnings.append)
        made.append(units)
        return units, warnings

    yield make
    for units in made:
        units.close()


def states(units):
    return {unit.id: unit.state for unit in units}


def test_the_server_decides_who_lives(make, server):
    place = Place()
    units, _ = make(place)
    units.scale(2)
    assert states(units) == {"u0": "pending", "u1": "pending"}
    assert "Resources" in units.obstacle()

    server.units = ["u0"]
    place.reports["u0"] = FAILED

    assert states(units) == {"u0": "running", "u1": "pending"}
    assert units.n_pending == 1


def test_an_unknown_unit_is_not_given_up(make, wait_until):
    place = Place()
    place.usual = RUNNING
    units, _ = make(place)
    units.scale(1)
    wait_until(lambda: states(units) == {"u0": "running"})

    place.usual = UnitReport(state="unknown", why="squeue does not answer")

    assert states(units) == {"u0": "running"}
    assert place.sizes == [1]


def test_a_unit_that_runs_without_workers_is_an_obstacle_after_a_minute(make, monkeypatch):
    place = Place()
    place.usual = RUNNING
    units, _ = make(place)
    units.scale(2)
    states(units)
    assert units.obstacle() == "", "they join soon"

    monkeypatch.setattr(module, "SHORT", 0.0)

    assert "2 workers on place are not there yet: its workers have not joined" in units.obstacle()


def test_units_are_small_and_the_last_one_has_the_rest(make):
    place = Place(unit_size=4)
    units, _ = make(place)

    units.scale(10)

    assert place.sizes == [4, 4, 2]


def test_fewer_workers_stop_those_units_first_that_run_nothing(make, server):
    place = Place()
    units, _ = make(place)
    units.scale(3)
    server.units = ["u1", "u2"]
    states(units)

    units.scale(1)

    assert place.stopped == ["u0", "u2"]
    assert units.n_pending == 0


def test_one_large_unit_is_replaced_by_a_smaller_one(make):
    place = Place(unit_size=None)
    units, _ = make(place)
    units.scale(8)

    units.scale(3)

    assert place.stopped == ["u0"]
    assert place.sizes == [8, 3]


def test_a_unit_that_ends_as_planned_is_replaced(make, wait_until):
    place = Place()
    units, _ = make(place)
    units.scale(1)

    place.reports["u0"] = OVER

    wait_until(lambda: place.sizes == [1, 1], describe="another unit")
    assert states(units) == {"u0": "ended", "u1": "pending"}


def test_units_that_keep_ending_at_once_blow_the_fuse(make, wait_until):
    place = Place()
    place.usual = FAILED
    units, warnings = make(place)
    units.scale(1)

    wait_until(lambda: warnings, describe="a warning")

    assert len(place.sizes) == module.FUSE
    assert "no such partition" in warnings[0]
    assert "line 2" in warnings[0]
    assert units.obstacle() == units.trouble == warnings[0]

    place.usual = PENDING
    units.scale(1)

    assert units.trouble == ""
    assert len(place.sizes) == module.FUSE + 1


def test_there_is_a_budget_of_replacements(make, wait_until):
    place = Place()
    place.usual = OVER
    units, warnings = make(place)
    units.scale(2)

    wait_until(lambda: warnings, describe="a warning")

    assert len(place.sizes) <= 2 + 2 * module.BUDGET
    assert "within an hour" in warnings[0]


def test_a_refusal_is_raised_where_workers_are_asked_for(make):
    place = Place()
    place.refusal = "invalid partition"
    units, _ = make(place)

    with pytest.raises(NbstreamqError, match="invalid partition"):
        units.scale(2)

    assert units.n_workers == units.n_pending == 0


def test_units_that_an_earlier_session_has_left_are_used(make):
    place = Place()
    place.left = {"old": 2}
    units, _ = make(place)

    units.scale(3)

    assert place.sizes == [1]
    assert list(states(units)) == ["old", "u0"]


def test_a_stop_that_fails_can_be_tried_again(make):
    place = Place()
    units, _ = make(place)
    units.scale(1)
    place.refusal = "no answer"
    with pytest.raises(NbstreamqError, match="no answer"):
        units.stop()
    assert states(units) == {"u0": "pending"}
    place.refusal = ""

    units.stop()

    assert place.stopped == ["u0"]
