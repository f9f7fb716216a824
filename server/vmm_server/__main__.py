"""`python -m vmm_server` is `vmm`."""

import sys

from vmm_server.cli import main

if __name__ == "__main__":
    sys.exit(main())
