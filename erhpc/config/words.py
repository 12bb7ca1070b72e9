"""Values that mean the same wherever a configuration uses them."""

from __future__ import annotations

DEMO_CORPUS = "demo"
"""The value of a corpus or prompts field that means the prompts erhpc ships."""
AUTO_MODEL = "auto"
"""The model name that lets the router choose; no expert may bear it."""
