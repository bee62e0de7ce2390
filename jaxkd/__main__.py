"""`python -m jaxkd`: the command line."""

import sys

from jaxkd.cli import main

sys.exit(main())
