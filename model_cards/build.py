"""Write the README.md, config.json and SHA256SUMS of the embedded folders from model_cards/: python model_cards/build.py."""
