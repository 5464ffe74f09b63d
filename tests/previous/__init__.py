"""The release before this one, as it was: what this one must run beside, and migrate from."""

import tarfile
from pathlib import Path

_ARCHIVE = Path(__file__).parent / "tollgate.tar.xz"


def unpacked(folder: Path) -> Path:
    """Put its packages into `folder`; the tree to run it from."""
    with tarfile.open(_ARCHIVE) as archive:
        archive.extractall(folder)  # noqa: S202 - packed by us
    return folder


def schema() -> list[str]:
    """The migrations it has, in order."""
    with tarfile.open(_ARCHIVE) as archive:
        names = sorted(n for n in archive.getnames() if n.startswith("ledger/migrations/"))
        files = [archive.extractfile(name) for name in names if name.endswith(".sql")]
        return [file.read().decode() for file in files if file is not None]
