"""Functions are pickled by value or by name, and are never stale."""

from __future__ import annotations

import functools
import importlib
import linecache
import math
import pickle
import re
import sys
import threading
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbstreamq.errors import NotPicklable, PythonMismatch
from nbstreamq.objects.functions import FunctionPickler, load_function
from nbstreamq.objects.modules import is_local


@pytest.fixture
def pickler():
    return FunctionPickler()


def is_pure(fn) -> bool:
    return load_function(FunctionPickler().dump(fn).data).pure


def is_remembered(pickler, fn) -> bool:
    return pickler.dump(fn) is pickler.dump(fn)


# Which functions can be sent

KINDS = {
    "lambda": ("f = lambda x: x + 1", "f"),
    "function": ("def f(x): return x + 1", "f"),
    "closure": ("def make(k):\n  def f(x): return x + k\n  return f", "make(1)"),
    "nested": ("def f(x):\n  def g(): return h() + 1\n  def h(): return x\n  return g()", "f"),
    "recursive": ("def f(n): return n + 1 if n == 3 else f(3)", "f"),
    "mutually recursive": ("def f(n): return g(n)\ndef g(n): return 4 if n == 3 else f(3)", "f"),
    "recursive closure": (
        "def make():\n  def f(n): return 4 if n == 3 else f(3)\n  return f",
        "make()",
    ),
    "helper": ("k = 1\ndef g(x): return x + k\ndef f(x): return g(x)", "f"),
    "bound method": ("class A:\n  k = 1\n  def f(self, x): return x + self.k", "A().f"),
    "class method": ("class A:\n  @classmethod\n  def f(cls, x): return x + 1", "A.f"),
    "static method": ("class A:\n  @staticmethod\n  def f(x): return x + 1", "A.f"),
    "class": ("class A(int):\n  def __new__(cls, x): return int(x + 1)", "A"),
    "callable": ("class A:\n  def __call__(self, x): return x + 1", "A()"),
    "partial": ("from functools import partial\ndef f(k, x): return x + k", "partial(f, 1)"),
    "default": ("def f(x, k=1, *, m=0): return x + k + m", "f"),
    "cached": (
        "from functools import cache\n@cache\ndef f(x): return 4 if x == 3 else f(3)",
        "f",
    ),
    "cached helper": (
        "from functools import cache\n@cache\ndef g(x): return x + 1\ndef f(x): return g(x)",
        "f",
    ),
    "decorated": (
        """
import functools
def plus(g):
    @functools.wraps(g)
    def inner(x): return g(x) + 1
    return inner
@plus
def f(x): return x
""",
        "f",
    ),
    "global in a nested class": (
        "k = 1\ndef f(x):\n  class A:\n    y = k\n  return x + A.y",
        "f",
    ),
    "installed": ("import operator, functools", "functools.partial(operator.add, 1)"),
    "builtin": ("", "lambda x: len(range(x + 1))"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_function_runs_in_another_process(kind, notebook, pickler, call_elsewhere):
    source, expression = KINDS[kind]
    notebook.run(source)
    fn = eval(expression, notebook)
    assert call_elsewhere(pickler.dump(fn).data, 3) == 4


@pytest.mark.parametrize(("expression", "name"), [
    ("lambda: 0", "<lambda>"),
    ("f", "f"),
    ("functools.partial(functools.partial(f, 1), 2)", "f"),
    ("A", "A"),
    ("A()", "A"),
    ("A().method", "A.method"),
    ("make()", "inner"),
    ("len", "len"),
])  # fmt: skip
def test_names_are_for_people(notebook, pickler, expression, name):
    notebook.run(
        "import functools\ndef f(*args): pass\n"
        "class A:\n    def method(self): pass\n    def __call__(self): pass\n"
        "def make():\n    def inner(): pass\n    return inner\n"
    )
    assert pickler.dump(eval(expression, notebook)).name == name


# What is pure

PURE = {
    "builtin": "f = lambda x: len(x)",
    "installed module": "import math\nf = lambda x: math.sin(x)",
    "numbers and text": "a, b, c = 1, 'x', (b'y', None, frozenset({1}))\nf = lambda: (a, b, c)",
    "helper": "g = lambda x: x\nf = lambda x: g(x)",
    "recursion": "def f(n): return f(n - 1)",
    "regular expression": "import re\np = re.compile('a')\nf = lambda x: p.match(x)",
    "ufunc": "from numpy import sin\nf = lambda x: sin(x)",
    "nothing yet": "f = lambda x: to_come(x)",
    "cached": "import functools\n@functools.cache\ndef f(x): return x",
    "wrapped": "import functools\ng = lambda x: x\nf = functools.wraps(g)(lambda x: g(x))",
    "inner nonlocal": "def f():\n  n = 0\n  def g():\n    nonlocal n\n    n += 1\n  return g()",
}  # fmt: skip
IMPURE = {
    "list": "l = []\nf = lambda: l",
    "dict in tuple": "t = ({},)\nf = lambda: t",
    "mutable default": "def f(x=[]): pass",
    "mutable keyword default": "def f(*, x={}): pass",
    "default of a helper": "def g(x=[]): pass\ndef f(): g()",
    "instance": "class A: pass\na = A()\nf = lambda: a",
    "class": "class A: pass\nf = lambda: A",
    "attribute": "def f(): pass\nf.calls = 0",
    "assigns a global": "n = 0\ndef f():\n    global n\n    n += 1",
    "assigns in a nested function": "def f():\n  def g():\n    global n\n    n = 1\n  g()",
    "nonlocal": "def make(n):\n  def f():\n    nonlocal n\n    n += 1\n  return f\nf = make(0)",
    "method of a list": "l = []\na = l.append\nf = lambda: a(1)",
    "partial": "import functools\np = functools.partial(print, end=[])\nf = lambda: p",
}  # fmt: skip


@pytest.mark.parametrize("kind", PURE)
def test_functions_that_capture_only_immutable_values_are_remembered(kind, notebook, pickler):
    notebook.run(PURE[kind])
    assert is_pure(notebook["f"])
    if "cache" not in kind:
        assert is_remembered(pickler, notebook["f"])


@pytest.mark.parametrize("kind", IMPURE)
def test_functions_that_capture_mutable_values_are_not_remembered(kind, notebook, pickler):
    notebook.run(IMPURE[kind])
    assert not is_pure(notebook["f"])
    assert not is_remembered(pickler, notebook["f"])


def test_a_global_counter_starts_again_in_each_job(notebook, pickler):
    notebook.run("n = 0\ndef f():\n    global n\n    n += 1\n    return n")
    data = pickler.dump(notebook["f"]).data
    assert [load_function(data).fn() for _ in range(3)] == [1, 1, 1]


def test_an_unchanged_function_has_the_same_digest_in_another_session(notebook):
    notebook.run("l = [1]\ndef f(): return l")
    one, two = (FunctionPickler().dump(notebook["f"]) for _ in range(2))
    assert one.digest == two.digest


# Edits take effect at the next call

EDITS = st.sampled_from(
    [
        "a = 1", "a = 2", "a = [1]", "a = (1, 2)", "del_a", "a = {'k': 1}",
        "if isinstance(a, list): a.append(3)",
        "if isinstance(a, dict): a['k'] += 1",
        "def g(x): return ('g1', x, a)", "def g(x, y=1): return ('g2', x, y, b)",
        "g = lambda x: ('g3', len(str(x)))",
        "g = functools.partial(h, b)", "g = functools.lru_cache(lambda x: ('g4', x))",
        "b = 5", "b = 6", "b = None", "b = lambda: a", "b = b",
        "def h(*args): return ('h', args)", "h = max",
        "def len(x): return -1", "globals().pop('len', None)",
        "f.__defaults__ = (7,)", "f.__defaults__ = ([8],)", "f.__defaults__[0].append(9)",
        "f.__kwdefaults__ = {'m': 1}", "f.__kwdefaults__['m'] += 1", "f.__kwdefaults__['m'] = [2]",
        "cell.cell_contents = 1", "cell.cell_contents = [1]", "cell.cell_contents = g",
        "if isinstance(cell.cell_contents, list): cell.cell_contents.append(1)",
        "del cell.cell_contents",
        "f.__code__ = other.__code__", "f.__code__ = first.__code__",
        "class C:\n    n = 0", "C.n += 1", "a = C", "a = C()", "a.n = 4", "f.note = 1",
        "import math as m", "m = 3", "a = m", "b = (a, (a, b))", "g = f2", "f.note += 1",
    ]
)  # fmt: skip
START = """
import functools
a, b, m = 1, 2, 3
def h(*args): return args
def g(x): return x
class C:
    n = 1
def make():
    def f(x=0, *, m=0):
        seen = show(x), show(m), show(a), show(g), show(b), show(z)
        return *seen, len('abc'), f.__dict__.get('note')
    def other(x=1, *, m=0):
        return 'other', show(a), show(z), f is None
    z = 0
    return f, other, f.__closure__[1], f
f, other, cell, first = make()
first = make()[0]
def f2(x): return show(b)
def show(v):
    if isinstance(v, type) or type(v).__name__ == 'C': return v.n
    if isinstance(v, tuple | list | dict | int | None):
        return repr(v) if '<' not in repr(v) else len(v)
    try: return v(3) if callable(v) else v.__name__
    except RecursionError: return 'deep'
"""


def outcome(fn):
    try:
        result = repr(fn())
    except Exception as error:
        result = repr(error)
    return re.sub(" at 0x[0-9a-f]+", "", result)


@settings(max_examples=150, deadline=None)
@given(st.lists(EDITS, max_size=12))
def test_a_function_returns_elsewhere_what_it_returns_here_after_any_edits(edits):
    # Given a session that has sent a function before
    notebook = {"__name__": "__main__"}
    exec(START, notebook)
    pickler = FunctionPickler()
    for edit in ["pass", *edits]:
        # When anything is edited
        try:
            exec("globals().pop('a', None)" if edit == "del_a" else edit, notebook)
        except Exception:
            continue
        # I expect the function as it is now
        fn = notebook["f"]
        arrived = load_function(pickler.dump(fn).data)
        assert outcome(arrived.fn) == outcome(fn), edit
        # and what is reused to be as good as new
        if arrived.pure:
            assert outcome(arrived.fn) == outcome(fn), edit


@pytest.mark.parametrize(
    ("edit", "expected"),
    [("k = 5", 8), ("def g(x): return -x", -3), ("def g(x, s=[1]): return s", [1])],
)
def test_an_edit_takes_effect_at_the_next_call(notebook, pickler, edit, expected):
    notebook.run("k = 1\ndef g(x): return x + k\ndef f(x): return g(x)")
    assert load_function(pickler.dump(notebook["f"]).data).fn(3) == 4
    notebook.run(edit)
    assert load_function(pickler.dump(notebook["f"]).data).fn(3) == expected


def test_a_mutated_list_takes_effect_at_the_next_call(notebook, pickler):
    notebook.run("l = [1]\ndef f(): return sum(l)")
    pickler.dump(notebook["f"])
    notebook["l"].append(2)
    assert load_function(pickler.dump(notebook["f"]).data).fn() == 3


def test_a_method_sees_the_state_of_its_object(notebook, pickler):
    notebook.run("class A:\n    n = 0\n    def f(self): return self.n\na = A()")
    pickler.dump(notebook["a"].f)
    notebook["a"].n = 1
    assert load_function(pickler.dump(notebook["a"].f).data).fn() == 1


def test_keywords_of_a_partial_can_change(pickler):
    fn = functools.partial(dict, a=1)
    pickler.dump(fn)
    fn.keywords["a"] = 2
    assert load_function(pickler.dump(fn).data).fn() == {"a": 2}


# The cache


@pytest.mark.parametrize("expression", ["make(7)", "lambda x: x", "make_recursive()"])
def test_the_cache_keeps_no_function_alive(notebook, pickler, expression):
    notebook.run(
        "def make(k): return lambda: k\n"
        "def make_recursive():\n    def f(n): return f(n)\n    return f"
    )
    fn = eval(expression, notebook)
    pickler.dump(fn)
    alive = weakref.ref(fn)
    del fn
    import gc

    gc.collect()
    assert alive() is None


def test_several_threads_may_dump(notebook, pickler):
    notebook.run("def make(k): return lambda: k")
    fns = [notebook["make"](k) for k in range(50)]
    results = []

    def work():
        results.append([load_function(pickler.dump(fn).data).fn() for fn in fns])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [list(range(50))] * 4


# Errors


def test_another_python_is_refused_before_unpickling(notebook, pickler):
    # Given a function written by Python 2.7, with a body that must not be touched
    _, name, pure, sources, *_ = pickle.loads(pickler.dump(lambda: 1).data)
    data = pickle.dumps(("2.7", name, pure, sources, b"not a pickle", ()))
    # When it is loaded, I expect to be told both versions and what to do
    with pytest.raises(PythonMismatch, match=r"Python 2\.7.*Python 3\.\d+.*Start the workers"):
        load_function(data)


def test_a_function_that_cannot_be_pickled_is_named(notebook, pickler):
    notebook.run("import threading\nlock = threading.Lock()\ndef f():\n    with lock: pass")
    with pytest.raises(NotPicklable, match=r"f\(\) .*captures `lock` \(_thread\.lock\)"):
        pickler.dump(notebook["f"])


def test_tracebacks_elsewhere_show_the_lines_of_a_cell(notebook, pickler, elsewhere):
    notebook.run("def f(x):\n    return 1 / x  # here\n")
    script = (
        "import traceback\nfrom nbstreamq.objects.functions import load_function\n"
        "try: load_function(data).fn(0)\n"
        "except ZeroDivisionError: answer(traceback.format_exc())\n"
    )
    assert "return 1 / x  # here" in elsewhere(script, pickler.dump(notebook["f"]).data)


def test_sources_of_other_cells_are_not_overwritten(notebook, pickler):
    notebook.run("def f(): pass")
    data = pickler.dump(notebook["f"]).data
    filename = notebook["f"].__code__.co_filename
    entry = linecache.cache[filename]
    load_function(data)
    assert linecache.cache[filename] is entry


# Modules beside the notebook


def test_which_modules_are_local(beside):
    beside("helper.py", "")
    beside("package/inner/deep.py", "")
    assert is_local(importlib.import_module("helper"))
    assert is_local(importlib.import_module("package"))
    assert is_local(importlib.import_module("package.inner.deep"))
    installed = ["math", "json.decoder", "numpy", "pytest", "nbstreamq.errors", "sys", "os.path"]
    assert not [n for n in installed if is_local(importlib.import_module(n))]
    assert not is_local(sys.modules["__main__"])


def test_editable_installs_are_not_local(tmp_path, elsewhere):
    # Given a project that is installed as editable, and a file beside its package
    project = tmp_path / "project"
    (project / "src" / "sims").mkdir(parents=True)
    (project / "src" / "sims" / "__init__.py").touch()
    (project / "helper.py").touch()
    info = tmp_path / "site" / "my_sims-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-sims\nVersion: 1\n")
    url = f'{{"url": "{project.as_uri()}", "dir_info": {{"editable": true}}}}'
    (info / "direct_url.json").write_text(url)
    paths = [str(p) for p in (tmp_path / "site", project / "src", project)]
    # When both are imported, I expect only the file beside it to be local
    script = (
        "sys.path[:0] = data\nimport sims, helper\n"
        "from nbstreamq.objects.modules import is_local\n"
        "answer([is_local(sims), is_local(helper)])"
    )
    assert elsewhere(script, paths) == [False, True]


def test_a_package_installed_into_its_own_folder_is_not_local(tmp_path, elsewhere):
    folder = tmp_path / "target"
    info = folder / "Sims-1.dist-info"
    info.mkdir(parents=True)
    for name in ("sims.py", "other.py", "helper.py"):
        (folder / name).touch()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: Sims\nVersion: 1\n")
    (info / "RECORD").write_text("other.py,,\nSims-1.dist-info/METADATA,,\n")
    script = (
        "sys.path[:0] = data\nimport sims, other, helper\n"
        "from nbstreamq.objects.modules import is_local\n"
        "answer([is_local(sims), is_local(other), is_local(helper)])"
    )
    assert elsewhere(script, [str(folder)]) == [False, False, True]


def test_a_package_installed_as_a_link_is_not_local(tmp_path, elsewhere):
    # A folder of installed packages, in which one is a link to somewhere else
    site, cache = tmp_path / "site", tmp_path / "cache"
    site.mkdir()
    cache.mkdir()
    for name in ("linked.py", "unlinked.py"):
        (cache / name).touch()
    (site / "linked.py").symlink_to(cache / "linked.py")
    script = (
        "import site\nsite.getsitepackages = lambda: data[:1]\n"
        "sys.path[:0] = data\nimport linked, unlinked\n"
        "from nbstreamq.objects.modules import is_local\n"
        "answer([is_local(linked), is_local(unlinked)])"
    )
    assert elsewhere(script, [str(site), str(cache)]) == [False, True]


HELPERS = {
    "from helper import f": "from helper import f",
    "import helper": "import helper\nf = lambda x: helper.f(x)",
    "import as": "import helper as h\nf = lambda x: h.f(x)",
    "import inside": "import helper\ndef f(x):\n    import helper\n    return helper.f(x)",
    "from inside": "import helper\ndef f(x):\n    from helper import f\n    return f(x)",
    "class": "from helper import A\nf = lambda x: A(x).f()",
}  # fmt: skip
HELPER = """
k = 1
def g(x): return x + k
def f(x): return g(x)
class A:
    def __init__(self, x): self.x = x
    def f(self): return g(self.x)
"""


@pytest.mark.parametrize("kind", HELPERS)
def test_modules_beside_the_notebook_are_pickled_by_value(
    kind, beside, notebook, pickler, call_elsewhere
):
    beside("helper.py", HELPER)
    notebook.run(HELPERS[kind])
    assert call_elsewhere(pickler.dump(notebook["f"]).data, 3) == 4


def test_packages_with_import_cycles_are_pickled_by_value(
    beside, notebook, pickler, call_elsewhere
):
    beside("package/__init__.py", "from . import a, b\n")
    beside("package/a.py", "from . import b\ndef f(x): return b.g(x)\n")
    beside("package/b.py", "from . import a\nimport package\ndef g(x): return x + 1 if a else 0\n")
    notebook.run("import package\nf = lambda x: package.a.f(x) if package.b.package else 0")
    assert call_elsewhere(pickler.dump(notebook["f"]).data, 3) == 4


def test_relative_imports_inside_functions_work(beside, notebook, pickler, call_elsewhere):
    beside("package/__init__.py", "")
    beside("package/a.py", "def f(x):\n    from .b import g\n    return g(x)\n")
    beside("package/b.py", "def g(x): return x + 1\n")
    notebook.run("import package.b\nfrom package.a import f")
    assert call_elsewhere(pickler.dump(notebook["f"]).data, 3) == 4


def test_imports_inside_functions_take_only_what_they_import(beside, notebook, pickler):
    # Given a package with a function that imports a module of the standard library
    beside("package/__init__.py", "data = 'x' * 100_000\n")
    beside("package/a.py", "def f(x):\n    import json\n    import os.path\n    return x\n")
    notebook.run("from package.a import f")
    # I expect the package not to be sent along
    assert len(pickler.dump(notebook["f"]).data) < 10_000


def test_relative_imports_from_higher_packages_work(beside, notebook, pickler, call_elsewhere):
    beside("package/__init__.py", "k = 1\n")
    beside("package/inner/__init__.py", "")
    beside("package/inner/a.py", "def f(x):\n    from .. import k, b\n    return b.g(x, k)\n")
    beside("package/b.py", "def g(x, k): return x + k\n")
    notebook.run("import package.b\nfrom package.inner.a import f")
    assert call_elsewhere(pickler.dump(notebook["f"]).data, 3) == 4


def test_a_value_that_a_module_cannot_send_is_missed_only_when_used(
    beside, notebook, pickler, elsewhere
):
    # Given a module with a lock that the function does not use
    beside("helper.py", "import threading\nlock = threading.Lock()\n" + HELPER)
    notebook.run("import helper\nf = lambda x: helper.f(x)\nbad = lambda: helper.lock")
    good, bad = (pickler.dump(notebook[n]).data for n in ("f", "bad"))
    # When it runs elsewhere, I expect its result; and a reason where the lock is used
    script = (
        "from nbstreamq.objects.functions import load_function as load\n"
        "try: load(data[1]).fn()\n"
        "except AttributeError as error: answer((load(data[0]).fn(3), str(error)))"
    )
    result, text = elsewhere(script, (good, bad))
    assert result == 4
    assert "'lock' here: it was not sent" in text


def test_a_reloaded_module_takes_effect_at_the_next_call(beside, notebook, pickler, call_elsewhere):
    beside("helper.py", HELPER)
    notebook.run("import helper\nf = lambda x: helper.f(x)")
    pickler.dump(notebook["f"])
    beside("helper.py", HELPER.replace("k = 1", "k = 50"))
    importlib.reload(sys.modules["helper"])
    assert call_elsewhere(pickler.dump(notebook["f"]).data, 3) == 53


def test_a_module_imported_only_later_is_sent_at_the_next_call(
    beside, notebook, pickler, call_elsewhere
):
    # Given a function that was sent before the module that it imports was loaded here
    beside("helper.py", HELPER)
    notebook.run("def f(x):\n    import helper\n    return helper.f(x)")
    pickler.dump(notebook["f"])
    # When the module is imported, I expect it to be sent along
    notebook.run("import helper")
    assert call_elsewhere(pickler.dump(notebook["f"]).data, 3) == 4


def test_cloudpickle_is_left_as_it_is_for_others(beside, notebook, pickler):
    import cloudpickle

    beside("helper.py", HELPER)
    notebook.run("from helper import f")
    pickler.dump(notebook["f"])
    assert not cloudpickle.list_registry_pickle_by_value()
    assert b"helper" in cloudpickle.dumps(notebook["f"])
    assert len(cloudpickle.dumps(notebook["f"])) < 60


def test_a_module_that_comes_back_is_the_module_here(beside, notebook, pickler, elsewhere):
    beside("helper.py", HELPER)
    notebook.run("import helper\nf = lambda: helper")
    returned = elsewhere(
        "from nbstreamq.objects.functions import load_function\n"
        "from nbstreamq.objects.pickling import dump\n"
        "answer(dump(load_function(data)(), 'the result'))",
        pickler.dump(notebook["f"]).data, raw=True,
    )  # fmt: skip
    here = sys.modules["helper"]
    assert pickle.loads(returned) is here
    assert sys.modules["helper"] is here


def test_installed_functions_are_pickled_by_name(pickler):
    assert b"math" in pickler.dump(math.sin).data
    assert is_pure(math.sin)
