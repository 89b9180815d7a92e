"""The magics, in a shell of this process with real workers, and in a real kernel."""

from __future__ import annotations

import ast
import base64
import re
import textwrap
from concurrent.futures import CancelledError
from types import SimpleNamespace

import pytest

from nbstreamq import Job, NotPicklable, TaskFuture, TaskQueue, load_ipython_extension
from tests.real_workers import gate, new_queue, queue, shared_queue

IPython = pytest.importorskip("IPython")

from IPython.core.completer import provisionalcompleter  # noqa: E402
from IPython.core.displaypub import CapturingDisplayPublisher  # noqa: E402
from IPython.core.error import UsageError  # noqa: E402
from IPython.core.interactiveshell import InteractiveShell  # noqa: E402
from traitlets.config import Config  # noqa: E402

from nbstreamq.notebook.cells import needed_names  # noqa: E402
from nbstreamq.notebook.magics import NbstreamqMagics, complete_magics  # noqa: E402

__all__ = ["gate", "new_queue", "queue", "shared_queue"]


@pytest.fixture
def empty_shell(tmp_path, monkeypatch):
    """An IPython shell with our magics, and no queue; what it displays is in its display_pub."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    config = Config()
    config.HistoryManager.enabled = False
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance(config=config)
    shell.display_pub = CapturingDisplayPublisher()
    shell.register_magics(NbstreamqMagics)
    with shell.builtin_trap:
        yield shell
    InteractiveShell.clear_instance()


@pytest.fixture
def shell(empty_shell, shared_queue):
    """The same with a queue and two workers."""
    empty_shell.user_ns["q"] = shared_queue
    return empty_shell


@pytest.fixture
def run_task(shell, wait_until):
    """``run_task(cell, line)`` runs ``%%task``; returns the value, and the data that was shown."""

    def run(cell, line=""):
        before = len(shell.display_pub.outputs)
        shell.run_cell_magic("task", line, cell)
        value = shell.user_ns["_task"].result(20)
        outputs = shell.display_pub.outputs
        wait_until(lambda: len(outputs) == before + 2, describe="the outcome")
        return SimpleNamespace(value=value, shown=outputs[-1]["data"])

    return run


def show_failed(shell, wait_until):
    """Return what is shown in place of a task that has failed."""
    with pytest.raises(Exception):  # noqa: B017
        shell.user_ns["_task"].result(20)
    outputs = shell.display_pub.outputs
    wait_until(lambda: "not over yet" not in outputs[-1]["data"]["text/plain"], describe="the news")
    return outputs[-1]["data"]["text/plain"]


# -- which names travel -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "needed"),
    [
        ("x + 1", {"x"}),
        ("x = 1\nx", set()),
        ("x = x + 1", {"x"}),
        ("x += 1", {"x"}),
        ("def f(): return x", {"x"}),
        ("def f(): return g()\ndef g(): return 1", set()),
        ("[x for x in xs if x > low]", {"xs", "low"}),
        ("for f in files: f.read()", {"files"}),
        ("for x in xs:\n    if x: break\nx", {"xs", "x"}),
        ("with a as f: f.read()", {"a"}),
        ("if c: x = 1\nx", {"c", "x"}),
        ("if c: x = 1\nelse: x = 2\nx", {"c"}),
        ("while c:\n    x = 1\nx", {"c", "x"}),
        ("try: x = f()\nexcept E as e: x = e\nx", {"f", "E"}),
        ("class A(B):\n    y = x\n    z = y\n    def m(self): return w", {"B", "x", "w"}),
        ("import numpy as np\nnp.ones(n)", {"n"}),
        ("a[i] = v", {"a", "i", "v"}),
    ],
)
def test_names_that_a_cell_needs(cell, needed):
    assert set(needed_names(ast.parse(cell))) == needed


# -- %%task -------------------------------------------------------------------------------------


def test_a_cell_runs_on_a_worker_with_what_it_uses(shell, run_task):
    shell.run_cell("import os\nfactor = 3\ndef scale(x): return factor * x")
    task = run_task("factor = 4\n(scale(10), os.getpid())")
    value, pid = task.value
    assert value == 40  # as it would be in the notebook
    assert pid in {w.pid for w in shell.user_ns["q"].workers()}
    assert shell.user_ns["factor"] == 3
    assert task.shown["text/plain"] == f"(40, {pid})"


def test_it_is_told_that_the_task_runs(shell, gate):
    shell.user_ns["gate"] = gate()
    shell.run_cell_magic("task", "--name mine", "gate.wait()")
    told = shell.display_pub.outputs[0]["data"]["text/plain"]
    assert re.match(r"task 1: sent at [0-9:]+ UTC, not over yet", told)
    gate().open()
    assert isinstance(shell.user_ns["mine"], TaskFuture)
    assert shell.user_ns["mine"].result(20) is None


def test_what_it_prints_stays_with_its_cell(shell, gate, wait_until, capsys):
    shell.user_ns["gate"] = gate()
    shell.run_cell_magic("task", "", "print('first')\ngate.wait()\nprint('second')\n42")
    outputs = shell.display_pub.outputs
    wait_until(
        lambda: "first\ntask 1: sent" in outputs[-1]["data"]["text/plain"], describe="the print"
    )
    gate().open()
    shell.user_ns["_task"].result(20)
    wait_until(
        lambda: outputs[-1]["data"]["text/plain"] == "first\nsecond\n42", describe="the outcome"
    )
    assert len({output["transient"]["display_id"] for output in outputs}) == 1
    assert capsys.readouterr().out == ""


def test_variables_come_back_when_it_is_done(shell, run_task):
    assert run_task("a = 1\nb = [a, 2]\nc = 3", "-o a,b").value is None
    assert (shell.user_ns["a"], shell.user_ns["b"]) == (1, [1, 2])
    assert "c" not in shell.user_ns


def test_variables_come_back_once(shell, run_task):
    run_task("a = 1", "-o a")
    shell.user_ns["a"] = 2
    shell.user_ns["_task"].result()
    assert shell.user_ns["a"] == 2


def test_more_variables_can_be_sent(shell, run_task):
    shell.user_ns["x"] = 5
    assert run_task("eval('x')", "-i x").value == 5
    with pytest.raises(UsageError, match="no variable 'nope'"):
        shell.run_cell_magic("task", "-i nope", "1")


def test_what_can_not_travel_is_said_at_once(shell):
    import threading

    shell.user_ns["lock"] = threading.Lock()
    with pytest.raises(NotPicklable, match="lock"):
        shell.run_cell_magic("task", "", "lock.acquire()")
    shell.run_cell_magic("task", "", "lock = 1\nlock")  # assigned first
    assert shell.user_ns["_task"].result(20) == 1


def test_html_of_the_last_value_is_shown(shell, run_task):
    shell.run_cell("class Bold:\n    def _repr_html_(self): return '<b>x</b>'")
    assert run_task("Bold()").shown["text/html"] == "<b>x</b>"


def test_a_semicolon_hides_the_value(run_task):
    task = run_task("1 + 1;")
    assert task.value is None
    assert "done in" in task.shown["text/plain"]


def test_display_works_on_workers(run_task):
    task = run_task("display('<first>')\n2")
    assert "&lt;first&gt;" in task.shown["text/html"]
    assert task.shown["text/plain"] == "'<first>'\n2"


def test_open_figures_come_back(run_task):
    pytest.importorskip("matplotlib")
    task = run_task("import matplotlib.pyplot as plt\nplt.plot([1, 2]);\nplt.show()")
    assert base64.b64decode(task.shown["image/png"]).startswith(b"\x89PNG")
    assert "image/png" not in run_task("1").shown


def test_an_error_is_shown_in_short_and_raised(shell, wait_until):
    shell.run_cell_magic("task", "", "x = 0\n1 / x")
    said = show_failed(shell, wait_until)
    assert said == "task 1: ZeroDivisionError: division by zero (line 3)"
    with pytest.raises(ZeroDivisionError) as caught:
        shell.user_ns["_task"].result()
    lines = [str(entry.statement).strip() for entry in caught.traceback]
    assert lines[-1] == "1 / x"


def test_an_output_that_is_not_defined_is_an_error(shell, wait_until):
    shell.run_cell_magic("task", "-o nope", "1")
    assert "does not define 'nope'" in show_failed(shell, wait_until)


def test_the_value_of_a_task_goes_into_another(shell, run_task):
    run_task("20 + 1")
    future = shell.user_ns["_task"]
    assert shell.user_ns["q"].submit(lambda x: x * 2, future).result(20) == 42
    assert future.replay() == 21


def test_a_time_limit(shell, wait_until):
    shell.run_cell_magic("task", "--time-limit 0.2", "import time\ntime.sleep(30)")
    assert "TimeLimitExceeded" in show_failed(shell, wait_until)


@pytest.mark.parametrize(
    ("magic", "line", "cell", "says"),
    [
        ("task", "--lane @x", "1", "must be a name"),
        ("task", "--nope", "1", "unrecognized arguments"),
        ("task", "-o 1a", "1", "can't be the name of a variable"),
        ("task", "", "1 +", "SyntaxError in line 2"),
        ("task", "", "%time 1", "plain Python"),
        ("task", "", "return 1", "SyntaxError in line 2"),
        ("task", "", " ", "is empty"),
        ("pmap", "", "1", "is not a loop"),
        ("pmap", "x of xs", "1", "is not a loop"),
        ("pmap", "x in [1] --retries many", "1", "it is 'many': it must be an integer"),
        ("pmap", "x in [1] --retries -1", "1", "retries is -1: it must be an integer from 0"),
        ("pmap", "x in [1] --lane {a}", "1", "lane is '{a}'"),
        ("task", "--time-limit 0", "1", "time_limit is 0.0: it must be a number of seconds above"),
        ("task", "--time-limit nan", "1", "time_limit is nan"),
        ("task", "--time-limit soon", "1", "'soon': it must be a number of seconds"),
        ("task", "--lane @a", "1", "lane is '@a'"),
        ("everywhere", "x", "1", "no arguments"),
    ],
)
def test_wrong_cells_are_refused_in_a_line(shell, magic, line, cell, says):
    with pytest.raises(UsageError, match=says):
        shell.run_cell_magic(magic, line, cell)


# -- %%pmap -------------------------------------------------------------------------------------


def test_a_loop_becomes_a_map(shell):
    shell.user_ns.update(xs=[1, 2, 3], offset=10)
    job = shell.run_cell_magic("pmap", "x in xs -o results", "y = x * x\ny + offset")
    assert job.result(20) == [11, 14, 19]
    assert shell.user_ns["results"] is shell.user_ns["_job"] is job


def test_a_loop_with_several_variables_and_a_condition(shell):
    shell.user_ns["words"] = ["a", "b c", "d"]
    line = 'i, (w) in enumerate(words) if w != "b c"'
    assert shell.run_cell_magic("pmap", line, "f'{i}{w}'").result(20) == ["0a", "2d"]
    job = shell.run_cell_magic("pmap", "x in range(3, 0, -1) --retries 1", "x")
    assert job.result(20) == [3, 2, 1]


def test_an_error_in_a_loop_shows_its_line(shell):
    job = shell.run_cell_magic("pmap", "x in [1, 0]", "y = 2\ny / x")
    with pytest.raises(ZeroDivisionError) as caught:
        job.result(20)
    last = caught.traceback[-1]
    assert (last.lineno + 1, str(last.statement).strip()) == (3, "y / x")


# -- %%everywhere -------------------------------------------------------------------------------


def test_every_worker_runs_the_cell(shell, run_task, capsys):
    shell.user_ns["start"] = 7
    shell.run_cell_magic("everywhere", "", "warm = start\nprint('ready')\n'value'")
    said = shell.display_pub.outputs[-1]["data"]["text/plain"]
    assert said.startswith("Ran on 2 workers. Workers that join later run it, too.\n")
    assert len(set(re.findall(r"^worker \d+:\nready\n'value'$", said, re.MULTILINE))) == 2
    assert "ready" not in capsys.readouterr().out
    assert run_task("warm + 1").value == 8


def test_cells_and_functions_share_what_the_notebook_does_not_define(shell, run_task):
    shell.run_cell("def init():\n    global conn\n    conn = 'open'")
    shell.run_cell("def use(_=None): return conn, warm")
    shell.user_ns["q"].everywhere(shell.user_ns["init"]).result(20)
    shell.run_cell_magic("everywhere", "", "warm = 1")
    assert run_task("conn, warm").value == ("open", 1)
    assert run_task("use()").value == ("open", 1)
    assert shell.user_ns["q"].submit(shell.user_ns["use"]).result(20) == ("open", 1)
    job = shell.run_cell_magic("pmap", "x in range(20)", "conn, warm, use()")
    assert set(job.result(20)) == {("open", 1, ("open", 1))}


LAZY = """
import os, uuid
def get():
    global lazy
    try:
        return lazy
    except NameError:
        lazy = os.getpid(), uuid.uuid4().hex
        return lazy
