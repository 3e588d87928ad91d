"""Compiles every kernel ahead of time for four targets and checks the machine code; it needs triton and no GPU.

    python -m bench.codegen                                     the table; exit status 1 where a rule is broken
    python -m bench.codegen --kernel norm --target sm_90        part of it; --variant NAME picks one
    python -m bench.codegen --write bench/results/codegen.md    also into a file
    python -m bench.codegen --json                              the same as JSON

`cases` collects what the kernel files declare, `compiling` compiles it, `sass` and `gcn` read the machine code into an
`assembly.Program`, `ttir` reads what the kernel asks for, `rules` compares the two, `table` prints.
"""
