"""A small closed world: what the embedded recipe `tiny` talks about, who answers there, and who marks it."""