get()
"""


def test_a_lazy_global_is_made_once_for_each_worker(shell, run_task):
    found = {run_task(LAZY).value for _ in range(6)}
    found |= set(shell.run_cell_magic("pmap", "x in range(20)", LAZY).result(20))
    shell.run_cell(LAZY)
    found |= set(shell.user_ns["q"].map(lambda _, get=shell.user_ns["get"]: get(), range(9)))
    assert len(found - {shell.user_ns["lazy"]}) == len({pid for pid, _ in found}) - 1


# -- IPython's names in functions ---------------------------------------------------------------


def run_function(shell, source, *args):
    """Run a cell that defines `f`, and call that on a worker."""
    assert shell.run_cell(source).success
    return shell.user_ns["q"].submit(shell.user_ns["f"], *args)


@pytest.mark.parametrize("name", ["exit", "quit"])
def test_exit_is_the_worker_s_own(shell, name):
    shell.user_ns.update(exit=shell.exiter, quit=shell.exiter)
    future = run_function(shell, f"def f(wrong):\n    if wrong: {name}(3)\n    return 1", True)
    with pytest.raises(SystemExit, match="3"):
        future.result(20)
    assert shell.user_ns["q"].submit(shell.user_ns["f"], False).result(20) == 1
    job = shell.user_ns["q"].map(shell.user_ns["f"], [False], name="exits")
    assert job.result(20) == [1]
    job.delete()


def test_display_under_another_name_prints_on_the_worker(shell):
    shell.run_cell("from IPython.display import display as show")
    future = run_function(shell, "def f(x):\n    show(x)", [1])
    assert future.result(20) is None
    assert future.logs == "[1]\n"


@pytest.mark.parametrize("source", ["", "from IPython.display import display\n"])
def test_display_prints_on_the_worker(shell, source):
    shell.run_cell(source)
    body = "with contextlib.redirect_stdout(io.StringIO()) as out:\n        display(x, 'text')"
    code = f"import contextlib, io\ndef f(x):\n    {body}\n    return out.getvalue()"
    assert run_function(shell, code, [1]).result(20) == "[1]\n'text'\n"


@pytest.mark.parametrize("imported", [False, True])
def test_there_is_no_shell_on_the_worker(shell, imported):
    source = "def f():\n    try:\n        get_ipython().run_line_magic('matplotlib', 'agg')\n"
    source += (
        "        return 'shell'\n    except (NameError, AttributeError):\n        return 'none'"
    )
    if imported:
        shell.run_cell("from IPython import get_ipython")
    assert run_function(shell, source).result(20) == "none"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("!ls -l", "the line `!ls -l`.*subprocess"),
        ("files = !ls {x}", r"the line `!ls \{x\}`.*subprocess"),
        ("%time x + 1", "the line `%time x \\+ 1`.*plain Python"),
        ("with open(x):\n        !ls", "the line `!ls`"),
        ("return [g() for _ in x]", r"g\(\) can't be sent.*the line `%pwd`"),
        ("def inner():\n        !pwd\n    inner()", "the line `!pwd`"),
    ],
)
def test_lines_for_ipython_are_refused_by_name(shell, line, says):
    shell.run_cell("def g():\n    %pwd")
    assert shell.run_cell(f"def f(x=()):\n    {line}").success
    f, q = shell.user_ns["f"], shell.user_ns["q"]
    for call in (lambda: q.submit(f), lambda: q.map(f, [1]), lambda: q.submit(map, f, [1])):
        with pytest.raises(NotPicklable, match=says):
            call()


def test_what_late_joiners_print_comes_to_the_cell(empty_shell, new_queue, wait_until):
    shell, outputs = empty_shell, empty_shell.display_pub.outputs
    shell.user_ns["q"] = new_queue(workers=0)
    shell.run_cell_magic("everywhere", "", "print('ready')\nimport os\nos.environ['no such']")
    before = outputs[-1]["data"]["text/plain"]
    assert before == "There are no workers yet. Workers that join later run it, too."
    shell.run_line_magic("workers", "2")
    # Of each: what it printed, and that it failed
    wait_until(lambda: outputs[-1]["data"]["text/plain"].count("KeyError: 'no such'") == 2)
    said = outputs[-1]["data"]["text/plain"]
    assert len(set(re.findall(r"^worker \d+ \(joined later\):\nready$", said, re.MULTILINE))) == 2
    assert outputs[-1]["update"]
    assert outputs[-1]["transient"] == outputs[-2]["transient"]


def test_an_error_everywhere_is_raised(shell):
    with pytest.raises(KeyError):
        shell.run_cell_magic("everywhere", "", "print('before')\n{}['x']")
    assert shell.display_pub.outputs[-1]["data"]["text/plain"].count("before") == 2


# -- queues, workers, jobs ----------------------------------------------------------------------


def test_workers_are_shown_by_lane(shell):
    assert len(shell.run_line_magic("workers", "")) == 2
    assert len(shell.run_line_magic("workers", "--lane high")) == 2
    assert shell.run_line_magic("workers", "--lane gpu") == []
    with pytest.raises(UsageError, match="nbstreamq worker URL --lane gpu"):
        shell.run_line_magic("workers", "2 --lane gpu")
    for n in ("-- -1", "99999999999", "two", "1.5", "nan"):
        with pytest.raises(UsageError, match=r"-1|99999999999|'two'|'1\.5'|'nan'.*must be"):
            shell.run_line_magic("workers", n)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{a}", "name is '{a}'"),
        ("-- -n", "name is '-n'"),
        ("a --url http://h", "must start with redis://"),
        ("a --url redis://:hush@h/abc", "must be a number"),
    ],
)
def test_a_wrong_queue_is_refused_in_a_line(shell, line, says):
    before = shell.user_ns["q"]
    with pytest.raises(UsageError, match=says) as caught:
        shell.run_line_magic("queue", line)
    assert "hush" not in str(caught.value)
    assert shell.user_ns["q"] is before


def test_workers_are_started_and_counted(empty_shell, queue, capsys):
    empty_shell.user_ns["q"] = queue
    for n in (1, 2):
        empty_shell.run_line_magic("workers", str(n))
        assert len(queue.workers()) == n
    said = "1 local worker is running.\n2 local workers are running.\n"
    assert capsys.readouterr().out == said


def test_another_queue(empty_shell, server_url, queue_name, new_queue):
    previous = empty_shell.user_ns["q"] = new_queue()
    found = empty_shell.run_line_magic("queue", f"{queue_name}2 --url {server_url}")
    with found:
        assert empty_shell.user_ns["q"] is found
        assert found.name == f"{queue_name}2"
        with pytest.raises(RuntimeError, match="after shutdown"):
            previous.submit(abs, 1)


def test_the_extension_leaves_a_variable_q_alone(empty_shell, capsys):
    shell = empty_shell
    load_ipython_extension(shell)
    bound = shell.user_ns["q"]
    assert "`q` is the queue" in capsys.readouterr().out
    load_ipython_extension(shell)
    assert shell.user_ns["q"] is bound
    assert "`q` stays as it is: <TaskQueue" in capsys.readouterr().out
    shell.user_ns["q"] = 5
    load_ipython_extension(shell)
    assert shell.user_ns["q"] == 5
    assert "it is of type int" in capsys.readouterr().out


def test_the_queue_of_the_extension_is_opened_once(empty_shell, server_url, monkeypatch):
    monkeypatch.setenv("NBSTREAMQ_URL", server_url)
    load_ipython_extension(empty_shell)
    queue = empty_shell.user_ns["q"]
    assert "_session" not in vars(queue)
    with queue.options(retries=1) as careful:
        assert careful._session is queue._session
    # I expect it to be what the documents and errors call it
    assert type(queue) is type(careful) is TaskQueue
    assert {"introduce"}.isdisjoint(dir(queue))


def test_something_else_is_called_q(empty_shell):
    empty_shell.user_ns["q"] = 5
    with pytest.raises(UsageError, match="`q` can't be used: it is of type int"):
        empty_shell.run_line_magic("workers", "")


def test_jobs_are_listed_and_cancelled(shell, gate, capsys, wait_until):
    shell.user_ns["gate"] = gate()
    shell.run_cell_magic("task", "--name mine", "gate.wait()")
    job = shell.run_cell_magic("pmap", "x in range(5) -o many", "gate.wait()")
    shell.run_line_magic("jobs", "")
    said = capsys.readouterr().out
    assert "mine  <TaskFuture" in said
    assert "many  <Job" in said
    assert "open jobs of this kernel" in said
    shell.run_line_magic("cancel", "mine")
    with pytest.raises(CancelledError):
        shell.user_ns["mine"].result(20)
    shell.run_line_magic("cancel", "")
    wait_until(job.done, describe="the end of the job")
    shell.run_line_magic("jobs", "")
    assert "<" not in capsys.readouterr().out
    with pytest.raises(UsageError, match="No variable 'gate' holds"):
        shell.run_line_magic("cancel", "gate")
    assert isinstance(job, Job)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("%attach sw", "sweep"),
        ("%cancel jo", "job"),
        ("%workers --l", "--lane"),
        ("%%task --ti", "--time-limit"),
        ("%%pmap x in xs --re", "--retries"),
    ],
)
def test_arguments_are_completed(shell, line, found):
    complete_magics(shell)
    job = shell.user_ns["job"] = shell.user_ns["q"].map(abs, [-1], name="sweep")
    try:
        with provisionalcompleter():
            offered = {c.text for c in shell.Completer.completions(line, len(line))}
    finally:
        job.delete()
    assert found in offered


def test_a_named_job_is_attached(shell, capsys):
    shell.user_ns["q"].map(abs, [-1, -2], name="sweep").wait(20)
    job = shell.run_line_magic("attach", "sweep -o found")
    assert shell.user_ns["found"] is shell.user_ns["_job"] is job
    assert job.result(10) == [1, 2]
    assert [j.name for j in shell.run_line_magic("jobs", "")] == ["sweep"]
    with pytest.raises(UsageError, match=r"name is 'a:b': it must be a name"):
        shell.run_line_magic("attach", "a:b")
    with pytest.raises(UsageError, match=r"no job 'other'.*There are: sweep"):
        shell.run_line_magic("attach", "other")
    job.delete()


def test_a_job_that_is_attached_twice_is_listed_once(shell, capsys):
    job = shell.user_ns["q"].options(delay=60).map(abs, [-1, -2], name="sweep")
    for _ in range(2):
        shell.run_line_magic("attach", "sweep -o found")
    capsys.readouterr()
    shell.run_line_magic("jobs", "")
    assert capsys.readouterr().out.count("<Job") == 1
    job.delete()


@pytest.mark.parametrize("magic", ["workers", "queue", "task", "pmap", "cancel", "attach"])
def test_help_names_the_arguments(empty_shell, magic):
    kind = "cell" if magic in ("task", "pmap") else "line"
    text = empty_shell.find_magic(magic, kind).__doc__
    assert f"  {'%%' if kind == 'cell' else '%'}{magic} " in text
    assert len(text.splitlines()) > 5


@pytest.mark.parametrize(
    ("magic", "defines"), [("task", "total"), ("pmap", "squares"), ("everywhere", None)]
)
def test_the_example_in_the_help_runs(shell, magic, defines):
    text = shell.find_magic(magic, "cell").__doc__
    example = re.search(r"Example::\n\n((?: +.*\n)+)", text)[1]
    head, _, cell = textwrap.dedent(example).partition("\n")
    shell.run_cell_magic(magic, head.removeprefix(f"%%{magic}").strip(), cell)
    if magic == "task":
        shell.user_ns["_task"].result(20)
    assert defines is None or defines in shell.user_ns


# -- in a kernel --------------------------------------------------------------------------------

LOAD = """\
import psutil
%load_ext nbstreamq
print(len(psutil.Process().children()), "processes")
"""
CATCH = """\
import traceback
try:
    _task.result()
