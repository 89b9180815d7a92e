"""Which modules a worker can't import: those beside the notebook, which are not installed."""

from __future__ import annotations

import os
import sys
import sysconfig
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from importlib.metadata import Distribution


#: Every worker has these; cloudpickle takes care of `__main__`.
_NEVER_LOCAL = frozenset({"__main__", "__mp_main__", "nbstreamq"})
#: Where a project keeps its packages, relative to the folder that was installed as editable.
_SOURCE_FOLDERS = ("", "src", "lib", "python")


def is_local(module: ModuleType) -> bool:
    """Tell whether `module` must be pickled by value, because a worker may not have it."""
    file = file_of(module)
    name = getattr(module, "__name__", None)
    return bool(file) and isinstance(name, str) and _is_local(name.partition(".")[0], file)


def is_edited(module: ModuleType) -> bool:
    """Tell whether people edit the file of `module`: it is local, or installed as editable."""
    file = file_of(module)
    name = getattr(module, "__name__", None)
    if not file.endswith(".py") or not isinstance(name, str):
        return False
    return _are_edited(name.partition(".")[0], os.path.dirname(file))  # noqa: PTH120


def file_of(module: ModuleType) -> str:
    """Return the file of a module; for a namespace package one that does not exist; or empty."""
    file = getattr(module, "__file__", None)
    if isinstance(file, str):
        return file
    try:
        folders = list(getattr(module, "__path__", ()))
    except (TypeError, KeyError):  # a namespace package whose parent is gone
        return ""
    return os.path.join(folders[0], "__init__.py") if folders else ""  # noqa: PTH118


@lru_cache(4096)
def _is_local(top: str, file: str) -> bool:
    # A compiled extension can't be pickled by value, so it is sent by name.
    if top in _NEVER_LOCAL or not file.endswith((".py", ".pyc")):
        return False
    path = os.path.realpath(file)
    return not _is_installed(file) and not _owner(top, _folder_of_top(top, path))


@lru_cache(4096)
def _are_edited(top: str, folder: str) -> bool:
    """Tell whether people edit the modules of the top-level package `top` that are in `folder`."""
    if top in _NEVER_LOCAL or _is_installed(folder):
        return False
    path = os.path.join(os.path.realpath(folder), "")  # noqa: PTH118
    return _owner(top, _folder_of_top(top, path)) != "installed"


@lru_cache(4096)  # most distributions are in the same folder
def _is_installed(path: str) -> bool:
    return any(p.startswith(folder) for p in _spellings(path) for folder in _installed_folders())


def _spellings(path: str) -> list[str]:
    """Return a path as it is, and without links: either may be the one that was installed."""
    return [os.path.join(p, "") for p in (os.path.abspath(path), os.path.realpath(path))]  # noqa: PTH100, PTH118


@lru_cache(1)
def _installed_folders() -> tuple[str, ...]:
    import site

    paths = [sysconfig.get_path(n) for n in ("stdlib", "platstdlib", "purelib", "platlib")]
    paths += [sys.prefix, sys.base_prefix, site.getusersitepackages()]
    paths += getattr(site, "getsitepackages", list)()
    return tuple({spelling for p in paths if p for spelling in _spellings(p)})


def _folder_of_top(top: str, path: str) -> str:
    """Return the folder of the top-level package `top`; empty for a module that is a file."""
    return next((str(folder) for folder in Path(path).parents if folder.name == top), "")


@lru_cache(1024)
def _owner(top: str, folder: str) -> Literal["", "editable", "installed"]:
    """Return how `top` belongs to a distribution: as editable, or in a folder of `sys.path`.

    The packages of other distributions are in the folders that `_is_local` knows. They are skipped:
    `importlib.metadata.packages_distributions` reads the files of all, which takes half a second.
    """
    from importlib import metadata

    for distribution in metadata.distributions():
        root = _editable_root(distribution.read_text("direct_url.json"))
        if not root and _is_installed(str(distribution.locate_file(""))):
            continue
        if (root and _is_source_of(root, folder)) or top.lower() in _tops(distribution):
            return "editable" if root else "installed"
    return ""


def _is_source_of(root: str, folder: str) -> bool:
    """Return whether a package in `folder` is one of the project in `root`."""
    sources = {os.path.join(root, f).rstrip(os.sep) for f in _SOURCE_FOLDERS}  # noqa: PTH118
    return bool(folder) and os.path.dirname(folder) in sources  # noqa: PTH120


def _tops(distribution: Distribution) -> set[str]:
    """Return the top-level packages of a distribution, as far as it says, in lower case."""
    tops = (distribution.read_text("top_level.txt") or "").split()
    tops = tops or [f.parts[0].removesuffix(".py") for f in distribution.files or ()]
    return {top.lower() for top in (*tops, (distribution.metadata["Name"] or "").replace("-", "_"))}


def _editable_root(direct_url: str | None) -> str:
    import json
    from urllib.parse import unquote, urlparse

    if not direct_url:
        return ""
    try:
        found = json.loads(direct_url)
        editable = found.get("dir_info", {}).get("editable", False)
        url = urlparse(found["url"])
    except (ValueError, KeyError, AttributeError):
        return ""
    return os.path.realpath(unquote(url.path)) if editable and url.scheme == "file" else ""
