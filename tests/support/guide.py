"""Reads the operations guide and its commands."""

import re
import sys
from pathlib import Path
from typing import Final

from tests.support.paths import ROOT

GUIDE: Final = (ROOT / "docs" / "OPERATIONS.md").read_text()
BIN: Final = Path(sys.executable).parent
BLOCKS: Final = re.findall(r"^```sh( run[ \w]*)?\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
