"""Results of the benches: one document of a run, the page of the stored ones, their picture."""
