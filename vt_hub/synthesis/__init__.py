"""Generated images with exact labels."""
