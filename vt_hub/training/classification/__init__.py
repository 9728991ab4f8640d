"""Classifiers, trained by timm's train script."""
