"""Images made by formula, with labels that are exact."""
