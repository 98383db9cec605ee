"""The rewrites, one a file; `order` says in which order they run on a program of torch."""
