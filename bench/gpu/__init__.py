"""Everything that takes a card: the value tests natively, checks that only a card can make, and the benches.

    python -m bench.gpu                  tests, checks and benches, within 8 minutes; writes bench/results/
    python -m bench.gpu --dry            the same code on CPU tensors of tiny sizes, with a clock that means nothing

Exit status 0 where everything passed and ran, 1 where something did not, 2 without a card or with a package missing.
Run from the root of the checkout; nothing is installed and nothing is fetched.

`cells` says what is timed, `building` and `torch_ways` how, on what `device` and `gradients` offer, against `truth`.
`worker` times one cell after another in a process of its own, `supervising` gives every process its time and starts
the worker again where a cell has ended it. `native_large` and `native_probe` are tests that `testing` runs with the
others, `recording` notes how each ends. `report` and `table` make of it a JSON file and a page.
"""
