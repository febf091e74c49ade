"""Read rows from files and Hub data sets, in the forms in which the field publishes them."""
