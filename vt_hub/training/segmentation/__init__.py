"""VT-FPN and the panoptic FPN."""
