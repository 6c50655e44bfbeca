"""Teachers that ship with the package."""
