"""Writing files for the user that must not overwrite any."""

from __future__ import annotations

from pathlib import Path


def write_new(path: Path, content: str | bytes) -> None:
    """Write a file that is not there yet; folders are made.

    Raises:
        RunError: it is there already (X817), or cannot be written (X819).
    """
    from castiron.diagnostics import Place, RunError, finding

    place = Place(file=str(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
    except FileExistsError:
        message = "There is such a file already; nothing is overwritten."
        raise RunError(finding("X824", message, place=place)) from None
    except OSError as e:
        message = f"The file cannot be written: {e.strerror or e}."
        raise RunError(finding("X819", message, place=place, remedy="Choose another folder.")) from None
