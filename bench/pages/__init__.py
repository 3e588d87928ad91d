"""Results of the benches: one document of a run, the page of the kept ones, their picture."""
