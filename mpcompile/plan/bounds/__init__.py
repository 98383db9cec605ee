"""How large numbers can be, known without data: intervals, and the errors of 16 bits on the way.

In: `Step` rows of a graph, which a describer makes. Out: a `Bound` for each tensor. A newcomer may
add a row to `table.TABLE`; the property in ``tests/plan/test_bounds.py`` tries it.
"""
