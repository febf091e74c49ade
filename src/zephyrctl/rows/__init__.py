"""Reading rows: files, Hub data sets, and the forms in which the field publishes them."""
