"""Tables of videos, as WebVid and the original AnimateDiff's trainer have them: a CSV with videoid, name (the caption) and
page_dir, and <videoid>.mp4 in a folder. No host import."""

from __future__ import annotations

import csv
from pathlib import Path

from .video import DatasetError

NEEDED = ("videoid", "name")


def read_listing(table: Path, folder: Path) -> list[tuple[Path, str]]:
    """Each listed video's file with its caption: folder/page_dir/<videoid>.mp4 where it is there, as WebVid is downloaded,
    else folder/<videoid>.mp4. Raises DatasetError for what is no such table."""
    if not folder.is_dir():
        raise DatasetError(f"videos: expected the folder of the videos that {table.name} lists, found no {folder}.")
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            columns = rows.fieldnames or []
            if missing := [name for name in NEEDED if name not in columns]:
                raise DatasetError(
                    f"{table.name}: expected a table with the columns videoid, name and page_dir, found {', '.join(columns) or 'none'}; "
                    f"{' and '.join(missing)} lack."
                )
            return [(_file(folder, row), (row["name"] or "").strip()) for row in rows if row["videoid"]]
    except OSError as error:
        raise DatasetError(f"{table}: expected a table (CSV) of videos, found none: {error.strerror}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise DatasetError(f"{table.name}: expected a table (CSV) in UTF-8, found something else: {error}") from None


def _file(folder: Path, row: dict[str, str]) -> Path:
    name = f"{row['videoid']}.mp4"
    page = folder / (row.get("page_dir") or "") / name
    return page if page.exists() else folder / name
