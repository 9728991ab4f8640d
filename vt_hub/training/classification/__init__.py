"""Train classifiers with timm's train script."""
