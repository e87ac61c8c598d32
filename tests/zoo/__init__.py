"""Small networks whose gauge dimension is known: the catalogue's blocks, and tiny models of real families."""
