"""The networks and their helpers. The files are flat because a model folder holds copies of them as remote code."""

import timm  # noqa: F401  registers the models before any of these files is imported; see registration.py
