"""An nbgrader course made of the labs: one assignment a lab, its source the worked notebook."""
from __future__ import annotations

import shutil
from pathlib import Path

from labkernels.classroom.book import find_labs
from labkernels.classroom.source import BookError

CONFIG = """\
c = get_config()    # noqa: F821, nbgrader defines it

c.CourseDirectory.course_id = {course_id!r}

from labkernels.classroom.nbgrader_config import configure

configure(c)
"""


def make_course(folder: Path, root: Path, chosen: list[str] | None = None) -> list[str]:
    """Fill `folder` with nbgrader_config.py and source/<lab>/<lab>.ipynb for the chosen labs of the book at `root`.

    Returns the assignments' names. Raises BookError if `folder` holds something already, or a lab was not made yet.
    """
    if folder.exists() and any(folder.iterdir()):
        raise BookError(f"{folder} is not empty")
    labs = find_labs(root, chosen)
    for lab in labs:
        if not lab.worked.is_file():
            raise BookError(f"{lab.worked} is missing; `labkernels book` makes it")
    for lab in labs:
        assignment = folder / "source" / lab.name
        assignment.mkdir(parents=True)
        shutil.copy(lab.worked, assignment)
    (folder / "nbgrader_config.py").write_text(CONFIG.format(course_id=folder.resolve().name))
    return [lab.name for lab in labs]
