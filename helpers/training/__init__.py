"""How the bundled model is made and measured; used by no notebook."""
