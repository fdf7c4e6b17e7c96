"""python -m tests.model: the tables of docs/reliability.md.
python -m tests.model WORDS: the histories of the variants whose rule contains these words."""

from __future__ import annotations

import sys

from tests.model.explorer import explore
from tests.model.report import history, tables
from tests.model.scenarios import WRONG

words = " ".join(sys.argv[1:])
if words:
    for variant in WRONG:
        if words in variant.name:
            print(f"Without the rule: {variant.name}")
            print(history(explore(variant.system()).violation), end="\n\n")
else:
    for line in tables():
        print(line, flush=True)
