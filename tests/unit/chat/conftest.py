"""Makes the modules beside it importable: `chat_world` and `chat_conversations`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