except ZeroDivisionError as error:
    traceback.print_exception(error)
"""
KERNEL = [
    LOAD,
    "%workers 1",
    "%%task -o answer\nhalf = 21\nanswer = half * 2\nprint('from the worker')\nanswer",
    "_task.result(), answer",
    "%%pmap x in range(3)\nx + answer",
    "_job.result()",
    "%%task\n1 / 0",
    "%workers --nope",
    CATCH,
    "q.shutdown()",
]


@pytest.mark.filterwarnings("default")  # of what Jupyter uses
def test_in_a_kernel(jupyter_home, tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in KERNEL])
    client = nbclient.NotebookClient(
        notebook, timeout=40, allow_errors=True, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [cell.outputs for cell in notebook.cells]
    assert re.fullmatch(
        r"`q` is the queue '\S+'\. q\.map\(f, inputs\) calls f on \d+ local workers?\."
        r"\n0 processes\n",
        outputs[0][0].text,
    )
    assert outputs[1][0].text == "1 local worker is running.\n"
    assert "task 1" in outputs[2][0].data["text/plain"] or "42" in outputs[2][0].data["text/plain"]
    assert outputs[3][-1].data["text/plain"] == "(42, 42)"
    assert outputs[5][-1].data["text/plain"] == "[42, 43, 44]"
    assert outputs[7][0].text == "UsageError: unrecognized arguments: --nope\n"
    printed = "".join(o.text for o in outputs[8] if o.output_type == "stream")
    assert "line 2, in task 2\n    1 / 0\nZeroDivisionError" in printed
    assert outputs[9] == []
