"""Classes of a cell, and their instances, on the way to a worker and back."""

from __future__ import annotations

import linecache
import re
import sys
import types
from typing import Any

import pytest

#: What a cell defines, what a task returns of it, and what is true of that, `r`, in the session.
CASES = {
    "dataclass with slots": """
from dataclasses import dataclass
@dataclass(slots=True)
class A: x: int = 1
>>> (A(), A(2), hasattr(A(), '__dict__'))
==> r == (A(1), A(2), False)
""",
    "frozen dataclass with slots": """
from dataclasses import dataclass
@dataclass(slots=True, frozen=True)
class A: x: int
>>> (A(2), hash(A(2)))
==> r == (A(2), hash(A(2)))
""",
    "names that every class has": """
class A:
    kind = int
    @property
    def __class__(self): return A.kind
    @__class__.setter
    def __class__(self, value): pass
    __name__ = property(lambda self: 'n', doc='its text')
    __bases__ = (1,)
>>> (A, isinstance(A(), int), A().__name__, A().__bases__, vars(A)['__name__'].__doc__)
==> r == (A, True, 'n', (1,), 'its text')
""",
    "weak references to slots": """
from dataclasses import dataclass
import weakref
@dataclass(slots=True, weakref_slot=True)
class A: x: int
>>> (a := A(3), weakref.ref(a)() is a)
==> r == (A(3), True) and weakref.ref(r[0])() is r[0]
""",
    "private slots": """
class _A:
    __slots__ = '__x', 'y'
    def __init__(self): self.__x = self.y = 4
    def x(self): return self.__x
>>> (_A(), _A().x())
==> (r[0].x(), r[0].y, r[1]) == (4, 4, 4) and type(r[0]) is _A
""",
    "inherited slots": """
class A:
    __slots__ = ('x',)
class B(A):
    __slots__ = {'y': 'its text'}
class C(B): pass
def make(cls):
    a = cls(); a.x, a.y = 1, 2; return a
>>> (make(B), make(C), hasattr(make(B), '__dict__'), hasattr(make(C), '__dict__'))
==> (
    [(a.x, a.y) for a in r[:2]] == [(1, 2)] * 2 and r[2:] == (False, True) and [type(a) for
    a in r[:2]] == [B, C]
)
""",
    "slots and a dict": """
class A:
    __slots__ = 'x', '__dict__', '__weakref__'
a = A(); a.x = 1; a.y = 2
>>> (a, A())
==> (r[0].x, r[0].y) == (1, 2)
""",
    "one slot, and descriptors": """
class A:
    __slots__ = 'x'
    @property
    def double(self): return 2 * self.x
a = A(); a.x = 2
>>> (a, a.double)
==> r[0].x == 2 and r[0].double == 4 == r[1]
""",
    "attributes of members": """
import enum
class Planet(enum.Enum):
    EARTH = 6.0, 6.4
    MARS = 0.6, 3.4
    def __init__(self, mass, radius): self.mass, self.radius = mass, radius
    @property
    def density(self): return self.mass / self.radius
>>> (Planet.MARS, Planet.MARS.mass, Planet['EARTH'].density, Planet((6.0, 6.4)).name, list(Planet))
==> r[0] is Planet.MARS and r[1:4] == (0.6, 6.0 / 6.4, 'EARTH') and r[4] == list(Planet)
""",
    "members made by __new__": """
import enum
class Coin(enum.Enum):
    CENT = 1, 'small'
    EURO = 100, 'big'
    def __new__(cls, value, size):
        self = object.__new__(cls)
        self._value_ = value
        self.size = size
        return self
>>> (Coin(100), Coin.CENT.size, Coin.EURO.value)
==> r == (Coin.EURO, 'small', 100) and r[0] is Coin.EURO
""",
    "integers with attributes": """
import enum
class Code(enum.IntEnum):
    OK = 200, 'fine'
    BAD = 404, 'none'
    def __new__(cls, value, phrase):
        self = int.__new__(cls, value)
        self._value_ = value
        self.phrase = phrase
        return self
>>> (Code.BAD, Code.OK + 1, Code(404).phrase)
==> r == (404, 201, 'none') and r[0] is Code.BAD
""",
    "aliases": """
import enum
class Color(enum.Enum):
    RED = 1
    CRIMSON = 1
    BLUE = 2
>>> (Color.CRIMSON, Color['CRIMSON'], Color(1).name, len(Color), list(Color.__members__))
==> r[0] is r[1] is Color.RED and r[2:] == ('RED', 2, ['RED', 'CRIMSON', 'BLUE'])
""",
    "composite flags": """
import enum
class Perm(enum.Flag):
    R = 4
    W = 2
    X = 1
    RWX = 7
    NO = 0
    def with_(self, other=R | X): return self | other
>>> (Perm.RWX, Perm.RWX.name, Perm.R | Perm.W, ~Perm.R, Perm(7), (Perm.R | Perm.W).name,
    list(Perm.RWX), Perm.NO.name, Perm.R in Perm.RWX)
==> (
    r[0] is Perm.RWX is r[4] and r[1] == 'RWX' and r[2] is Perm.R | Perm.W and r[3] is
    ~Perm.R and r[5:] == ('R|W', [Perm.R, Perm.W, Perm.X], 'NO', True)
)
""",
    "a combination as a default": """
import enum
class Perm(enum.IntFlag):
    R = 4
    W = 2
Perm.both = lambda self, other=Perm.R | Perm.W: other
>>> (Perm.R.both(), Perm.R.both().name, Perm(6))
==> r[0] is r[2] is Perm.R | Perm.W and r[1] == 'R|W'
""",
    "the boundary of flags": """
import enum
class Keep(enum.Flag, boundary=enum.KEEP):
    A = 1
    B = 2
class Conform(enum.Flag, boundary=enum.CONFORM):
    A = 1
>>> (Keep(9).value, Conform(9), Keep(9))
==> r == (9, Conform.A, Keep(9))
""",
    "automatic values, nested": """
import enum
class Outer:
    class Kind(enum.StrEnum):
        def _generate_next_value_(name, *_): return name.lower() + '!'
        ONE = enum.auto()
        TWO = enum.auto()
>>> (Outer.Kind.ONE, Outer.Kind.TWO.value, Outer.Kind.ONE.upper(), Outer.Kind.__qualname__)
==> r == ('one!', 'two!', 'ONE!', 'Outer.Kind') and r[0] is Outer.Kind.ONE
""",
    "missing values, ignored names": """
import enum
class Size(enum.Enum):
    _ignore_ = ['i']
    for i in range(3):
        vars()[f'S{i}'] = i
    @classmethod
    def _missing_(cls, value): return cls.S2
>>> (Size('other'), [s.name for s in Size], hasattr(Size, 'i'))
==> r == (Size.S2, ['S0', 'S1', 'S2'], False)
""",
    "members that are functions, lists, nan": """
import enum
class Op(enum.Enum):
    ADD = (lambda a, b: a + b,)
    LIST = [1]
    NAN = float('nan')
    def __call__(self, *args): return self.value[0](*args)
>>> (Op.ADD, Op.LIST, Op.NAN, Op.ADD(1, 2), Op([1]))
==> all(a is b for a, b in zip(r, (Op.ADD, Op.LIST, Op.NAN))) and r[3:] == (3, Op.LIST)
""",
    "an enum with a mixed-in type": """
import enum, datetime, dataclasses
class Day(datetime.date, enum.Enum):
    NEW = 2024, 1, 1
@dataclasses.dataclass
class Info:
    a: int
    b: int
class Both(Info, enum.Enum):
    X = 1, 2
    Y = 3, 4
>>> (Day.NEW, Day.NEW.year, Both.Y, Both.Y.b)
==> r[0] is Day.NEW and r[1] == 2024 and r[2] is Both.Y and r[3] == 4
""",
    "an abstract enum, and flags verified": """
import enum
class Named(enum.Enum):
    def text(self): return self.name.title()
@enum.unique
class Fruit(Named):
    APPLE = 1
    PEAR = 2
>>> (Fruit.PEAR, Fruit.PEAR.text(), isinstance(Fruit.PEAR, Named))
==> r == (Fruit.PEAR, 'Pear', True)
""",
    "a member of a class with the names of its members": """
import enum
class Item(enum.Enum):
    name = 'n'
    value = 'v'
>>> (Item('n').name, Item['value'].value)
==> r == ('name', 'v')
""",
    "keywords of __init_subclass__": """
class Base:
    def __init_subclass__(cls, *, tag, **kw):
        super().__init_subclass__(**kw)
        assert tag
        cls.tag = tag.upper()
class A(Base, tag='a'): pass
>>> (A(), A.tag)
==> type(r[0]) is A and r[1] == 'A'
""",
    "keywords of a metaclass": """
class Meta(type):
    def __new__(m, name, bases, ns, *, k):
        return super().__new__(m, name, bases, ns | {'k': k})
    def __init__(cls, name, bases, ns, *, k): cls.init = k
class A(metaclass=Meta, k=3): pass
>>> (A(), A.k, A.init, type(A).__name__)
==> type(r[0]) is A and r[1:] == (3, 3, 'Meta')
""",
    "a hook that validates": """
class Base:
    def __init_subclass__(cls):
        if not callable(getattr(cls, 'run', None)): raise TypeError('no run')
class A(Base):
    def run(self): return 5
>>> (A(), A().run())
==> type(r[0]) is A and r[1] == 5
""",
    "a registry that refuses doubles": """
REGISTRY = {}
class Base:
    known = {}
    def __init_subclass__(cls):
        assert cls.__name__ not in REGISTRY
        REGISTRY[cls.__name__] = Base.known[cls.__name__] = cls
class A(Base): pass
class B(A): pass
>>> (A(), sorted(REGISTRY), sorted(Base.known), Base.known['B'] is B is REGISTRY['B'])
==> type(r[0]) is A and r[1:] == (['A', 'B'], ['A', 'B'], True)
""",
    "the order of bases, and super": """
class A:
    def f(self): return 'A'
class B(A):
    def __init_subclass__(cls): 1 / 0
    def f(self): return 'B' + super().f()
class C(A):
    def f(self): return 'C' + super().f()
D = type.__new__
B.__init_subclass__ = classmethod(lambda cls: None)
class D(B, C):
    def f(self): return 'D' + super().f()
>>> (D(), D().f(), [c.__name__ for c in D.__mro__], type(D) is type)
==> type(r[0]) is D and r[1:] == ('DBCA', ['D', 'B', 'C', 'A', 'object'], True)
""",
    "names of descriptors": """
class Field:
    def __set_name__(self, owner, name):
        assert not hasattr(self, 'name')
        self.name = name
    def __get__(self, one, owner): return self.name
class A:
    first = Field()
    second = Field()
>>> (A(), A().first, A().second)
==> r[1:] == ('first', 'second') and r[0].first == 'first'
""",
    "a metaclass that keeps attributes as they are": """
class Frozen(type):
    def __setattr__(cls, name, value): raise AttributeError(name)
    @property
    def size(cls): return len(cls.items)
class A(metaclass=Frozen):
    items = [1, 2]
    size = 'hidden'
    def f(self): return __class__
>>> (A(), A.size, A().size, A().f() is A)
==> type(r[0]) is A and r[1:] == (2, 'hidden', True)
""",
    "singletons and counting metaclasses": """
class Meta(type):
    made = []
    def __call__(cls, *a):
        Meta.made.append(cls.__name__)
        return super().__call__(*a)
class A(metaclass=Meta): pass
>>> (A(), Meta.made)
==> type(r[0]) is A and r[1] == ['A']
""",
    "abstract classes": """
import abc
class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self): ...
class Square(Shape):
    def area(self): return 4
class Foreign: pass
Shape.register(Foreign)
def refused():
    try: Shape()
    except TypeError: return True
>>> (Square(), Square().area(), isinstance(Foreign(), Shape), issubclass(Square, Shape),
    refused(), isinstance(3, Shape))
==> isinstance(r[0], Shape) and r[1:] == (4, True, True, True, False)
""",
    "generic classes": """
from typing import Generic, TypeVar, get_type_hints
T = TypeVar('T')
K = TypeVar('K')
class Box(Generic[T]):
    def __init__(self, x: T): self.x = x
    def other(self) -> 'Box[T]': return Box[T](self.x)
    def again(self, box: 'Box[T] | None' = None): return box
class Pair(Box[int], Generic[K]): pass
def both(a: Box[int]) -> Pair[str]: return Pair(a.x)
>>> (Box[int](3), Pair[str](4), both(Box(5)).other(), Pair.__parameters__ == (K,))
==> [b.x for b in r[:3]] == [3, 4, 5] and [type(b) for b in r[:3]] == [Box, Pair, Box] and r[3]
""",
    "a generic class in its own annotations": """
from typing import Generic, TypeVar
T = TypeVar('T')
class Node(Generic[T]):
    def __init__(self, x): self.x = x
def link(self, other: Node[T]) -> Node[int]: return Node[T](other.x)
Node.link = link
>>> Node[int](1).link(Node(2))
==> type(r) is Node and r.x == 2
""",
    "named tuples": """
from typing import NamedTuple
from collections import namedtuple
class P(NamedTuple):
    x: int
    y: int = 2
    def sum(self): return self.x + self.y
Q = namedtuple('Q', 'a b', defaults=[9])
>>> (P(1), P(1).sum(), P(1)._replace(x=5), Q(1), Q._fields)
==> r == (P(1, 2), 3, P(5, 2), Q(1, 9), ('a', 'b')) and type(r[0]) is P
""",
    "typed dicts": """
from typing import TypedDict, Required
class D(TypedDict, total=False):
    x: Required[int]
    y: str
>>> (D(x=1), sorted(D.__required_keys__), sorted(D.__annotations__))
==> r == ({'x': 1}, ['x'], ['x', 'y'])
""",
    "protocols": """
from typing import Protocol, runtime_checkable
@runtime_checkable
class Closes(Protocol):
    def close(self) -> None: ...
class A:
    def close(self): pass
class B(Closes):
    def close(self): pass
>>> (A(), isinstance(A(), Closes), isinstance(3, Closes), B())
==> r[1:3] == (True, False) and isinstance(r[3], Closes)
""",
    "features of dataclasses": """
import dataclasses
from dataclasses import dataclass, field, KW_ONLY, InitVar
from typing import ClassVar
@dataclass(order=True)
class A:
    n: ClassVar[int] = 7
    x: int
    ys: list = field(default_factory=list, repr=False)
    _: KW_ONLY
    k: InitVar[int] = 1
    def __post_init__(self, k): self.x += k
def derived():
    @dataclass
    class B(A):
        z: int = 0
    return B(1).z
>>> (A(1), A(1, k=5) > A(1), dataclasses.replace(A(1), x=3, k=0), derived(),
    dataclasses.asdict(A(1)), dataclasses.fields(A)[0].default is dataclasses.MISSING)
==> r == (A(1), True, A(2), 0, {'x': 2, 'ys': []}, True)
""",
    "decorators that replace the class": """
import functools
def wrap(cls):
    @functools.wraps(cls, updated=())
    class Wrapped(cls):
        def f(self): return 'wrapped ' + super().f()
    return Wrapped
@wrap
class A:
    def f(self): return 'A'
@functools.total_ordering
class B:
    def __lt__(self, other): return False
>>> (A(), A().f(), B() >= B())
==> type(r[0]) is A and r[0].f() == r[1] == 'wrapped A' and r[2]
""",
    "attrs": """
import attrs
@attrs.define(frozen=True)
class A:
    x: int = attrs.field(validator=attrs.validators.instance_of(int))
    ys: list = attrs.field(factory=list)
@attrs.define
class B(A):
    z: int = 3
>>> (A(1), B(2), attrs.asdict(A(1)), attrs.evolve(B(2), z=4))
==> r == (A(1), B(2), {'x': 1, 'ys': []}, B(2, z=4))
""",
    "structures of ctypes": """
import ctypes
class P(ctypes.Structure):
    _fields_ = [('x', ctypes.c_int), ('y', ctypes.c_double)]
    def sum(self): return self.x + self.y
>>> (P(1, 2.5), P(1, 2).sum())
==> (r[0].x, r[0].y, r[1]) == (1, 2.5, 3)
""",
    "cached properties": """
from functools import cached_property
class A:
    n = 0
    @cached_property
    def big(self):
        A.n += 1
        return 2 * super().__sizeof__() // super().__sizeof__()
>>> (a := A(), a.big, a.big, A.n)
==> r[1:] == (2, 2, 1) and r[0].big == 2
""",
    "descriptors of own types": """
import functools
class Own(property):
    def __init__(self, f): super().__init__(f); self.n = 1
    def __set_name__(self, cls, name): self.name = name
class OwnMethod(classmethod): extra = 2
class OwnCached(functools.cached_property): pass
class A:
    x = Own(lambda self: 3)
    m = OwnMethod(lambda cls: cls.__name__)
    c = OwnCached(lambda self: 4)
>>> (A(), A().x, A.x.name, A.x.n, A.m(), A().c, type(vars(A)['m']).__name__)
==> r[1:] == (3, 'x', 1, 'A', 4, 'OwnMethod') and r[0].x == 3
""",
    "weak registries": """
import weakref
class A:
    known = weakref.WeakValueDictionary()
    used = weakref.WeakKeyDictionary()
    def __init__(self): A.known[len(A.known)] = self; A.used[self] = 5
a = A()
>>> (a, A.known[0] is a, A.used[a], len(A.known))
==> r[1:] == (True, 5, 1) and type(r[0]) is A
""",
    "generic functions": """
from functools import singledispatch
@singledispatch
def size(x): return 1
@size.register
def _(x: list): return sum(map(size, x))
class A: pass
@size.register(A)
def of_a(a): return 100
>>> (size([1, [2, 3], A()]), size(3), size.__name__, size.dispatch(A) is of_a)
==> r == (103, 1, 'size', True)
""",
    "generic methods": """
from functools import singledispatchmethod, partialmethod, lru_cache
class A:
    @singledispatchmethod
    def f(self, x): return 'other'
    @f.register
    def _(self, x: int): return 'int'
    def g(self, a, b): return a - b
    h = partialmethod(g, 10)
    @staticmethod
    @lru_cache
    def k(x): return x + 1
>>> (A(), A().f(1), A().f(''), A().h(3), A.k(4))
==> r[1:] == ('int', 'other', 7, 5) and r[0].f(1) == 'int'
""",
    "context managers": """
from contextlib import contextmanager, ContextDecorator
@contextmanager
def opened(x):
    yield x + 1
class A(ContextDecorator):
    def __enter__(self): return 5
    def __exit__(self, *_): pass
def use():
    with opened(1) as x, A() as y: return x, y
>>> use()
==> r == (2, 5)
""",
    "new types, type variables": """
from typing import NewType, ParamSpec, TypeVarTuple, TypeVar, Callable, Generic, Unpack
UserId = NewType('UserId', int)
P = ParamSpec('P')
Ts = TypeVarTuple('Ts')
T = TypeVar('T', int, str)
B = TypeVar('B', bound='list[B]', covariant=True)
def f(x: UserId, g: Callable[P, T], *a: P.args, **k: P.kwargs) -> B: return x
class A(Generic[Unpack[Ts]]): pass
>>> (f(UserId(3), int), f.__annotations__, UserId, P, Ts, T, B, A[int, str]())
==> (
    r[0] == 3 and r[1] == f.__annotations__ and type(r[7]) is A and all(a is b for a, b in
    zip(r[2:7], (UserId, P, Ts, T, B)))
)
""",
}
if sys.version_info >= (3, 12):
    CASES |= {
        "type statements and parameters": """
type Json = dict[str, Json] | int
type Pair[T] = tuple[T, T]
type Tree[T] = T | list[Tree[T]]
class Node[T: Node]: pass
class Box[T]:
    def __init__(self, x: T): self.x = x
def f[U: int](x: U, j: Json, p: Pair[U], t: Tree[U]) -> Box[U]: return Box[U](x)
>>> (f(1, {}, (1, 2), 3), Json.__value__.__args__[1], Pair[int].__args__, Json.__name__, Node())
==> r[0].x == 1 and type(r[0]) is Box and r[1:4] == (int, (int,), 'Json') and type(r[4]) is Node
""",
    }


