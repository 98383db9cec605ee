"""One HTML file that shows a graph before and after, its tables and what was measured."""
