"""`python -m dfkd_fast` is `dfkd-fast`."""

import sys

from dfkd_fast.cli.main import main

sys.exit(main())