def namespace(source: str) -> dict[str, Any]:
    """Run a cell as a notebook does."""
    filename = f"<cell {hash(source)}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    found: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, filename, "exec", dont_inherit=True), found)
    return found


@pytest.mark.parametrize("case", CASES)
def test_a_class_and_its_instances_travel_both_ways(case, shared_queue):
    # Given a class that a cell defines, and a task that makes instances of it
    cell, body, expected = re.split(">>> |==> ", CASES[case])
    found = namespace(f"{cell}\ndef task(): return {body}\ndef same(x): return x")
    # When the task has run, and its result was the argument of another one
    first = shared_queue.submit(found["task"]).result(20)
    again = shared_queue.submit(found["same"], first).result(20)
    # Then both are as if the calls had been made here
    for r in (first, again):
        assert eval(expected.strip(), found | {"r": r}), r


# Stored results have the classes of the session that reads them

SESSION = """
import enum, sys
from dataclasses import dataclass, field
from functools import cached_property, singledispatch
from typing import Callable, Generic, NamedTuple, NewType, ParamSpec, TypeVar
import shapes
from nbstreamq import TaskQueue

T = TypeVar("T")
Args = ParamSpec("Args")
UserId = NewType("UserId", int)

@singledispatch
def size(x): return 1

@size.register
def _(x: list): return sum(map(size, x))

@dataclass
class P:
    x: int
    y: list = field(default_factory=list)
    def double(self): return helper(self.x)
    @cached_property
    def big(self): return 10 * self.x

@dataclass(slots=True)
class S:
    x: int = {default}

class Col(enum.Enum):
    R = {code}, "rgb"
    G = 2, "rgb"
    def __init__(self, code, kind): self.code = code

class Perm(enum.Flag):
    R = 1
    W = 2

class Outer:
    class Inner(NamedTuple):
        a: int = 0

class Box(Generic[T]):
    def __init__(self, x: T): self.x = x

class Sub(Box[int]): pass

class Bad(Exception):
    def __init__(self, code, why, more): self.code = code

def helper(x): return 2 * x

def work(i):
    if UserId(i) == 0:
        raise Bad(size([1, [2, 3]]), "no", Callable[Args, T])
    return [P(i), S(), Col.R, Perm.R | Perm.W, Outer.Inner(i), Box(i), Sub(i), shapes.Square(i),
            shapes.Kind.FLAT]

def seen(row):
    return [row[0] == P(1), row[1] == S(), row[2] is Col.R, row[3] is Perm.R | Perm.W,
            row[4] == Outer.Inner(1) and type(row[4]) is Outer.Inner, type(row[5]) is Box,
            isinstance(row[6], Box) and type(row[6]) is Sub, row[7] == shapes.Square(1),
            row[8] is shapes.Kind.FLAT]

q = TaskQueue(sys.argv[1], sys.argv[2], workers=1)
{rest}
q.shutdown()
"""
SHAPES = """
import enum, dataclasses
@dataclasses.dataclass
class Square:
    side: int
class Kind(enum.IntEnum):
    FLAT = 1
"""
FIRST = """
job = q.map(work, [0, 1], name="kept")
print(seen(job[1].result()))
kept = q.options(cache=True).submit(work, 1)
print(seen(kept.result()))
"""
LATER = """
job = q.attach("kept")
print(seen(job[1].result()))
try: job[0].result()
except Bad as e: print(e.code)
"""
CACHED = "print(seen(q.options(cache=True).submit(work, 1).result()))"


