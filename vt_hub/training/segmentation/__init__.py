"""Train and evaluate VT-FPN and the panoptic FPN."""
