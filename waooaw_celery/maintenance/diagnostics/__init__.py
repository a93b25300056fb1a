"""The checks of `waooaw doctor`: one module for each topic. ``examination.py`` runs them."""