@pytest.fixture
def session(run_script, tmp_path, queue_name, server_url):
    """``session(rest)`` runs a script that defines the classes, in a new process each time."""
    (tmp_path / "shapes.py").write_text(SHAPES)

    def run(rest: str, default: int = 1, code: int = 1, source: str = SESSION) -> list[str]:
        source = source.format(rest=rest, default=default, code=code)
        return run_script(source, queue_name, server_url).splitlines()

    return run


def test_results_of_an_earlier_session_have_the_classes_of_this_one(session):
    # Given results that are kept
    assert session(FIRST) == [str([True] * 9)] * 2
    # When they are read by another process that defines the same classes
    # Then they are of its classes, and its `except` catches its errors
    assert session(LATER) == [str([True] * 9), "3"]
    assert session(CACHED) == [str([True] * 9)]


def test_a_module_that_is_imported_only_later_has_the_class_already(session):
    session(FIRST)
    # Given a session that reads results before it imports the module of their classes
    rest = "row = q.attach('kept')[1].result()\nimport shapes\n"
    rest += "print(row[7] == shapes.Square(1), row[8] is shapes.Kind.FLAT)"
    source = SESSION.replace("import shapes\n", "")
    assert session(rest, source=source) == ["True True"]


def test_what_fails_again_raises_the_error_of_this_session(session):
    session(FIRST)
    again = "q.run(1)\njob = q.attach('kept').retry_failed()\n"
    again += "try: job[0].result()\nexcept Bad as e: print('again', e.code)"
    assert session(again) == ["again 3"]


