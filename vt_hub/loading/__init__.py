"""Models from names, folders, files and the Hub; what there is to say of them."""
