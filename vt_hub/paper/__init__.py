"""The paper's tables, recomputed, and a benchmark."""