def test_another_definition_is_another_class(session):
    session(FIRST)
    # When the default of a slot, or an attribute of a member, has changed
    changed = session("print(seen(q.attach('kept')[1].result()))", default=2, code=5)
    # Then only these classes are others
    expected = [True] * 9
    expected[1] = expected[2] = False
    assert changed == [str(expected)]


def test_a_change_of_a_class_is_a_change_of_its_job(session):
    session(FIRST)
    same = "import nbstreamq\ntry: q.map(work, [0, 1], name='kept'); print('same')\n"
    same += "except nbstreamq.JobChanged: print('changed')"
    assert session(same) == ["same"]
    assert session(same, default=2) == ["changed"]
    assert session(same, code=5) == ["changed"]


def test_a_cell_that_is_run_again_defines_the_class_of_later_results(
    shared_queue, gate, monkeypatch
):
    # Given a job that returns instances of a cell's class
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    cell = (
        "from dataclasses import dataclass\n@dataclass\nclass P: x: int\ndef make(x): return P(x)"
    )
    exec(cell, vars(main))
    old, hold = main.P, gate.hold
    make = main.make
    future = shared_queue.submit(lambda: (hold(), make(1))[1])
    # When the cell is run again in the meantime
    exec(cell, vars(main))
    gate.open()
    # Then the result is of the class that has the name now
    result = future.result(20)
    assert main.P is not old
    assert result == main.P(1)
    # And one of another definition stays apart
    future = shared_queue.submit(main.make, 2)
    exec(cell.replace("x: int", "x: float"), vars(main))
    assert type(future.result(20)) is not main.P
