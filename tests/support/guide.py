"""The operations guide and the commands in it."""

import re
import sys
from pathlib import Path

from tests.support.paths import ROOT

TEXT = (ROOT / "docs" / "OPERATIONS.md").read_text()
BIN = Path(sys.executable).parent
BLOCKS = re.findall(r"^```sh( run[ \w]*)?\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
