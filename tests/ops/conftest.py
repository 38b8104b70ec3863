"""Makes the module beside the tests importable: ops_kernel_cases."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
