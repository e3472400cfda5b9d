"""`python -m reconciler.scaffold [--check]`: keep our own repo's examples equal to the templates."""

import sys

from reconciler.scaffold import main

sys.exit(main(sys.argv[1:]))
