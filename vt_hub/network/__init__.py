"""The networks and what they need, in flat files: copies of them are the remote code of a model folder."""

import timm  # noqa: F401  registers the models before any of these files asks for another; see registration.py
