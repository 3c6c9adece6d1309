"""Where built things are kept, and elaborated engines among them.

Amaranth takes 8 s for a small engine and more than a minute for a large one, in each process anew. What it gives depends
on the configuration, the target, Amaranth and the sources of gateware and facts alone, so it is kept under a hash of these.
"""

import contextlib
import gzip
import hashlib
import importlib.metadata
import json
import os
import tempfile
import zlib
from functools import lru_cache
from pathlib import Path

import esbflow
from esbflow.engine_config import EngineConfig

HERE = Path(__file__).parent


def cache_folder() -> Path:
    """$ESBFLOW_CACHE, or build/cache of the checkout this package lies in (else of the current folder)."""
    if os.environ.get("ESBFLOW_CACHE"):
        return Path(os.environ["ESBFLOW_CACHE"])
    checkout = HERE.parents[1]
    return (checkout if (checkout / "pyproject.toml").exists() else Path.cwd()) / "build" / "cache"


def elaborated(kind: str, config: EngineConfig, target: str, make) -> str:
    """The text make() of an engine, from the cache if it is there. A cache that cannot be read or written does no harm."""
    parts = [kind, target, json.dumps(config.to_dict(), sort_keys=True), importlib.metadata.version("amaranth"),
             sources_hash()]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
    path = cache_folder() / "elaborated" / f"{config.module_name}-{key}.gz"
    with contextlib.suppress(OSError, EOFError, ValueError, zlib.error):  # not there, or damaged: gzip checks a sum
        if text := gzip.decompress(path.read_bytes()).decode():
            return text
    text = make()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:  # several processes may write at a time
            file.write(gzip.compress(text.encode(), 1))
        os.replace(file.name, path)
    return text


def sources() -> list:
    """Files that an elaboration may depend on: all gateware, and the facts that lie side by side in esbflow."""
    return sorted([*HERE.rglob("*.py"), *Path(esbflow.__file__).parent.glob("*.py")])


@lru_cache
def sources_hash() -> str:
    """SHA-256, in hexadecimal digits, of all sources that generate gateware."""
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in sources())).hexdigest()
