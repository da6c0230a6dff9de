"""Fetch the pinned browser libraries from npm: python -m tools.vendor_web [--check]

Those of the pages go into web/static/vendor, those of the browser tests into testing/e2e/vendor.
--check compares what is there with the checksums.json of both and fetches nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
import tarfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from toolkit.paths import ROOT
from toolkit.runs import atomic

VENDOR = ROOT / "web" / "static" / "vendor"
TEST_VENDOR = ROOT / "testing" / "e2e" / "vendor"
REGISTRY = "https://registry.npmjs.org"
Packages = Sequence[tuple[str, str, str, Sequence[str]]]  # package, version, folder, what is taken from it
PACKAGES: Packages = (
    ("htmx.org", "4.0.1", "htmx-4.0.1", ("LICENSE", "dist/htmx.min.js", "dist/ext/hx-sse.min.js")),
    ("uplot", "1.6.32", "uplot-1.6.32", ("LICENSE", "dist/uPlot.iife.min.js", "dist/uPlot.min.css")),
)
TEST_PACKAGES: Packages = (("axe-core", "4.11.0", "axe-core-4.11.0", ("LICENSE", "axe.min.js")),)


def digest(data: bytes) -> str:
    """The sha256 of some bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def problems(vendor: Path = VENDOR) -> list[str]:
    """What differs from the list of checksums: files that are missing, changed or not in it."""
    listed = json.loads((vendor / "checksums.json").read_text(encoding="utf-8"))
    there = {
        path.relative_to(vendor).as_posix(): digest(path.read_bytes())
        for path in sorted(vendor.rglob("*"))
        if path.is_file() and path.name != "checksums.json"
    }
    found = [f"{name} is missing" for name in sorted(set(listed) - set(there))]
    found += [f"{name} is not in checksums.json" for name in sorted(set(there) - set(listed))]
    return found + [
        f"{name} has changed" for name in sorted(there) if listed.get(name, there[name]) != there[name]
    ]


def fetch(vendor: Path = VENDOR, packages: Packages = PACKAGES) -> None:
    """Fetch every package and write its files and the list of checksums."""
    sums = {}
    for package, version, folder, files in packages:
        address = f"{REGISTRY}/{package}/-/{package}-{version}.tgz"
        with urllib.request.urlopen(address, timeout=60) as answer:
            content = io.BytesIO(answer.read())
        (vendor / folder).mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=content) as archive:
            for name in files:
                member = archive.extractfile(f"package/{name}")
                if member is None:
                    raise ValueError(f"{package} {version} has no file {name}")
                data = member.read()
                target = f"{folder}/{Path(name).name}"
                atomic.write_bytes(vendor / target, data)
                sums[target] = digest(data)
    atomic.write_json(vendor / "checksums.json", sums)


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch, or check; 1 if something differs."""
    parser = argparse.ArgumentParser(prog="python -m tools.vendor_web", description=__doc__)
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args(argv).check:
        fetch()
        fetch(TEST_VENDOR, TEST_PACKAGES)
    found = [*problems(), *problems(TEST_VENDOR)]
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
