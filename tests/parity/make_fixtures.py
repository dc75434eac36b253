"""Write the frozen references. Needs the [parity] extra; to be run from `tests`:

    python -m parity.make_fixtures [family ...]
"""

import shutil
import sys

from parity.case import FIXTURES, cases, families
from parity.reference import write_reference


def main(names: list[str]) -> None:
    for family in names or families():
        shutil.rmtree(FIXTURES / family, ignore_errors=True)
        for name, case in cases(family).items():
            folder = FIXTURES / family / name
            write_reference(case, folder)
            print(f"{family}/{name}: {sum(file.stat().st_size for file in folder.iterdir()) / 1024:.0f} KiB")


if __name__ == "__main__":
    main(sys.argv[1:])
