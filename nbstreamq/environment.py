"""What a Python has installed, so that a client can compare itself with workers elsewhere."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

#: What a folder of ``sys.path`` holds of each distribution: ``<name>-<version>.dist-info``.
_INSTALLED = re.compile(r"(?P<name>[^-]+)-(?P<version>[^-]+)\.dist-info")
#: Most distributions or modules that a record may have: longer ones are refused.
_MOST = 20_000


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What can be imported in a Python, beside its standard library.

    Attributes
    ----------
    python
        Its version, such as ``3.11.7``.
    packages
        Version of each installed distribution, by its normalised name.
    modules
        The top-level modules and packages in the folders of its ``sys.path``.
    """

    python: str
    packages: dict[str, str]
    modules: frozenset[str]

    @classmethod
    def here(cls) -> Environment:
        """Return the environment of this process now; quick if nothing was installed since."""
        return _environment(_marks())

    def encode(self) -> bytes:
        """Return it as JSON, always the same for the same content."""
        known = [self.python, dict(sorted(self.packages.items())), sorted(self.modules)]
        return json.dumps(known, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, data: bytes) -> Environment:
        """Return what `encode` wrote; ValueError if it is malformed, or can't be shown."""
        python, packages, modules = json.loads(data)
        texts = [python, *packages, *packages.values(), *modules]
        if len(texts) > _MOST or not all(isinstance(t, str) and t.isprintable() for t in texts):
            raise ValueError("not an environment")
        return cls(python=python, packages=packages, modules=frozenset(modules))

    @functools.cached_property
    def digest(self) -> str:
        """What two equal environments have in common."""
        return hashlib.blake2b(self.encode(), digest_size=8).hexdigest()

    def has(self, module: str, package: str) -> bool:
        """Return whether a module can be imported that `package` provides elsewhere.

        Another distribution may provide it here, and a finder of an editable install hides it.
        """
        return module in self.modules or package in self.packages


def package_of(module: str) -> str:
    """Return the distribution that a top-level module is from; empty if from none."""
    name = normalised(module)
    if name in Environment.here().packages:
        return name
    return _packages_by_module(_marks()).get(module, "")


def normalised(name: str) -> str:
    """Return the name of a distribution as indexes of packages compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _marks() -> tuple[tuple[str, int], ...]:
    """Return the folders in which packages are installed, and when each was last changed.

    Without the working folder, since what is beside a notebook travels with its functions; and
    without those of the standard library.
    """
    left_out = {"", *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib"))}
    with suppress(FileNotFoundError):  # it was deleted
        left_out.add(os.getcwd())  # noqa: PTH109 - compared with text
    found = []
    for folder in dict.fromkeys(path for path in sys.path if isinstance(path, str)):
        if folder not in left_out and not folder.endswith("lib-dynload"):
            with suppress(OSError):  # it is not there
                found.append((folder, os.stat(folder).st_mtime_ns))  # noqa: PTH116 - quicker
    return tuple(found)


@functools.lru_cache(1)
def _environment(marks: tuple[tuple[str, int], ...]) -> Environment:
    packages, modules = dict[str, str](), set[str]()
    for folder, _ in marks:
        for name in _names_in(folder):
            if found := _INSTALLED.fullmatch(name):
                packages.setdefault(normalised(found["name"]), found["version"])
            elif name.endswith(".egg-info"):
                for package, version in _from_metadata(Path(folder, name)):
                    packages.setdefault(package, version)
            elif (module := name.partition(".")[0]).isidentifier() and (
                name == module or name.endswith((".py", ".so"))
            ):
                modules.add(module)
    return Environment(
        python=".".join(map(str, sys.version_info[:3])),
        packages=packages,
        modules=frozenset(modules - {"__pycache__"}),
    )


def _names_in(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - only the names are needed
    except OSError:  # a zip file, or one that others may not read
        return []


def _from_metadata(path: Path) -> Iterator[tuple[str, str]]:
    """Yield name and version of a distribution whose folder does not say them."""
    known = importlib.metadata.Distribution.at(path).metadata
    if known and known["Name"] and known["Version"]:
        yield normalised(known["Name"]), known["Version"]


@functools.lru_cache(1)
def _packages_by_module(_marks: tuple[tuple[str, int], ...]) -> dict[str, str]:
    """Return module -> distribution; it reads a file of each, which takes half a second."""
    known: Iterable[tuple[str, list[str]]] = importlib.metadata.packages_distributions().items()
    return {module: normalised(names[0]) for module, names in known}
