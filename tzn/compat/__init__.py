"""Other programs' functions and files under their own names, computed by this package."""
