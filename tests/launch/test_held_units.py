"""Units that a process of another system owns: they end with it, and the client's calls go on."""

from dataclasses import replace

from nbstreamq.launch.held_units import HeldUnits, Order, command
from nbstreamq.launch.launcher import Purpose
from nbstreamq.secret import Address, Secret
from nbstreamq.settings import Settings
from tests.real_workers import gate, new_queue

__all__ = ["gate", "new_queue"]

UNIT = "0123456789ab"


def order_for(queue, url):
    purpose = Purpose(
        url=Address(url),
        queue=queue.name,
        secret=Secret("secret"),
        session="a session",
        settings=Settings.from_environment(),
    )
    return Order.of(UNIT, purpose, command(UNIT, purpose, 1, 30.0, 600.0))


def test_a_unit_whose_owner_dies_finishes_its_call(new_queue, server_url, gate, wait_until):
    queue, held = new_queue(workers=0), HeldUnits()
    assert not held.start([order_for(queue, server_url)])

    def work():
        gate("begun").open()
        gate("end").wait()
        return "done"

    future = queue.submit(work)
    wait_until(gate("begun").is_open, 30, "the call to begin")
    assert held.survey([UNIT, "another"]).keys() == {UNIT}
    assert held.survey([UNIT])[UNIT].state == "running"
    held._units[UNIT].process.stdin.close()  # as the system does when the owner dies
    gate("end").open()
    assert future.result(20) == "done"
    wait_until(lambda: held.survey([UNIT])[UNIT].state == "ended", 20, "the unit to end")
    assert held.survey([UNIT])[UNIT].is_planned


def test_what_cannot_work_is_refused_in_a_line(new_queue, server_url):
    order = order_for(new_queue(workers=0), server_url)
    assert not order.refusal()
    assert repr(order) == f"<Order {UNIT}>"
    held = HeldUnits()
    other_host = held.start([replace(order, host="elsewhere")])
    assert "can't reach the queue's server, which is on elsewhere only" in other_host
    other_python = held.start([replace(order, versions=("3.10", "0.0.1"))])
    assert "needs Python 3.10 and nbstreamq 0.0.1" in other_python
