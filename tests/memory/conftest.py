"""Makes the modules beside the tests importable: memory_backbones and memory_reference."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
