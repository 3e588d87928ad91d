"""Reproductions: one script a figure, each readable as a method section; they use fastgeom's public API only."""
