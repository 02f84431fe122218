"""How a `Problem` moves: one file a kind of flow."""
