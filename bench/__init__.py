"""Programs that measure: each answers one question, and one page lists them all.

`docs/benchmarks.md` says which command answers which question. Every program runs from the root of
the repository as ``python -m bench.FOLDER.NAME``; ``--help`` shows its options. Modules beside this
one are shared by all folders: facts of the machine, processes that may crash, a browser.
"""
