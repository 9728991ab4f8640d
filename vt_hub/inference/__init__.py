"""Run models on images, one or millions: classes, masks and tokens."""
