"""Faults that the tests must find.

    python -m tests.mutation              every mutant; exit status 1 where one survives
    python -m tests.mutation window       those whose name holds a word

A mutant is one change of one source file, and the tests of which at least one must turn red. `mutants` lists them; the
command works on copies of the checkout, where it first asserts that all these tests are green.
"""
