"""Models from names, folders, files and the Hub, and facts about them."""
