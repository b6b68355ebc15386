"""The kit and the trainings lie beside the tests, and are read by the documentation too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
